"""Staging: rows in temporary files; only a bundle that succeeds lists its files."""

import datetime as dt
import decimal
import json
import pathlib
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from transforms.records.records import Answer, Completion, DeadLetter, Record, Usage
from transforms.results.rows import (
    DEAD_LETTER_COLUMNS,
    RESULT_COLUMNS,
    SUMMARY_COLUMNS,
    Column,
    RunInfo,
    dead_letter_row,
    encode_row,
    result_row,
)
from transforms.sinks import staging
from transforms.sinks.base import EncodedRow
from transforms.sinks.staging import (
    StagedFile,
    StageRows,
    delete_folder,
    make_folder,
    parquet_schema,
)

UTC = dt.timezone.utc
RUN = RunInfo(run_id="r", backend="fake", model="m")
COLUMNS = (Column("id", "STRING", "REQUIRED"), Column("n", "INT64"))


def _row(n: int) -> bytes:
    return b'{"id":"%d","n":%d}' % (n, n)


def _stage(lines: list[bytes], folder: pathlib.Path, **given: Any) -> list[StagedFile]:
    kind = {"format": "jsonl", "columns": COLUMNS, **given}
    rows = [EncodedRow(line) for line in lines]
    staged: list[StagedFile] = rows | StageRows(folder=str(folder), **kind)
    return staged


def _parquet_rows(rows: list[bytes], folder: pathlib.Path, columns: Any) -> pa.Table:
    staged = _stage(rows, folder, format="parquet", columns=columns)
    assert sum(file.rows for file in staged) == len(rows)
    return pa.concat_tables(pq.read_table(file.path) for file in staged)


def test_json_lines(tmp_path: pathlib.Path) -> None:
    """Staged files hold the rows' exact bytes; counts and sizes are those of the files."""
    staged = _stage([_row(n) for n in range(10)], tmp_path / "a" / "b")
    assert sorted(file.path for file in staged) == sorted(map(str, tmp_path.glob("a/b/*")))
    assert {pathlib.Path(file.path).suffix for file in staged} == {".jsonl"}
    lines = []
    for file in staged:
        data = pathlib.Path(file.path).read_bytes()
        assert (file.rows, file.size_bytes) == (data.count(b"\n"), len(data))
        lines += data.splitlines()
    assert sorted(lines) == sorted(_row(n) for n in range(10))


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_no_rows(tmp_path: pathlib.Path, format: str) -> None:
    """Without rows neither a file nor a folder is made."""
    assert _stage([], tmp_path / "a", format=format) == []
    assert list(tmp_path.iterdir()) == []


