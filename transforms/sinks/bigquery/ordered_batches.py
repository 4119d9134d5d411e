"""Which batches of a stream to append next, and how an answer changes that: no Beam, no network.

`exactly_once` keeps a `StreamPosition` and the waiting batches as state, and says why no row is
doubled.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from apache_beam.coders import BytesCoder, TupleCoder
from apache_beam.coders.coders import ListCoder

from transforms.records.errors import WriteRejected
from transforms.sinks.base import Packed, RejectedRow, Rejection, pack_row, unpack_row
from transforms.sinks.bigquery.row_batches import Fallback, replacement

ROWS_CODER = ListCoder(TupleCoder((BytesCoder(), BytesCoder())))
"""The rows of a batch, `Packed`, as they travel and wait."""

Numbered = tuple[int, bool, bytes]
"""A batch's number in its stream, whether it is the last, its rows by `ROWS_CODER`."""


@dataclasses.dataclass(frozen=True, slots=True)
class StreamPosition:
    """How far a stream has been written.

    Attributes:
      number: The number of the batch that comes next.
      offset: The offset of its first row.
      waiting: How many batches wait for their turn.
    """

    number: int = 0
    offset: int = 0
    waiting: int = 0


@dataclasses.dataclass(slots=True)
class Advance:
    """The outcome of one attempt to advance.

    Attributes:
      position: How far the stream is written now.
      waiting: The waiting batches, by number.
      written: Rows that are in the table.
      rejected: Rows that never will be.
      halted: True when a row was rejected: no append may follow before this outcome is committed.
      ended: True when the stream's last batch is written.
    """

    position: StreamPosition
    waiting: dict[int, Numbered]
    written: list[Packed] = dataclasses.field(default_factory=list)
    rejected: list[RejectedRow] = dataclasses.field(default_factory=list)
    halted: bool = False
    ended: bool = False


AppendAt = Callable[[list[bytes], int], Mapping[int, str]]
"""Appends rows at an offset; returns their faults, by their index."""


def advance(
    position: StreamPosition,
    waiting: Mapping[int, Numbered],
    append: AppendAt,
    encode: Callable[[bytes], bytes],
    fallback: Fallback | None = None,
) -> Advance:
    """Appends the batches whose turn it is, until one is missing or a row is rejected.

    Raises:
      RunError: The stream cannot be written.
    """
    result = Advance(position, dict(waiting))
    number, offset = position.number, position.offset
    while not (result.halted or result.ended) and number in result.waiting:
        _, last, encoded = result.waiting.pop(number)
        rows = ROWS_CODER.decode(encoded)
        rejections = append([encode(line) for line, _ in rows], offset) if rows else {}
        if rejections:
            result.halted = True
            left = _without(rows, rejections, fallback, result)
            result.waiting[number] = (number, last, ROWS_CODER.encode(left))
        else:
            result.written += rows
            result.ended = last
            number, offset = number + 1, offset + len(rows)
    result.position = StreamPosition(number, offset, len(result.waiting))
    return result


def _without(
    rows: Sequence[Packed],
    rejections: Mapping[int, str],
    fallback: Fallback | None,
    result: Advance,
) -> list[Packed]:
    """The rows to append in place of a batch with rejected rows."""
    left = []
    for index, packed in enumerate(rows):
        if index not in rejections:
            left.append(packed)
            continue
        rejection = Rejection(WriteRejected.error_type, rejections[index])
        row = unpack_row(packed)
        if fallback is None:
            result.rejected.append(RejectedRow(row, rejection))
        else:
            left.append(pack_row(replacement(row, rejection, fallback)))
    return left
