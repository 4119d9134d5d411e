"""The rows of every sink: one definition of columns, for BigQuery, Parquet and JSON lines.

`result_row` and `dead_letter_row` build a row; `encode_row` checks it against the columns, so that
one bad row is a ``write_rejected`` dead letter and never a failed load, and returns the JSON line
that all sinks write: they agree because they hold the same bytes.
"""

import dataclasses
import datetime as dt
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from transforms.records import json_values
from transforms.records.errors import WriteRejected
from transforms.records.records import Answer, DeadLetter, Json

MAX_LOADED_ROW_BYTES = 100 * 1000 * 1000
"""BigQuery's limit for one row of JSON in a load job (BigQuery quotas, "load jobs")."""

MAX_PAYLOAD_BYTES = 1 << 20
"""The limit of the payload in a table's dead letter; a file's dead letter holds all of it."""

_INT64 = 2**63
_NUMERIC = re.compile(r"-?[0-9]{1,29}(\.[0-9]{1,9})?")


@dataclasses.dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Attributes:
      name: Its name in every sink.
      type: BigQuery's name of its type.
      mode: ``NULLABLE``, ``REQUIRED`` or ``REPEATED``.
      help: Its description, from which the documentation is generated.
      fields: The columns of a ``RECORD``.
    """

    name: str
    type: str
    mode: str = "NULLABLE"
    help: str = ""
    fields: tuple["Column", ...] = ()


RESULT_COLUMNS: tuple[Column, ...] = (
    Column("record_id", "STRING", "REQUIRED", "The id field's value, else a hash of the record."),
    Column("run_id", "STRING", "REQUIRED", "The run that wrote this row."),
    Column(
        "fingerprint",
        "STRING",
        "REQUIRED",
        "SHA-256 of backend, model, rendered request and parameters.",
    ),
    Column("backend", "STRING", "REQUIRED", "The name of the backend."),
    Column("model", "STRING", "REQUIRED", "The model's name as configured."),
    Column("model_version", "STRING", help="The model version that the server reports."),
    Column("service_tier", "STRING", help="The tier that the server says it charged for."),
    Column("output", "STRING", help="The model's text."),
    Column(
        "output_json",
        "STRING",
        help="The answer as JSON text: valid by the output schema, or a custom model's prediction.",
    ),
    Column("embedding", "FLOAT64", "REPEATED", "The vector, for the task `embed`."),
    Column("finish_reason", "STRING", help="Why the model stopped, in the provider's words."),
    Column("input_tokens", "INT64", help="Prompt tokens, cached ones included."),
    Column("cached_input_tokens", "INT64", help="Prompt tokens read from a cache."),
    Column("output_tokens", "INT64", help="Tokens of the answer."),
    Column("reasoning_tokens", "INT64", help="Thinking tokens, billed as output."),
    Column("cost_usd", "NUMERIC", help="List price of the tokens; empty if unknown."),
    Column("latency_ms", "INT64", help="Duration of the successful call."),
    Column("attempts", "INT64", help="Calls made for this record."),
    Column("from_ledger", "BOOL", help="An earlier run paid for the answer."),
    Column("created_at", "TIMESTAMP", "REQUIRED", "When the row was built; partitions the table."),
    Column("record", "STRING", help="The input fields as JSON text (see `record_fields`)."),
)

DEAD_LETTER_COLUMNS: tuple[Column, ...] = (
    Column("timestamp", "TIMESTAMP", "REQUIRED", "When the row was built; partitions the table."),
    Column("record_id", "STRING", help="Empty if the record could not be read that far."),
    Column("run_id", "STRING", "REQUIRED", "The run that wrote this row."),
    Column("stage", "STRING", "REQUIRED", "`read`, `render`, `infer`, `validate` or `write`."),
    Column("error_type", "STRING", "REQUIRED", "One of the sixteen error types."),
    Column("error_message", "STRING", "REQUIRED", "What was wrong, with the value."),
    Column("retryable", "BOOL", "REQUIRED", "The same record may succeed later."),
    Column("attempts", "INT64", help="Calls made; empty if the record never reached the model."),
    Column("backend", "STRING", help="The same as in a result."),
    Column("model", "STRING", help="The same as in a result."),
    Column("fingerprint", "STRING", help="The same as in a result."),
    Column("finish_reason", "STRING", help="Why the model stopped, if it answered."),
    Column("output", "STRING", help="The model's text, if any."),
    Column("input_tokens", "INT64", help="A failure can be billed."),
    Column("output_tokens", "INT64", help="A failure can be billed; includes reasoning tokens."),
    Column("cost_usd", "NUMERIC", help="List price of those tokens."),
    Column("payload", "STRING", help="The record as JSON, or the raw line."),
    Column(
        "payload_truncated",
        "BOOL",
        help="The payload was longer than 1 MiB and was cut; dead letters in files are never cut.",
    ),
    Column("payload_bytes", "BYTES", help="The raw line, if it is not text."),
    Column(
        "attributes",
        "RECORD",
        "REPEATED",
        "A message's attributes.",
        (Column("key", "STRING"), Column("value", "STRING")),
    ),
    Column("stacktrace", "STRING", help="For `internal` only."),
)

SUMMARY_COLUMNS: tuple[Column, ...] = (
    Column("run_id", "STRING", "REQUIRED", "The run."),
    Column("started_at", "TIMESTAMP", "REQUIRED", "When the run was launched."),
    Column("finished_at", "TIMESTAMP", "REQUIRED", "When all its output was written."),
    Column("pipeline_version", "STRING", help="The release that ran."),
    Column("config", "STRING", help="Its options as JSON text; no secrets."),
    Column("records", "INT64", help="Inputs read, unreadable ones included."),
    Column("results", "INT64", help="Rows of this run in the result sink."),
    Column("dead_letters", "INT64", help="Rows of this run in the dead-letter sink."),
    Column("dead_letters_by_error_type", "STRING", help="JSON text: error type to count."),
    Column("duplicate_ids", "INT64", help="Records with the id of an earlier record."),
    Column("requests_sent", "INT64", help="Calls made for the records that ended."),
    Column("retries", "INT64", help="Calls beyond a record's first."),
    Column("throttled_ms", "INT64", help="Time that records waited because a server required it."),
    Column("from_ledger", "INT64", help="Answers that an earlier run paid for."),
    Column("input_tokens", "INT64", help="Sum, failures included."),
    Column("cached_input_tokens", "INT64", help="Sum."),
    Column("output_tokens", "INT64", help="Sum, failures included."),
    Column("reasoning_tokens", "INT64", help="Sum."),
    Column("cost_usd", "NUMERIC", help="Sum of the known list prices."),
    Column("reconciled", "BOOL", "REQUIRED", "records = results + dead letters, in every sink."),
)

Row = dict[str, Json]
Price = Callable[[Any, str | None], str | None]
"""The list price of a `Usage` at the service tier that was served, in US dollars, as a decimal
string; None if unknown."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """The values common to all rows of a run.

    Attributes:
      run_id: The run.
      backend: The backend's family.
      model: The model's name.
      record_fields: The input fields kept in ``record``: None for all, () for none.
    """

    run_id: str
    backend: str
    model: str
    record_fields: tuple[str, ...] | None = None


def now() -> str:
    """The current time as an RFC 3339 string, in UTC."""
    return json_values.rfc3339(dt.datetime.now(dt.timezone.utc))


def result_row(answer: Answer, run: RunInfo, price: Price) -> Row:
    """The result row of one answer."""
    completion = answer.completion
    usage = completion.usage
    fields: Mapping[str, Json] = answer.record.fields
    if run.record_fields is not None:
        fields = {name: fields[name] for name in run.record_fields if name in fields}
    return {
        "record_id": answer.record.record_id,
        "run_id": run.run_id,
        "fingerprint": answer.fingerprint,
        "backend": run.backend,
        "model": run.model,
        "model_version": completion.model_version,
        "service_tier": completion.service_tier,
        "output": completion.output,
        "output_json": completion.output_json,
        "embedding": [] if completion.embedding is None else list(completion.embedding),
        "finish_reason": completion.finish_reason,
        "input_tokens": usage.input_tokens,
        "cached_input_tokens": usage.cached_input_tokens,
        "output_tokens": usage.output_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
        "cost_usd": price(usage, completion.service_tier),
        "latency_ms": completion.latency_ms,
        "attempts": completion.attempts,
        "from_ledger": completion.from_ledger,
        "created_at": now(),
        "record": (None if run.record_fields == () else json_values.dumps(fields).decode("utf-8")),
    }


def dead_letter_row(letter: DeadLetter, run: RunInfo, price: Price) -> Row:
    """The dead-letter row with its whole payload; `cut_payload` cuts it for a table."""
    usage = letter.usage
    payload = letter.payload
    if payload is None and letter.fields is not None:
        payload = json_values.dumps(letter.fields).decode("utf-8")
    rendered = letter.stage not in ("read", "render")
    billed = [n for n in (usage.output_tokens, usage.reasoning_tokens) if type(n) is int]
    return {
        "timestamp": now(),
        "record_id": letter.record_id,
        "run_id": run.run_id,
        "stage": letter.stage,
        "error_type": letter.error_type,
        "error_message": json_values.clean_text(letter.error_message),
        "retryable": letter.retryable,
        "attempts": letter.attempts,
        "backend": run.backend if rendered else None,
        "model": run.model if rendered else None,
        "fingerprint": letter.fingerprint,
        "finish_reason": letter.finish_reason,
        "output": letter.output,
        "input_tokens": usage.input_tokens,
        "output_tokens": sum(billed) if billed else None,
        "cost_usd": price(usage, letter.service_tier),
        "payload": payload,
        "payload_truncated": False,
        "payload_bytes": (
            None
            if letter.payload_bytes is None
            else json_values.to_json_value(letter.payload_bytes)
        ),
        "attributes": [{"key": k, "value": v} for k, v in letter.attributes.items()],
        "stacktrace": letter.stacktrace,
    }


def cut_payload(row: Row) -> Row:
    """The row with its texts and payload cut to the limit of a table's dead letter."""
    short = dict(row)
    for name in ("payload", "payload_bytes", "output", "stacktrace", "error_message"):
        text = row[name]
        if type(text) is str and len(text) > MAX_PAYLOAD_BYTES // 4:
            short[name] = _cut(text, MAX_PAYLOAD_BYTES)
            if short[name] != text and name.startswith("payload"):
                short["payload_truncated"] = True
    return short


