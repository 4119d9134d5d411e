"""Whole runs whose tables get their rows by other methods than load jobs."""

import json
from pathlib import Path

import pytest

from pipeline.checks import bigquery as checks
from tests.end_to_end import hostile, runs
from tests.end_to_end.test_hostile import CUT_AT, FAKE, check, check_rows, write_input
from transforms.clients.bigquery import TableName, TableSpec
from transforms.results.rows import RESULT_COLUMNS, Column

WAYS = {
    "exactly once": ["--write_method=storage_write"],
    "at least once": ["--write_method=storage_write", "--exactly_once=false"],
    "insertAll": ["--write_method=streaming_inserts"],
}
COUNT = 1_000


@pytest.mark.parametrize("way", WAYS)
def test_hostile_records_end_once(tmp_path: Path, bigquery_dataset: str, way: str) -> None:
    """Files and tables hold every record, 5 MB texts included, and the summary reconciles.

    One record is the exception: escaped, its row exceeds 8 MB.
    """
    cases = [c for c in hostile.volume_cases(COUNT, seed=2) if c.record_id != "long-escapes"]
    source = write_input(tmp_path, hostile.write_lines(cases))
    table = f"{bigquery_dataset}.results"

    code = runs.run(
        f"--input_files={source}",
        f"--output_path={tmp_path}/out",
        f"--output_table={table}",
        *WAYS[way],
        *FAKE,
    )

    assert code == 0
    files, tables = runs.in_files(tmp_path / "out"), runs.in_tables(table)
    check(files, cases)
    check(tables, cases, cut_at=CUT_AT)
    check_rows(tables)


@pytest.mark.parametrize("way", WAYS)
def test_a_row_that_the_table_refuses_is_a_dead_letter(
    tmp_path: Path, bigquery_dataset: str, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """A row that the table rejects is a dead letter in every sink, also in the files.

    The check before the launch would reject this table; it cannot foresee a column policy or a
    change during the run.
    """
    monkeypatch.setattr(checks, "_check_columns", lambda *_: None)
    name = TableName.parse(f"{bigquery_dataset}.results")
    spec = TableSpec(
        name=name,
        columns=tuple(  # record_id of this table is JSON: it accepts the id 7, but not T-7
            Column(c.name, "JSON" if c.name == "record_id" else c.type, c.mode)
            for c in RESULT_COLUMNS
        ),
        partition_by="created_at",
        cluster_by=("run_id",),
    )
    spec.create(spec.client())
    lines = [{"id": f"T-{n}" if n % 10 == 7 else str(n), "text": "a"} for n in range(200)]
    source = write_input(tmp_path, b"".join(json.dumps(line).encode() + b"\n" for line in lines))

    code = runs.run(
        f"--input_files={source}",
        "--prompt={{ text }}",
        "--backend=fake",
        f"--output_path={tmp_path}/out",
        f"--output_table={name.project}:{name.dataset}.{name.table}",
        *WAYS[way],
    )

    assert code == 0
    bad = sorted(line["id"] for line in lines if line["id"].startswith("T-"))
    for held in (runs.in_files(tmp_path / "out"), runs.in_tables(f"{bigquery_dataset}.results")):
        runs.check_summary(held)
        assert sorted(row["record_id"] for row in held.letters) == bad
        assert {(row["stage"], row["error_type"]) for row in held.letters} == {
            ("write", "write_rejected")
        }
        assert all("record_id" in row["error_message"] for row in held.letters)
        assert all(json.loads(row["payload"])["text"] == "a" for row in held.letters)
        assert len(held.results) == 200 - len(bad)
