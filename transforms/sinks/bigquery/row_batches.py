"""Rows gathered into appends of bounded size; rows that a table will not take, told apart.

Plain code, shared by every way of appending rows (`storage_write`, `exactly_once`).
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Generic, Protocol, TypeVar

from transforms.records.errors import RecordError, RunError, TooLarge, WriteRejected
from transforms.sinks.bigquery.append_stream import Append, Done

MAX_ROW_BYTES = 8 * 1000 * 1000
"""The largest row that is appended. BigQuery takes requests below 10 MB, their overhead included
(BigQuery quotas, "Storage Write API" and "streaming inserts")."""

BATCH_BYTES = 2 << 20
"""Rows are gathered up to so many bytes; a larger row travels alone."""

BATCH_ROWS = 10_000

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True)
class Refusal:
    """Why a row is not in the table.

    Attributes:
      error_type: ``write_rejected`` or ``too_large``.
      message: What was wrong with it, in BigQuery's words where they are BigQuery's.
    """

    error_type: str
    message: str

    def error(self) -> RecordError:
        """As the error that makes a dead letter."""
        kind = TooLarge if self.error_type == TooLarge.error_type else WriteRejected
        return kind(self.message)


Refit = Callable[[bytes, Refusal], bytes]
"""Makes of a row that was refused one that will not be; for rows that must not be lost."""


class RowWriter(Protocol):
    """Appends encoded rows to one table; several appends may be in flight."""

    def encode(self, line: bytes) -> bytes:
        """A JSON row as it is sent.

        Raises:
          WriteRejected: A value does not fit its column.
        """
        ...

    def send(self, append: Append) -> list[Done]:
        """Sends one append; gives those that it had to wait for."""
        ...

    def drain(self) -> Iterable[Done]:
        """Gives all that are in flight, when they are answered."""
        ...

    def reset(self) -> None:
        """Forgets what is in flight, of a bundle that failed."""
        ...

    def close(self) -> None:
        """Lets go of connections."""
        ...


def encode_or_refuse(encode: Callable[[bytes], bytes], line: bytes) -> bytes | Refusal:
    """The row as it is sent, or why it is not.

    >>> encode_or_refuse(lambda line: line, bytes(9_000_000)).message
    'the row has 9,000,000 bytes (limit 8,000,000)'
    """
    try:
        encoded = encode(line)
    except RecordError as error:
        return Refusal(error.error_type, str(error))
    if len(encoded) <= MAX_ROW_BYTES:
        return encoded
    return Refusal("too_large", f"the row has {len(encoded):,} bytes (limit {MAX_ROW_BYTES:,})")


def refitted(line: bytes, refusal: Refusal, refit: Refit) -> bytes:
    """The row that takes a refused one's place.

    Raises:
      RunError: It was refused, too.
    """
    fitting = refit(line, refusal)
    if fitting == line:
        raise RunError(f"the table does not take a row in its shortest form: {refusal.message}")
    return fitting


class Batch(Generic[T]):
    """Items and their encoded rows, up to `BATCH_BYTES` and `BATCH_ROWS`."""

    __slots__ = ("items", "rows", "size_bytes")

    def __init__(self) -> None:
        self.items: list[T] = []
        self.rows: list[bytes] = []
        self.size_bytes = 0

    def add(self, item: T, row: bytes) -> None:
        """Adds one."""
        self.items.append(item)
        self.rows.append(row)
        self.size_bytes += len(row)

    def has_room(self, row: bytes) -> bool:
        """Whether the row may be added; one row always may."""
        fits = self.size_bytes + len(row) <= BATCH_BYTES and len(self.rows) < BATCH_ROWS
        return fits or not self.rows


class RowAppender(Generic[T]):
    """Appends rows through a `RowWriter` and says what became of each item that they belong to.

    Each method gives ``(item, None)`` for a row that the table holds now and ``(item, refusal)``
    for one that it will not hold: each item once, often in a later call than the one that brought
    it, and all of them when `finish` has returned.

    Args:
      writer: Where rows go.
      refit: With it no row is refused: another takes its place. What it has made it leaves alone.
    """

    def __init__(self, writer: RowWriter, refit: Refit | None = None) -> None:
        self._writer, self._refit = writer, refit
        self._batch: Batch[tuple[T, bytes]] = Batch()

    def add(self, item: T, line: bytes) -> "list[tuple[T, Refusal | None]]":
        """Takes one item and its JSON row.

        Raises:
          RunError: The table cannot be written.
        """
        row = encode_or_refuse(self._writer.encode, line)
        if isinstance(row, bytes):
            return self._add((item, line), row)
        return self._refuse((item, line), row)

    def finish(self) -> "list[tuple[T, Refusal | None]]":
        """Sends what is left and waits for every answer.

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

    def _add(self, item: tuple[T, bytes], row: bytes) -> "list[tuple[T, Refusal | None]]":
        ended = [] if self._batch.has_room(row) else self._send()
        self._batch.add(item, row)
        return ended

    def _refuse(self, item: tuple[T, bytes], refusal: Refusal) -> "list[tuple[T, Refusal | None]]":
        if self._refit is None:
            return [(item[0], refusal)]
        return self.add(item[0], refitted(item[1], refusal, self._refit))

    def _send(self) -> "list[tuple[T, Refusal | None]]":
        batch, self._batch = self._batch, Batch()
        ended: list[tuple[T, Refusal | None]] = []
        if batch.rows:
            for done in self._writer.send(Append(batch.rows, tag=batch.items)):
                ended += self._end(done)
        return ended

    def _end(self, done: Done) -> "list[tuple[T, Refusal | None]]":
        """The good rows of an append that was refused go into another."""
        append, refusals = done
        if not refusals:
            return [(item, None) for item, _ in append.tag]
        ended: list[tuple[T, Refusal | None]] = []
        for index, (item, row) in enumerate(zip(append.tag, append.rows, strict=True)):
            if index in refusals:
                refusal = Refusal(WriteRejected.error_type, refusals[index])
                ended += self._refuse(item, refusal)
            else:
                ended += self._add(item, row)
        return ended
