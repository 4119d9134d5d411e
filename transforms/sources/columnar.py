"""Container formats: Parquet by row group, Avro by file."""

import contextlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import fastavro
import pyarrow as pa
import pyarrow.parquet as pq

from transforms.records import json_values
from transforms.records.errors import ParseError
from transforms.records.records import DeadLetter, Record
from transforms.sources.base import IdRule, make_record

_BATCH_ROWS = 1000


def row_groups(file: BinaryIO) -> int:
    """The number of row groups of a Parquet file; each is read separately.

    Raises:
      ParseError: The file is not Parquet.
    """
    with _arrow_damage_as_parse_error():
        return int(pq.ParquetFile(file).metadata.num_row_groups)


@contextlib.contextmanager
def _arrow_damage_as_parse_error() -> Iterator[None]:
    """Arrow reports damage as a plain OSError without errno; storage errors have more."""
    try:
        yield
    except OSError as error:
        if type(error) is OSError and error.errno is None:
            raise ParseError(" ".join(str(error).split())) from None
        raise


def read_parquet(
    file: BinaryIO, path: str, id_rule: IdRule, start: int = 0, stop: int | None = None
) -> Iterator[Record | DeadLetter]:
    """The rows of the row groups ``[start, stop)``."""
    with _arrow_damage_as_parse_error():
        parquet = pq.ParquetFile(file)
        groups = range(start, parquet.metadata.num_row_groups if stop is None else stop)
        for batch in parquet.iter_batches(batch_size=_BATCH_ROWS, row_groups=list(groups)):
            coarse = _microseconds(batch)
            try:
                rows = coarse.to_pylist()
            except (ValueError, OverflowError):  # a value that Python cannot hold
                yield from _row_by_row(coarse, path, id_rule)
                continue
            for row in rows:
                yield make_record(json_values.to_json_value(row), path, id_rule)


def _row_by_row(batch: pa.RecordBatch, path: str, id_rule: IdRule) -> Iterator[Record | DeadLetter]:
    """The same rows, but one with a value that Python cannot hold is a dead letter of its own."""
    for number in range(batch.num_rows):
        fields: dict[str, Any] = {}
        errors = []
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            try:
                fields[name] = json_values.to_json_value(column[number].as_py())
            except (ValueError, OverflowError) as error:
                errors.append(f"column {name!r}: {error}")
        if errors:
            unread = ParseError(f"{path}: {'; '.join(errors)}")
            yield DeadLetter.of(unread, stage="read", fields=fields)
        else:
            yield make_record(fields, path, id_rule)


def _microseconds(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Rounds nanoseconds to microseconds, also nested: Python's types hold nothing finer."""
    columns = []
    for column in batch.columns:
        kind = _microsecond_type(column.type)
        columns.append(column if kind == column.type else column.cast(kind, safe=False))
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _microsecond_type(kind: pa.DataType) -> pa.DataType:
    types = pa.types
    if types.is_timestamp(kind):
        return pa.timestamp("us", kind.tz) if kind.unit == "ns" else kind
    if types.is_time64(kind):
        return pa.time64("us")
    if types.is_duration(kind):
        return pa.duration("us") if kind.unit == "ns" else kind
    if types.is_struct(kind):
        return pa.struct([field.with_type(_microsecond_type(field.type)) for field in kind])
    if types.is_map(kind):
        return pa.map_(_microsecond_type(kind.key_type), _microsecond_type(kind.item_type))
    if types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_microsecond_type(kind.value_type)))
    return kind


def read_avro(
    file: BinaryIO, path: str, id_rule: IdRule, start: int = 0, stop: int | None = None
) -> Iterator[Record | DeadLetter]:
    """The records of an Avro container file; not split here."""
    del start, stop
    for row in fastavro.reader(file):
        fields = row if isinstance(row, dict) else {"value": row}
        yield make_record(json_values.to_json_value(fields), path, id_rule)
