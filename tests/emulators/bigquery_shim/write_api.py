"""The Storage Write API with the service's rules for rows, and streams that survive the server.

Changes to the emulator's own handler:

- Nested RECORD columns reach the table.
- Rows that do not fit are ``row_errors`` of a request that appends nothing: a missing REQUIRED
  value, invalid JSON text, a value that the column's type does not accept.
- A field that the table lacks is ``SCHEMA_MISMATCH_EXTRA_FIELDS``.
- Later requests of a connection may leave out the stream's name.
- Rows and the stream's new offset are one transaction. With a data folder, a server killed at any
  moment continues after the last acknowledged append, or one append later.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import uuid4

import pyarrow as pa
from bqemulator.api.routes import tabledata
from bqemulator.grpc_api import write_servicer
from bqemulator.storage.sql_identifiers import quoted_table_ref, register_name
from bqemulator.streaming.proto_deserializer import ProtoRowDecoder, proto_rows_to_arrow_table
from bqemulator.streaming.strategies import select_strategy
from bqemulator.streaming.strategies.base import AppendStatus
from bqemulator.streaming.write_stream import WriteStreamType, parse_stream_name
from google.cloud.bigquery_storage_v1 import types
from google.protobuf import any_pb2
from google.rpc import status_pb2

from tests.emulators.bigquery_shim.rows import Field

STREAMS = '"_bqemulator_catalog".shim_write_streams'
INVALID_ARGUMENT, RESOURCE_EXHAUSTED = 3, 8
_DURABLE = (WriteStreamType.DEFAULT, WriteStreamType.COMMITTED)


def arrow_schema(meta: Any) -> pa.Schema:
    """The table's columns, the fields of its RECORDs included."""
    return tabledata._build_arrow_schema(tabledata._fields_raw_from_schema(meta.schema_.fields))


def decode_rows(
    decoder: ProtoRowDecoder, rows: Sequence[bytes], fields: Sequence[Field], schema: pa.Schema
) -> tuple[pa.Table | None, dict[int, str]]:
    """Returns the rows as a table, or else the errors by row."""
    try:
        table = proto_rows_to_arrow_table(decoder, list(rows), schema)
    except Exception:
        table = None
    if table is not None:
        errors = _row_errors(fields, table)
        return (None, errors) if errors else (table, {})
    errors = {}
    for index, row in enumerate(rows):
        try:
            one = proto_rows_to_arrow_table(decoder, [row], schema)
        except Exception as error:
            errors[index] = f"{type(error).__name__}: {error}"
        else:
            for message in _row_errors(fields, one).values():
                errors[index] = message
    return None, errors


def _row_errors(fields: Sequence[Field], table: pa.Table) -> dict[int, str]:
    errors: dict[int, str] = {}
    for field in fields:
        column = table.column(field.name)
        if field.mode.upper() == "REQUIRED" and column.null_count:
            for index, value in enumerate(column.to_pylist()):
                if value is None:
                    errors.setdefault(index, f"Field {field.name} is required and has no value")
        if field.type.upper() == "JSON" and field.mode.upper() != "REPEATED":
            for index, value in enumerate(column.to_pylist()):
                if value is not None and not _is_json(value):
                    errors.setdefault(index, f"Invalid JSON in field {field.name}")
    return errors


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


