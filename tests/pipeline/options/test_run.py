"""The job's project: from its flag or from the environment."""

import pytest

from pipeline.options.command_line import parse_flags
from pipeline.options.run import project_of


def test_project_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """The flag precedes the environment; without either there is no project."""
    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT", raising=False)
    assert project_of(parse_flags([])) is None
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "e")
    assert project_of(parse_flags([])) == "e"
    assert project_of(parse_flags(["--project=p"])) == "p"
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "")
    assert project_of(parse_flags([])) is None
