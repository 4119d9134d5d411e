"""Rows appended and inserted by pipelines into the loopback BigQuery."""

import dataclasses
import functools
import json
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to

from tests.transforms import pipeline
from transforms.accounting.counts import Counts
from transforms.accounting.sink_report import SinkReport
from transforms.clients.bigquery import TableName, TableSpec
from transforms.results.rows import Column
from transforms.sinks.base import EncodedRow
from transforms.sinks.bigquery.append import AppendRows, Delivery
from transforms.sinks.bigquery.insert import InsertRows
from transforms.sinks.bigquery.run_table import RunTable

EPOCH = "2020-01-01T00:00:00Z"
COLUMNS = (
    Column("record_id", "STRING", "REQUIRED"),
    Column("run_id", "STRING", "REQUIRED"),
    Column("created_at", "TIMESTAMP", "REQUIRED"),
    Column("n", "INT64"),
    Column("document", "STRING"),
)


def spec_of(dataset: str, table: str = "t") -> TableSpec:
    """A table with one column for each type of interest."""
    return TableSpec(
        name=TableName.parse(f"{dataset}.{table}"),
        columns=COLUMNS,
        partition_by="created_at",
        cluster_by=("run_id",),
    )


def line_of(number: int, **values: Any) -> bytes:
    """A row as a line of JSON."""
    row = {"record_id": str(number), "run_id": "r", "created_at": EPOCH, "n": number}
    return json.dumps(row | values).encode()


def run_table(spec: TableSpec, **more: Any) -> RunTable:
    """The table as run ``r`` writes to it."""
    return RunTable(spec=spec, run_id="r", started_at=EPOCH, **more)


def row_of(number: int, **values: Any) -> EncodedRow:
    """An encoded row whose context is its number and the counts of its dead letter."""
    return EncodedRow(line_of(number, **values), (number, Counts()))


def context_of(row: EncodedRow) -> int:
    """The number that `row_of` left in the context."""
    assert isinstance(row.context, tuple)
    return row.context[0]


def create_table(spec: TableSpec, **types: str) -> None:
    """Creates the table with other column types, so that BigQuery rejects rows that do not fit."""
    columns = tuple(
        Column(column.name, types.get(column.name, column.type), column.mode)
        for column in spec.columns
    )
    TableSpec(
        name=spec.name, columns=columns, partition_by=spec.partition_by, cluster_by=spec.cluster_by
    ).create(spec.client())


def numbers(spec: TableSpec) -> list[int]:
    """The numbers of the table's rows."""
    query = f"SELECT n FROM `{spec.name}` ORDER BY n"
    return [row[0] for row in spec.client().query(query).result()]


WAYS = {
    "default stream": AppendRows,
    "exactly once": functools.partial(AppendRows, delivery=Delivery.EXACTLY_ONCE),
    "insertAll": InsertRows,
}


@pytest.mark.parametrize("way", WAYS)
def test_each_row_ends_once(bigquery_dataset: str, way: str) -> None:
    """Each row is written or rejected with its context; the report is the table's count."""
    spec = spec_of(bigquery_dataset)
    create_table(spec, document="JSON")
    rows = [row_of(n, document="{bad" if n % 100 == 7 else "{}") for n in range(1000)]
    good = [n for n in range(1000) if n % 100 != 7]
    with pipeline() as p:
        written, rejected, reports = (
            p | beam.Create(rows) | "Write" >> WAYS[way](table=run_table(spec))
        )
        assert_that(written | beam.Map(context_of), equal_to(good), "written")
        bad = rejected | "Bad" >> beam.Map(
            lambda bad: (context_of(bad.row), bad.rejection.error_type)
        )
        expected = [(n, "write_rejected") for n in range(7, 1000, 100)]
        assert_that(bad, equal_to(expected), "rejected")
        held = [SinkReport("results", "bigquery", str(spec.name), len(good))]
        assert_that(reports, equal_to(held), "reports")
    assert numbers(spec) == good


@pytest.mark.parametrize("way", WAYS)
def test_a_fallback_takes_a_rejected_rows_place(bigquery_dataset: str, way: str) -> None:
    """A fallback row takes a rejected row's place and context in table and output."""
    spec = spec_of(bigquery_dataset)
    create_table(spec, document="JSON")
    rows = [row_of(n, document="{bad" if n == 1 else "{}") for n in range(3)]

    def fallback(row: EncodedRow, _: Any) -> EncodedRow:
        return EncodedRow(row.line.replace(b"{bad", b"{}"), row.context)

    write = WAYS[way](table=run_table(spec), fallback=fallback)
    with pipeline() as p:
        written, rejected, _ = p | beam.Create(rows) | write
        good = written | beam.Map(lambda row: (context_of(row), row.values["document"]))
        assert_that(good, equal_to([(n, "{}") for n in range(3)]), "written")
        assert_that(rejected, equal_to([]), "rejected")
    assert numbers(spec) == [0, 1, 2]
    assert not write.can_reject


def test_rows_too_large_are_rejected_alone(bigquery_dataset: str) -> None:
    """Rows too large are rejected as ``too_large``; others are written in requests below 10 MB."""
    spec = spec_of(bigquery_dataset)
    sizes = [10, 7_999_000, 8_100_000, 7_999_000]
    rows = [row_of(n, document="x" * size) for n, size in enumerate(sizes)]
    with pipeline() as p:
        _, rejected, _ = p | beam.Create(rows) | AppendRows(table=run_table(spec))
        found = rejected | beam.Map(lambda bad: (context_of(bad.row), bad.rejection.error_type))
        assert_that(found, equal_to([(2, "too_large")]))
    assert numbers(spec) == [0, 1, 3]


def test_a_table_of_an_older_release_gets_its_columns(bigquery_dataset: str) -> None:
    """Missing columns are added before rows are appended; the table is created even for no rows."""
    spec = spec_of(bigquery_dataset)
    dataclasses.replace(spec, columns=COLUMNS[:3]).create(spec.client())
    empty = spec_of(bigquery_dataset, "empty")
    with pipeline() as p:
        _ = p | beam.Create([row_of(1)]) | AppendRows(table=run_table(spec, view_sql="no SQL"))
        no_rows = p | "None" >> beam.Create([]).with_output_types(EncodedRow)
        _, _, reports = no_rows | "Empty" >> AppendRows(
            table=run_table(empty), delivery=Delivery.EXACTLY_ONCE
        )
        assert_that(reports, equal_to([SinkReport("results", "bigquery", str(empty.name), 0)]))
    assert numbers(spec) == [1]
    assert numbers(empty) == []


class _Endless(beam.PTransform):
    """Marks a PCollection as unbounded."""

    def expand(self, rows: Any) -> Any:
        made = rows | beam.Map(lambda row: row).with_output_types(EncodedRow)
        made.is_bounded = False
        return made


@pytest.mark.parametrize("drained", [False, True])
def test_an_unbounded_input_is_counted_when_it_is_drained(
    bigquery_dataset: str, drained: bool
) -> None:
    """A drained unbounded input is reported only on request; its rows are written in any case."""
    spec = spec_of(bigquery_dataset)
    held = [SinkReport("results", "bigquery", str(spec.name), 1)] if drained else []
    with pipeline() as p:
        endless = p | beam.Create([row_of(1)]) | _Endless()
        _, _, reports = endless | AppendRows(table=run_table(spec), count_when_drained=drained)
        assert_that(reports, equal_to(held))
    assert numbers(spec) == [1]
