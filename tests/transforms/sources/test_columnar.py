"""Parquet and Avro: every type as JSON, one bad value fails one record, damage is a parse error."""

import datetime as dt
import decimal
import errno
import io
import uuid
from typing import Any

import fastavro
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from transforms.records.errors import ParseError
from transforms.records.records import DeadLetter, Record
from transforms.sources.base import IdRule
from transforms.sources.columnar import read_avro, read_parquet, row_groups

PATH = "dir/f"
NS = 1_700_000_000_123_456_789


def _parquet(table: pa.Table, **options: Any) -> io.BytesIO:
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    file.seek(0)
    return file


def _column(array: pa.Array) -> list[Any]:
    """The JSON values of one column."""
    items = read_parquet(_parquet(pa.table({"v": array})), PATH, IdRule())
    return [item.fields["v"] for item in items if item.fields]


def _avro(schema: Any, rows: list[Any], **options: Any) -> io.BytesIO:
    file = io.BytesIO()
    fastavro.writer(file, fastavro.parse_schema(schema), rows, **options)
    file.seek(0)
    return file


def _avro_record(**types: Any) -> dict[str, Any]:
    fields = [{"name": name, "type": kind} for name, kind in types.items()]
    return {"type": "record", "name": "row", "fields": fields}


D = decimal.Decimal


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.array([D("12.50"), D("-0.01"), None], pa.decimal128(9, 2)), ["12.50", "-0.01", None]),
        (pa.array([D(10) ** 40], pa.decimal256(60, 3)), ["1" + "0" * 40 + ".000"]),
        (pa.array([NS], pa.timestamp("ns")), ["2023-11-14T22:13:20.123456Z"]),
        (pa.array([NS // 1000], pa.timestamp("us")), ["2023-11-14T22:13:20.123456Z"]),
        (pa.array([NS // 10**6], pa.timestamp("ms")), ["2023-11-14T22:13:20.123000Z"]),
        (pa.array([NS], pa.timestamp("ns", "Europe/Berlin")), ["2023-11-14T22:13:20.123456Z"]),
        (pa.array([NS // 1000], pa.timestamp("us", "+02:00")), ["2023-11-14T22:13:20.123456Z"]),
        (pa.array([0, -1], pa.timestamp("us")), ["1970-01-01T00:00:00Z",
                                                 "1969-12-31T23:59:59.999999Z"]),
        (pa.array([dt.date(2024, 2, 29), None], pa.date32()), ["2024-02-29", None]),
        (pa.array([3_723_000_456_789], pa.time64("ns")), ["01:02:03.000456"]),
        (pa.array([3_723_000_456], pa.time64("us")), ["01:02:03.000456"]),
        (pa.array([1_500_000_001], pa.duration("ns")), ["0:00:01.500000"]),
        (pa.array([b"\x00\xff", b"", None], pa.binary()), ["AP8=", "", None]),
        (pa.array([b"\x01\x02"], pa.binary(2)), ["AQI="]),
        (pa.array([1.5, float("nan"), float("inf"), float("-inf"), None]),
         [1.5, "NaN", "Infinity", "-Infinity", None]),
        (pa.array([0, 2**64 - 1], pa.uint64()), [0, 2**64 - 1]),
        (pa.array([True, None]), [True, None]),
        (pa.array(["é", "a", None]).dictionary_encode(), ["é", "a", None]),
        (pa.array([[1, None], [], None]), [[1, None], [], None]),
        (pa.array([[NS]], pa.list_(pa.timestamp("ns"))), [["2023-11-14T22:13:20.123456Z"]]),
        (pa.array([{"a": {"b": D("1.0")}, "c": [b"x"]}, None]),
         [{"a": {"b": "1.0"}, "c": ["eA=="]}, None]),
        (pa.array([{"t": NS, "l": [{"u": NS}]}],
                  pa.struct({"t": pa.timestamp("ns"),
                             "l": pa.list_(pa.struct({"u": pa.timestamp("ns", "UTC")}))})),
         [{"t": "2023-11-14T22:13:20.123456Z", "l": [{"u": "2023-11-14T22:13:20.123456Z"}]}]),
        (pa.array([[("a", 1), ("b", None)]], pa.map_(pa.string(), pa.int64())),
         [[["a", 1], ["b", None]]]),
        (pa.array([[("a", NS)]], pa.map_(pa.string(), pa.timestamp("ns"))),
         [[["a", "2023-11-14T22:13:20.123456Z"]]]),
        (pa.array([None], pa.null()), [None]),
    ],
)  # fmt: skip
def test_parquet_types(array: pa.Array, expected: list[Any]) -> None:
    """Each type, nested or not, becomes JSON by `transforms.records.json_values`."""
    assert _column(array) == expected


def test_parquet_rows_and_groups() -> None:
    """Each row is in exactly one row group; ids, NULLs and the order of columns are kept."""
    table = pa.table({"b": ["x", None, "z", "w", ""], "id": [1, 2, None, 4, 5]})
    file = _parquet(table, row_group_size=2)
    assert row_groups(file) == 3
    whole = list(read_parquet(file, PATH, IdRule()))
    assert whole[:2] == [
        Record("1", {"b": "x", "id": 1}, {}, PATH),
        Record("2", {"b": None, "id": 2}, {}, PATH),
    ]
    assert [list(item.fields or ()) for item in whole] == [["b", "id"]] * 5
    by_group = [
        item for n in range(3) for item in read_parquet(file, PATH, IdRule(), start=n, stop=n + 1)
    ]
    assert by_group == whole
    assert list(read_parquet(file, PATH, IdRule(), start=2)) == whole[4:]
    (dead,) = [item for item in read_parquet(file, PATH, IdRule("id", required=True))
               if isinstance(item, DeadLetter)]  # fmt: skip
    assert dead == DeadLetter(
        "read", "missing_field", "id field 'id' is NULL or empty", fields={"b": "z", "id": None}
    )


def test_parquet_many_rows() -> None:
    """More rows than one conversion batch are read."""
    table = pa.table({"id": range(2500)})
    ids = [item.record_id for item in read_parquet(_parquet(table), PATH, IdRule())]
    assert ids == [str(n) for n in range(2500)]


@pytest.mark.parametrize("rows", [0, 3])
def test_parquet_without_rows(rows: int) -> None:
    """A file without rows is not an error."""
    table = pa.table({"id": pa.array([None] * rows, pa.int64())})
    file = _parquet(table.slice(0, 0))
    assert list(read_parquet(file, PATH, IdRule())) == []


@pytest.mark.parametrize(
    ("array", "error"),
    [
        (pa.array([0, 2**62, 1], pa.timestamp("us")), "date value out of range"),
        (pa.array([0, 2**30, 1], pa.date32()), "days=1073741824; must have magnitude <= 999999999"),
        (
            pa.Array.from_buffers(
                pa.string(),
                3,
                [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xffb")],
            ),
            "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte",
        ),
    ],
)
def test_parquet_value_that_python_cannot_hold(array: pa.Array, error: str) -> None:
    """A value that Python cannot hold fails its row; the dead letter has the row's other values."""
    file = _parquet(pa.table({"id": [1, 2, 3], "v": array}))
    before, dead, after = read_parquet(file, PATH, IdRule())
    assert dead == DeadLetter(
        "read", "parse_error", f"{PATH}: column 'v': {error}", fields={"id": 2}
    )
    assert isinstance(before, Record)
    assert isinstance(after, Record)
    assert (before.record_id, after.record_id) == ("1", "3")


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_parquet_damage_is_a_parse_error(compression: str) -> None:
    """With any byte wrong, reading yields rows or raises a damage error."""
    table = pa.table({"id": list(range(100)), "s": [f"text {n}" for n in range(100)]})
    data = _parquet(table, compression=compression).getvalue()
    told = 0
    for place in range(0, len(data), 23):
        broken = data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :]
        try:
            assert len(list(read_parquet(io.BytesIO(broken), PATH, IdRule()))) == 100
        except (ParseError, pa.ArrowInvalid, ValueError):
            told += 1
    assert told > 10


@pytest.mark.parametrize("data", [b"", b"PAR1", b"x" * 1000, b"PAR1" + b"\0" * 100 + b"PAR1"])
def test_not_parquet(data: bytes) -> None:
    """Data without any Parquet structure is a damage error."""
    for read in (
        lambda: row_groups(io.BytesIO(data)),
        lambda: list(read_parquet(io.BytesIO(data), PATH, IdRule())),
    ):
        with pytest.raises((ParseError, pa.ArrowInvalid)):
            read()


class _FailingDisk(io.RawIOBase):
    """A file whose storage fails after the first reads."""

    def __init__(self, data: bytes, error: OSError, reads: int) -> None:
        super().__init__()
        self._data, self._error, self.reads = io.BytesIO(data), error, reads

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._data.seek(offset, whence)

    def readinto(self, buffer: Any, /) -> int:
        self.reads -= 1
        if self.reads < 0:
            raise self._error
        return self._data.readinto(buffer)


class _StorageError(OSError):
    """An error of an object store's client."""


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), _StorageError("503")])
def test_failing_storage_is_not_damage(error: OSError) -> None:
    """A storage error is raised unchanged, so that the runner retries."""
    table = pa.table({"id": range(1000), "s": [f"text {n}" for n in range(1000)]})
    data = _parquet(table, row_group_size=100).getvalue()
    healthy = _FailingDisk(data, error, 10_000)
    assert len(list(read_parquet(io.BufferedReader(healthy, 16), PATH, IdRule()))) == 1000
    for reads in range(10_000 - healthy.reads):
        with pytest.raises(type(error)) as raised:
            disk = io.BufferedReader(_FailingDisk(data, error, reads), 16)
            list(read_parquet(disk, PATH, IdRule()))
        assert (raised.value.errno, str(raised.value)) == (error.errno, str(error))
    with pytest.raises(type(error)) as raised:
        row_groups(io.BufferedReader(_FailingDisk(data, error, 0)))
    assert (raised.value.errno, str(raised.value)) == (error.errno, str(error))


# Avro


def test_avro_types() -> None:
    """Unions, bytes, nested types and logical types become JSON by `json_values`."""
    schema = _avro_record(
        id="string",
        u=["null", "string", "long"],
        b="bytes",
        f={"type": "fixed", "name": "two", "size": 2},
        d={"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2},
        t={"type": "long", "logicalType": "timestamp-micros"},
        m={"type": "long", "logicalType": "timestamp-millis"},
        day={"type": "int", "logicalType": "date"},
        clock={"type": "long", "logicalType": "time-micros"},
        key={"type": "string", "logicalType": "uuid"},
        e={"type": "enum", "name": "colour", "symbols": ["RED"]},
        x="double",
        a={"type": "array", "items": _avro_record(n="int")},
        o={"type": "map", "values": "long"},
    )
    schema["fields"][-2]["type"]["items"]["name"] = "inner"
    moment = dt.datetime(2026, 1, 2, 3, 4, 5, 678901, dt.timezone.utc)
    row = {
        "id": "1",
        "u": None,
        "b": b"\x00\xff",
        "f": b"ab",
        "d": D("12.50"),
        "t": moment,
        "m": moment,
        "day": dt.date(2024, 2, 29),
        "clock": dt.time(1, 2, 3, 4),
        "key": uuid.UUID(int=5),
        "e": "RED",
        "x": float("nan"),
        "a": [{"n": 1}],
        "o": {"é": 2},
    }
    rows = [row, {**row, "id": "2", "u": "text", "x": 0.5}, {**row, "id": "3", "u": 2**40}]
    first, second, third = read_avro(_avro(schema, rows), PATH, IdRule())
    assert first == Record(
        "1",
        {
            "id": "1",
            "u": None,
            "b": "AP8=",
            "f": "YWI=",
            "d": "12.50",
            "t": "2026-01-02T03:04:05.678901Z",
            "m": "2026-01-02T03:04:05.678000Z",
            "day": "2024-02-29",
            "clock": "01:02:03.000004",
            "key": "00000000-0000-0000-0000-000000000005",
            "e": "RED",
            "x": "NaN",
            "a": [{"n": 1}],
            "o": {"é": 2},
        },
        {},
        PATH,
    )
    assert [second.fields["u"], second.fields["x"]] == ["text", 0.5]  # type: ignore[index]
    assert third.fields["u"] == 2**40  # type: ignore[index]


@pytest.mark.parametrize("codec", ["null", "deflate"])
def test_avro_many_blocks(codec: str) -> None:
    """Every record of every block is read in order; without a required id it is a dead letter."""
    schema = _avro_record(k=["null", "long"])
    rows = [{"k": None if n == 7 else n} for n in range(1000)]
    file = _avro(schema, rows, codec=codec, sync_interval=100)
    items = list(read_avro(file, PATH, IdRule("k", required=True)))
    assert items[7] == DeadLetter(
        "read", "missing_field", "id field 'k' is NULL or empty", fields={"k": None}
    )
    assert [item.record_id for item in items] == [
        None if n == 7 else str(n) for n in range(1000)
    ]  # fmt: skip


def test_avro_of_other_values_than_records() -> None:
    """A value that is not a record becomes the field ``value``."""
    (item,) = read_avro(_avro("string", ["x"]), PATH, IdRule())
    assert item.fields == {"value": "x"}


def test_avro_without_records() -> None:
    """A file without records is not an error."""
    assert list(read_avro(_avro(_avro_record(k="long"), []), PATH, IdRule())) == []
