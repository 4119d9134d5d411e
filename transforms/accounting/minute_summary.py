"""Run summaries of a streaming job: a row per minute of reading, revised until it reconciles.

The sibling of `transforms.accounting.reconcile` for an unbounded run. State sums up the records
read in a minute and their outcomes, under the minute that travels with each record
(`Record.read_minute`): event time does not work, because a batch flushed by a timer carries the
timer's timestamp. ``difference = records - results - dead_letters`` counts the records in progress,
or lost.

`minute_row` is the pure part; `transforms.accounting.minute_counts` counts, `SummariseMinutes` sums.
"""

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeAlias

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import GlobalWindows

from transforms.accounting import metrics
from transforms.accounting.counts import Counts
from transforms.accounting.minute_counts import MinuteCounts
from transforms.accounting.minute_state import Backlog, BacklogCoder, MinuteCount, MinuteCountCoder
from transforms.accounting.reconcile import SummarySpec, encode_summary, summarise
from transforms.accounting.sink_report import SinkReport
from transforms.records.errors import ConfigurationError
from transforms.results.rows import SUMMARY_COLUMNS, Column, Row

MINUTE_S = 60
MINUTE_COLUMNS: tuple[Column, ...] = (
    *SUMMARY_COLUMNS,
    Column("read_minute", "TIMESTAMP", help="Streaming: the minute of reading that it sums up."),
    Column("revision", "INT64", help="Streaming: the row with the highest revision is valid."),
    Column("difference", "INT64", help="Streaming: records in progress, or lost."),
    Column("expired", "BOOL", help="Streaming: given up; the difference will not change."),
)
"""A streaming run's summary: the columns of a batch run and four more; one table holds both."""

_LOGGER = logging.getLogger(__name__)

Emitted: TypeAlias = bytes | TaggedOutput[Literal["watched"], tuple[int, tuple[int, int]]]
"""A row, or ``(0, (minute, difference))`` for the gauges."""


def difference(counts: Counts) -> int:
    """Records that have neither a result nor a dead letter."""
    sums = counts.by_name
    return sums["records"] - sums["results"] - sums["dead_letters"]


def minute_row(spec: SummarySpec, minute: int, count: MinuteCount, *, expired: bool = False) -> Row:
    """The next row of a minute; ``reconciled`` if all its records have ended."""
    reports = [
        SinkReport(kind, "", "", count.counts.by_name[kind]) for kind in ("results", "dead_letters")
    ]
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(minute * MINUTE_S))
    return {
        **summarise(dataclasses.replace(spec, sinks=None), count.counts, reports),
        "duplicate_ids": None,
        "read_minute": at,
        "revision": count.revision + 1,
        "difference": difference(count.counts),
        "expired": expired,
    }


class _SumMinuteDoFn(beam.DoFn):
    """Keeps the sums of each minute; writes a row after a change, and none without one.

    No timer sets itself again: a job with such a timer never finishes draining. The real-time timer
    that spaces the rows is paired with one at the end of the state's life in event time: draining
    fires it too, and then it writes the pending row. (A real-time timer would hold the watermark
    back while it waits.)
    """

    ROW = TimerSpec("row", TimeDomain.REAL_TIME)
    EXPIRY = TimerSpec("expiry", TimeDomain.WATERMARK)
    _count = beam.DoFn.StateParam(ReadModifyWriteStateSpec("count", MinuteCountCoder()))
    _row = beam.DoFn.TimerParam(ROW)
    _expiry = beam.DoFn.TimerParam(EXPIRY)

    _expired_records = Metrics.counter(metrics.NAMESPACE, "expired_records")

    def __init__(
        self, spec: SummarySpec, every_s: float, keep_s: float, clock: Callable[[], float]
    ) -> None:
        self._spec, self._every_s, self._keep_s, self._clock = spec, every_s, keep_s, clock

    def process(
        self,
        counted: MinuteCounts,
        count: Any = _count,
        row: Any = _row,
        expiry: Any = _expiry,
    ) -> Iterator[Emitted]:
        minute, counts = counted
        now = self._clock()
        before: MinuteCount = count.read() or MinuteCount()
        total = Counts.total((before.counts, counts))
        count.write(MinuteCount(total, before.revision, True, round(now)))
        if not before.pending:
            row.set(max(now, (minute + 1) * MINUTE_S) + self._every_s)
            expiry.set(now + self._keep_s)
        return iter(())

    @on_timer(ROW)  # type: ignore[untyped-decorator]
    def on_row(self, minute: Any = beam.DoFn.KeyParam, count: Any = _count) -> Iterator[Emitted]:
        return self._write(minute, count)

    @on_timer(EXPIRY)  # type: ignore[untyped-decorator]
    def on_expiry(
        self, minute: Any = beam.DoFn.KeyParam, count: Any = _count, row: Any = _row
    ) -> Iterator[Emitted]:
        row.clear()
        known: MinuteCount | None = count.read()
        if known is None:
            return
        if self._clock() < known.changed_s + self._keep_s / 2:  # drained, or the input ended
            yield from self._write(minute, count)
            return
        lost = difference(known.counts)
        if lost:
            self._expired_records.inc(abs(lost))
            _LOGGER.error("minute %d expired: %d of its records have not ended", minute, lost)
        if lost or known.pending:
            yield from self._outputs(minute, known, expired=bool(lost))
        count.clear()

    def _write(self, minute: int, count: Any) -> Iterator[Emitted]:
        known: MinuteCount | None = count.read()
        if known is not None and known.pending:  # else a late timer: the row is already written
            yield from self._outputs(minute, known)
            count.write(dataclasses.replace(known, revision=known.revision + 1, pending=False))

    def _outputs(
        self, minute: int, known: MinuteCount, *, expired: bool = False
    ) -> Iterator[Emitted]:
        row = minute_row(self._spec, minute, known, expired=expired)
        yield encode_summary(row, MINUTE_COLUMNS)
        open_records = 0 if expired else difference(known.counts)
        yield TaggedOutput("watched", (0, (minute, open_records)))


