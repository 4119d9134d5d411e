"""Rows gathered into bounded appends; each ends once."""

import collections
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.records.errors import RunError, TooLarge, WriteRejected
from transforms.sinks.base import EncodedRow, Rejection
from transforms.sinks.bigquery import row_batches
from transforms.sinks.bigquery.append_stream import Append, Done
from transforms.sinks.bigquery.row_batches import MAX_APPENDED_ROW_BYTES, RowAppender


class Table:
    """A `TableWriter` that keeps three appends in flight and rejects rows with a ``!``."""

    def __init__(self) -> None:
        self.rows: list[bytes] = []
        self.sizes: list[int] = []
        self._in_flight: collections.deque[Append] = collections.deque()

    def encode(self, row: EncodedRow) -> bytes:
        """The line itself."""
        if b"?" in row.line:
            raise WriteRejected("a question")
        return row.line

    def send(self, append: Append) -> list[Done]:
        """Keeps the append in flight; ends the oldest one if there are too many."""
        self.sizes.append(sum(map(len, append.rows)))
        self._in_flight.append(append)
        return [self._end()] if len(self._in_flight) > 3 else []

    def drain(self) -> Iterator[Done]:
        """Ends all appends in order."""
        while self._in_flight:
            yield self._end()

    def _end(self) -> Done:
        append = self._in_flight.popleft()
        rejections = {n: "shouting" for n, row in enumerate(append.rows) if b"!" in row}
        if not rejections:
            self.rows += append.rows
        return append, rejections

    def reset(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


@given(st.lists(st.binary(max_size=30), max_size=60))
def test_each_row_ends_once(lines: list[bytes]) -> None:
    """Each row is written if the table accepts it, else rejected; appends stay small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_batches, "BATCH_BYTES", 50)
        patch.setattr(row_batches, "BATCH_ROWS", 5)
        table = Table()
        appender: RowAppender[int] = RowAppender(table)
        ended = [
            end for tag, line in enumerate(lines) for end in appender.add(tag, EncodedRow(line))
        ]
        ended += appender.finish()
    assert sorted(tag for tag, _, _ in ended) == list(range(len(lines)))
    assert all(row.line == lines[tag] for tag, row, _ in ended)
    good = [row.line for _, row, rejection in ended if rejection is None]
    assert sorted(table.rows) == sorted(good)
    assert all((b"!" in row.line or b"?" in row.line) == (why is not None) for _, row, why in ended)
    assert max(table.sizes, default=0) <= 50


def test_a_row_beyond_the_limit() -> None:
    """A row above the limit is rejected as too large; one at the limit is not."""
    appender: RowAppender[str] = RowAppender(Table())
    message = "the row has 8,000,001 bytes (limit 8,000,000)"
    long = EncodedRow(bytes(MAX_APPENDED_ROW_BYTES + 1))
    assert appender.add("long", long) == [("long", long, Rejection("too_large", message))]
    limit = EncodedRow(bytes(MAX_APPENDED_ROW_BYTES))
    assert appender.add("limit", limit) == []
    assert appender.finish() == [("limit", limit, None)]


def test_a_rejection_as_an_error() -> None:
    """A rejection becomes the error of a dead letter."""
    assert isinstance(Rejection("too_large", "m").error(), TooLarge)
    assert isinstance(Rejection("write_rejected", "m").error(), WriteRejected)


def test_rows_that_must_not_be_lost() -> None:
    """A fallback row takes the place of a rejected one; if it is rejected too, the run stops."""
    table = Table()
    appender: RowAppender[int] = RowAppender(
        table, lambda row, _: EncodedRow(row.line.replace(b"!", b"."))
    )
    ended = appender.add(0, EncodedRow(b"a!")) + appender.finish()
    assert ended == [(0, EncodedRow(b"a."), None)]
    assert table.rows == [b"a."]
    stubborn: RowAppender[int] = RowAppender(table, lambda row, _: EncodedRow(row.line[:1]))
    assert stubborn.add(0, EncodedRow(b"!!")) == []
    with pytest.raises(RunError, match="rejects a row that cannot be shortened further: shouting"):
        stubborn.finish()
