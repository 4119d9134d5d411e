"""Which batches of a stream are appended next, and what an answer changes: no Beam, no network.

`exactly_once` keeps a `Place` and the waiting batches as state, and says why nothing is doubled.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from apache_beam.coders import BytesCoder, TupleCoder
from apache_beam.coders.coders import ListCoder

from transforms.records.errors import WriteRejected
from transforms.sinks.bigquery.row_batches import Refit, Refusal, refitted

ROWS_CODER = ListCoder(TupleCoder((BytesCoder(), BytesCoder())))
"""The rows of a batch, ``[(line, owner), …]``, as they travel and wait."""

Numbered = tuple[int, bool, bytes]
"""A batch's number in its stream, whether it is the last, its rows by `ROWS_CODER`."""


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
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
    """What one attempt to go on has brought.

    Attributes:
      place: How far the stream is written now.
      waiting: The batches that wait, by number.
      written: Rows that are in the table.
      refused: Rows that never will be.
      halted: True when something was refused: nothing more may be sent to the stream before this
        outcome is committed.
      ended: True when the stream's last batch is written.
    """

    place: Place
    waiting: dict[int, Numbered]
    written: list[tuple[bytes, bytes]] = dataclasses.field(default_factory=list)
    refused: list[tuple[tuple[bytes, bytes], Refusal]] = dataclasses.field(default_factory=list)
    halted: bool = False
    ended: bool = False


AppendAt = Callable[[list[bytes], int], Mapping[int, str]]
"""Appends rows at an offset, gives what was wrong with which."""


def advance(
    place: Place,
    waiting: Mapping[int, Numbered],
    append: AppendAt,
    encode: Callable[[bytes], bytes],
    refit: Refit | None = None,
) -> Advance:
    """Appends the batches whose turn it is, until one is missing or a row is refused.

    Raises:
      RunError: The stream cannot be written.
    """
    result = Advance(place, dict(waiting))
    number, offset = place.number, place.offset
    while not (result.halted or result.ended) and number in result.waiting:
        _, last, encoded = result.waiting.pop(number)
        rows = ROWS_CODER.decode(encoded)
        refusals = append([encode(line) for line, _ in rows], offset) if rows else {}
        if refusals:
            result.halted = True
            left = _without(rows, refusals, refit, result)
            result.waiting[number] = (number, last, ROWS_CODER.encode(left))
        else:
            result.written += rows
            result.ended = last
            number, offset = number + 1, offset + len(rows)
    result.place = Place(number, offset, len(result.waiting))
    return result


def _without(
    rows: Sequence[tuple[bytes, bytes]],
    refusals: Mapping[int, str],
    refit: Refit | None,
    result: Advance,
) -> list[tuple[bytes, bytes]]:
    """The rows to append in place of a batch that was refused."""
    left = []
    for index, (line, owner) in enumerate(rows):
        if index not in refusals:
            left.append((line, owner))
            continue
        refusal = Refusal(WriteRejected.error_type, refusals[index])
        if refit is None:
            result.refused.append(((line, owner), refusal))
        else:
            left.append((refitted(line, refusal, refit), owner))
    return left
