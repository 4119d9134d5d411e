"""Where figures go: one section of ``RESULTS.md`` per benchmark, with the command that made it."""

import datetime as dt
import os
import pathlib
import platform
import re

RESULTS = pathlib.Path(__file__).with_name("RESULTS.md")
_HEAD = (
    "# Measured figures\n\nEach section is written by the command that it names. Machines differ: "
    "compare ratios within a section, not absolute times between sections.\n"
)


def machine() -> str:
    """The machine of the figures, in words."""
    return f"{os.cpu_count()} cores, Python {platform.python_version()}"


def write_section(title: str, command: str, lines: list[str], *, show: bool = True) -> None:
    """Puts a section in the place of the earlier one of the same title, and prints it."""
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