def test_another_file_beyond_the_limit(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle's rows are spread over files that readers can share."""
    monkeypatch.setattr(staging, "MAX_FILE_BYTES", 50)
    dofn = staging._StageDoFn(str(tmp_path), "jsonl", COLUMNS)
    dofn.start_bundle()
    for n in range(7):
        dofn.process(EncodedRow(_row(n)))
    staged = [windowed.value for windowed in dofn.finish_bundle()]
    assert [file.rows for file in staged] == [3, 3, 1]
    texts = [pathlib.Path(file.path).read_bytes() for file in staged]
    assert b"".join(texts) == b"".join(_row(n) + b"\n" for n in range(7))


def test_a_failed_bundle_lists_no_file(tmp_path: pathlib.Path) -> None:
    """A failed bundle's file may remain but is not listed; the next attempt starts anew."""
    dofn = staging._StageDoFn(str(tmp_path), "jsonl", COLUMNS)
    dofn.start_bundle()
    dofn.process(EncodedRow(_row(1)))
    dofn.teardown()
    dofn.teardown()
    dofn.start_bundle()
    dofn.process(EncodedRow(_row(2)))
    (staged,) = [windowed.value for windowed in dofn.finish_bundle()]
    assert pathlib.Path(staged.path).read_bytes() == _row(2) + b"\n"
    assert len(list(tmp_path.iterdir())) == 2


def test_parquet_many_row_groups(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of several row groups are written in order, none twice."""
    monkeypatch.setattr(staging, "_PARQUET_ROWS", 4)
    for count in (3, 4, 9):
        folder = tmp_path / str(count)
        dofn = staging._StageDoFn(str(folder), "parquet", COLUMNS)
        dofn.start_bundle()
        for n in range(count):
            dofn.process(EncodedRow(_row(n)))
        (staged,) = [windowed.value for windowed in dofn.finish_bundle()]
        table = pq.read_table(staged.path)
        assert table.to_pylist() == [{"id": str(n), "n": n} for n in range(count)]
        assert (staged.rows, staged.size_bytes) == (
            count,
            pathlib.Path(staged.path).stat().st_size,
        )


# Parquet


def _schema_of(columns: Any) -> dict[str, str]:
    return {
        field.name: f"{field.type}{'' if field.nullable else ' not null'}"
        for field in parquet_schema(columns)
    }


def test_parquet_schema_of_results() -> None:
    """Results have every column of the contract, typed as in BigQuery."""
    strings = ["model_version", "service_tier", "output", "output_json"]
    assert _schema_of(RESULT_COLUMNS) == {
        **dict.fromkeys(
            ["record_id", "run_id", "fingerprint", "backend", "model"], "string not null"
        ),
        **dict.fromkeys(strings, "string"),
        "embedding": "list<item: double>",
        "finish_reason": "string",
        **dict.fromkeys(
            ["input_tokens", "cached_input_tokens", "output_tokens", "reasoning_tokens"], "int64"
        ),
        "cost_usd": "decimal128(38, 9)",
        "latency_ms": "int64",
        "attempts": "int64",
        "from_ledger": "bool",
        "created_at": "timestamp[us, tz=UTC] not null",
        "record": "string",
    }


def test_parquet_schema_of_dead_letters() -> None:
    """Dead letters have every column, with bytes and the repeated record of attributes."""
    schema = _schema_of(DEAD_LETTER_COLUMNS)
    assert schema["timestamp"] == "timestamp[us, tz=UTC] not null"
    assert schema["retryable"] == "bool not null"
    assert schema["payload_bytes"] == "binary"
    assert schema["cost_usd"] == "decimal128(38, 9)"
    assert schema["attributes"] == "list<item: struct<key: string, value: string>>"
    assert list(schema) == [column.name for column in DEAD_LETTER_COLUMNS]


def test_parquet_schema_of_the_summary() -> None:
    """The summary has every column of the contract, typed as in BigQuery."""
    schema = _schema_of(SUMMARY_COLUMNS)
    assert schema["started_at"] == schema["finished_at"] == "timestamp[us, tz=UTC] not null"
    assert schema["reconciled"] == "bool not null"
    assert schema["records"] == "int64"
    assert list(schema) == [column.name for column in SUMMARY_COLUMNS]


def test_parquet_values_of_results(tmp_path: pathlib.Path) -> None:
    """A full and an empty row are read back as Python's own types."""
    full = Answer(
        Record("1", {"é": 1}),
        "f",
        Completion(
            "out\u2028put", '{"a":1}', (0.5, -1e300), "STOP", Usage(1, 2, 3, 4), "v", "FLEX", 5, 6
        ),
    )
    bare = Answer(Record("2", {}), "g", Completion(None))
    rows = [
        result_row(full, RUN, lambda _, __: "0.000000001"),
        result_row(bare, RUN, lambda _, __: None),
    ]
    lines = [encode_row(row, RESULT_COLUMNS) for row in rows]
    first, second = _parquet_rows(lines, tmp_path, RESULT_COLUMNS).sort_by("record_id").to_pylist()
    assert first == {
        "record_id": "1",
        "run_id": "r",
        "fingerprint": "f",
        "backend": "fake",
        "model": "m",
        "model_version": "v",
        "service_tier": "FLEX",
        "output": "out\u2028put",
        "output_json": '{"a":1}',
        "embedding": [0.5, -1e300],
        "finish_reason": "STOP",
        "input_tokens": 1,
        "cached_input_tokens": 2,
        "output_tokens": 3,
        "reasoning_tokens": 4,
        "cost_usd": decimal.Decimal("0.000000001"),
        "latency_ms": 5,
        "attempts": 6,
        "from_ledger": False,
        "created_at": dt.datetime.fromisoformat(rows[0]["created_at"]),
        "record": '{"é":1}',
    }
    assert second == {
        **dict.fromkeys(first),
        "record_id": "2",
        "run_id": "r",
        "fingerprint": "g",
        "backend": "fake",
        "model": "m",
        "embedding": [],
        "attempts": 1,
        "from_ledger": False,
        "created_at": dt.datetime.fromisoformat(rows[1]["created_at"]),
        "record": "{}",
    }


def test_parquet_values_of_dead_letters(tmp_path: pathlib.Path) -> None:
    """Payloads of bytes are read back as bytes, attributes as pairs."""
    letter = DeadLetter(
        "read", "parse_error", "not UTF-8", payload_bytes=b"\x00\xff", attributes={"k": "v"}
    )
    row = dead_letter_row(letter, RUN, lambda _, __: "12.5")
    (read,) = _parquet_rows(
        [encode_row(row, DEAD_LETTER_COLUMNS)], tmp_path, DEAD_LETTER_COLUMNS
    ).to_pylist()
    assert read == {
        **dict.fromkeys(read),
        "timestamp": dt.datetime.fromisoformat(row["timestamp"]),
        "run_id": "r",
        "stage": "read",
        "error_type": "parse_error",
        "error_message": "not UTF-8",
        "retryable": False,
        "cost_usd": decimal.Decimal("12.5"),
        "payload_truncated": False,
        "payload_bytes": b"\x00\xff",
        "attributes": [{"key": "k", "value": "v"}],
    }


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-11-21T08:00:00Z", dt.datetime(2026, 11, 21, 8, tzinfo=UTC)),
        ("2026-11-21T08:00:00.000001Z", dt.datetime(2026, 11, 21, 8, 0, 0, 1, tzinfo=UTC)),
        ("2026-11-21T08:00:00.120Z", dt.datetime(2026, 11, 21, 8, 0, 0, 120_000, tzinfo=UTC)),
    ],
)
def test_parquet_values_of_the_summary(
    tmp_path: pathlib.Path, text: str, moment: dt.datetime
) -> None:
    """Timestamps with and without a fraction are read back in UTC; costs stay exact."""
    row = {
        "run_id": "r",
        "started_at": text,
        "finished_at": text,
        "records": 2**62,
        "cost_usd": "12345678901234567890123456789.123456789",
        "reconciled": True,
    }
    (read,) = _parquet_rows(
        [encode_row(row, SUMMARY_COLUMNS)], tmp_path, SUMMARY_COLUMNS
    ).to_pylist()
    assert read == {
        **dict.fromkeys(column.name for column in SUMMARY_COLUMNS),
        **row,
        "started_at": moment,
        "finished_at": moment,
        "cost_usd": decimal.Decimal(row["cost_usd"]),  # type: ignore[arg-type]
    }


def test_parquet_and_json_lines_agree(tmp_path: pathlib.Path) -> None:
    """Both formats hold the same values, since they are written from the same bytes."""
    rows = [_row(n) for n in range(5)]
    table = _parquet_rows(rows, tmp_path / "parquet", COLUMNS)
    assert table.sort_by("n").to_pylist() == [json.loads(row) for row in rows]


# Folders


def test_folders(tmp_path: pathlib.Path) -> None:
    """Folders are made with their parents and deleted with their contents, repeatedly if asked."""
    folder = tmp_path / "a" / ".run.tmp"
    for _ in range(2):
        make_folder(str(folder))
        assert folder.is_dir()
    (folder / "x.jsonl").write_bytes(b"x")
    for _ in range(2):
        delete_folder(str(folder))
        assert list(tmp_path.iterdir()) == [tmp_path / "a"]
        assert list((tmp_path / "a").iterdir()) == []


def test_transform_has_a_type(tmp_path: pathlib.Path) -> None:
    """Beam knows the output type of the transform."""
    rows = beam.Pipeline() | beam.Create([EncodedRow(b"")])
    staged = rows | StageRows(folder=str(tmp_path), format="jsonl", columns=COLUMNS)
    assert staged.element_type is StagedFile
