"""The sinks that a configuration makes."""

import pytest

from pipeline.config import RunConfig
from pipeline.options.command_line import parse_flags
from pipeline.sinks import minute_sinks, write_dead_letters, write_results
from transforms.records.errors import ConfigurationError
from transforms.sinks.bigquery.append import AppendRows, Delivery
from transforms.sinks.bigquery.insert import InsertRows
from transforms.sinks.bigquery.load import LoadRows
from transforms.sinks.write import shorten_dead_letter

ASKS = ("--prompt={{ text }}", "--backend=fake")
BASE = ("--input_files=a.jsonl", *ASKS)
STREAM = ("--input_subscription=projects/my-project/subscriptions/tickets", *ASKS)
TO_TABLE = (*BASE, "--output_table=p:d.t")


def _config(*argv: str, bounded: bool = True) -> RunConfig:
    source = BASE if bounded else STREAM
    return RunConfig.from_options(parse_flags([*source, "--output_table=p:d.t", *argv]))


def test_an_input_that_ends_is_loaded() -> None:
    """Rows of a bounded input are loaded, all or none; nothing is appended."""
    config = _config()
    for write in (write_results(config), write_dead_letters(config)):
        assert [(label, type(sink)) for label, sink in write.sinks] == [("LoadTable", LoadRows)]
    assert config.sinks.staging is not None


@pytest.mark.parametrize(
    ("flags", "bounded", "expected"),
    [
        ([], False, Delivery.AT_LEAST_ONCE),
        (["--exactly_once=true"], False, Delivery.EXACTLY_ONCE),
        (["--write_method=storage_write"], True, Delivery.EXACTLY_ONCE),
        (["--write_method=storage_write", "--exactly_once=false"], True, Delivery.AT_LEAST_ONCE),
    ],
)
def test_rows_are_appended(flags: list[str], bounded: bool, expected: Delivery) -> None:
    """Rows are appended as often as flags and input require; dead letters are never rejected."""
    config = _config(*flags, bounded=bounded)
    ((label, append),) = write_results(config).sinks
    assert isinstance(append, AppendRows)
    assert (label, append.delivery, append.can_reject) == ("AppendTable", expected, True)
    assert append.table.view_sql is not None
    ((_, letters),) = write_dead_letters(config).sinks
    assert isinstance(letters, AppendRows)
    assert (letters.delivery, letters.fallback) == (expected, shorten_dead_letter)
    assert letters.table.spec.name.table == "t_dead_letters"


@pytest.mark.parametrize("bounded", [True, False])
def test_rows_are_inserted(bounded: bool) -> None:
    """Rows of bounded and unbounded inputs can be written with streaming inserts."""
    config = _config("--write_method=streaming_inserts", bounded=bounded)
    ((label, insert),) = write_results(config).sinks
    assert isinstance(insert, InsertRows)
    assert (label, insert.fallback) == ("AppendTable", None)
    ((_, letters),) = write_dead_letters(config).sinks
    assert isinstance(letters, InsertRows)
    assert letters.fallback is shorten_dead_letter
    assert isinstance(minute_sinks(config)[0][1], InsertRows)


def test_minutes_are_appended_at_least_once() -> None:
    """Minutes are appended at least once: a repeated revision of a minute is harmless."""
    ((label, append),) = minute_sinks(_config("--exactly_once=true", bounded=False))
    assert isinstance(append, AppendRows)
    assert (label, append.delivery) == ("AppendTable", Delivery.AT_LEAST_ONCE)
    assert (append.table.kind, append.count_when_drained) == ("runs", False)


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
            [*STREAM, "--output_table=p:d.t", "--write_method=file_loads"],
            "--write_method is 'file_loads', but the input never ends: use storage_write",
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
def test_incompatible_flags(argv: list[str], message: str) -> None:
    """Incompatible flags are rejected before the launch with the value and the remedy."""
    with pytest.raises(ConfigurationError) as raised:
        RunConfig.from_options(parse_flags(argv))
    assert str(raised.value) == message
