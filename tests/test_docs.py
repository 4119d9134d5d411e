"""The documentation is true: its commands and Python blocks run, and its links resolve.

A comment on the line before a fence marks it:

* ``<!-- needs: … -->``: a command that cannot run everywhere; its flags are parsed and checked.
* ``<!-- file: NAME -->``: a file that the page's commands read, not a command.

These tests do not prove that commands marked ``needs`` do what the page says.
"""

import dataclasses
import itertools
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from benchmarks.simulator.__main__ import parse
from benchmarks.simulator.settings import Settings
from docs import generate
from pipeline.config import RunConfig
from pipeline.options.command_line import parse_flags
from tests.emulators.model_fixtures import SimulatedModelServer
from tests.end_to_end.runs import run
from transforms.records.errors import RECORD_ERRORS, ConfigurationError

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
COMMANDS = [README, *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [*COMMANDS, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "examples/README.md"]
SERVER = "http://127.0.0.1:8000/v1"
"""The address that the pages use; the simulated model server takes its place."""

_FENCE = re.compile(
    r"(?:^<!-- (?P<mark>\w+): (?P<value>[^\n]*?) -->\n)?"
    r"^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z_]*\b(?!-)")
_SIMULATORS = {field.name for field in dataclasses.fields(Settings)} | {
    *("outage", "port", "ready_file", "log")
}
_SCRIPTS = "".join(path.read_text("utf-8") for path in (ROOT / "templates").glob("*.sh"))
_NOT_OURS = {"--name", "--check", "--lines", *_FLAG.findall(_SCRIPTS)}
_NOT_OURS |= {f"--{name}" for name in _SIMULATORS} | {"--location", "--member", "--role"}
_NOT_OURS |= {"--default_kms_key", "--default_table_expiration", "--encryption_service_account"}
_NOT_OURS |= {"--keyring", "--purpose", "--recursive", "--router", "--service"}
"""A placeholder, and flags of ``docs/generate.py``, simulated model servers, scripts and Google."""


@dataclasses.dataclass(frozen=True)
class Fence:
    """One fenced block of a page."""

    language: str
    text: str
    mark: str | None
    value: str | None


def fences(page: Path) -> list[Fence]:
    """The fenced blocks of a page, in order."""
    return [
        Fence(found["language"], found["text"], found["mark"], found["value"])
        for found in _FENCE.finditer(page.read_text(encoding="utf-8"))
    ]


def commands(fence: Fence, module: str = "pipeline") -> list[list[str]]:
    """The arguments of each ``python -m pipeline``, or of another module, in a block."""
    lines = fence.text.replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines if f" -m {module}" in line]
    return [
        line[3:]
        for line in words
        if line[:1] in (["python"], [".venv/bin/python"]) and line[1:3] == ["-m", module]
    ]


def named(page: Path) -> str:
    """A page's path, as a test id."""
    return str(page.relative_to(ROOT))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with the examples and an invented project in it."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "made-up-project")
    monkeypatch.setenv("GOOGLE_CLOUD_LOCATION", "us-central1")
    return tmp_path


@pytest.mark.parametrize("page", COMMANDS, ids=named)
def test_every_command_of_a_page_runs(
    page: Path, folder: Path, model_server: SimulatedModelServer
) -> None:
    """The commands of a page run in order in one folder; those marked ``needs`` are only parsed."""
    for fence in fences(page):
        if fence.mark == "file":
            (folder / str(fence.value)).write_text(fence.text, encoding="utf-8")
        elif fence.language == "bash":
            found = commands(fence)
            assert found, f"a bash block without a command, write sh: {fence.text}"
            for arguments in found:
                local = [word.replace(SERVER, model_server.openai_url) for word in arguments]
                if fence.mark == "needs":
                    RunConfig.from_options(parse_flags(local))
                else:
                    assert run(*local) == 0, arguments


def test_every_simulator_of_a_page_could_start() -> None:
    """The flags and values of every documented simulator command can be parsed."""
    found = [
        arguments
        for page in COMMANDS
        for fence in fences(page)
        if fence.language in ("bash", "sh")
        for arguments in commands(fence, "benchmarks.simulator")
    ]
    assert len(found) > 5
    for arguments in found:
        parse(arguments)


@pytest.mark.parametrize("page", COMMANDS, ids=named)
def test_every_python_block_of_a_page_runs(
    page: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every Python block runs and prints, in any order, the lines of the block after it."""
    monkeypatch.setattr(sys, "argv", ["example.py"])
    blocks = fences(page)
    for block, behind in itertools.zip_longest(blocks, blocks[1:]):
        if block.language != "python":
            continue
        path = folder / "example.py"
        path.write_text(block.text, encoding="utf-8")
        runpy.run_path(str(path), run_name="__main__")
        printed = capsys.readouterr().out
        if behind is not None and not behind.language:
            assert sorted(printed.splitlines()) == sorted(behind.text.splitlines())


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    """Links within the repository lead to a file and a heading; external links are not followed."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    for link in _LINK.findall(text):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.is_file(), f"{link}: no such file"
        assert not anchor or anchor in anchors(target), f"{link}: no such heading"


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_flag_that_a_page_names_exists(page: Path) -> None:
    """Every flag that a page names is ours or Beam's, except flags of other programs."""
    flags = set(_FLAG.findall(page.read_text(encoding="utf-8"))) - _NOT_OURS
    assert sorted(filter(is_unknown, flags)) == []


def is_unknown(flag: str) -> bool:
    """Whether the command line rejects a flag, whatever its value."""
    try:
        parse_flags([f"{flag}=1"])
    except ConfigurationError as error:
        return str(error).startswith("unknown flag")
    return False


def test_generated_sections_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    """The generated tables of columns and flags match the code."""
    assert generate.main(["--check"]) == 0, capsys.readouterr().err


def test_a_column_that_changed_is_noticed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``--check`` names the outdated page and changes nothing."""
    before = (ROOT / "docs/results.md").read_bytes()
    fewer = {**generate.TABLES, "results": generate.TABLES["results"][1:]}
    monkeypatch.setattr(generate, "TABLES", fewer)
    assert generate.main(["--check"]) == 1
    assert capsys.readouterr().err == (
        "docs/results.md is out of date: run python docs/generate.py\n"
    )
    assert (ROOT / "docs/results.md").read_bytes() == before


def test_error_types_are_all_in_the_table() -> None:
    """The table lists every error type in the contract's order and whether it is retryable."""
    text = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    table = text.partition("## Error types")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (yes|no) \| \S.*? \| \S.*? \|$", table, re.MULTILINE)
    assert rows == [
        (error.error_type, "yes" if error.retryable else "no") for error in RECORD_ERRORS
    ]


def test_the_readme_is_short_and_links_every_page() -> None:
    """The README has at most 150 lines and links every page."""
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    for page in COMMANDS[1:]:
        assert f"({named(page)})" in text
