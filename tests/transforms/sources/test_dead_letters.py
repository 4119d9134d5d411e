"""Dead letters read back: every row becomes its record, or a dead letter again."""

import base64
import json
import pathlib
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to

from tests.transforms import pipeline
from transforms.records.errors import ConfigurationError, Unavailable
from transforms.records.records import DeadLetter, Record
from transforms.results.prices import TokenPrices
from transforms.results.rows import RunInfo, cut_payload, dead_letter_row
from transforms.sinks.write import encode_dead_letter
from transforms.sources.base import IdRule
from transforms.sources.dead_letters import DeadLetterSource, is_table, revive
from transforms.sources.files import FileSource

RUN = RunInfo(run_id="r", backend="fake", model="m")
FREE = TokenPrices(None, "m")


def _row(letter: DeadLetter) -> dict[str, Any]:
    """A row as a sink writes it and a reader finds it."""
    row: dict[str, Any] = json.loads(encode_dead_letter(dead_letter_row(letter, RUN, FREE)).line)
    return row


def _letter(record: Record) -> DeadLetter:
    return DeadLetter.of(Unavailable("HTTP 503"), stage="infer", record=record, attempts=5)


def test_round_trip() -> None:
    """The record returns unchanged: id, fields, attributes."""
    record = Record("T-1", {"id": "other", "n": 2**70, "x": None}, {"k": "v"}, "tickets.jsonl")
    back = revive(_row(_letter(record)), "letters.jsonl", IdRule())
    assert back == Record("T-1", record.fields, {"k": "v"}, "letters.jsonl")


def test_a_required_id_field_decides() -> None:
    """If an id field is required, its value is the id, as for every source."""
    record = Record("T-1", {"key": 7})
    back = revive(_row(_letter(record)), "f", IdRule("key", required=True))
    assert back == Record("7", {"key": 7}, {}, "f")
    missing = revive(_row(_letter(record)), "f", IdRule("nope", required=True))
    assert isinstance(missing, DeadLetter)
    assert (missing.error_type, missing.stage) == ("missing_field", "read")


def test_a_raw_line_is_a_dead_letter_again() -> None:
    """A raw line still cannot be parsed and becomes a dead letter again, with its payload."""
    row = _row(DeadLetter("read", "parse_error", "bad", payload="{broken"))
    again = revive(row, "f", IdRule())
    assert isinstance(again, DeadLetter)
    assert (again.stage, again.error_type, again.payload) == ("read", "parse_error", "{broken")


def test_raw_bytes_are_a_dead_letter_again() -> None:
    """Bytes that are not text become a dead letter with the same bytes."""
    row = _row(DeadLetter("read", "parse_error", "bad", payload_bytes=b"\xff\xfe"))
    again = revive(row, "f", IdRule())
    assert isinstance(again, DeadLetter)
    assert (again.payload, again.payload_bytes) == (None, b"\xff\xfe")
    odd = revive({**row, "payload_bytes": "not base64!"}, "f", IdRule())
    assert isinstance(odd, DeadLetter)
    assert odd.payload_bytes == b"not base64!"


def test_a_cut_payload_is_not_a_record() -> None:
    """A table's cut payload never becomes a record."""
    row = cut_payload(_row(_letter(Record("T-1", {"text": "x" * (2 << 20)}))))
    assert row["payload_truncated"]
    again = revive(row, "f", IdRule())
    assert isinstance(again, DeadLetter)
    assert "cut for the table" in again.error_message
    assert again.record_id == "T-1"


@pytest.mark.parametrize("row", [{"a": 1}, {"error_type": "x"}, {"payload": "{}"}])
def test_other_rows(row: dict[str, Any]) -> None:
    """Other rows are dead letters with a clear message and the whole row."""
    again = revive(row, "f", IdRule())
    assert isinstance(again, DeadLetter)
    assert "not a dead letter" in again.error_message
    assert again.payload == (row.get("payload") or json.dumps(row, separators=(",", ":")))


def test_the_source(tmp_path: pathlib.Path) -> None:
    """A pipeline turns each row of the files into a record or a dead letter once."""
    rows = [
        _row(_letter(Record("a", {"t": "1"}))),
        _row(DeadLetter("read", "parse_error", "bad", payload="[1]")),
    ]
    path = tmp_path / "letters.jsonl"
    lines = [*(json.dumps(row) for row in rows), "not json"]
    path.write_text("\n".join(lines), encoding="utf-8")
    source = DeadLetterSource(rows=FileSource(pattern=str(path)))
    with pipeline() as p:
        records, unread = p | source.transform(IdRule())
        assert_that(records, equal_to([Record("a", {"t": "1"}, {}, str(path))]), "records")
        payloads = unread | "Payloads" >> beam.Map(lambda letter: letter.payload)
        assert_that(payloads, equal_to(["[1]", "not json"]), "unread")
    first = list(source.first(IdRule(), 10))
    assert [type(item) for item in first] == [Record, DeadLetter, DeadLetter]


def test_bytes_survive_base64() -> None:
    """Bytes survive the column's standard base64."""
    row = _row(DeadLetter("read", "parse_error", "bad", payload_bytes=b"\x00\xff"))
    assert base64.b64decode(row["payload_bytes"]) == b"\x00\xff"


@pytest.mark.parametrize(
    ("text", "table"),
    [
        ("p:d.t", True),
        ("p.d.t", True),
        ("d.t", True),
        ("out/dead_letters/*.jsonl", False),
        ("letters.jsonl", False),
        ("gs://b/x.parquet", False),
    ],
)
def test_is_table(text: str, table: bool) -> None:
    """A path, a glob or a file's suffix means files; dots and colons mean a table."""
    assert is_table(text) is table


def test_neither_table_nor_files() -> None:
    """A value that is neither a table nor files is rejected with the value and the valid forms."""
    with pytest.raises(ConfigurationError, match=r"'letters' is neither a table"):
        is_table("letters")
