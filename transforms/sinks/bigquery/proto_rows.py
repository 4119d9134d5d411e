"""Rows as protocol buffers, which BigQuery's Storage Write API takes.

The message has the same `Column` definitions as every other schema of this project. Types follow
BigQuery's table "Data type conversions" (Storage Write API); labels follow Google's own JSON writer
for Java: a REQUIRED column is a required field.

======================  ================================================================
column                  field
======================  ================================================================
STRING                  string
INT64, BOOL, FLOAT64    int64, bool, double
NUMERIC                 string, in plain notation
TIMESTAMP               int64: microseconds since 1970, in UTC
BYTES                   bytes, decoded from base64
RECORD                  a nested message, defined inside its parent as BigQuery requires
======================  ================================================================
"""

import base64
import datetime as dt
from collections.abc import Callable
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from transforms.records.errors import WriteRejected
from transforms.results.rows import Column, Row

_FIELD = descriptor_pb2.FieldDescriptorProto
_TYPES = {
    "STRING": _FIELD.TYPE_STRING,
    "INT64": _FIELD.TYPE_INT64,
    "BOOL": _FIELD.TYPE_BOOL,
    "FLOAT64": _FIELD.TYPE_DOUBLE,
    "NUMERIC": _FIELD.TYPE_STRING,
    "TIMESTAMP": _FIELD.TYPE_INT64,
    "BYTES": _FIELD.TYPE_BYTES,
    "RECORD": _FIELD.TYPE_MESSAGE,
}
_LABELS = {
    "REQUIRED": _FIELD.LABEL_REQUIRED,
    "NULLABLE": _FIELD.LABEL_OPTIONAL,
    "REPEATED": _FIELD.LABEL_REPEATED,
}
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc)
_MICROSECOND = dt.timedelta(microseconds=1)


def row_descriptor(columns: tuple[Column, ...], name: str = "Row") -> Any:
    """The message that holds a row of these columns: a ``DescriptorProto`` that needs no other."""
    message = descriptor_pb2.DescriptorProto(name=name)
    for number, column in enumerate(columns, 1):
        field = message.field.add(
            name=column.name, number=number, type=_TYPES[column.type], label=_LABELS[column.mode]
        )
        if column.type == "RECORD":
            field.type_name = f"{column.name}_record"
            message.nested_type.append(row_descriptor(column.fields, field.type_name))
    return message


def timestamp_micros(text: str) -> int:
    """An RFC 3339 timestamp as microseconds since 1970.

    >>> timestamp_micros("1970-01-01T00:00:01.000002Z")
    1000002

    Raises:
      ValueError: The text is no timestamp; a time without an offset is UTC.
    """
    moment = dt.datetime.fromisoformat(text.replace("Z", "+00:00"))
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.timezone.utc)
    return (moment - _EPOCH) // _MICROSECOND


def _from_base64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


_CONVERT: dict[str, Callable[[Any], Any]] = {
    "NUMERIC": str,
    "TIMESTAMP": timestamp_micros,
    "BYTES": _from_base64,
}


class ProtoRows:
    """Encodes the rows of one table; not picklable, made where rows are written.

    Attributes:
      descriptor: The message; the first append of a connection carries it.
    """

    def __init__(self, columns: tuple[Column, ...]) -> None:
        self.descriptor = row_descriptor(columns)
        file = descriptor_pb2.FileDescriptorProto(name="row.proto", syntax="proto2")
        file.message_type.append(self.descriptor)
        pool = descriptor_pool.DescriptorPool()
        pool.Add(file)
        self._message = message_factory.GetMessageClass(pool.FindMessageTypeByName("Row"))
        self._fields = _converters(columns)

    def encode(self, row: Row) -> bytes:
        """One row as a message; values without a column are left out.

        Args:
          row: The values of a row's JSON line.

        Raises:
          WriteRejected: A value does not fit its column.
        """
        try:
            encoded: bytes = self._message(**_values(row, self._fields)).SerializeToString()
        except Exception as error:  # ValueError, TypeError, EncodeError (a missing field)
            raise WriteRejected(f"the row does not fit the table: {error}") from error
        return encoded


_Fields = tuple[tuple[str, Callable[[Any], Any] | None], ...]


def _converters(columns: tuple[Column, ...]) -> _Fields:
    return tuple((column.name, _converter(column)) for column in columns)


def _converter(column: Column) -> Callable[[Any], Any] | None:
    convert = _CONVERT.get(column.type)
    if column.type == "RECORD":
        fields = _converters(column.fields)

        def convert(row: Any) -> Any:
            return _values(row, fields)

    if column.mode == "REPEATED" and convert is not None:
        one = convert
        return lambda values: [one(value) for value in values]
    return convert


def _values(row: Any, fields: _Fields) -> dict[str, Any]:
    values = {}
    for name, convert in fields:
        value = row.get(name)
        if value is not None:
            values[name] = value if convert is None else convert(value)
    return values
