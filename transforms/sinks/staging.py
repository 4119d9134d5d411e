"""Rows in temporary files, which `WriteFiles` renames and `LoadRows` has BigQuery load.

A bundle that fails leaves a file that nobody lists: only the files of bundles that succeeded are
passed on, with the number of rows and bytes in them.
"""

import base64
import dataclasses
import decimal
import io
import uuid
from collections.abc import Iterator
from typing import Any, BinaryIO, Protocol, cast

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from transforms.results.rows import Column, Row
from transforms.sinks.base import EncodedRow

MAX_FILE_BYTES = 256 << 20
"""A bundle starts another file after this many bytes, so that readers can share the work."""

_BUFFER_BYTES = 1 << 20
_PARQUET_ROWS = 10_000


@dataclasses.dataclass(frozen=True, slots=True)
class StagedFile:
    """A finished temporary file.

    Attributes:
      path: Its path.
      rows: The number of rows in it.
      size_bytes: Its size, as written.
    """

    path: str
    rows: int
    size_bytes: int


class FileWriter(Protocol):
    """Writes rows into one open file."""

    def write(self, row: EncodedRow) -> None:
        """Adds one row."""
        ...

    def close(self) -> None:
        """Completes the format and closes the file."""
        ...


class _JsonLinesWriter:
    def __init__(self, file: BinaryIO, columns: tuple[Column, ...]) -> None:
        del columns
        self._file = file

    def write(self, row: EncodedRow) -> None:
        self._file.write(row.line)
        self._file.write(b"\n")

    def close(self) -> None:
        self._file.close()


class _ParquetWriter:
    def __init__(self, file: BinaryIO, columns: tuple[Column, ...]) -> None:
        self._file = file
        self._columns = columns
        self._writer = pq.ParquetWriter(file, parquet_schema(columns), compression="zstd")
        self._rows: list[Row] = []

    def write(self, row: EncodedRow) -> None:
        self._rows.append(row.values)
        if len(self._rows) >= _PARQUET_ROWS:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()
        self._file.close()

    def _flush(self) -> None:
        rows, self._rows = self._rows, []
        schema = self._writer.schema
        arrays = [
            _parquet_array([row.get(column.name) for row in rows], column, schema.field(i).type)
            for i, column in enumerate(self._columns)
        ]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


_PARQUET_TYPES = {
    "STRING": pa.string(),
    "INT64": pa.int64(),
    "FLOAT64": pa.float64(),
    "BOOL": pa.bool_(),
    "NUMERIC": pa.decimal128(38, 9),
    "TIMESTAMP": pa.timestamp("us", "UTC"),
    "BYTES": pa.binary(),
}
_WRITERS: dict[str, type[_JsonLinesWriter] | type[_ParquetWriter]] = {
    "jsonl": _JsonLinesWriter,
    "parquet": _ParquetWriter,
}


def parquet_schema(columns: tuple[Column, ...]) -> pa.Schema:
    """The Arrow schema of a table of rows."""

    def field(column: Column) -> pa.Field:
        if column.type == "RECORD":
            kind = pa.struct([field(child) for child in column.fields])
        else:
            kind = _PARQUET_TYPES[column.type]
        if column.mode == "REPEATED":
            return pa.field(column.name, pa.list_(kind))
        return pa.field(column.name, kind, nullable=column.mode != "REQUIRED")

    return pa.schema([field(column) for column in columns])


def _parquet_array(values: list[Any], column: Column, kind: pa.DataType) -> pa.Array:
    if column.type == "TIMESTAMP":
        return pa.array(values, pa.string()).cast(kind)
    if column.type == "NUMERIC":
        values = [None if v is None else decimal.Decimal(v) for v in values]
    elif column.type == "BYTES":
        values = [None if v is None else base64.b64decode(v) for v in values]
    return pa.array(values, kind)


def make_folder(path: str) -> None:
    """Creates a folder and its parents; no error when it is there."""
    if not FileSystems.exists(path):
        try:
            FileSystems.mkdirs(path)
        except OSError:  # another thread was faster, or an object store that has no folders
            if not FileSystems.exists(path) and not path.startswith("gs://"):
                raise


class _StageDoFn(beam.DoFn):
    def __init__(self, folder: str, format: str, columns: tuple[Column, ...]) -> None:
        self._folder = folder
        self._format = format
        self._columns = columns
        self._writer: FileWriter | None = None

    def start_bundle(self) -> None:
        self._writer = None
        self._staged: list[StagedFile] = []

    def process(self, row: EncodedRow) -> None:
        if self._writer is None:
            self._open()
        self._writer.write(row)  # type: ignore[union-attr]
        self._rows += 1
        self._bytes += len(row.line) + 1
        if self._bytes >= MAX_FILE_BYTES:
            self._close()

    def finish_bundle(self) -> Iterator[WindowedValue]:
        self._close()
        window = GlobalWindow()
        for staged in self._staged:
            yield WindowedValue(staged, window.max_timestamp(), [window])

    def teardown(self) -> None:
        """Closes the file of a bundle that failed; nobody lists it."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self) -> None:
        make_folder(self._folder)
        self._path = FileSystems.join(self._folder, f"{uuid.uuid4().hex}.{self._format}")
        file = FileSystems.create(
            self._path, "application/octet-stream", CompressionTypes.UNCOMPRESSED
        )
        buffered = cast(BinaryIO, io.BufferedWriter(file, _BUFFER_BYTES))
        self._writer = _WRITERS[self._format](buffered, self._columns)
        self._rows = self._bytes = 0

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            size = FileSystems.match([self._path])[0].metadata_list[0].size_in_bytes
            self._staged.append(StagedFile(self._path, self._rows, size))


@dataclasses.dataclass(kw_only=True, eq=False)
class StageRows(beam.PTransform):
    """Writes encoded rows to temporary files, one or more per bundle.

    Args:
      folder: Where, local or ``gs://``; created when it is missing.
      format: ``jsonl`` or ``parquet``.
      columns: The rows' columns.

    Returns:
      A PCollection of `StagedFile`: only of bundles that succeeded.
    """

    folder: str
    format: str
    columns: tuple[Column, ...]

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, rows: beam.PCollection[EncodedRow]) -> beam.PCollection[StagedFile]:
        stage = _StageDoFn(self.folder, self.format, self.columns)
        return rows | "StageRows" >> beam.ParDo(stage).with_output_types(StagedFile)


def delete_folder(folder: str) -> None:
    """Deletes a folder of temporary files; no error when it is not there."""
    found = FileSystems.match([FileSystems.join(folder, "*")])[0].metadata_list
    if found:
        FileSystems.delete([file.path for file in found])
    if not folder.startswith("gs://") and FileSystems.exists(folder):
        FileSystems.delete([folder])
