"""Container formats: Parquet by row group, Avro by file."""

from collections.abc import Iterator
from typing import Any, BinaryIO

import fastavro
import pyarrow as pa
import pyarrow.parquet as pq

from transforms import json_values
from transforms.records import DeadLetter, Record
from transforms.sources.base import IdRule, make_record

_ROWS_AT_ONCE = 1000


def row_groups(file: BinaryIO) -> int:
    """How many row groups a Parquet file has: each is read by itself."""
    return int(pq.ParquetFile(file).metadata.num_row_groups)


def read_parquet(
    file: BinaryIO, path: str, id_rule: IdRule, start: int = 0, stop: int | None = None
) -> Iterator[Record | DeadLetter]:
    """The rows of the row groups ``[start, stop)``."""
    parquet = pq.ParquetFile(file)
    groups = range(start, parquet.metadata.num_row_groups if stop is None else stop)
    for batch in parquet.iter_batches(batch_size=_ROWS_AT_ONCE, row_groups=list(groups)):
        for row in pa.Table.from_batches([_microseconds(batch)]).to_pylist():
            yield make_record(json_values.to_json_value(row), path, id_rule)


def _microseconds(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Nanosecond timestamps as microseconds: Python's datetime holds no finer ones."""
    columns: list[Any] = []
    for column in batch.columns:
        kind = column.type
        if pa.types.is_timestamp(kind) and kind.unit == "ns":
            column = column.cast(pa.timestamp("us", kind.tz), safe=False)
        columns.append(column)
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def read_avro(
    file: BinaryIO, path: str, id_rule: IdRule, start: int = 0, stop: int | None = None
) -> Iterator[Record | DeadLetter]:
    """The records of an Avro container file. Not splittable here."""
    del start, stop
    for row in fastavro.reader(file):
        fields = row if isinstance(row, dict) else {"value": row}
        yield make_record(json_values.to_json_value(fields), path, id_rule)
