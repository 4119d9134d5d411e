"""BigQuery as a sink, on the loopback BigQuery: loads, counts, views, repeated attempts."""

import json
import pathlib
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to

from tests.transforms import pipeline
from transforms.accounting.sink_report import SinkReport
from transforms.clients.bigquery import TableName, TableSpec, load_summary
from transforms.records.errors import RunError
from transforms.records.records import Answer, Completion, Record, Usage
from transforms.results.prices import TokenPrices
from transforms.results.rows import RESULT_COLUMNS, SUMMARY_COLUMNS, RunInfo
from transforms.sinks.base import EncodedRow
from transforms.sinks.bigquery.latest_view import latest_view_sql
from transforms.sinks.bigquery.load import LoadRows, load_files
from transforms.sinks.bigquery.run_table import RunTable
from transforms.sinks.staging import StagedFile
from transforms.sinks.write import encode_result

EPOCH = "2020-01-01T00:00:00Z"


def _spec(dataset: str, table: str = "t") -> TableSpec:
    return TableSpec(
        name=TableName.parse(f"{dataset}.{table}"),
        columns=RESULT_COLUMNS,
        partition_by="created_at",
        cluster_by=("run_id", "record_id"),
        labels={"team": "a"},
    )


def _line(record_id: str, run_id: str = "r", **completion: Any) -> bytes:
    answer = Answer(
        Record(record_id, {"id": record_id, "t": "ü\x00"}),
        "f" * 64,
        Completion(usage=Usage(1, 0, 2, None), **completion),
    )
    run = RunInfo(run_id=run_id, backend="fake", model="m")
    return encode_result(answer, run, TokenPrices(None, "m")).line


def _staged(folder: pathlib.Path, lines: list[bytes], name: str = "a.jsonl") -> StagedFile:
    path = folder / name
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return StagedFile(str(path), len(lines), path.stat().st_size)


def _rows(spec: TableSpec, columns: str = "record_id") -> list[tuple[Any, ...]]:
    query = f"SELECT {columns} FROM `{spec.name}` ORDER BY 1"
    return [tuple(row) for row in spec.client().query(query).result()]


def _load(spec: TableSpec, staged: list[StagedFile], job: str, how: str = "WRITE_APPEND") -> None:
    load_files(spec, staged, client=spec.client(), job_prefix=job, write_disposition=how)


def test_a_repeated_attempt_loads_once(bigquery_dataset: str, tmp_path: pathlib.Path) -> None:
    """A bundle that Beam repeats finds the load job of the first attempt."""
    spec = _spec(bigquery_dataset)
    spec.create(spec.client())
    spec.create(spec.client())
    staged = [_staged(tmp_path, [_line("1"), _line("2")])]
    for _ in range(3):
        _load(spec, staged, "run-results")
    assert _rows(spec) == [("1",), ("2",)]
    assert spec.count(spec.client(), "r", EPOCH) == 2
    assert spec.count(spec.client(), "other", EPOCH) == 0


def test_append_and_replace(bigquery_dataset: str, tmp_path: pathlib.Path) -> None:
    """Append adds to existing rows; replace removes them, even if it writes none."""
    spec = _spec(bigquery_dataset)
    spec.create(spec.client())
    _load(spec, [_staged(tmp_path, [_line("1")])], "a")
    _load(spec, [_staged(tmp_path, [_line("2")])], "b")
    assert _rows(spec) == [("1",), ("2",)]
    _load(spec, [_staged(tmp_path, [_line("3")])], "c", "WRITE_TRUNCATE")
    assert _rows(spec) == [("3",)]
    _load(spec, [], "d")
    assert _rows(spec) == [("3",)]
    _load(spec, [], "e", "WRITE_TRUNCATE")
    assert _rows(spec) == []


