"""Rows appended to a BigQuery table as they come, in streaming and in batch, without Java.

`AppendRows` is the transform: Google's Storage Write API client, or ``insertAll``. Unlike a load
job it tells which row a table refuses and why, and it needs no end of the input. What it does not
give is "all rows or none": they are visible as they are written.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

import apache_beam as beam
from apache_beam.coders import BytesCoder, Coder
from apache_beam.pvalue import AsList, TaggedOutput
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from transforms.accounting.sink_report import SinkReport
from transforms.clients.bigquery import TableSpec
from transforms.sinks.bigquery.exactly_once import AppendExactlyOnce
from transforms.sinks.bigquery.row_batches import Refit, Refusal, RowAppender
from transforms.sinks.bigquery.writers import AppendMethod, open_writer, prepare_table

OwnedRow: TypeAlias = tuple[bytes, Any]
"""A JSON row, and whatever its owner wants to have back with it."""

RefusedRow: TypeAlias = tuple[OwnedRow, Refusal]


class _AppendDoFn(beam.DoFn):
    """At least once: a bundle that is repeated appends its rows again.

    Rows are answered before their bundle ends, so none that Beam takes for done is missing.
    """

    def __init__(self, spec: TableSpec, method: AppendMethod, refit: Refit | None) -> None:
        self._spec, self._method, self._refit = spec, method, refit
        self._writer: Any = None

    def start_bundle(self) -> None:
        self._appender: RowAppender[tuple[OwnedRow, Any, Any]] | None = None
        if self._writer is not None:
            self._writer.reset()

    def process(
        self,
        row: OwnedRow,
        timestamp: Any = beam.DoFn.TimestampParam,
        window: Any = beam.DoFn.WindowParam,
    ) -> Iterator[OwnedRow | TaggedOutput[Literal["refused"], RefusedRow]]:
        if self._appender is None:
            if self._writer is None:
                self._writer = open_writer(self._spec, self._method)
            self._appender = RowAppender(self._writer, self._refit)
        for ended in self._appender.add((row, timestamp, window), row[0]):
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


def _output(item: tuple[OwnedRow, Any, Any], refusal: Refusal | None) -> Any:
    """A row where and when it came, behind those that came after it."""
    row, timestamp, window = item
    if refusal is None:
        return WindowedValue(row, timestamp, (window,))
    return TaggedOutput("refused", WindowedValue((row, refusal), timestamp, (window,)))


class _PrepareDoFn(beam.DoFn):
    """Makes the table, then its view."""

    def __init__(self, spec: TableSpec, view_sql: str | None) -> None:
        self._spec, self._view_sql = spec, view_sql

    def process(self, _: None) -> None:
        client = self._spec.client()
        prepare_table(self._spec, client)
        if self._view_sql:
            self._spec.make_view(client, self._view_sql)


class _BundleEndDoFn(beam.DoFn):
    """One element per bundle: what waits for the end shall be small."""

    def process(self, _: OwnedRow) -> None:
        pass

    def finish_bundle(self) -> Iterator[WindowedValue]:
        window = GlobalWindow()
        yield WindowedValue(1, window.max_timestamp(), [window])


class _ReportDoFn(beam.DoFn):
    """Counts the table's rows of the run, when every row has been answered."""

    def __init__(self, sink: "AppendRows") -> None:
        self._spec, self._run_id, self._kind = sink.spec, sink.run_id, sink.kind
        self._started_at = sink.started_at

    def process(self, _: None, answered: list[int]) -> Iterator[SinkReport]:
        del answered  # only waited for
        client = self._spec.client()
        self._spec.create(client)
        rows = self._spec.count(client, self._run_id, self._started_at)
        yield SinkReport(self._kind, "bigquery", str(self._spec.name), rows)


@dataclasses.dataclass(kw_only=True, eq=False)
class AppendRows(beam.PTransform):
    """Appends encoded rows to a BigQuery table as they come; bounded or unbounded.

    The table is made when it is missing, and gets the columns that it lacks. Each row ends once: as
    written, when BigQuery has acknowledged it, or as refused.

    * At least once (the default): a bundle that Beam repeats, or an append whose answer was lost,
      may leave rows twice in the table. Read them through the ``_latest`` view.
    * ``exactly_once``: every row that is not refused is in the table once, whatever is repeated;
      `transforms.sinks.bigquery.exactly_once` says how. It costs three shuffles of the rows, and is for
      ``storage_write`` and the global window only.

    A row of more than 8 MB is refused as ``too_large``; what BigQuery finds wrong with a row refuses
    that row alone, as ``write_rejected``. What no row is to blame for (no permission, no table, an
    outage of ten minutes) raises, and Beam repeats the bundle: nothing is lost.

    Takes a PCollection of ``(row, owner)``: a JSON line, and what the caller wants to have back
    with it.

    Args:
      spec: The table.
      run_id: The run; its rows are counted by it.
      started_at: Nothing of this run is older (RFC 3339); it bounds what the count scans.
      kind: ``results`` or ``dead_letters``, for the report.
      method: ``storage_write`` or ``streaming_inserts``.
      exactly_once: See above.
      owner_coder: How an owner travels between workers (exactly once only).
      refit: Makes of a refused row one that takes its place, so that none is lost. What it has
        made it must leave alone; a table that refuses that, too, raises.
      view_sql: A statement to run when the table is there.
      report: Whether the table is counted when the input has ended; None for when it is bounded. An
        unbounded one ends nowhere but in a local stream that is drained.

    Returns:
      ``(written, refused, reports)``: the rows that the table holds, with their owners; pairs of
      such a row and its `Refusal`; and, where asked for, one `SinkReport` with the table's own count
      of the run's rows.
    """

    spec: TableSpec
    run_id: str
    started_at: str
    kind: str = "results"
    method: AppendMethod = "storage_write"
    exactly_once: bool = False
    owner_coder: Coder = dataclasses.field(default_factory=BytesCoder)
    refit: Refit | None = None
    view_sql: str | None = None
    report: bool | None = None

    def __post_init__(self) -> None:
        super().__init__()
        if self.exactly_once and self.method != "storage_write":
            raise ValueError(
                f"exactly_once goes with method 'storage_write' only, not {self.method!r}"
            )

    def expand(
        self, rows: beam.PCollection[OwnedRow]
    ) -> tuple[
        beam.PCollection[OwnedRow], beam.PCollection[RefusedRow], beam.PCollection[SinkReport]
    ]:
        once = rows.pipeline | "Once" >> beam.Create([None])
        _ = once | "PrepareTable" >> beam.ParDo(_PrepareDoFn(self.spec, self.view_sql))
        if self.exactly_once:
            append: Any = AppendExactlyOnce(
                spec=self.spec, owner_coder=self.owner_coder, refit=self.refit
            )
            written, refused = rows | "ExactlyOnce" >> append
        else:
            append = _AppendDoFn(self.spec, self.method, self.refit)
            ended = rows | "AppendRows" >> beam.ParDo(append).with_outputs(
                "refused", main="written"
            )
            written, refused = ended.written, ended.refused
        if not (rows.is_bounded if self.report is None else self.report):
            no_report = rows.pipeline | "NoReport" >> beam.Create([]).with_output_types(SinkReport)
            return written, refused, no_report
        answered = written | "CountWritten" >> beam.ParDo(_BundleEndDoFn()).with_output_types(int)
        report = once | "CountTable" >> beam.ParDo(_ReportDoFn(self), AsList(answered))
        return written, refused, report
