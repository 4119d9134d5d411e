"""Ten thousand hostile records: each ends once, as it must, in every sink and batch size."""

import collections
import functools
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tests.emulators.google_cloud import LoopbackCloud
from tests.end_to_end import hostile, runs
from tests.end_to_end.hostile import Case, expected

COUNT = 10_000
CUT_AT = 1 << 20
"""A table's dead letter holds so much of a payload."""

FAKE = [
    f"--prompt={hostile.PROMPT}",
    f"--output_schema={json.dumps(hostile.SCHEMA)}",
    "--backend=fake",
    "--max_attempts=2",
    "--record_deadline_s=2",
]


@functools.cache
def cases() -> list[Case]:
    """The ten thousand, made once."""
    return hostile.volume_cases(COUNT)


@functools.cache
def fewer_cases() -> list[Case]:
    """A tenth of them, of every kind, without the 5 MB texts."""
    return hostile.volume_cases(COUNT // 10, seed=1, long=False)


def write_input(folder: Path, lines: bytes) -> str:
    """A file of lines; returns its path."""
    path = folder / "input.jsonl"
    path.write_bytes(lines)
    return str(path)


def check(held: runs.Held, of: list[Case], *, cut_at: int | None = None) -> None:
    """Every case has ended once, as it must; ids that occur again are counted."""
    wanted = expected(of, cut_at=cut_at)
    found = held.outcomes()
    assert found - wanted == collections.Counter()
    assert wanted - found == collections.Counter()
    runs.check_summary(held)
    read = collections.Counter(case.record_id for case in of if case.record_id is not None)
    assert held.summary["duplicate_ids"] == sum(read.values()) - len(read)


def check_rows(held: runs.Held) -> None:
    """What rows of the fake backend hold beside their outcome."""
    assert {row["output_json"] for row in held.results} == {hostile.FAKE_JSON}
    for row in held.letters:
        asked = row["stage"] in ("infer", "validate")
        assert (row["fingerprint"] is not None) == asked
        assert (row["attempts"] is not None) == asked
        assert (row["stacktrace"] is not None) == (row["error_type"] == "internal")
        assert row["retryable"] == (
            row["error_type"] in ("rate_limited", "unavailable", "timeout")
        )
        assert row["error_message"]


@pytest.mark.parametrize("max_batch_size", [1, 7, 256, 1000])
def test_no_record_is_lost_at_any_batch_size(tmp_path: Path, max_batch_size: int) -> None:
    """Each of ten thousand records ends once, as it must, whatever shares its batch."""
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
    """Both sinks of one run hold every record, and the same of each."""
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
    """Parquet files hold every record as JSON lines do."""
    source = write_input(tmp_path, hostile.write_lines(cases()))

    code = runs.run(
        f"--input_files={source}",
        f"--output_path={tmp_path}/out",
        "--output_format=parquet",
        *FAKE,
    )

    assert code == 0
    held = runs.in_files(tmp_path / "out")
    check(held, cases())
    check_rows(held)


def test_cloud_storage_holds_the_same(bucket: str) -> None:
    """Gzipped objects in, objects out: the same outcomes as with local files."""
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
