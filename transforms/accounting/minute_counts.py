"""The counts of a streaming run, by the minute in which a record was read.

The minute travels with the record (`Record.read_minute`). `CountsByMinute` counts within a bundle,
`CountReadMinutes` counts the inputs read; `transforms.accounting.minute_summary` turns sums into
rows.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from transforms.accounting.counts import Counts, emit_counts
from transforms.records.records import DeadLetter, Record

UNKNOWN_MINUTE = 0
"""The minute of records without a `read_minute`."""

MinuteCounts = tuple[int, Counts]
"""Minutes since the Unix epoch, and the counts of the records read in that minute."""


class CountsByMinute:
    """The counts of a DoFn's bundle, by minute of reading; one small element per minute.

    >>> counted = CountsByMinute()
    >>> counted.of(29_000_000).by_name["records"] += 1
    >>> [(minute, counts.by_name["records"]) for minute, counts in counted.take()]
    [(29000000, 1)]
    """

    def __init__(self) -> None:
        self._counted: dict[int, Counts] = {}

    def of(self, read_minute: int | None) -> Counts:
        """The counts to add to."""
        minute = UNKNOWN_MINUTE if read_minute is None else read_minute
        if minute not in self._counted:
            self._counted[minute] = Counts()
        return self._counted[minute]

    def take(self) -> list[MinuteCounts]:
        """Returns all counts so far and starts again at zero."""
        taken, self._counted = list(self._counted.items()), {}
        return taken

    def emit(self) -> Iterator[WindowedValue]:
        """The same counts, as outputs of ``finish_bundle``."""
        window = GlobalWindow()
        for counts in self.take():
            yield WindowedValue(counts, window.max_timestamp(), [window])


class BundleCounts:
    """The counts of a sink's bundle: one sum, or one per minute of reading.

    Args:
      by_minute: Count by minute, because the input is unbounded.
    """

    def __init__(self, *, by_minute: bool) -> None:
        self._by_minute = by_minute
        self._whole = Counts()
        self._minutes = CountsByMinute()

    def of(self, read_minute: int | None) -> Counts:
        """The counts to add to."""
        return self._minutes.of(read_minute) if self._by_minute else self._whole

    def emit(self) -> Iterator[TaggedOutput]:
        """The outputs of a DoFn's ``finish_bundle``: ``minutes`` or ``counts``."""
        if not self._by_minute:
            yield emit_counts(self._whole)
            return
        for counts in self._minutes.emit():
            yield TaggedOutput("minutes", counts)


class _CountReadDoFn(beam.DoFn):
    """Counts records, or unreadable inputs: both were read."""

    def start_bundle(self) -> None:
        self._counted = CountsByMinute()

    def process(self, read: Any) -> None:
        self._counted.of(read.read_minute).by_name["records"] += 1

    def finish_bundle(self) -> Iterator[WindowedValue]:
        return self._counted.emit()


@dataclasses.dataclass(kw_only=True, eq=False)
class CountReadMinutes(beam.PTransform):
    """Counts the inputs read, by minute; unbounded.

    Takes ``(records, unread)``. It precedes the first shuffle, so that a record lost after it
    shows. It does not count repeated ids: that would require keeping every id forever.

    Returns:
      A PCollection of `MinuteCounts`, a few per bundle.
    """

    def __post_init__(self) -> None:
        super().__init__()

    def expand(
        self, read: tuple[beam.PCollection[Record], beam.PCollection[DeadLetter]]
    ) -> beam.PCollection[MinuteCounts]:
        records, unread = read
        count = [
            records
            | "CountRecords" >> beam.ParDo(_CountReadDoFn()).with_output_types(MinuteCounts),
            unread | "CountUnread" >> beam.ParDo(_CountReadDoFn()).with_output_types(MinuteCounts),
        ]
        return count | "AllRead" >> beam.Flatten()
