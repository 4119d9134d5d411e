"""What travels through the pipeline: frozen, slotted dataclasses, standard library only.

One record's way, and what it is called at each point:

.. code-block:: text

    Record ── RenderRequests ─► Request ── Infer ─► Answer ── ValidateOutputs ─► Answer ─► result row
       │                           │                  │                            │
       └──────────────► DeadLetter ◄──────────────────┴────────────────────────────┘

`transforms.records.coders` registers a coder for each of them; import that (or the package) before a
pipeline is built with them.

>>> record = Record(record_id="7", fields={"text": "hello"})
>>> DeadLetter.of(MissingField("field 'title' is missing"), stage="render", record=record).error_type
'missing_field'
"""

import dataclasses
import traceback
from collections.abc import Mapping
from typing import Any, Literal

from transforms.records.errors import Internal, MissingField, RecordError

Stage = Literal["read", "render", "infer", "validate", "write"]
STAGES: tuple[Stage, ...] = ("read", "render", "infer", "validate", "write")

Json = Any
"""A JSON value: None, bool, int, finite float, str without lone surrogates, list or dict of them."""


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One input record.

    Attributes:
      record_id: The value of the id field as text, else a hash of the record's canonical JSON.
      fields: The record itself, as a JSON object.
      attributes: A message's attributes (Pub/Sub).
      source: Where it was read: a file's path, a table, a subscription.
      read_minute: Minutes since the Unix epoch when it was read from an unbounded source.
    """

    record_id: str
    fields: Mapping[str, Json]
    attributes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    source: str = ""
    read_minute: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """One model request, in no provider's dialect.

    Attributes:
      record: What it was rendered from.
      body: ``{"messages": [{"role", "content"}]}``, ``{"text": …}`` to embed, ``{"instance": …}``
        for a custom model, or ``{"request": …}``: a whole provider request as it stands. The
        content is a text; with media it is a list of parts, see `transforms.records.media`.
      params: ``generation_config``, ``request_options``, ``output_schema``: the same for all
        records of a run.
      fingerprint: SHA-256 (hex) of backend, model, body and params; equal fingerprints mean an
        equal paid call.
      estimated_tokens: Input tokens, estimated at four UTF-8 bytes each, and 258 for a media part.
    """

    record: Record
    body: Mapping[str, Json]
    params: Mapping[str, Json]
    fingerprint: str
    estimated_tokens: int


@dataclasses.dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the server counted them; None where it did not say.

    Attributes:
      input_tokens: Prompt tokens, cached ones included.
      cached_input_tokens: The part of `input_tokens` that came from a cache.
      output_tokens: Tokens of the answer, reasoning excluded.
      reasoning_tokens: Thinking tokens, billed as output.
    """

    input_tokens: int | None = None
    cached_input_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None


NO_USAGE = Usage()


@dataclasses.dataclass(frozen=True, slots=True)
class Completion:
    """What the model answered.

    Attributes:
      output: The text.
      output_json: The answer as JSON text: checked against the output schema, or a custom
        model's prediction.
      embedding: The vector of an embedding request.
      finish_reason: The provider's own word.
      usage: Tokens.
      model_version: What the server says answered.
      service_tier: What the server says it charged for, e.g. ``ON_DEMAND_FLEX``.
      latency_ms: Of the call that succeeded.
      attempts: Calls made for this record, the successful one included.
      throttled_ms: Time this record waited because the server asked for it.
      from_ledger: The answer was paid for by an earlier attempt or run.
    """

    output: str | None = None
    output_json: str | None = None
    embedding: tuple[float, ...] | None = None
    finish_reason: str | None = None
    usage: Usage = NO_USAGE
    model_version: str | None = None
    service_tier: str | None = None
    latency_ms: int | None = None
    attempts: int = 1
    throttled_ms: int = 0
    from_ledger: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """A record with its completion; the rendered body has done its work and stays behind."""

    record: Record
    fingerprint: str
    completion: Completion


@dataclasses.dataclass(frozen=True, slots=True)
class DeadLetter:
    """One record that will have no result, with the reason.

    Attributes:
      stage: Where it ended.
      error_type: One of `transforms.records.errors.ERROR_TYPES`.
      error_message: For people; holds the value that was wrong, never a prompt or a secret.
      retryable: Whether the same record may well succeed later.
      record_id: None when the record could not be read far enough to have one.
      attempts: Calls made; None when the failure came before the model.
      throttled_ms: Time this record waited because the server asked for it.
      fingerprint, finish_reason, output, usage, model_version, service_tier: Of the request and
        its answer.
      payload: The record as JSON, or the raw line; None when it is no text.
      payload_bytes: The raw bytes when they are no text.
      attributes: A message's attributes.
      stacktrace: For ``internal`` only.
      read_minute: As in `Record`.
    """

    stage: Stage
    error_type: str
    error_message: str
    retryable: bool = False
    record_id: str | None = None
    attempts: int | None = None
    throttled_ms: int = 0
    fingerprint: str | None = None
    finish_reason: str | None = None
    output: str | None = None
    usage: Usage = NO_USAGE
    model_version: str | None = None
    payload: str | None = None
    payload_bytes: bytes | None = None
    attributes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    stacktrace: str | None = None
    read_minute: int | None = None
    fields: Mapping[str, Json] | None = None
    service_tier: str | None = None

    @classmethod
    def of(
        cls,
        error: Exception,
        *,
        stage: Stage,
        record: Record | None = None,
        **known: Any,
    ) -> "DeadLetter":
        """The dead letter of one failure.

        Args:
          error: A `RecordError`, or anything that nobody foresaw: then it is ``internal`` and
            keeps its stack trace.
          stage: Where it happened.
          record: The record that it costs.
          **known: Further fields of the dead letter.
        """
        if not isinstance(error, RecordError):
            known.setdefault("stacktrace", "".join(traceback.format_exception(error)))
            error = Internal(f"{type(error).__name__}: {error}")
        if record is not None:
            known.setdefault("record_id", record.record_id)
            known.setdefault("fields", record.fields)
            known.setdefault("attributes", record.attributes)
            known.setdefault("read_minute", record.read_minute)
        known.setdefault("finish_reason", error.finish_reason)
        known.setdefault("output", error.output)
        known.setdefault("usage", error.usage or NO_USAGE)
        known.setdefault("model_version", error.model_version)
        known.setdefault("service_tier", error.service_tier)
        return cls(
            stage=stage,
            error_type=error.error_type,
            error_message=str(error),
            retryable=error.retryable,
            **known,
        )


__all__ = [
    "NO_USAGE",
    "STAGES",
    "Answer",
    "Completion",
    "DeadLetter",
    "Json",
    "MissingField",
    "Record",
    "Request",
    "Stage",
    "Usage",
]