def watch(backlog: Backlog, minute: int, open_records: int) -> Backlog:
    """The backlog with a minute's latest difference; a finished minute leaves it."""
    kept = {known: records for known, records in backlog.open.items() if known != minute}
    return Backlog({**kept, minute: open_records} if open_records else kept)


def gauges(backlog: Backlog, now_s: float) -> dict[str, int]:
    """The gauges that `SummariseMinutes` reports for a backlog."""
    oldest = min(backlog.open, default=None)
    lag_s = 0 if oldest is None else max(0, round(now_s) - (oldest + 1) * MINUTE_S)
    return {
        "backlog_records": sum(backlog.open.values()),
        "oldest_unfinished_minute": -1 if oldest is None else oldest,
        "system_lag_s": lag_s,
    }


class _WatchBacklogDoFn(beam.DoFn):
    """Keeps the unfinished minutes, under one key, and sets the gauges."""

    _backlog = beam.DoFn.StateParam(ReadModifyWriteStateSpec("backlog", BacklogCoder()))

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock

    def process(self, watched: tuple[int, tuple[int, int]], backlog: Any = _backlog) -> None:
        after = watch(backlog.read() or Backlog(), *watched[1])
        backlog.write(after)
        values = gauges(after, self._clock())
        for name, value in values.items():
            Metrics.gauge(metrics.NAMESPACE, name).set(value)
        metrics.LIVE.set(values)


@dataclasses.dataclass(kw_only=True, eq=False)
class SummariseMinutes(beam.PTransform):
    """Writes a summary row per minute of reading, and again after each change, until it reconciles.

    Unbounded; in the global window, whatever the input's. Takes a PCollection of `MinuteCounts`: the
    inputs read (`CountReadMinutes`) and the rows that the sinks have taken (`CountsByMinute`),
    flattened, in any order. A minute's first row comes `every_s` after the minute's end, further
    ones at most every `every_s` while something changes, and one more when the job is drained; the
    row with the highest ``revision`` is valid. A minute without changes gets no row.

    State is bounded: `keep_s` after a minute's last change its state is dropped; if it does not
    reconcile by then, a last row says ``expired``, the counter ``expired_records`` counts its
    records, and an error is logged. Later counts for it start at revision 1 again, so that the
    earlier row stays valid. Counts are exactly once if the runner's state is; with at-least-once
    processing they may be too high.

    Gauges, set with each row: ``backlog_records`` (the sum of the differences),
    ``oldest_unfinished_minute`` (minutes since the Unix epoch, -1 for none) and ``system_lag_s``
    (seconds since that minute's end, 0 for none).

    Args:
      spec: The facts about the run in every row; the caller writes the rows.
      every_s: Seconds between two rows of a minute.
      keep_s: Seconds for which a minute is kept; Pub/Sub keeps a message for seven days.
      clock: Seconds since the epoch; for tests, whose runners have their own clock.

    Returns:
      A PCollection of rows of `MINUTE_COLUMNS` as JSON lines.
    """

    spec: SummarySpec
    every_s: float = 60.0
    keep_s: float = 7 * 86_400.0
    clock: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        super().__init__()
        if not 0 <= self.every_s < self.keep_s / 2:
            raise ConfigurationError(
                f"every_s is {self.every_s}, but must be at least 0 and below half of keep_s "
                f"({self.keep_s})"
            )

    def expand(self, counted: beam.PCollection[MinuteCounts]) -> beam.PCollection[bytes]:
        summed = (
            counted
            | "OneWindow" >> beam.WindowInto(GlobalWindows())
            | "SumMinutes"
            >> beam.ParDo(
                _SumMinuteDoFn(self.spec, self.every_s, self.keep_s, self.clock)
            ).with_outputs("watched", main="rows")
        )
        _ = summed.watched | "WatchBacklog" >> beam.ParDo(_WatchBacklogDoFn(self.clock))
        return summed.rows
