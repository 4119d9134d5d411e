"""What a streaming job keeps about its minutes, and the versioned coders of it."""

import collections
import dataclasses
import decimal
from collections.abc import Mapping
from typing import Any

import apache_beam as beam

from transforms.accounting.tally import Tally
from transforms.records.coders import (
    VersionedCoder,
    pack,
    unpack,
)


@dataclasses.dataclass(frozen=True, slots=True)
class MinuteCount:
    """What is known of the records that were read in one minute.

    Attributes:
      tally: The sums.
      revision: How many summary rows have been written for it.
      pending: The sums have changed since the last of them.
      changed_s: When they changed last (seconds since the epoch).
    """

    tally: Tally = dataclasses.field(default_factory=Tally)
    revision: int = 0
    pending: bool = False
    changed_s: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Backlog:
    """The minutes that are not finished.

    Attributes:
      open: Minutes since the epoch to records that have not ended.
    """

    open: Mapping[int, int] = dataclasses.field(default_factory=dict)


def _counted(counts: Mapping[str, int]) -> dict[str, int]:
    return {name: counts[name] for name in sorted(counts) if counts[name]}


def _tally_values(tally: Tally) -> list[Any]:
    cost = None if tally.cost_usd is None else format(tally.cost_usd, "f")
    return [_counted(tally.counts), _counted(tally.error_types), cost]


def _tally(values: list[Any]) -> Tally:
    counts, error_types, cost = values[:3]
    return Tally(
        collections.Counter(counts),
        collections.Counter(error_types),
        None if cost is None else decimal.Decimal(cost),
    )


def encode_tally(tally: Tally) -> bytes:
    """Sums as bytes; what is zero is left out."""
    return pack(_tally_values(tally))


def decode_tally(encoded: bytes) -> Tally:
    """The inverse of `encode_tally`."""
    return _tally(unpack(encoded)[0])


def encode_minute_count(count: MinuteCount) -> bytes:
    """What is known of a minute, as bytes."""
    return pack([_tally_values(count.tally), count.revision, count.pending, count.changed_s])


def decode_minute_count(encoded: bytes) -> MinuteCount:
    """The inverse of `encode_minute_count`."""
    tally, *rest = unpack(encoded)[0][:4]
    return MinuteCount(_tally(tally), *rest)


def encode_backlog(backlog: Backlog) -> bytes:
    """The unfinished minutes as bytes."""
    return pack([[[minute, backlog.open[minute]] for minute in sorted(backlog.open)]])


def decode_backlog(encoded: bytes) -> Backlog:
    """The inverse of `encode_backlog`."""
    return Backlog({pair[0]: pair[1] for pair in unpack(encoded)[0][0]})


class TallyCoder(VersionedCoder):
    """Bytes of a `Tally`."""

    encoder, decoder, kind = staticmethod(encode_tally), staticmethod(decode_tally), Tally


class MinuteCountCoder(VersionedCoder):
    """Bytes of a `MinuteCount`."""

    encoder = staticmethod(encode_minute_count)
    decoder = staticmethod(decode_minute_count)
    kind = MinuteCount


class BacklogCoder(VersionedCoder):
    """Bytes of a `Backlog`."""

    encoder, decoder, kind = staticmethod(encode_backlog), staticmethod(decode_backlog), Backlog


def register() -> None:
    """Makes Beam use these coders for these types; runs when the module is imported."""
    for coder in (TallyCoder, MinuteCountCoder, BacklogCoder):
        beam.coders.registry.register_coder(coder.kind, coder)


register()
