"""The protocol of sinks: encoded rows in, `Written` out, the same for every sink.

`WriteResults` and `WriteDeadLetters` encode each row once, as an `EncodedRow`, and pass it to every
`Sink`: files, load jobs, Storage Write API appends, streaming inserts, Pub/Sub.
"""

import dataclasses
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import apache_beam as beam
import orjson
from apache_beam.coders import BytesCoder, Coder, TupleCoder, VarIntCoder
from apache_beam.pvalue import TaggedOutput

from transforms.accounting.minute_counts import MinuteCounts
from transforms.accounting.minute_state import CountsCoder
from transforms.accounting.sink_report import SinkReport
from transforms.records.coders import AnswerCoder
from transforms.records.errors import RecordError, TooLarge, WriteRejected
from transforms.records.records import Answer
from transforms.results.rows import Column, Row, encode_row


@dataclasses.dataclass(slots=True)  # not frozen: it caches, and is made for every row
class EncodedRow:
    """One row as a JSON line, with the context to count it or to make a dead letter from it.

    >>> EncodedRow(b'{"n":1}').values
    {'n': 1}

    Attributes:
      line: The JSON line, without its newline.
      context: Passed back by the sink with the row: the answer of a result, the counts of a dead
        letter, None for other rows. Sinks do not look inside.
    """

    line: bytes
    context: Answer | MinuteCounts | None = None
    _values: Row | None = dataclasses.field(default=None, repr=False, compare=False)

    @classmethod
    def of(
        cls, row: Row, columns: tuple[Column, ...], context: Answer | MinuteCounts | None = None
    ) -> "EncodedRow":
        """Checks a row against its columns and encodes it.

        Raises:
          WriteRejected: A value does not fit its column; the message names both.
        """
        try:
            return cls(encode_row(row, columns, orjson.dumps), context, row)
        except TypeError:  # a lone surrogate, which the line holds as an escape: they differ
            return cls(encode_row(row, columns), context)

    @property
    def values(self) -> Row:
        """The line's values, parsed at most once; all sinks share them, so never modify them."""
        if self._values is None:
            self._values = orjson.loads(self.line)
        return self._values


Packed: TypeAlias = tuple[bytes, bytes]
"""A row's line and the bytes of its context: the form in which rows travel and wait.

The garbage collector does not track bytes; thousands of waiting answers would slow it down.
"""

_PACKED = TupleCoder((BytesCoder(), BytesCoder())).get_impl()
_ANSWERS = AnswerCoder()
_COUNTS = TupleCoder((VarIntCoder(), CountsCoder())).get_impl()
_ANSWER, _COUNT = b"A", b"C"


def pack_row(row: EncodedRow) -> Packed:
    """The row as bytes.

    >>> pack_row(EncodedRow(b"{}", None))
    (b'{}', b'')
    """
    context = row.context
    if context is None:
        return row.line, b""
    if isinstance(context, Answer):
        return row.line, _ANSWER + _ANSWERS.encode(context)
    return row.line, _COUNT + _COUNTS.encode(context)


def unpack_row(packed: Packed) -> EncodedRow:
    """The inverse of `pack_row`."""
    line, context = packed
    if not context:
        return EncodedRow(line)
    coder = _ANSWERS if context[:1] == _ANSWER else _COUNTS
    return EncodedRow(line, coder.decode(context[1:]))


class EncodedRowCoder(Coder):
    """Bytes of an `EncodedRow`: its line and its context; the values are parsed again if needed."""

    def encode(self, row: EncodedRow) -> bytes:
        """The row as bytes."""
        return bytes(_PACKED.encode(pack_row(row)))

    def decode(self, encoded: bytes) -> EncodedRow:
        """The inverse of `encode`."""
        return unpack_row(_PACKED.decode(encoded))

    def is_deterministic(self) -> bool:
        """False: rows are never keys."""
        return False

    def to_type_hint(self) -> type[EncodedRow]:
        """The type that it encodes."""
        return EncodedRow


beam.coders.registry.register_coder(EncodedRow, EncodedRowCoder)


@dataclasses.dataclass(frozen=True, slots=True)
class Rejection:
    """Why a sink does not hold a row.

    Attributes:
      error_type: ``write_rejected`` or ``too_large``.
      message: What is wrong with the row, in the service's words where the service rejected it.
    """

    error_type: str
    message: str

    def error(self) -> RecordError:
        """The rejection as the error for a dead letter."""
        kind = TooLarge if self.error_type == TooLarge.error_type else WriteRejected
        return kind(self.message)


@dataclasses.dataclass(frozen=True, slots=True)
class RejectedRow:
    """A row that a sink does not hold and will never hold, with the reason."""

    row: EncodedRow
    rejection: Rejection


NeverRejected: TypeAlias = TaggedOutput[Literal["rejected"], RejectedRow]
"""In the annotation of a last step: an output that stays empty, for `Written.rejected`."""


class Written(NamedTuple):
    """The output of every sink.

    Attributes:
      rows: A PCollection of `EncodedRow`: the rows that the sink has taken. For a sink that cannot
        reject, its input as it is; for one that can, each row when the service has acknowledged it.
      rejected: A PCollection of `RejectedRow`; empty for a sink that cannot reject. Every input row
        ends in exactly one of ``rows`` and ``rejected``.
      reports: A PCollection of `SinkReport`: the sink's row counts when the input has ended.
        Reports of one sink add up.
    """

    rows: beam.PCollection[EncodedRow]
    rejected: beam.PCollection[RejectedRow]
    reports: beam.PCollection[SinkReport]


class Sink(Protocol):
    """A transform that writes encoded rows: ``rows | label >> sink`` is a `Written`.

    Attributes:
      can_reject: Whether ``rejected`` may hold rows. Such a sink is written first, so that the
        others get only the rows that it holds.
      whole_payloads: Whether the sink takes dead letters whole; otherwise their payload is cut to
        1 MiB.
    """

    @property
    def can_reject(self) -> bool: ...

    @property
    def whole_payloads(self) -> bool: ...

    def expand(self, rows: beam.PCollection[EncodedRow]) -> Written: ...

    def __rrshift__(self, label: str) -> Any: ...
