"""Appends that put each row into the table at least once: one `TableWriter` per worker thread."""

from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeAlias

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput
from apache_beam.utils.windowed_value import WindowedValue

from transforms.sinks.base import EncodedRow, RejectedRow, Rejection
from transforms.sinks.bigquery.row_batches import Fallback, RowAppender, TableWriter
from transforms.sinks.bigquery.run_table import Appended

Where: TypeAlias = tuple[Any, Any]
"""A row's timestamp and window."""


class _AppendDoFn(beam.DoFn):
    """At least once: a bundle that Beam repeats appends its rows again.

    BigQuery has answered every row before its bundle ends, so no row that Beam considers done is
    missing from the table.
    """

    def __init__(self, open_writer: Callable[[], TableWriter], fallback: Fallback | None) -> None:
        self._open_writer, self._fallback = open_writer, fallback
        self._writer: TableWriter | None = None

    def start_bundle(self) -> None:
        self._appender: RowAppender[Where] | None = None
        if self._writer is not None:
            self._writer.reset()

    def process(
        self,
        row: EncodedRow,
        timestamp: Any = beam.DoFn.TimestampParam,
        window: Any = beam.DoFn.WindowParam,
    ) -> Iterator[EncodedRow | TaggedOutput[Literal["rejected"], RejectedRow]]:
        if self._appender is None:
            if self._writer is None:
                self._writer = self._open_writer()
            self._appender = RowAppender(self._writer, self._fallback)
        for ended in self._appender.add((timestamp, window), row):
            yield _output(*ended)

    def finish_bundle(self) -> Iterator[Any]:
        if self._appender is not None:
            for ended in self._appender.finish():
                yield _output(*ended)
            self._appender = None

    def teardown(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _output(where: Where, row: EncodedRow, rejection: Rejection | None) -> Any:
    """The row with the timestamp and window that it came with."""
    timestamp, window = where
    if rejection is None:
        return WindowedValue(row, timestamp, (window,))
    rejected = RejectedRow(row, rejection)
    return TaggedOutput("rejected", WindowedValue(rejected, timestamp, (window,)))


def append_at_least_once(
    rows: beam.PCollection[EncodedRow],
    open_writer: Callable[[], TableWriter],
    fallback: Fallback | None,
) -> Appended:
    """Appends rows through a writer that each worker thread opens; any windowing."""
    append = _AppendDoFn(open_writer, fallback)
    ended = rows | "AppendRows" >> beam.ParDo(append).with_outputs("rejected", main="written")
    return ended.written, ended.rejected
