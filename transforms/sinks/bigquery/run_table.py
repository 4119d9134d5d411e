"""The table that a run writes to: its preparation, and the count of the run's rows."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeAlias

import apache_beam as beam
from apache_beam.pvalue import AsList
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from transforms.accounting.sink_report import SinkReport
from transforms.clients.bigquery import TableSpec, bigquery_schema
from transforms.sinks.base import EncodedRow, RejectedRow, Written

if TYPE_CHECKING:
    from google.cloud import bigquery


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunTable:
    """A table, and which of its rows are the run's.

    Attributes:
      spec: The table; created when it is missing.
      run_id: The run; its rows are counted by it.
      started_at: No row of the run is older (RFC 3339); it limits the rows that the count scans.
      kind: ``results``, ``dead_letters`` or ``runs``, for the report.
      view_sql: A statement that creates a view next to the table, if any.
    """

    spec: TableSpec
    run_id: str
    started_at: str
    kind: str = "results"
    view_sql: str | None = None

    def make_view(self, client: "bigquery.Client") -> None:
        """Creates the view, if there is one to create; a failure is logged, not raised."""
        if self.view_sql:
            self.spec.make_view(client, self.view_sql)

    def report(self, client: "bigquery.Client") -> SinkReport:
        """Counts the run's rows by a query."""
        rows = self.spec.count(client, self.run_id, self.started_at)
        return SinkReport(self.kind, "bigquery", str(self.spec.name), rows)


def prepare_table(spec: TableSpec, client: "bigquery.Client") -> None:
    """Creates the table when it is missing, and adds the columns that an older release lacks.

    Idempotent, and safe for many workers at once.
    """
    spec.create(client)
    table = client.get_table(str(spec.name))
    known = {field.name.lower() for field in table.schema}
    added = [field for field in bigquery_schema(spec.columns) if field.name.lower() not in known]
    if added:
        table.schema = [*table.schema, *added]
        client.update_table(table, ["schema"])


class _PrepareDoFn(beam.DoFn):
    """Prepares the table, then its view; emits no report."""

    def __init__(self, table: RunTable) -> None:
        self._table = table

    def process(self, _: None) -> Iterator[SinkReport]:
        client = self._table.spec.client()
        prepare_table(self._table.spec, client)
        self._table.make_view(client)
        return iter(())


class _BundleEndDoFn(beam.DoFn):
    """One element per bundle, because the count holds all that it waits for in memory."""

    def process(self, _: EncodedRow) -> None:
        pass

    def finish_bundle(self) -> Iterator[WindowedValue]:
        window = GlobalWindow()
        yield WindowedValue(1, window.max_timestamp(), [window])


class _CountDoFn(beam.DoFn):
    """Counts the table's rows of the run, when BigQuery has answered every row."""

    def __init__(self, table: RunTable) -> None:
        self._table = table

    def process(self, _: None, answered: list[int]) -> Iterator[SinkReport]:
        del answered  # only waited for
        client = self._table.spec.client()
        self._table.spec.create(client)
        yield self._table.report(client)


Appended: TypeAlias = tuple[beam.PCollection[EncodedRow], beam.PCollection[RejectedRow]]


def append_to_table(
    rows: beam.PCollection[EncodedRow],
    table: RunTable,
    append: Callable[[beam.PCollection[EncodedRow]], Appended],
    *,
    count_when_drained: bool,
) -> Written:
    """The steps around every way of appending: prepare the table, append, count the table.

    Args:
      rows: The rows.
      table: Where they go.
      append: Returns the rows that the table has acknowledged, and those that it rejected.
      count_when_drained: Also count when an unbounded input ends. Steps that wait for the end hold
        an element per bundle until then, so set it only where the input is drained soon.
    """
    once = rows.pipeline | "Once" >> beam.Create([None])
    no_reports = once | "PrepareTable" >> beam.ParDo(_PrepareDoFn(table))
    written, rejected = append(rows)
    if not (rows.is_bounded or count_when_drained):
        return Written(written, rejected, no_reports)
    answered = written | "CountWritten" >> beam.ParDo(_BundleEndDoFn()).with_output_types(int)
    reports = once | "CountTable" >> beam.ParDo(_CountDoFn(table), AsList(answered))
    return Written(written, rejected, reports)
