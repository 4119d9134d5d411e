"""Rows as protocol buffers."""

import base64
import datetime as dt

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from hypothesis import given
from hypothesis import strategies as st

from transforms.records.errors import WriteRejected
from transforms.records.json_values import rfc3339
from transforms.results.rows import DEAD_LETTER_COLUMNS, RESULT_COLUMNS, SUMMARY_COLUMNS, Column
from transforms.sinks.bigquery.proto_rows import ProtoRows, timestamp_micros

COLUMNS = (
    Column("s", "STRING", "REQUIRED"),
    Column("i", "INT64"),
    Column("f", "FLOAT64", "REPEATED"),
    Column("b", "BOOL"),
    Column("n", "NUMERIC"),
    Column("t", "TIMESTAMP"),
    Column("raw", "BYTES"),
    Column("r", "RECORD", "REPEATED", fields=(Column("key", "STRING"), Column("at", "TIMESTAMP"))),
)


def decoded(encoded: bytes, columns: tuple[Column, ...] = COLUMNS) -> dict[str, object]:
    """A message as read by a server that knows only the descriptor."""
    file = descriptor_pb2.FileDescriptorProto(name="other.proto", syntax="proto2")
    file.message_type.append(ProtoRows(columns).descriptor)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    message = message_factory.GetMessageClass(pool.FindMessageTypeByName("Row"))()
    message.ParseFromString(encoded)
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def test_every_type() -> None:
    """Each type is encoded as in BigQuery's table of conversions."""
    row = {
        "s": "ü\x00",
        "i": -(2**63),
        "f": [0.5, 2, -1e300],
        "b": False,
        "n": "12.50",
        "t": "1970-01-01T00:00:01.5Z",
        "raw": base64.b64encode(b"\xff").decode(),
        "r": [{"key": "k", "at": "1969-12-31T23:59:59.999999+00:00"}, {"key": None}],
        "unknown": 1,
    }
    assert decoded(ProtoRows(COLUMNS).encode(row)) == {
        "s": "ü\x00",
        "i": str(-(2**63)),
        "f": [0.5, 2.0, -1e300],
        "b": False,
        "n": "12.50",
        "t": "1500000",
        "raw": "/w==",
        "r": [{"key": "k", "at": "-1"}, {}],
    }


@pytest.mark.parametrize("columns", [RESULT_COLUMNS, DEAD_LETTER_COLUMNS, SUMMARY_COLUMNS])
def test_the_descriptor_is_that_of_the_columns(columns: tuple[Column, ...]) -> None:
    """The descriptor has the columns' names in order; a required column is a required field."""
    fields = ProtoRows(columns).descriptor.field
    assert [field.name for field in fields] == [column.name for column in columns]
    required = [field.name for field in fields if field.label == field.LABEL_REQUIRED]
    assert required == [column.name for column in columns if column.mode == "REQUIRED"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "missing required"),
        ({"s": 1}, "the row does not fit the table"),
        ({"s": "", "i": "many"}, "the row does not fit the table"),
        ({"s": "", "t": "yesterday"}, "Invalid isoformat string: 'yesterday'"),
        ({"s": "", "raw": "?"}, "the row does not fit the table"),
        ({"s": "", "r": [1]}, "the row does not fit the table"),
    ],
)
def test_a_value_that_does_not_fit_is_rejected(row: dict[str, object], message: str) -> None:
    """A value that does not fit is rejected before it is sent, with the reason."""
    with pytest.raises(WriteRejected, match=message):
        ProtoRows(COLUMNS).encode(row)


@given(st.datetimes(timezones=st.just(dt.timezone.utc)))
def test_timestamps_are_exact(moment: dt.datetime) -> None:
    """Timestamps are exact to the microsecond, for every year that BigQuery supports."""
    micros = timestamp_micros(rfc3339(moment))
    epoch = dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc)
    assert epoch + dt.timedelta(microseconds=micros) == moment