class WriteHandler(write_servicer.BigQueryWriteHandler):
    """The emulator's handler, with its appends replaced."""

    def __init__(self, context: Any, manager: Any = None) -> None:
        """Finds the streams of an earlier server again."""
        super().__init__(context, manager)
        database = context.engine.connection.cursor()
        database.execute(
            f"CREATE TABLE IF NOT EXISTS {STREAMS} "
            "(name TEXT PRIMARY KEY, type TEXT, next_offset BIGINT)"
        )
        for name, kind, offset in database.execute(f"SELECT * FROM {STREAMS}").fetchall():
            stream = self._manager.create(*parse_stream_name(name), WriteStreamType(kind))
            stream.next_offset = stream.row_count = offset
        database.close()

    def _handle_create_write_stream(self, request_bytes: bytes, context: Any) -> bytes:
        response: bytes = super()._handle_create_write_stream(request_bytes, context)
        if response:
            stream = self._manager.get(types.WriteStream.deserialize(response).name)
            if stream.stream_type is WriteStreamType.COMMITTED:
                self._keep(stream, None)
        return response

    def _handle_append_rows(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        bound: Any = None
        decoder: ProtoRowDecoder | None = None
        limit = self._ctx.settings.write_api_max_request_bytes
        for request_bytes in requests:
            if len(request_bytes) > limit:
                message = f"AppendRowsRequest has {len(request_bytes)} bytes (limit {limit})"
                yield _error("", INVALID_ARGUMENT, message)
                continue
            request = types.AppendRowsRequest.deserialize(request_bytes)
            if request.write_stream or bound is None:
                bound = self._ensure_stream_bound(request.write_stream, bound, context)
            if bound is None:
                return
            stream, _ = bound
            meta = self._ctx.catalog.get_table(
                stream.project_id, stream.dataset_id, stream.table_id
            )
            writer_schema = request.proto_rows.writer_schema
            if writer_schema:
                decoder = ProtoRowDecoder(writer_schema.proto_descriptor)
            if decoder is None:
                yield _error(stream.name, INVALID_ARGUMENT, "no writer_schema on this connection")
                continue
            extra = set(decoder.field_names) - {field.name for field in meta.schema_.fields}
            if extra:
                yield _error(
                    stream.name,
                    INVALID_ARGUMENT,
                    f"Input schema has more fields than BigQuery schema: {sorted(extra)}",
                    types.StorageError.StorageErrorCode.SCHEMA_MISMATCH_EXTRA_FIELDS,
                )
                continue
            rows = request.proto_rows.rows.serialized_rows
            table, errors = decode_rows(decoder, rows, meta.schema_.fields, arrow_schema(meta))
            if errors:
                yield _row_errors_response(stream.name, errors)
                continue
            offset = int(request.offset) if write_servicer._has_offset(request) else None
            yield self._perform_append(stream, table, offset, 10_000_000)

    def _perform_append(
        self, bound_stream: Any, rows_table: pa.Table, offset: int | None, max_buffered_rows: int
    ) -> bytes:
        stream = bound_stream
        if stream.stream_type not in _DURABLE:
            return super()._perform_append(stream, rows_table, offset, max_buffered_rows)
        with stream.lock, self._write_lock:
            before = stream.next_offset, stream.row_count
            outcome = select_strategy(stream.stream_type).append(stream, rows_table, offset)
            if outcome.status is not AppendStatus.OK:
                code = write_servicer._proto_to_grpc_status(outcome.status)
                return _error(stream.name, code.value[0], outcome.detail)
            try:
                self._keep(stream, rows_table)
            except BaseException:
                stream.next_offset, stream.row_count = before
                raise
        return write_servicer._ok_response(stream.name, outcome)

    def _keep(self, stream: Any, rows: pa.Table | None) -> None:
        """Writes rows and the stream's offset in one transaction, on a connection of its own."""
        names = stream.project_id, stream.dataset_id, stream.table_id
        database = self._ctx.engine.connection.cursor()
        try:
            database.begin()
            if rows is not None and rows.num_rows:
                appended = register_name(f"__bqemu_write_{uuid4().hex[:12]}")
                database.register(appended, rows)
                database.execute(f"INSERT INTO {quoted_table_ref(*names)} SELECT * FROM {appended}")
            if stream.stream_type is WriteStreamType.COMMITTED:
                database.execute(
                    f"INSERT OR REPLACE INTO {STREAMS} VALUES (?, ?, ?)",
                    [stream.name, stream.stream_type.value, stream.next_offset],
                )
            database.commit()
        finally:
            database.close()
        if rows is not None and rows.num_rows:
            meta = self._ctx.catalog.get_table(*names)
            count = meta.num_rows + rows.num_rows
            self._ctx.catalog.update_table(meta.model_copy(update={"num_rows": count}))
            self._ctx.snapshots.record_change(*names)


def _error(stream: str, code: int, message: str, storage_code: int = 0) -> bytes:
    status = status_pb2.Status(code=code, message=message)
    if storage_code:
        detail = any_pb2.Any()
        detail.Pack(
            types.StorageError.pb(
                types.StorageError(code=storage_code, entity=stream, error_message=message)
            )
        )
        status.details.append(detail)
    response = types.AppendRowsResponse(write_stream=stream, error=status)
    serialized: bytes = types.AppendRowsResponse.serialize(response)
    return serialized


def _row_errors_response(stream: str, errors: dict[int, str]) -> bytes:
    code = types.RowError.RowErrorCode.FIELDS_ERROR
    message = "Errors found while processing rows. Please refer to the row_errors field."
    response = types.AppendRowsResponse(
        write_stream=stream,
        error=status_pb2.Status(code=INVALID_ARGUMENT, message=message),
        row_errors=[
            types.RowError(index=index, code=code, message=text)
            for index, text in sorted(errors.items())
        ],
    )
    serialized: bytes = types.AppendRowsResponse.serialize(response)
    return serialized
