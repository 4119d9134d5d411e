"""Rows gathered into appends of bounded size; rows that a table rejects, told apart.

Plain code, without Beam, that `at_least_once` and `exactly_once` share.
"""

from collections.abc import Callable, Iterable
from typing import Generic, Protocol, TypeVar

from transforms.records.errors import RecordError, RunError, WriteRejected
from transforms.sinks.base import EncodedRow, Rejection
from transforms.sinks.bigquery.append_stream import Append, Done

MAX_APPENDED_ROW_BYTES = 8 * 1000 * 1000
"""The largest row that is appended. BigQuery takes requests below 10 MB, their overhead included
(BigQuery quotas, "Storage Write API" and "streaming inserts")."""

BATCH_BYTES = 2 << 20
"""The encoded rows of one append take at most this many bytes; a larger row is appended alone."""

BATCH_ROWS = 10_000

T = TypeVar("T")

Fallback = Callable[[EncodedRow, Rejection], EncodedRow]
"""Makes a smaller row that takes the place of a rejected one, for rows that must not be lost.

A row that it cannot make smaller it returns unchanged.
"""


class TableWriter(Protocol):
    """Appends encoded rows to one table; several appends may be in flight."""

    def encode(self, row: EncodedRow) -> bytes:
        """The row as it is sent.

        Raises:
          WriteRejected: A value does not fit its column.
        """
        ...

    def send(self, append: Append) -> list[Done]:
        """Sends one append; returns the appends whose answers it had to wait for."""
        ...

    def drain(self) -> Iterable[Done]:
        """Yields every append in flight, as each is answered."""
        ...

    def reset(self) -> None:
        """Drops the appends in flight, which a failed bundle has left."""
        ...

    def close(self) -> None:
        """Closes connections."""
        ...


def encode_or_reject(encode: Callable[[EncodedRow], bytes], row: EncodedRow) -> bytes | Rejection:
    """The row as it is sent, or why it cannot be sent.

    >>> encode_or_reject(lambda row: row.line, EncodedRow(bytes(9_000_000))).message
    'the row has 9,000,000 bytes (limit 8,000,000)'
    """
    try:
        encoded = encode(row)
    except RecordError as error:
        return Rejection(error.error_type, str(error))
    if len(encoded) <= MAX_APPENDED_ROW_BYTES:
        return encoded
    limit = f"limit {MAX_APPENDED_ROW_BYTES:,}"
    return Rejection("too_large", f"the row has {len(encoded):,} bytes ({limit})")


def replacement(row: EncodedRow, rejection: Rejection, fallback: Fallback) -> EncodedRow:
    """The row that takes a rejected one's place.

    Raises:
      RunError: The fallback has nothing smaller to offer.
    """
    smaller = fallback(row, rejection)
    if smaller.line == row.line:
        raise RunError(
            f"the table rejects a row that cannot be shortened further: {rejection.message}"
        )
    return smaller


class Batch(Generic[T]):
    """Items and their encoded rows, up to `BATCH_BYTES` and `BATCH_ROWS`."""

    __slots__ = ("items", "rows", "size_bytes")

    def __init__(self) -> None:
        self.items: list[T] = []
        self.rows: list[bytes] = []
        self.size_bytes = 0

    def add(self, item: T, encoded: bytes) -> None:
        """Adds an item and its encoded row."""
        self.items.append(item)
        self.rows.append(encoded)
        self.size_bytes += len(encoded)

    def has_room(self, encoded: bytes) -> bool:
        """Whether the row may be added; an empty batch takes any row."""
        fits = self.size_bytes + len(encoded) <= BATCH_BYTES and len(self.rows) < BATCH_ROWS
        return fits or not self.rows


class RowAppender(Generic[T]):
    """Appends rows through a `TableWriter` and says how each of them ended.

    Each method returns ``(tag, row, None)`` for a row that the table now holds and
    ``(tag, row, rejection)`` for one that it will not hold: each row once, often in a later call
    than the one that brought it, and all of them when `finish` has returned. The row is the one in
    the table: for a rejected one, the row that the fallback made, if there is a fallback.

    Args:
      writer: Appends the rows.
      fallback: With it no row is rejected: a smaller one takes its place.
    """

    def __init__(self, writer: TableWriter, fallback: Fallback | None = None) -> None:
        self._writer, self._fallback = writer, fallback
        self._batch: Batch[tuple[T, EncodedRow]] = Batch()

    def add(self, tag: T, row: EncodedRow) -> "list[tuple[T, EncodedRow, Rejection | None]]":
        """Takes one row, and a tag that comes back with it.

        Raises:
          RunError: The table cannot be written.
        """
        encoded = encode_or_reject(self._writer.encode, row)
        if isinstance(encoded, bytes):
            return self._add((tag, row), encoded)
        return self._reject((tag, row), encoded)

    def finish(self) -> "list[tuple[T, EncodedRow, Rejection | None]]":
        """Sends the rows still waiting and waits for every answer.

        Raises:
          RunError: The table cannot be written.
        """
        ended = self._send()
        while True:
            for done in self._writer.drain():
                ended += self._end(done)
            if not self._batch.rows:
                return ended
            ended += self._send()

    def _add(
        self, item: tuple[T, EncodedRow], encoded: bytes
    ) -> "list[tuple[T, EncodedRow, Rejection | None]]":
        ended = [] if self._batch.has_room(encoded) else self._send()
        self._batch.add(item, encoded)
        return ended

    def _reject(
        self, item: tuple[T, EncodedRow], rejection: Rejection
    ) -> "list[tuple[T, EncodedRow, Rejection | None]]":
        tag, row = item
        if self._fallback is None:
            return [(tag, row, rejection)]
        return self.add(tag, replacement(row, rejection, self._fallback))

    def _send(self) -> "list[tuple[T, EncodedRow, Rejection | None]]":
        batch, self._batch = self._batch, Batch()
        ended: list[tuple[T, EncodedRow, Rejection | None]] = []
        if batch.rows:
            for done in self._writer.send(Append(batch.rows, tag=batch.items)):
                ended += self._end(done)
        return ended

    def _end(self, done: Done) -> "list[tuple[T, EncodedRow, Rejection | None]]":
        """The good rows of an append with a rejected row go into another append."""
        append, rejections = done
        if not rejections:
            return [(tag, row, None) for tag, row in append.tag]
        ended: list[tuple[T, EncodedRow, Rejection | None]] = []
        for index, (item, encoded) in enumerate(zip(append.tag, append.rows, strict=True)):
            if index in rejections:
                ended += self._reject(item, Rejection(WriteRejected.error_type, rejections[index]))
            else:
                ended += self._add(item, encoded)
        return ended