def _cut(text: str, limit: int) -> str:
    encoded = text.encode("utf-8", "backslashreplace")
    if len(encoded) <= limit:
        return text
    return encoded[: limit // 4 * 4].decode("utf-8", "ignore")


def encode_row(
    row: Row,
    columns: tuple[Column, ...],
    dumps: Callable[[Any], bytes] = json_values.dumps,
) -> bytes:
    r"""The row as one JSON line, without its ``\n``.

    Args:
      row: The row.
      columns: Its columns.
      dumps: Writes the JSON.

    Raises:
      WriteRejected: A value does not fit its column; the message names both.
    """
    for column in columns:
        value = row.get(column.name)
        if value is None:
            if column.mode == "REQUIRED":
                raise WriteRejected(f"column {column.name!r} is required and has no value")
        elif column.mode == "REPEATED":
            if type(value) is not list:
                raise WriteRejected(f"column {column.name!r} holds a list, not {_short(value)}")
            if column.type == "FLOAT64":
                _check_floats(column, value)
        elif not _CHECKS[column.type](value):
            raise WriteRejected(
                f"column {column.name!r} ({column.type}) cannot hold {_short(value)}"
            )
    line = dumps(row)
    if len(line) > MAX_LOADED_ROW_BYTES:
        raise WriteRejected(f"the row has {len(line):,} bytes (limit {MAX_LOADED_ROW_BYTES:,})")
    return line


def _check_floats(column: Column, values: list[Any]) -> None:
    if not all(map(_is_float, values)):
        bad = next(value for value in values if not _is_float(value))
        raise WriteRejected(f"column {column.name!r} (FLOAT64) cannot hold {_short(bad)}")


def _is_float(value: Any) -> bool:
    try:
        return type(value) in (float, int) and math.isfinite(value)
    except OverflowError:  # an integer that no float can hold
        return False


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _is_numeric(value: Any) -> bool:
    return _NUMERIC.fullmatch(str(value)) is not None


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "STRING": lambda value: type(value) is str,
    "TIMESTAMP": lambda value: type(value) is str,
    "BYTES": lambda value: type(value) is str,
    "BOOL": lambda value: type(value) is bool,
    "INT64": lambda value: type(value) is int and -_INT64 <= value < _INT64,
    "NUMERIC": _is_numeric,
}
