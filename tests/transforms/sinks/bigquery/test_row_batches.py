"""Rows gathered into appends: bounded, and each ends once."""

import collections
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.records.errors import RunError, TooLarge, WriteRejected
from transforms.sinks.bigquery import row_batches
from transforms.sinks.bigquery.append_stream import Append, Done
from transforms.sinks.bigquery.row_batches import MAX_ROW_BYTES, Refusal, RowAppender


class Table:
    """A `RowWriter` that keeps up to three appends in flight and refuses rows that hold a ``!``."""

    def __init__(self) -> None:
        self.rows: list[bytes] = []
        self.sizes: list[int] = []
        self._in_flight: collections.deque[Append] = collections.deque()

    def encode(self, line: bytes) -> bytes:
        """Its own message."""
        if b"?" in line:
            raise WriteRejected("a question")
        return line

    def send(self, append: Append) -> list[Done]:
        """All or none."""
        self.sizes.append(sum(map(len, append.rows)))
        self._in_flight.append(append)
        return [self._end()] if len(self._in_flight) > 3 else []

    def drain(self) -> Iterator[Done]:
        """In order."""
        while self._in_flight:
            yield self._end()

    def _end(self) -> Done:
        append = self._in_flight.popleft()
        refusals = {n: "shouting" for n, row in enumerate(append.rows) if b"!" in row}
        if not refusals:
            self.rows += append.rows
        return append, refusals

    def reset(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


@given(st.lists(st.binary(max_size=30), max_size=60))
def test_each_row_ends_once(lines: list[bytes]) -> None:
    """Written, if it is a row that the table takes, else refused; appends stay small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_batches, "BATCH_BYTES", 50)
        patch.setattr(row_batches, "BATCH_ROWS", 5)
        table = Table()
        appender: RowAppender[int] = RowAppender(table)
        ended = [pair for item, line in enumerate(lines) for pair in appender.add(item, line)]
        ended += appender.finish()
    assert sorted(item for item, _ in ended) == list(range(len(lines)))
    good = [item for item, refusal in ended if refusal is None]
    assert sorted(table.rows) == sorted(lines[item] for item in good)
    assert all((b"!" in lines[i] or b"?" in lines[i]) == (why is not None) for i, why in ended)
    assert max(table.sizes, default=0) <= 50


def test_a_row_beyond_the_limit() -> None:
    """Is refused as too large; one at the limit is not."""
    appender: RowAppender[str] = RowAppender(Table())
    message = "the row has 8,000,001 bytes (limit 8,000,000)"
    assert appender.add("long", bytes(MAX_ROW_BYTES + 1)) == [
        ("long", Refusal("too_large", message))
    ]
    assert appender.add("limit", bytes(MAX_ROW_BYTES)) == []
    assert appender.finish() == [("limit", None)]


def test_a_refusal_as_an_error() -> None:
    """The error that makes the dead letter."""
    assert isinstance(Refusal("too_large", "m").error(), TooLarge)
    assert isinstance(Refusal("write_rejected", "m").error(), WriteRejected)


def test_rows_that_must_not_be_lost() -> None:
    """Another takes their place; a table that refuses that, too, stops the run."""
    table = Table()
    appender: RowAppender[int] = RowAppender(table, lambda line, _: line.replace(b"!", b"."))
    assert appender.add(0, b"a!") + appender.finish() == [(0, None)]
    assert table.rows == [b"a."]
    stubborn: RowAppender[int] = RowAppender(table, lambda line, _: line[:1])
    assert stubborn.add(0, b"!!") == []
    with pytest.raises(RunError, match="does not take a row in its shortest form: shouting"):
        stubborn.finish()