def test_many_local_files_are_one_load(bigquery_dataset: str, tmp_path: pathlib.Path) -> None:
    """Many local files are loaded together: all of their rows, or none."""
    spec = _spec(bigquery_dataset)
    spec.create(spec.client())
    good = [_staged(tmp_path, [_line(str(n))], f"{n}.jsonl") for n in range(3)]
    bad = _staged(tmp_path, [b'{"record_id": 1, "nope": true}'], "9.jsonl")
    with pytest.raises(RunError, match=r"did not load 4 staged file\(s\).*are safe in"):
        _load(spec, [*good, bad], "bad")
    assert _rows(spec) == []
    assert pathlib.Path(bad.path).exists()
    _load(spec, good, "good")
    assert _rows(spec) == [("0",), ("1",), ("2",)]


@pytest.mark.parametrize("remote", [True, False])
def test_load_rows(
    bigquery_dataset: str, bucket: str, tmp_path: pathlib.Path, remote: bool
) -> None:
    """A pipeline stages rows in a bucket or locally; the report is the table's own count."""
    spec = _spec(bigquery_dataset)
    folder = f"gs://{bucket}/staging/r" if remote else str(tmp_path / "staging")
    schema = {"properties": {"a": {"type": "integer"}, "output": {"type": "string"}}}
    lines = [
        _line("1", output='{"a":1}', output_json='{"a":1,"output":"x"}'),
        _line("2", embedding=(0.5, -1.0)),
    ]
    view = latest_view_sql(spec.name, schema)
    table_of_run = RunTable(spec=spec, run_id="r", started_at=EPOCH, view_sql=view)
    with pipeline() as p:
        rows = p | beam.Create([EncodedRow(line) for line in lines])
        written = rows | LoadRows(table=table_of_run, folder=folder)
        held = [SinkReport("results", "bigquery", str(spec.name), 2)]
        assert_that(written.reports, equal_to(held), "Reports")
        assert_that(written.rejected, equal_to([]), "Rejected")
        assert written.rows is rows
    table = spec.client().get_table(str(spec.name))
    assert table.time_partitioning.field == "created_at"
    assert table.clustering_fields == ["run_id", "record_id"]
    assert [field.name for field in table.schema] == [column.name for column in RESULT_COLUMNS]
    assert _rows(spec, "record_id, embedding, JSON_VALUE(record, '$.t')") == [
        ("1", [], "ü\x00"),
        ("2", [0.5, -1.0], "ü\x00"),
    ]
    view = spec.client().query(
        f"SELECT record_id, a, output_output FROM `{spec.name}_latest` ORDER BY 1"
    )
    assert [tuple(row) for row in view.result()] == [("1", 1, "x"), ("2", None, None)]
    if not remote:
        assert not (tmp_path / "staging").exists()


def test_the_view_keeps_the_newest(bigquery_dataset: str, tmp_path: pathlib.Path) -> None:
    """The view has one row per record id, of the latest run."""
    spec = _spec(bigquery_dataset)
    spec.create(spec.client())
    old = json.loads(_line("1", "old")) | {"created_at": "2026-01-01T00:00:00Z"}
    new = json.loads(_line("1", "new")) | {"created_at": "2026-01-02T00:00:00Z"}
    lines = [json.dumps(row).encode() for row in (new, old)]
    _load(spec, [_staged(tmp_path, lines)], "both")
    spec.client().query(latest_view_sql(spec.name)).result()
    rows = spec.client().query(f"SELECT run_id FROM `{spec.name}_latest`").result()
    assert [tuple(row) for row in rows] == [("new",)]


def test_a_summary_is_written_once(bigquery_dataset: str) -> None:
    """A repeated attempt finds its own summary row."""
    spec = TableSpec(
        name=TableName.parse(f"{bigquery_dataset}.runs"),
        columns=SUMMARY_COLUMNS,
        partition_by="started_at",
        cluster_by=("run_id",),
    )
    row = {"run_id": "r", "started_at": EPOCH, "finished_at": EPOCH, "reconciled": True}
    for _ in range(2):
        load_summary(spec, json.dumps(row).encode(), "r")
    assert _rows(spec, "run_id, reconciled") == [("r", True)]
