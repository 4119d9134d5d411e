"""Which sinks a configuration makes."""

import pytest

from pipeline.config import RunConfig
from pipeline.options.command_line import parse_flags
from pipeline.sinks import write_dead_letters, write_method, write_results
from transforms.records.coders import AnswerCoder
from transforms.records.errors import ConfigurationError
from transforms.sinks.bigquery.append import AppendRows
from transforms.sinks.bigquery.load import LoadRows
from transforms.sinks.write import shorten_dead_letter

BASE = ("--input_files=a.jsonl", "--prompt={{ text }}", "--backend=fake")
TO_TABLE = (*BASE, "--output_table=p:d.t")


def _config(*argv: str) -> RunConfig:
    return RunConfig.from_options(parse_flags([*TO_TABLE, *argv]))


def _appender(config: RunConfig, *, bounded: bool = True) -> AppendRows:
    results = write_results(config, bounded=bounded)
    assert results.sinks == []
    assert results.appender is not None
    append = results.appender[1]
    assert isinstance(append, AppendRows)
    return append


def test_an_input_that_ends_is_loaded() -> None:
    """All rows or none, and nothing is appended."""
    config = _config()
    for write in (write_results(config, bounded=True), write_dead_letters(config, bounded=True)):
        assert write.appender is None
    (label, load), *_ = write_results(config, bounded=True).sinks
    assert (label, type(load)) == ("LoadTable", LoadRows)
    assert config.sinks.staging is not None


@pytest.mark.parametrize(
    ("flags", "bounded", "expected"),
    [
        ([], False, ("storage_write", False)),
        (["--exactly_once=true"], False, ("storage_write", True)),
        (["--write_method=storage_write"], True, ("storage_write", True)),
        (["--write_method=storage_write", "--exactly_once=false"], True, ("storage_write", False)),
        (["--write_method=streaming_inserts"], True, ("streaming_inserts", False)),
    ],
)
def test_rows_are_appended(flags: list[str], bounded: bool, expected: tuple[str, bool]) -> None:
    """By the method, as often, as flags and input ask for; dead letters are never refused."""
    config = _config(*flags)
    append = _appender(config, bounded=bounded)
    assert (append.method, append.exactly_once) == expected
    assert append.owner_coder == AnswerCoder()
    assert append.view_sql is not None
    letters = write_dead_letters(config, bounded=bounded).appender
    assert letters is not None
    assert letters[1].refit is shorten_dead_letter
    assert letters[1].spec.name.table == "t_dead_letters"


def test_an_input_without_an_end_cannot_be_loaded() -> None:
    """A load job has to know the last row."""
    with pytest.raises(ConfigurationError, match="'file_loads', but the input never ends"):
        write_method(_config("--write_method=file_loads"), bounded=False)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            [*BASE, "--output_path=out", "--write_method=storage_write"],
            "--write_method is 'storage_write', but goes with a table only: remove it",
        ),
        (
            [*BASE, "--output_path=out", "--exactly_once=false"],
            "--exactly_once is 'false', but goes with a table only: remove it",
        ),
        (
            [*TO_TABLE, "--write_method=streaming_inserts", "--exactly_once=true"],
            (
                "--exactly_once is 'true', but --write_method is 'streaming_inserts': "
                "use storage_write"
            ),
        ),
        (
            [*TO_TABLE, "--write_method=storage_write", "--write_mode=replace"],
            (
                "--write_mode is 'replace', but --write_method is 'storage_write', which only adds "
                "rows: use file_loads"
            ),
        ),
    ],
)
def test_what_does_not_go_together(argv: list[str], message: str) -> None:
    """Refused before the launch, with the value and the remedy."""
    with pytest.raises(ConfigurationError) as raised:
        RunConfig.from_options(parse_flags(argv))
    assert str(raised.value) == message
