"""Each of ten thousand hostile records has its one outcome, in every sink and batch size."""

import base64
import collections
import dataclasses
import datetime as dt
import decimal
import functools
import gzip
import json
import math
from pathlib import Path
from typing import Any

import pytest
from google.cloud import bigquery

from tests.emulators.model_fixtures import SimulatedModelServer
from tests.end_to_end import hostile, runs
from tests.end_to_end.hostile import Case, expected
from transforms.records.errors import ERROR_TYPES
from transforms.records.records import STAGES
from transforms.results import rows

COUNT = 10_000
CUT_AT = 1 << 20
"""The limit of a payload in a table's dead letter."""

FAKE = [
    "--max_dead_letter_ratio=1",
    f"--prompt={hostile.PROMPT}",
    f"--output_schema={json.dumps(hostile.SCHEMA)}",
    "--backend=fake",
    "--max_attempts=2",
    "--record_deadline_s=5",
]


@functools.cache
def cases() -> list[Case]:
    """The ten thousand cases, built once."""
    return hostile.volume_cases(COUNT)


@functools.cache
def fewer_cases() -> list[Case]:
    """A tenth as many cases of every kind, without the 5 MB texts."""
    return hostile.volume_cases(COUNT // 10, seed=1, long=False)


def write_input(folder: Path, lines: bytes) -> str:
    """Writes a file of lines; returns its path."""
    path = folder / "input.jsonl"
    path.write_bytes(lines)
    return str(path)


def check(held: runs.Held, of: list[Case], *, cut_at: int | None = None) -> None:
    """Checks that every case has its one outcome and that repeated ids are counted."""
    wanted = expected(of, cut_at=cut_at)
    found = held.outcomes()
    assert found - wanted == collections.Counter()
    assert wanted - found == collections.Counter()
    runs.check_summary(held)
    read = collections.Counter(case.record_id for case in of if case.record_id is not None)
    assert held.summary["duplicate_ids"] == sum(read.values()) - len(read)


def check_rows(held: runs.Held) -> None:
    """Checks the other columns of the fake backend's rows."""
    assert {row["output_json"] for row in held.results} == {hostile.FAKE_JSON}
    for row in held.letters:
        asked = row["stage"] in ("infer", "validate")
        assert (row["fingerprint"] is not None) == asked
        assert (row["attempts"] is not None) == asked
        assert (row["stacktrace"] is not None) == (row["error_type"] == "internal")
        assert row["retryable"] == (row["error_type"] in ("rate_limited", "unavailable", "timeout"))
        assert row["error_message"]


def test_the_cases_are_of_every_kind() -> None:
    """Equal seeds build equal cases, and these have every possible outcome."""
    assert len(cases()) == COUNT
    assert fewer_cases() == hostile.volume_cases(COUNT // 10, seed=1, long=False)
    assert sum(len(case.line) > hostile.LONG_BYTES for case in cases()) == 7
    made = [*cases(), *hostile.served_cases(400, schema=True)]
    written = {"write_rejected", "not_attempted"}
    assert {case.error_type for case in made if case.stage} == set(ERROR_TYPES) - written
    assert {case.stage for case in made if case.stage} == set(STAGES) - {"write"}


@pytest.mark.parametrize("max_batch_size", [1, 7, 256, 1000])
def test_no_record_is_lost_at_any_batch_size(tmp_path: Path, max_batch_size: int) -> None:
    """Each of ten thousand records has its one outcome, whatever shares its batch."""
    source = write_input(tmp_path, hostile.write_lines(cases()))

    code = runs.run(
        f"--input_files={source}",
        f"--output_path={tmp_path}/out",
        f"--max_batch_size={max_batch_size}",
        *FAKE,
    )

    assert code == 0
    held = runs.in_files(tmp_path / "out")
    check(held, cases())
    check_rows(held)


def test_files_and_tables_hold_the_same(tmp_path: Path, bigquery_dataset: str) -> None:
    """Both sinks of one run hold every record with the same content."""
    source = write_input(tmp_path, hostile.write_lines(cases()))
    table = f"{bigquery_dataset}.results"

    code = runs.run(
        f"--input_files={source}",
        f"--output_path={tmp_path}/out",
        f"--output_table={table}",
        *FAKE,
    )

    assert code == 0
    files, tables = runs.in_files(tmp_path / "out"), runs.in_tables(table)
    check(files, cases())
    check(tables, cases(), cut_at=CUT_AT)
    check_rows(tables)


def test_parquet_holds_the_same(tmp_path: Path) -> None:
    """Parquet files hold every record, like JSON lines."""
    source = write_input(tmp_path, hostile.write_lines(fewer_cases()))

    code = runs.run(
        f"--input_files={source}",
        f"--output_path={tmp_path}/out",
        "--output_format=parquet",
        *FAKE,
    )

    assert code == 0
    held = runs.in_files(tmp_path / "out")
    check(held, fewer_cases())
    check_rows(held)


def test_cloud_storage_holds_the_same(bucket: str) -> None:
    """A run from gzipped objects to objects has the same outcomes as one with local files."""
    runs.write_object(
        f"gs://{bucket}/in/input.jsonl.gz", gzip.compress(hostile.write_lines(fewer_cases()))
    )

    code = runs.run(
        f"--input_files=gs://{bucket}/in/*.jsonl.gz", f"--output_path=gs://{bucket}/out", *FAKE
    )

    assert code == 0
    held = runs.in_files(f"gs://{bucket}/out")
    check(held, fewer_cases())
    check_rows(held)


def test_a_required_id_is_a_field_like_any_other(tmp_path: Path) -> None:
    """With --id_field set, a record without an id is a dead letter of stage read."""
    named = [
        dataclasses.replace(case, record_id=None, stage="read", error_type="missing_field")
        if case.fields is not None and case.fields.get("id") in (None, "")
        else case
        for case in fewer_cases()
    ]
    assert named != fewer_cases()
    source = write_input(tmp_path, hostile.write_lines(named))

    code = runs.run(
        f"--input_files={source}", f"--output_path={tmp_path}/out", "--id_field=id", *FAKE
    )

    assert code == 0
    check(runs.in_files(tmp_path / "out"), named)


def test_a_result_that_no_sink_can_hold_is_a_dead_letter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row over the size limit is `write_rejected`; the records around it are results."""
    monkeypatch.setattr(
        rows, "MAX_LOADED_ROW_BYTES", 8_000_000
    )  # BigQuery's 100 MB take ten seconds
    quotes = '"' * 2_100_000  # four bytes each in a row: JSON within JSON
    named = [
        hostile.readable({"id": "small", "text": "t"}),
        hostile.readable({"id": "large", "text": "t", "n": quotes}, "write", "write_rejected"),
        hostile.readable({"id": "other", "text": "t"}),
    ]
    source = write_input(tmp_path, hostile.write_lines(named))

    code = runs.run(
        f"--input_files={source}",
        f"--output_path={tmp_path}/out",
        "--prompt={{ text }}",
        "--max_dead_letter_ratio=1",
        "--backend=fake",
    )

    assert code == 0
    held = runs.in_files(tmp_path / "out")
    assert held.outcomes() == expected(named, cut_at=CUT_AT)
    runs.check_summary(held)


def make_table(name: str, held: list[dict[str, Any]]) -> None:
    """Creates a table of `hostile.TABLE_COLUMNS` with these rows."""
    spelled = [{column: _spelled(value) for column, value in row.items()} for row in held]
    with bigquery.Client() as client:
        client.load_table_from_json(
            spelled,
            name,
            job_config=bigquery.LoadJobConfig(
                schema=[
                    bigquery.SchemaField(column, kind, mode)
                    for column, kind, mode in hostile.TABLE_COLUMNS
                ]
            ),
        ).result()


def _spelled(value: Any) -> Any:
    """A value in BigQuery's JSON."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, dt.datetime):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(value)]
    return value


def test_a_table_and_a_file_give_the_same(tmp_path: Path, bigquery_dataset: str) -> None:
    """A table's NULL, NaN, NUMERIC, BYTES and TIMESTAMP end like the same values of a file."""
    made = hostile.table_cases(400)
    named = [case for _, case in made]
    make_table(f"{bigquery_dataset}.input", [row for row, _ in made])
    source = write_input(tmp_path, hostile.write_lines(named))
    flags = [f"--prompt={hostile.TABLE_PROMPT}", "--backend=fake", "--max_dead_letter_ratio=1"]

    from_table = runs.run(
        f"--input_table={bigquery_dataset}.input",
        f"--output_path={tmp_path}/from_table",
        f"--output_table={bigquery_dataset}.results",
        *flags,
    )
    from_file = runs.run(f"--input_files={source}", f"--output_path={tmp_path}/from_file", *flags)

    assert (from_table, from_file) == (0, 0)
    check(runs.in_files(tmp_path / "from_table"), named)
    check(runs.in_tables(f"{bigquery_dataset}.results"), named)
    check(runs.in_files(tmp_path / "from_file"), named)


SERVED = [
    f"--prompt={hostile.SERVED_PROMPT}",
    "--max_dead_letter_ratio=1",
    "--max_attempts=3",
    "--request_timeout_s=2",
    "--record_deadline_s=6",
]


@pytest.mark.parametrize("dialect", ["openai", "gemini"])
def test_every_fault_of_a_server_has_its_outcome(
    tmp_path: Path, bigquery_dataset: str, model_server: SimulatedModelServer, dialect: str
) -> None:
    """Soft failures and refusals are dead letters of their type; retried faults pass."""
    schema = dialect == "openai"
    named = hostile.served_cases(400, schema=schema)
    source = write_input(tmp_path, hostile.write_lines(named))
    flags = {
        "openai": [
            "--backend=openai",
            f"--endpoint={model_server.openai_url}",
            f"--output_schema={json.dumps(hostile.SERVED_SCHEMA)}",
        ],
        "gemini": [
            "--backend=gemini",
            f"--endpoint={model_server.base_url}",
            "--model_location=us-central1",
        ],
    }
    model_server.reset()

    code = runs.run(
        f"--input_files={source}",
        f"--output_path={tmp_path}/out",
        f"--output_table={bigquery_dataset}.results",
        "--model=simulated-model",
        *flags[dialect],
        *SERVED,
    )

    assert code == 0
    files, tables = (
        runs.in_files(tmp_path / "out"),
        runs.in_tables(f"{bigquery_dataset}.results"),
    )
    check(files, named)
    check(tables, named)
    stats = model_server.stats()
    assert stats["unknown_markers"] == {}
    assert files.summary["requests_sent"] == stats["calls"]
    assert all((row["output_json"] is not None) == schema for row in files.results)
