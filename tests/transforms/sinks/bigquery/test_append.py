"""Rows appended to the loopback BigQuery, through pipelines."""

import dataclasses
import json
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to

from tests.transforms import pipeline
from transforms.accounting.sink_report import SinkReport
from transforms.clients.bigquery import TableName, TableSpec
from transforms.results.rows import Column
from transforms.sinks.bigquery.append import AppendRows

EPOCH = "2020-01-01T00:00:00Z"
COLUMNS = (
    Column("record_id", "STRING", "REQUIRED"),
    Column("run_id", "STRING", "REQUIRED"),
    Column("created_at", "TIMESTAMP", "REQUIRED"),
    Column("n", "INT64"),
    Column("document", "STRING"),
)


def spec_of(dataset: str, table: str = "t") -> TableSpec:
    """A table with one column for each thing that matters here."""
    return TableSpec(
        name=TableName.parse(f"{dataset}.{table}"),
        columns=COLUMNS,
        partition_by="created_at",
        cluster_by=("run_id",),
    )


def line_of(number: int, **values: Any) -> bytes:
    """A row."""
    row = {"record_id": str(number), "run_id": "r", "created_at": EPOCH, "n": number}
    return json.dumps(row | values).encode()


def create_table(spec: TableSpec, **types: str) -> None:
    """Makes the table with other types than its rows have: BigQuery refuses what does not fit."""
    columns = tuple(
        Column(column.name, types.get(column.name, column.type), column.mode)
        for column in spec.columns
    )
    TableSpec(
        name=spec.name, columns=columns, partition_by=spec.partition_by, cluster_by=spec.cluster_by
    ).create(spec.client())


def numbers(spec: TableSpec) -> list[int]:
    """What the table holds, by its numbers."""
    query = f"SELECT n FROM `{spec.name}` ORDER BY n"
    return [row[0] for row in spec.client().query(query).result()]


WAYS = {
    "default stream": {},
    "exactly once": {"exactly_once": True},
    "insertAll": {"method": "streaming_inserts"},
}


@pytest.mark.parametrize("way", WAYS)
def test_each_row_ends_once(bigquery_dataset: str, way: str) -> None:
    """Written or refused, with its owner; the report is the table's own count."""
    spec = spec_of(bigquery_dataset)
    create_table(spec, document="JSON")
    rows = [(line_of(n, document="{bad" if n % 100 == 7 else "{}"), b"%d" % n) for n in range(1000)]
    good = [n for n in range(1000) if n % 100 != 7]
    with pipeline() as p:
        written, refused, reports = (
            p | beam.Create(rows) | AppendRows(spec=spec, run_id="r", started_at=EPOCH, **WAYS[way])
        )
        owners = written | beam.Map(lambda row: int(row[1]))
        assert_that(owners, equal_to(good), "written")
        bad = refused | "Bad" >> beam.Map(lambda row: (int(row[0][1]), row[1].error_type))
        assert_that(bad, equal_to([(n, "write_rejected") for n in range(7, 1000, 100)]), "refused")
        held = [SinkReport("results", "bigquery", str(spec.name), len(good))]
        assert_that(reports, equal_to(held), "reports")
    assert numbers(spec) == good


def test_exactly_once_is_for_one_method() -> None:
    """``insertAll`` has no offsets."""
    with pytest.raises(ValueError, match="goes with method 'storage_write' only"):
        AppendRows(
            spec=spec_of("p.d"),
            run_id="r",
            started_at=EPOCH,
            method="streaming_inserts",
            exactly_once=True,
        )


def test_rows_too_large_are_refused_alone(bigquery_dataset: str) -> None:
    """As ``too_large``; the largest that are not are written, each in a request below 10 MB."""
    spec = spec_of(bigquery_dataset)
    sizes = [10, 7_999_000, 8_100_000, 7_999_000]
    rows = [(line_of(n, document="x" * size), b"%d" % n) for n, size in enumerate(sizes)]
    with pipeline() as p:
        _, refused, _ = p | beam.Create(rows) | AppendRows(spec=spec, run_id="r", started_at=EPOCH)
        found = refused | beam.Map(lambda row: (row[0][1], row[1].error_type))
        assert_that(found, equal_to([(b"2", "too_large")]))
    assert numbers(spec) == [0, 1, 3]


def test_a_table_of_an_older_release_gets_its_columns(bigquery_dataset: str) -> None:
    """What it lacks is added before rows are appended; no rows make the table all the same."""
    spec = spec_of(bigquery_dataset)
    dataclasses.replace(spec, columns=COLUMNS[:3]).create(spec.client())
    empty = spec_of(bigquery_dataset, "empty")
    with pipeline() as p:
        _ = (
            p
            | beam.Create([(line_of(1), b"")])
            | AppendRows(spec=spec, run_id="r", started_at=EPOCH, view_sql="no SQL")
        )
        no_rows = p | "None" >> beam.Create([]).with_output_types(tuple[bytes, bytes])
        _, _, reports = no_rows | "Empty" >> AppendRows(
            spec=empty, run_id="r", started_at=EPOCH, exactly_once=True
        )
        assert_that(reports, equal_to([SinkReport("results", "bigquery", str(empty.name), 0)]))
    assert numbers(spec) == [1]
    assert numbers(empty) == []


class _Endless(beam.PTransform):
    """Says of a PCollection that it never ends."""

    def expand(self, rows: Any) -> Any:
        made = rows | beam.Map(lambda row: row).with_output_types(tuple[bytes, bytes])
        made.is_bounded = False
        return made


def test_an_unbounded_input_has_no_report(bigquery_dataset: str) -> None:
    """There is no end to count at; rows are written all the same."""
    spec = spec_of(bigquery_dataset)
    with pipeline() as p:
        endless = p | beam.Create([(line_of(1), b"")]) | _Endless()
        _, _, reports = endless | AppendRows(spec=spec, run_id="r", started_at=EPOCH)
        assert_that(reports, equal_to([]))
    assert numbers(spec) == [1]
