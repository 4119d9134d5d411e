"""Writes measured figures: one section of ``RESULTS.md`` per benchmark, with its command."""

import datetime as dt
import os
import pathlib
import platform
import re

RESULTS = pathlib.Path(__file__).with_name("RESULTS.md")
_HEAD = (
    "# Measured figures\n\nEach section names the command that wrote it. Machines differ: "
    "compare ratios within a section, not absolute times between sections.\n"
)


def machine() -> str:
    """Describes the machine on which the figures were measured."""
    return f"{os.cpu_count()} cores, Python {platform.python_version()}"


def write_section(title: str, command: str, lines: list[str], *, show: bool = True) -> None:
    """Replaces the section of the same title, or appends a new one, and prints it."""
    text = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else _HEAD
    day = dt.datetime.now(dt.timezone.utc).date().isoformat()
    section = f"## {title}\n\n`{command}` · {day}\n\n" + "\n".join(lines) + "\n"
    if show:
        print(section)
    pattern = re.compile(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)
    if pattern.search(text):
        text = pattern.sub(lambda _: section + "\n", text)
    else:
        text = text.rstrip("\n") + "\n\n" + section
    RESULTS.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
