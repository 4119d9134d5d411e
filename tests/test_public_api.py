"""The names that other people's pipelines may import."""

import inspect
import pathlib
import subprocess
import sys

import pytest

import transforms

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("name", transforms.__all__)
def test_each_name_explains_itself(name: str) -> None:
    """Every public name exists, and every public class or function has a docstring."""
    thing = getattr(transforms, name)
    if inspect.isclass(thing) or inspect.isfunction(thing):
        assert inspect.getdoc(thing), name


@pytest.mark.parametrize("name", transforms.__all__)
def test_each_name_is_one_of_ours(name: str) -> None:
    """Every public name is defined by the library, never by a third party."""
    module = getattr(getattr(transforms, name), "__module__", "transforms")
    assert module.partition(".")[0] in {"transforms", "builtins"}


def test_all_names_come_with_a_star() -> None:
    """``from transforms import *`` works in a fresh process and imports each name once."""
    script = (
        "from transforms import *\nimport transforms\nprint(set(transforms.__all__) <= set(dir()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout == "True\n"
    assert len(set(transforms.__all__)) == len(transforms.__all__)
    assert {"Infer", "ReadRecords", "WriteResults", "Cause", "Backend"} <= set(transforms.__all__)


def test_names_of_the_docs_are_public() -> None:
    """The tables of the library's page name only public transforms."""
    page = (ROOT / "docs/library.md").read_text("utf-8")
    rows = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) > 8
    assert set(rows) <= set(transforms.__all__)
