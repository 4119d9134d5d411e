"""Files by glob: formats, gzip, damage, splitting, limits, and errors that are raised."""

import bz2
import collections
import gzip
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import apache_beam as beam
import fastavro
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.io.filesystem import FileMetadata
from apache_beam.testing.util import assert_that, equal_to

from transforms.records.errors import ConfigurationError
from transforms.records.records import DeadLetter, Record
from transforms.sources import files
from transforms.sources.base import IdRule, ReadRecords
from transforms.sources.files import (
    FORMATS,
    FilePart,
    FileSource,
    ReadFiles,
    format_of,
    match,
    open_file,
    plan_parts,
    read_first,
    read_part,
)

RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
Item = Record | DeadLetter
DEFAULT = IdRule()
AVRO = {"type": "record", "name": "r", "fields": [{"name": "id", "type": "long"}]}


def _write(path: pathlib.Path, data: bytes | str) -> str:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return str(path)


def _json_lines(ids: Any) -> str:
    return "".join(f'{{"id":{n}}}\n' for n in ids)


def _parquet(path: pathlib.Path, ids: Any, group: int = 1000) -> str:
    values = list(ids)
    pq.write_table(pa.table({"id": pa.array(values, pa.int64())}), path, row_group_size=group)
    return str(path)


def _avro(path: pathlib.Path, ids: Any) -> str:
    with path.open("wb") as file:
        fastavro.writer(file, AVRO, [{"id": n} for n in ids], sync_interval=50)
    return str(path)


def _read(path: str, given: str | None = None, rule: IdRule = DEFAULT) -> list[Item]:
    """The items of a file, part by part."""
    parts = plan_parts(path, os.path.getsize(path), given)
    return [item for part in parts for item in read_part(part, rule)]


def _ids(items: list[Item]) -> list[str | None]:
    return [item.record_id for item in items]


def _check_read(
    transform: beam.PTransform, ids: list[str], unread: list[DeadLetter] | None = None
) -> None:
    """Runs a root transform; compares its ids, in any order, and its dead letters."""
    with beam.Pipeline(RUNNER) as root:
        records, dead, *_ = root | transform
        assert_that(records | beam.Map(lambda record: record.record_id), equal_to(ids), "Records")
        assert_that(dead, equal_to(unread or []), "Dead")


# Formats


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jsonl", "jsonl"),
        ("a.ndjson", "jsonl"),
        ("a.json", "jsonl"),
        ("A.CSV", "csv"),
        ("a.csv.gz", "csv"),
        ("gs://b/x.y/a.Parquet", "parquet"),
        ("a.avro", "avro"),
        ("a.txt.GZ", "txt"),
    ],
)
def test_format_by_name(name: str, kind: str) -> None:
    """The suffix decides the format, in any case and before a ``.gz``."""
    assert format_of(name) == kind
    assert format_of(name, "objects") == "objects"


@pytest.mark.parametrize("name", ["a", "a.xml", "a.gz", "jsonl", "a.jsonl.bak"])
def test_a_name_without_a_known_suffix(name: str) -> None:
    """The message about an unknown suffix names the file and the remedy."""
    with pytest.raises(ConfigurationError) as raised:
        format_of(name)
    assert str(raised.value) == (
        f"the name of {name!r} does not tell its format: set `format`, one of "
        "jsonl, csv, parquet, avro, txt, objects"
    )
    assert {format_of(name, kind) for kind in FORMATS} == set(FORMATS)


def test_unknown_suffix_stops_the_run(tmp_path: pathlib.Path) -> None:
    """An unknown format is a usage error, not a dead letter."""
    path = _write(tmp_path / "a.xml", "<a/>")
    with pytest.raises(ConfigurationError, match="set `format`, one of jsonl"):
        list(read_first(path, None, IdRule(), 5))
    with pytest.raises(Exception, match="set `format`, one of jsonl"):
        _check_read(ReadFiles(pattern=path), [])


