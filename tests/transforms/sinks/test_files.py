"""Files as a sink: all rows of a bounded input or none; a stream's rows bundle by bundle."""

import pathlib
import re
from typing import Any

import apache_beam as beam
import pyarrow.parquet as pq
import pytest
from apache_beam.testing.util import assert_that, equal_to

from tests.transforms.streams import at, collect, collected_from, stream
from transforms.accounting.sink_report import SinkReport
from transforms.records.errors import RunError
from transforms.results.rows import Column
from transforms.sinks.base import EncodedRow
from transforms.sinks.files import (
    WriteFiles,
    end_stream,
    finish_files,
    publish_file,
    temporary_folder,
)
from transforms.sinks.staging import StagedFile, _StageDoFn

RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
COLUMNS = (Column("n", "INT64"),)


def _row(n: int) -> bytes:
    return b'{"n":%d}' % n


def _names(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _staged(folder: pathlib.Path, run_id: str = "r", sizes: tuple[int, ...] = (1, 2, 3)) -> Any:
    """Staged files of these sizes, with one row each."""
    temporary = pathlib.Path(temporary_folder(str(folder), run_id))
    temporary.mkdir(parents=True)
    staged = []
    for n, size in enumerate(sizes):
        path = temporary / f"{n}.jsonl"
        path.write_bytes(b"x" * size)
        staged.append(StagedFile(str(path), 1, size))
    return staged


# The function


def test_finish_files(tmp_path: pathlib.Path) -> None:
    """Files get numbered names and no temporary folder stays; a repetition changes nothing."""
    staged = _staged(tmp_path)
    names = [f"r-0000{n}-of-00003.jsonl" for n in range(3)]
    for _ in range(2):
        assert finish_files(staged, str(tmp_path), "r", "jsonl", replace=False) == 3
        assert _names(tmp_path) == names
        assert [(tmp_path / name).stat().st_size for name in names] == [1, 2, 3]


@pytest.mark.parametrize("done", [1, 2, 3])
def test_finish_files_after_a_partial_rename(tmp_path: pathlib.Path, done: int) -> None:
    """The next attempt continues where one that died between renames stopped."""
    staged = _staged(tmp_path)
    for n, file in enumerate(staged[:done]):
        pathlib.Path(file.path).rename(tmp_path / f"r-0000{n}-of-00003.jsonl")
    assert finish_files(staged, str(tmp_path), "r", "jsonl", replace=False) == 3
    names = [f"r-0000{n}-of-00003.jsonl" for n in range(3)]
    assert _names(tmp_path) == names
    assert [(tmp_path / name).stat().st_size for name in names] == [1, 2, 3]


def test_finish_files_after_a_copy(tmp_path: pathlib.Path) -> None:
    """Stores rename by copy and delete: both objects may exist, and the copy may be short."""
    staged = _staged(tmp_path)
    (tmp_path / "r-00000-of-00003.jsonl").write_bytes(b"x")
    (tmp_path / "r-00002-of-00003.jsonl").write_bytes(b"x")
    assert finish_files(staged, str(tmp_path), "r", "jsonl", replace=False) == 3
    assert [(tmp_path / f"r-0000{n}-of-00003.jsonl").stat().st_size for n in range(3)] == [1, 2, 3]


def test_finish_files_without_any(tmp_path: pathlib.Path) -> None:
    """Without rows the folder exists and is empty."""
    assert finish_files([], str(tmp_path / "a" / "b"), "r", "jsonl", replace=False) == 0
    assert _names(tmp_path / "a" / "b") == []


@pytest.mark.parametrize("gone", [False, True])
def test_finish_files_of_a_wrong_size(tmp_path: pathlib.Path, gone: bool) -> None:
    """A final file of another size stops the run, even if its source is gone."""
    staged = _staged(tmp_path)
    wrong = pathlib.Path(staged[1].path)
    if gone:
        wrong.unlink()
        (tmp_path / "r-00001-of-00003.jsonl").write_bytes(b"x" * 7)
    else:
        wrong.write_bytes(b"x" * 7)
    with pytest.raises(RunError) as raised:
        finish_files(staged, str(tmp_path), "r", "jsonl", replace=True)
    assert str(raised.value) == (
        f"{tmp_path}/r-00001-of-00003.jsonl holds 7 bytes, but 2 were written: "
        "something else writes into this folder"
    )


def test_finish_files_that_are_lost(tmp_path: pathlib.Path) -> None:
    """A file that is neither staged nor final stops the run with its name."""
    staged = _staged(tmp_path)
    pathlib.Path(staged[2].path).unlink()
    with pytest.raises(RunError) as raised:
        finish_files(staged, str(tmp_path), "r", "jsonl", replace=False)
    assert str(raised.value) == (
        f"{tmp_path}/r-00002-of-00003.jsonl holds 0 bytes, but 3 were written: "
        "something else writes into this folder"
    )


def test_replace_deletes_other_runs(tmp_path: pathlib.Path) -> None:
    """Replace deletes other runs' files once the new ones exist; other files stay."""
    (tmp_path / "sub").mkdir()
    others = ["old-00000-of-00001.jsonl", "old-00000-of-00001.parquet", "r-00000-of-00009.jsonl"]
    kept = ["notes.txt", "data.jsonl", ".hidden", "sub/old-00000-of-00001.jsonl"]
    for name in (*others, *kept):
        (tmp_path / name).write_bytes(b"x")
    staged = _staged(tmp_path)
    names = [f"r-0000{n}-of-00003.jsonl" for n in range(3)]
    for _ in range(2):
        assert finish_files(staged, str(tmp_path), "r", "jsonl", replace=True) == 3
        assert _names(tmp_path) == sorted(["sub", *kept[:3], *names])
    assert _names(tmp_path / "sub") == ["old-00000-of-00001.jsonl"]


def test_append_keeps_other_runs(tmp_path: pathlib.Path) -> None:
    """Append touches no other file, nor another run's temporary folder."""
    (tmp_path / "old-00000-of-00001.jsonl").write_bytes(b"x")
    _staged(tmp_path, "other")
    finish_files(_staged(tmp_path, sizes=(1,)), str(tmp_path), "r", "jsonl", replace=False)
    assert _names(tmp_path) == [".other.tmp", "old-00000-of-00001.jsonl", "r-00000-of-00001.jsonl"]


def test_replace_without_rows(tmp_path: pathlib.Path) -> None:
    """A run without rows leaves an empty folder."""
    (tmp_path / "old-00000-of-00001.jsonl").write_bytes(b"x")
    assert finish_files([], str(tmp_path), "r", "jsonl", replace=True) == 0
    assert _names(tmp_path) == []


# The transform


def _write(folder: pathlib.Path, rows: list[bytes], report: SinkReport, **given: Any) -> None:
    with beam.Pipeline(RUNNER) as root:
        encoded = root | beam.Create([EncodedRow(row) for row in rows]) | beam.Reshuffle()
        written = encoded | WriteFiles(folder=str(folder), run_id="r", columns=COLUMNS, **given)
        assert_that(written.reports, equal_to([report]), "Reports")
        assert_that(written.rejected, equal_to([]), "Rejected")
        assert written.rows is encoded


def test_write_json_lines(tmp_path: pathlib.Path) -> None:
    """Every row is written once, the report counts the rows, and nothing else is left."""
    folder = tmp_path / "new" / "results"
    _write(folder, [_row(n) for n in range(20)], SinkReport("results", "files", str(folder), 20))
    files = sorted(folder.iterdir())
    assert [path.name for path in files] == [
        f"r-{n:05d}-of-{len(files):05d}.jsonl" for n in range(len(files))
    ]
    lines = b"".join(path.read_bytes() for path in files).splitlines()
    assert sorted(lines) == sorted(_row(n) for n in range(20))


def test_write_parquet(tmp_path: pathlib.Path) -> None:
    """Dead letters are written as Parquet, every row once."""
    report = SinkReport("dead_letters", "files", str(tmp_path), 5)
    rows = [_row(n) for n in range(5)]
    _write(tmp_path, rows, report, kind="dead_letters", format="parquet")
    assert {path.suffix for path in tmp_path.iterdir()} == {".parquet"}
    read = [row["n"] for path in tmp_path.iterdir() for row in pq.read_table(path).to_pylist()]
    assert sorted(read) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_write_no_rows(tmp_path: pathlib.Path, format: str) -> None:
    """Zero rows are reported, since the reconciliation expects a report from every sink."""
    _write(tmp_path, [], SinkReport("results", "files", str(tmp_path), 0), format=format)
    assert _names(tmp_path) == []


def test_write_replace(tmp_path: pathlib.Path) -> None:
    """The transform replaces other runs' files."""
    (tmp_path / "old-00000-of-00001.jsonl").write_bytes(b"x")
    report = SinkReport("results", "files", str(tmp_path), 1)
    _write(tmp_path, [_row(1)], report, replace=True)
    assert _names(tmp_path) == ["r-00000-of-00001.jsonl"]


def _fail_on_seven(row: bytes) -> EncodedRow:
    if row == _row(7):
        raise ValueError("a step upstream fails")
    return EncodedRow(row)


@pytest.mark.parametrize("shuffled", [False, True])
def test_failed_run_shows_nothing(tmp_path: pathlib.Path, shuffled: bool) -> None:
    """A failed run leaves no final file; other runs' files stay, also with ``replace``."""
    (tmp_path / "old-00000-of-00001.jsonl").write_bytes(b"x")
    root = beam.Pipeline(RUNNER)
    rows = root | beam.Create([_row(n) for n in range(20)])
    if shuffled:
        rows |= beam.Reshuffle()
    failing = rows | beam.Map(_fail_on_seven)
    _ = failing | WriteFiles(folder=str(tmp_path), run_id="r", columns=COLUMNS, replace=True)
    with pytest.raises(Exception, match="a step upstream fails"):
        root.run().wait_until_finish()
    assert [name for name in _names(tmp_path) if not name.startswith(".")] == [
        "old-00000-of-00001.jsonl"
    ]


def test_temporary_folder() -> None:
    """The temporary folder is hidden next to the final files, so that a rename is enough."""
    assert temporary_folder("/a/b", "r") == "/a/b/.r.tmp"
    assert temporary_folder("gs://b/c", "r") == "gs://b/c/.r.tmp"


# An unbounded input

HEX = "0123456789abcdef0123456789abcdef"


def _bundle(folder: pathlib.Path, *numbers: int) -> list[StagedFile]:
    """The staged files of one bundle of these rows."""
    stage = _StageDoFn(temporary_folder(str(folder), "r"), "jsonl", COLUMNS)
    stage.start_bundle()
    for n in numbers:
        stage.process(EncodedRow(_row(n)))
    return [staged.value for staged in stage.finish_bundle()]


def _lines(folder: pathlib.Path) -> list[bytes]:
    """The rows of the files under final names, sorted."""
    files = [path for path in folder.glob("*.jsonl") if not path.name.startswith(".")]
    return sorted(line for path in files for line in path.read_bytes().splitlines())


def test_publish_file(tmp_path: pathlib.Path) -> None:
    """A file is visible at once under its own name, which a repeated attempt finds again."""
    (staged,) = _bundle(tmp_path, 1, 2)
    assert _lines(tmp_path) == []
    unique = pathlib.Path(staged.path).stem
    assert len(unique) == 32
    for _ in range(2):
        published = publish_file(staged, str(tmp_path), "r")
        assert published == StagedFile(f"{tmp_path}/r-stream-{unique}.jsonl", 2, 16)
        assert _lines(tmp_path) == [_row(1), _row(2)]


def test_publish_a_file_that_is_lost(tmp_path: pathlib.Path) -> None:
    """A missing staged file fails the bundle, because it must not count as done."""
    (staged,) = _bundle(tmp_path, 1)
    pathlib.Path(staged.path).unlink()
    with pytest.raises(RunError, match=r"jsonl holds 0 bytes, but 8 were written"):
        publish_file(staged, str(tmp_path), "r")


def test_a_bundle_that_is_repeated_is_there_twice(tmp_path: pathlib.Path) -> None:
    """A repeated bundle writes its rows twice under different names, so none is lost."""
    for _ in range(2):
        for staged in _bundle(tmp_path, 1, 2):
            publish_file(staged, str(tmp_path), "r")
    assert _lines(tmp_path) == [_row(1), _row(1), _row(2), _row(2)]


@pytest.mark.parametrize("replace", [False, True])
def test_end_stream(tmp_path: pathlib.Path, replace: bool) -> None:
    """The end of a stream counts all rows of this run's files; ``replace`` deletes other runs'."""
    others = [
        "old-00000-of-00001.jsonl",
        f"old-stream-{HEX}.parquet",
        f"r-2-stream-{HEX}.jsonl",
        f"2-r-stream-{HEX}.jsonl",
    ]
    kept = [
        f"r-stream-{HEX}.jsonl",
        f"data-{HEX}.jsonl",
        f"r-stream-{HEX[1:]}.jsonl",
        f"r-stream-{HEX}.csv",
    ]
    for name in (*others, *kept):
        (tmp_path / name).write_bytes(b"")
    published = [
        publish_file(staged, str(tmp_path), "r")
        for numbers in ([1, 2], [3])
        for staged in _bundle(tmp_path, *numbers)
    ]
    names = [pathlib.Path(file.path).name for file in published]
    for _ in range(2):
        assert end_stream(published, str(tmp_path), "r", replace) == 3
        assert _names(tmp_path) == sorted([*kept, *names, *([] if replace else others)])


def _streamed(root: beam.Pipeline, folder: pathlib.Path, check: Any, **given: Any) -> Any:
    """Rows 1, 2 and 3, 7 in three bundles; collects each file's number of rows before each row."""

    def look(n: int) -> bytes:
        found = [len(pq.read_table(path)) for path in folder.glob("r-*.parquet")]
        found += [len(path.read_bytes().splitlines()) for path in folder.glob("r-*.jsonl")]
        collect(sorted(found))
        return _row(n)

    rows = (
        root
        | stream((1, [1]), (2, [2, 3]), (3, [7]))
        | "At" >> beam.Map(at)
        | "Look" >> beam.Map(look).with_output_types(bytes)
        | "Check" >> beam.Map(check).with_output_types(EncodedRow)
    )
    write = WriteFiles(folder=str(folder), run_id="r", columns=COLUMNS, replace=True, **given)
    return (rows | write).reports


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_a_stream_shows_each_bundle(tmp_path: pathlib.Path, format: str) -> None:
    """A bundle's rows are visible before the next; report and ``replace`` come at the end."""
    (tmp_path / "old-00000-of-00001.jsonl").write_bytes(b"")
    assert collected_from(lambda root: _streamed(root, tmp_path, EncodedRow, format=format)) == [
        *([], [1], [1], [1, 2]),
        SinkReport("results", "files", str(tmp_path), 4),
    ]
    names = _names(tmp_path)
    assert len(names) == 3
    assert all(re.fullmatch(rf"r-stream-[0-9a-f]{{32}}\.{format}", name) for name in names)


def test_a_failed_stream_keeps_its_files(tmp_path: pathlib.Path) -> None:
    """A failed stream keeps its own bundles and other runs' files, also with ``replace``."""
    (tmp_path / "old-00000-of-00001.jsonl").write_bytes(b"{}")
    with pytest.raises(Exception, match="a step upstream fails"):
        collected_from(lambda root: _streamed(root, tmp_path, _fail_on_seven))
    assert _lines(tmp_path) == [_row(1), _row(2), _row(3), b"{}"]
