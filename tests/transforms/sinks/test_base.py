"""Encoded rows: their values are those of the line, and their contexts survive the coder."""

from typing import Any

import apache_beam as beam
import orjson
import pytest
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given
from hypothesis import strategies as st

from tests.transforms import NUMBERS, pipeline
from transforms.accounting.counts import Counts
from transforms.records.errors import WriteRejected
from transforms.records.records import Answer, Completion, Record
from transforms.results.rows import Column
from transforms.sinks.base import EncodedRow, EncodedRowCoder, pack_row, unpack_row

COLUMNS = (
    Column("s", "STRING", "REQUIRED"),
    Column("i", "INT64"),
    Column("f", "FLOAT64", "REPEATED"),
    Column("n", "NUMERIC"),
    Column("r", "RECORD", "REPEATED", fields=(Column("key", "STRING"), Column("value", "STRING"))),
)
TEXT = st.text(st.characters() | st.sampled_from("\ud83d\\u\0"), max_size=20)


@given(
    st.fixed_dictionaries(
        {
            "s": TEXT,
            "i": st.none() | st.integers(-(2**63), 2**63 - 1),
            "f": st.lists(NUMBERS, max_size=3),
            "n": st.none() | st.just("12.50"),
            "r": st.lists(st.fixed_dictionaries({"key": TEXT, "value": TEXT}), max_size=2),
        }
    )
)
def test_values_are_those_of_the_line(row: dict[str, Any]) -> None:
    """A row's values are equal whether the row is still there or its line is parsed."""
    encoded = EncodedRow.of(row, COLUMNS)
    assert encoded.values == EncodedRow(encoded.line).values == orjson.loads(encoded.line)


def test_a_line_is_parsed_once() -> None:
    """A line is parsed at most once, and not at all while the row is there."""
    row = {"s": "a"}
    assert EncodedRow.of(row, COLUMNS).values is row
    parsed = EncodedRow(b'{"s":"a"}')
    assert parsed.values is parsed.values


def test_a_row_that_does_not_fit() -> None:
    """A row that does not fit is rejected when it is encoded."""
    with pytest.raises(WriteRejected, match="column 's' is required and has no value"):
        EncodedRow.of({}, COLUMNS)


ANSWER = Answer(Record("1", {"n": 1}, read_minute=7), "f", Completion("out", attempts=2))
COUNTS = Counts()
COUNTS.by_name["dead_letters"] = 3
CONTEXTS = [None, ANSWER, (7, COUNTS)]


@pytest.mark.parametrize("context", CONTEXTS, ids=["none", "answer", "counts"])
def test_the_coder(context: Any) -> None:
    """Line and context survive the coder, also as packed bytes."""
    row = EncodedRow(b'{"s":"a"}', context)
    coder = EncodedRowCoder()
    assert coder.decode(coder.encode(row)) == row
    assert unpack_row(pack_row(row)) == row


def test_rows_survive_a_shuffle() -> None:
    """Rows survive a shuffle with their contexts."""
    rows = [EncodedRow(b"{}", context) for context in CONTEXTS]
    with pipeline() as p:
        shuffled = p | beam.Create(rows) | beam.Reshuffle()
        assert shuffled.element_type is EncodedRow
        assert_that(shuffled, equal_to(rows))
    assert isinstance(beam.coders.registry.get_coder(EncodedRow), EncodedRowCoder)