def test_each_format(tmp_path: pathlib.Path) -> None:
    """Every format reads the same two records; a format that is set overrides the name's."""
    paths = [
        _write(tmp_path / "a.jsonl", '{"id":1}\n{"id":2}\n'),
        _write(tmp_path / "a.csv", "id\r\n1\r\n2\r\n"),
        _parquet(tmp_path / "a.parquet", [1, 2]),
        _avro(tmp_path / "a.avro", [1, 2]),
    ]
    for path in paths:
        assert _ids(_read(path)) == ["1", "2"]
        assert {item.source for item in _read(path) if isinstance(item, Record)} == {path}
    text = _write(tmp_path / "a.txt", "x\ny\n")
    assert [item.fields for item in _read(text)] == [{"text": "x"}, {"text": "y"}]
    odd = _write(tmp_path / "a.csv", '{"id":1}\n')
    assert _ids(_read(odd, "jsonl")) == ["1"]


def test_objects(tmp_path: pathlib.Path) -> None:
    """Each file is one unopened record with its URI and type; the URI may be the id."""
    for name in ("a.png", "b.pdf", "c.unknown", "d"):
        _write(tmp_path / name, "\0")
    types = ["image/png", "application/pdf", "application/octet-stream", "application/octet-stream"]
    fields = [
        {"uri": f"{tmp_path}/{name}", "mime_type": mime_type}
        for name, mime_type in zip(("a.png", "b.pdf", "c.unknown", "d"), types, strict=True)
    ]
    items = list(read_first(f"{tmp_path}/*", "objects", IdRule("uri", required=True), 100))
    assert [item.fields for item in items] == fields
    assert _ids(items) == [field["uri"] for field in fields]


# gzip


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl", "a.JSON.GZ"])
def test_gzip_by_content(tmp_path: pathlib.Path, name: str) -> None:
    """The content decides whether a file is gzipped, whatever its name."""
    data = _json_lines(range(5)).encode()
    expected = [str(n) for n in range(5)]
    assert _ids(_read(_write(tmp_path / name, gzip.compress(data)))) == expected
    assert _ids(_read(_write(tmp_path / name, data))) == expected
    halves = gzip.compress(data[:10]) + gzip.compress(data[10:])
    assert _ids(_read(_write(tmp_path / name, halves))) == expected
    assert _read(_write(tmp_path / name, b"")) == []
    assert _read(_write(tmp_path / name, gzip.compress(b""))) == []


@pytest.mark.parametrize("make", [_parquet, _avro])
def test_gzipped_containers(
    tmp_path: pathlib.Path, make: Callable[[pathlib.Path, Any], str]
) -> None:
    """Gzipped Parquet and Avro files are decompressed too."""
    path = tmp_path / make.__name__.replace("_", "a.")
    make(path, range(5))
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert _ids(_read(str(path))) == [str(n) for n in range(5)]


