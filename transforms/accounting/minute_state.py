"""The state of a streaming job's minutes; the rules of `transforms.records.coders` apply."""

import dataclasses
from collections.abc import Mapping

from transforms.accounting.counts import Counts
from transforms.records.coders import VersionedCoder


@dataclasses.dataclass(frozen=True, slots=True)
class MinuteCount:
    """The counts of the records read in one minute.

    Attributes:
      counts: The counts.
      revision: Number of summary rows written for this minute.
      pending: Whether the counts have changed since the last of these rows.
      changed_s: When the counts last changed (seconds since the epoch).
    """

    counts: Counts = dataclasses.field(default_factory=Counts)
    revision: int = 0
    pending: bool = False
    changed_s: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Backlog:
    """The minutes with unfinished records.

    Attributes:
      open: Number of unfinished records by minute (minutes since the epoch).
    """

    open: Mapping[int, int] = dataclasses.field(default_factory=dict)


class CountsCoder(VersionedCoder, kind=Counts):
    """Bytes of a `Counts`; counts of zero are left out."""


class MinuteCountCoder(VersionedCoder, kind=MinuteCount):
    """Bytes of a `MinuteCount`."""


class BacklogCoder(VersionedCoder, kind=Backlog):
    """Bytes of a `Backlog`."""