def test_truncated_gzip(tmp_path: pathlib.Path) -> None:
    """The lines before the damage are read; one dead letter represents the rest."""
    whole = gzip.compress(_json_lines(range(50_000)).encode())
    path = _write(tmp_path / "a.jsonl.gz", whole[: len(whole) // 2])
    *records, dead = _read(path)
    assert _ids(records) == [str(n) for n in range(len(records))]
    assert 20_000 < len(records) < 30_000
    assert dead == DeadLetter(
        "read",
        "parse_error",
        f"the rest of a damaged jsonl file is lost: {path}: after {len(records):,} records: "
        "Compressed file ended before the end-of-stream marker was reached",
        payload=path,
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x1f\x8b" + b"\xff" * 30, "Unknown compression method"),
        (gzip.compress(b'{"id":0}\n')[:-8] + b"\0" * 8, "CRC check failed 0x0 != 0x"),
        (gzip.compress(b'{"id":0}\n') + b"trailing", "Not a gzipped file (b'tr')"),
    ],
    ids=["header", "checksum", "trailing"],
)
def test_damaged_gzip(tmp_path: pathlib.Path, data: bytes, reason: str) -> None:
    """Damaged gzip is a dead letter with the decoder's message, never an exception."""
    path = _write(tmp_path / "a.jsonl", data)
    dead = _read(path)[-1]
    assert isinstance(dead, DeadLetter)
    assert (dead.error_type, dead.payload) == ("parse_error", path)
    assert dead.error_message.startswith(
        f"the rest of a damaged jsonl file is lost: {path}: after "
    )  # fmt: skip
    assert reason in dead.error_message


def test_other_compression_is_not_text(tmp_path: pathlib.Path) -> None:
    """Bzip2 is not decompressed: its lines are dead letters with their bytes."""
    path = _write(tmp_path / "a.jsonl", bz2.compress(b'{"id":1}\n'))
    assert {item.error_type for item in _read(path)} == {"parse_error"}  # type: ignore[union-attr]


# Damage


@pytest.mark.parametrize("make", [_parquet, _avro])
@pytest.mark.parametrize("limit", [None, 100])
def test_corrupt_container(
    tmp_path: pathlib.Path, make: Callable[[pathlib.Path, Any], str], limit: int | None
) -> None:
    """A corrupt file is one dead letter, whole or in parts; the other files are read."""
    suffix = make.__name__.replace("_", ".")
    make(tmp_path / f"a{suffix}", range(3))
    path = _write(tmp_path / f"b{suffix}", b"none of these formats" * 10)
    with beam.Pipeline(RUNNER) as root:
        records, unread = root | ReadFiles(pattern=f"{tmp_path}/*{suffix}", limit=limit)
        ids = records | beam.Map(lambda record: record.record_id)
        assert_that(ids, equal_to(["0", "1", "2"]), "Records")
        dead = unread | beam.Map(
            lambda dead: (dead.stage, dead.error_type, dead.payload, path in dead.error_message)
        )
        assert_that(dead, equal_to([("read", "parse_error", path, True)]), "Dead")


def test_truncated_avro(tmp_path: pathlib.Path) -> None:
    """The Avro blocks before the damage are read."""
    path = _avro(tmp_path / "a.avro", range(1000))
    data = pathlib.Path(path).read_bytes()
    _write(tmp_path / "a.avro", data[: len(data) * 2 // 3])
    *records, dead = _read(path)
    assert _ids(records) == [str(n) for n in range(len(records))]
    assert 500 < len(records) < 800
    assert isinstance(dead, DeadLetter)
    assert dead.error_message.startswith(
        f"the rest of a damaged avro file is lost: {path}: after {len(records)} records: "
    )


def test_avro_moment_that_python_cannot_hold(tmp_path: pathlib.Path) -> None:
    """A timestamp that Python cannot hold ends an Avro file like damage."""
    kind = {"type": "long", "logicalType": "timestamp-micros"}
    schema = {"type": "record", "name": "r", "fields": [{"name": "id", "type": kind}]}
    with (tmp_path / "a.avro").open("wb") as file:
        fastavro.writer(file, schema, [{"id": 0}, {"id": 2**62}, {"id": 0}])
    first, dead = _read(f"{tmp_path}/a.avro")
    assert first.record_id == "1970-01-01T00:00:00Z"
    assert isinstance(dead, DeadLetter)
    assert dead.error_message == (
        f"the rest of a damaged avro file is lost: {tmp_path}/a.avro: after 1 records: "
        "date value out of range"
    )


def test_any_wrong_byte_of_avro(tmp_path: pathlib.Path) -> None:
    """Reading Avro with any wrong byte ends with records or with one dead letter."""
    path = _avro(tmp_path / "a.avro", range(30))
    data = pathlib.Path(path).read_bytes()
    kinds: collections.Counter[str] = collections.Counter()
    for place in range(len(data)):
        _write(tmp_path / "a.avro", data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
        items = _read(path)
        dead = [item for item in items if isinstance(item, DeadLetter)]
        assert dead in ([], items[-1:])
        kinds["dead" if dead else "fine"] += 1
    assert kinds["dead"] > len(data) // 3


def test_corrupt_row_group_costs_itself(tmp_path: pathlib.Path) -> None:
    """A corrupt row group fails alone, because each is read separately."""
    path = tmp_path / "a.parquet"
    table = pa.table({"id": [str(n) * 30 for n in range(300)]})
    pq.write_table(table, path, row_group_size=100, compression="snappy")
    second = pq.ParquetFile(path).metadata.row_group(1).column(0)
    start = second.dictionary_page_offset or second.data_page_offset
    data = bytearray(path.read_bytes())
    data[start + 40 : start + 80] = b"\xff" * 40
    path.write_bytes(data)
    items = _read(str(path))
    (dead,) = [item for item in items if isinstance(item, DeadLetter)]
    assert dead.error_message.startswith(
        f"the rest of a damaged parquet file is lost: {path}: after 0 records: "
    )
    assert _ids([item for item in items if isinstance(item, Record)]) == [
        str(n) * 30 for n in [*range(100), *range(200, 300)]
    ]


def test_bad_csv_header_costs_the_file(tmp_path: pathlib.Path) -> None:
    """A bad CSV header makes the file one dead letter that names the header."""
    path = _write(tmp_path / "a.csv", "id,id\n1,2\n")
    assert _read(path) == [
        DeadLetter(
            "read",
            "parse_error",
            f"the rest of a damaged csv file is lost: after 0 records: {path}: the header names "
            "the column 'id' twice",
            payload=path,
        )
    ]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
def test_empty_text(tmp_path: pathlib.Path, name: str) -> None:
    """Empty text has no records and no errors."""
    assert _read(_write(tmp_path / name, b"")) == []


@pytest.mark.parametrize("name", ["a.parquet", "a.avro"])
def test_empty_container(tmp_path: pathlib.Path, name: str) -> None:
    """A container has at least a header, so an empty file is damaged."""
    path = _write(tmp_path / name, b"")
    for items in (
        list(read_first(path, None, IdRule(), 5)),
        [
            item
            for part in files._parts_or_damage(FileMetadata(path, 0), None)
            for item in (read_part(part, IdRule()) if isinstance(part, FilePart) else [part])
        ],
    ):
        assert [(i.stage, i.error_type, i.payload) for i in items] == [  # type: ignore[union-attr]
            ("read", "parse_error", path)
        ]


# Errors that are raised


@pytest.mark.parametrize("kind", ["jsonl", "csv", "txt", "avro", "parquet"])
def test_vanished_file(tmp_path: pathlib.Path, kind: str) -> None:
    """A file deleted after the glob was matched raises, so that the runner retries."""
    with pytest.raises(OSError, match="No such file"):
        list(read_part(FilePart(f"{tmp_path}/a.{kind}", kind), IdRule()))


def test_vanished_parquet_when_planning(tmp_path: pathlib.Path) -> None:
    """A Parquet file deleted before its parts are planned raises, too."""
    with pytest.raises(OSError, match="No such file"):
        files._parts_or_damage(FileMetadata(f"{tmp_path}/a.parquet", 10), None)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "avro"])
def test_failing_storage(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A storage error says nothing about the file and is raised unchanged."""

    class StorageError(OSError):
        pass

    def failing(*_: object) -> Any:
        raise StorageError("503")

    path = _write(tmp_path / f"a.{kind}", "x")
    monkeypatch.setattr(files.FileSystems, "open", failing)
    with pytest.raises(StorageError, match=r"^503$"):
        list(read_part(FilePart(path, kind), IdRule()))


# Globs


def test_match(tmp_path: pathlib.Path) -> None:
    """A glob matches only files, never a folder, even one with a file's name."""
    (tmp_path / "d.jsonl").mkdir()
    (tmp_path / "sub").mkdir()
    _write(tmp_path / "a.jsonl", "")
    _write(tmp_path / "b.jsonl", "")
    _write(tmp_path / "sub" / "c.jsonl", "")
    assert sorted(file.path for file in match(f"{tmp_path}/*.jsonl")) == [
        f"{tmp_path}/a.jsonl",
        f"{tmp_path}/b.jsonl",
    ]
    assert [file.path for file in match(f"{tmp_path}/a.jsonl")] == [f"{tmp_path}/a.jsonl"]
    assert match(f"{tmp_path}/*.csv") == []


def test_no_match_is_empty(tmp_path: pathlib.Path) -> None:
    """Without a match the transform reads nothing; the command line checks for it."""
    _check_read(ReadFiles(pattern=f"{tmp_path}/*.jsonl"), [])


# Parts


def test_plan(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long text is planned in ranges, Parquet in row groups, everything else as one part."""
    monkeypatch.setattr(files, "_RANGE_BYTES", 10)
    lines = _write(tmp_path / "a.jsonl", b"x" * 25)
    assert plan_parts(lines, 25) == [
        FilePart(lines, "jsonl", 0, 10),
        FilePart(lines, "jsonl", 10, 20),
        FilePart(lines, "jsonl", 20, None),
    ]
    assert plan_parts(lines, 25, "txt")[1:2] == [FilePart(lines, "txt", 10, 20)]
    assert plan_parts(lines, 10) == [FilePart(lines, "jsonl")]
    assert plan_parts(lines, 25, "csv") == [FilePart(lines, "csv")]
    assert plan_parts(lines, 25, "objects") == [FilePart(lines, "objects")]
    packed = _write(tmp_path / "b.jsonl", gzip.compress(bytes(range(256))))
    assert plan_parts(packed, 100) == [FilePart(packed, "jsonl")]
    groups = _parquet(tmp_path / "a.parquet", range(25), group=10)
    assert plan_parts(groups, 100) == [FilePart(groups, "parquet", n, n + 1) for n in range(3)]
    assert _read(_parquet(tmp_path / "b.parquet", [])) == []


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_ranges_read_each_line_once(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Any ranges read each line once through the transform."""
    monkeypatch.setattr(files, "_RANGE_BYTES", size)
    lines = [json.dumps({"id": n, "text": "é" * (n % 9)}, ensure_ascii=False) for n in range(40)]
    path = _write(tmp_path / "a.jsonl", "\ufeff" + "\r\n".join(lines))
    assert len(plan_parts(path, os.path.getsize(path))) == -(-os.path.getsize(path) // size)
    _check_read(ReadFiles(pattern=path), [str(n) for n in range(40)])


def test_read_records(tmp_path: pathlib.Path) -> None:
    """A glob reads files of several formats; each unreadable input is one dead letter."""
    _write(tmp_path / "a.jsonl", '{"k":1}\n{"k":2')
    _write(tmp_path / "b.csv", "k\n3\n\n4\n")
    _write(tmp_path / "c.jsonl.gz", gzip.compress(b'{"k":5}\n{"id":6}\n'))
    _parquet(tmp_path / "d.parquet", [7])
    source = FileSource(pattern=f"{tmp_path}/*")
    _check_read(
        ReadRecords(source=source, id_rule=IdRule("k", required=True)),
        ["1", "3", "4", "5"],
        [
            DeadLetter(
                "read",
                "parse_error",
                f"{tmp_path}/a.jsonl, line 2: not JSON: Expecting ',' delimiter: "
                "line 1 column 7 (char 6)",
                payload='{"k":2',
            ),
            *(
                DeadLetter("read", "missing_field", "id field 'k' is missing", fields={"id": n})
                for n in (6, 7)
            ),
        ],
    )


# Limits


@pytest.mark.parametrize(("limit", "read"), [(1, 1), (4, 4), (5, 5), (6, 6), (9, 9), (100, 9)])
def test_limit_is_exact(tmp_path: pathlib.Path, limit: int, read: int) -> None:
    """The limit takes the first inputs by file name; unreadable ones count, blank lines do not."""
    _write(tmp_path / "b.jsonl", _json_lines([4, 5]))
    _write(tmp_path / "a.jsonl", '{"id":0}\n\nbad\n{"id":2}\n{"id":3}\n')
    _parquet(tmp_path / "c.parquet", [6, 7, 8], group=2)
    items = list(read_first(f"{tmp_path}/*", None, IdRule(), limit))
    assert _ids(items) == ["0", None, *map(str, range(2, 9))][:read]


def test_limit_reads_no_further(tmp_path: pathlib.Path) -> None:
    """Files beyond the limit are not even opened."""
    _write(tmp_path / "a.jsonl", _json_lines([0, 1]))
    _write(tmp_path / "b.xml", "")
    assert _ids(list(read_first(f"{tmp_path}/*", None, IdRule(), 2))) == ["0", "1"]


def test_limit_through_the_transform(tmp_path: pathlib.Path) -> None:
    """Records and dead letters count together towards the limit."""
    _write(tmp_path / "a.txt", b"a\n\xff\nb\nc\n")
    dead = DeadLetter(
        "read",
        "parse_error",
        f"{tmp_path}/a.txt, line 2: not UTF-8: byte 1 is 0xff",
        payload_bytes=b"\xff",
    )
    with beam.Pipeline(RUNNER) as root:
        records, unread = root | ReadFiles(pattern=f"{tmp_path}/*", limit=3)
        texts = records | beam.Map(lambda record: record.fields["text"])
        assert_that(texts, equal_to(["a", "b"]), "Records")
        assert_that(unread, equal_to([dead]), "Dead")


def test_open_file_of_one_byte(tmp_path: pathlib.Path) -> None:
    """A file of one byte, shorter than gzip's magic number, is read."""
    for data in (b"", b"\x1f", b"x"):
        with open_file(_write(tmp_path / "a", data)) as file:
            assert file.read() == data
