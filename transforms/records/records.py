"""The elements of the pipeline: frozen, slotted dataclasses, standard library only.

The path of one record, and its type at each point:

.. code-block:: text

    Record ── RenderRequests ─► Request ── Infer ─► Answer ── ValidateOutputs ─► Answer ─► result row
       │                           │                  │                            │
       └──────────────► DeadLetter ◄──────────────────┴────────────────────────────┘

`transforms.records.coders` registers a coder for each of them; import it (or the package) before
building a pipeline with them.

>>> record = Record(record_id="7", fields={"text": "hello"})
>>> DeadLetter.of(MissingField("field 'title' is missing"), stage="render", record=record).error_type
'missing_field'
"""

import dataclasses
import functools
import hashlib
import json
import traceback
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from transforms.records.errors import Internal, MissingField, RecordError, RunError

Stage = Literal["read", "render", "infer", "validate", "write"]
STAGES: tuple[Stage, ...] = ("read", "render", "infer", "validate", "write")

Json = Any
"""A JSON value: None, bool, int, finite float, str without lone surrogates, list or dict of them."""


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One input record.

    Attributes:
      record_id: The value of the id field as text, else a hash of the record's canonical JSON.
      fields: The record as a JSON object.
      attributes: A message's attributes (Pub/Sub).
      source: Where it was read from: a file's path, a table, a subscription.
      read_minute: When it was read from an unbounded source, in minutes since the Unix epoch.
    """

    record_id: str
    fields: Mapping[str, Json]
    attributes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    source: str = ""
    read_minute: int | None = None


_KEY_DIGITS = 12


class Params(Mapping[str, Json]):
    """The settings shared by every request of a run: an immutable mapping.

    Requests travel without them. `transforms.records.coders` writes only the key, and a decoded
    request holds *sealed* params, which know only their key. `restore` puts the values back;
    `transforms.inference` does so before it calls the model. Params with equal keys are equal.
    Empty params are never sealed.

    Attributes:
      key: 12 hex digits of the SHA-256 of the JSON with sorted keys; ``""`` for empty params.

    >>> params = Params({"generation_config": {"temperature": 0}})
    >>> params == {"generation_config": {"temperature": 0}}
    True
    >>> Params.from_key(params.key) == params
    True
    """

    __slots__ = ("_values", "key")

    key: str
    _values: dict[str, Json] | None

    def __init__(self, values: Mapping[str, Json] | None = None) -> None:
        self._values = dict(values or {})
        self.key = ""
        if values:
            text = json.dumps(self._values, sort_keys=True, separators=(",", ":"), default=str)
            self.key = hashlib.sha256(text.encode()).hexdigest()[:_KEY_DIGITS]

    @classmethod
    def of(cls, values: Mapping[str, Json]) -> "Params":
        """Converts a mapping to `Params`; returns the same object if it is `Params` already."""
        return values if isinstance(values, Params) else cls(values)

    @staticmethod
    def key_of(values: Mapping[str, Json]) -> str:
        """The key of params, or of a mapping to convert to params."""
        return Params.of(values).key

    @staticmethod
    @functools.lru_cache(maxsize=128)
    def from_key(key: str) -> "Params":
        """Sealed params, or empty params for an empty key."""
        if not key:
            return _EMPTY
        sealed = Params()
        sealed._values, sealed.key = None, key
        return sealed

    def restore(
        self, requests: "Iterable[Request]", *, allow_earlier: bool = False
    ) -> "list[Request]":
        """Returns the requests with these params in place of sealed ones.

        Args:
          requests: Requests whose params may be sealed.
          allow_earlier: Whether requests with other params get these params and a fingerprint of
            their own, rather than raise: requests in flight when a streaming job is updated.

        Raises:
          RunError: A request was rendered with different params.
        """
        restored = []
        for request in requests:
            params = Params.of(request.params)
            if params.key != self.key:
                if not allow_earlier:
                    raise RunError(
                        f"request {request.record.record_id!r} was rendered with "
                        f"{_named(params.key)}, but would be sent with {_named(self.key)}: "
                        "RenderRequests and Infer (or InferenceHandler) have different params; "
                        "pass the same to both, such as Infer(params=spec.params) with the "
                        "spec of RenderRequests; if an update of a streaming job changed them, set "
                        "allow_earlier_params"
                    )
                digest = hashlib.sha256(f"{request.fingerprint} {self.key}".encode()).hexdigest()
                restored.append(dataclasses.replace(request, params=self, fingerprint=digest))
            elif params.is_sealed:
                restored.append(dataclasses.replace(request, params=self))
            else:
                restored.append(request)
        return restored

    @property
    def is_sealed(self) -> bool:
        """Whether only the key is known."""
        return self._values is None

    def _open(self) -> dict[str, Json]:
        if self._values is None:
            raise RunError(
                f"the params with key {self.key} are sealed: a request travels with only the key "
                "of its params; read them after Params.restore, which Infer(params=spec.params) "
                "and InferenceHandler call"
            )
        return self._values

    def __getitem__(self, name: str) -> Json:
        return self._open()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._open())

    def __len__(self) -> int:
        return len(self._open())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and self.key == Params.of(other).key

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        shown = f"sealed, key={self.key!r}" if self._values is None else repr(self._values)
        return f"Params({shown})"


_EMPTY = Params()


def _named(key: str) -> str:
    return f"params {key}" if key else "empty params"


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """One model request, independent of the provider.

    Attributes:
      record: The record it was rendered from.
      body: ``{"messages": [{"role", "content"}]}``, ``{"text": …}`` to embed, ``{"instance": …}``
        for a custom model, or ``{"request": …}``: a whole provider request, sent unchanged. The
        content is a text or, with media, a list of parts: see `transforms.records.media`.
      params: ``generation_config``, ``request_options``, ``output_schema``: the same for all
        records of a run. They travel as a key: after a shuffle they are sealed, see `Params`.
      fingerprint: SHA-256 (hex) of backend, model, body and params; requests with equal
        fingerprints pay for the same call.
      estimated_tokens: Input tokens, estimated at four UTF-8 bytes each, and 258 for a media part.
    """

    record: Record
    body: Mapping[str, Json]
    params: Params | Mapping[str, Json]
    fingerprint: str
    estimated_tokens: int


@dataclasses.dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as counted by the server; None where it did not report them.

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
    """The model's answer.

    Attributes:
      output: The text.
      output_json: The answer as JSON text: checked against the output schema, or a custom
        model's prediction.
      embedding: The vector of an embedding request.
      finish_reason: Why the model stopped, in the provider's words.
      usage: The tokens.
      model_version: The model version that the server reports.
      service_tier: The tier that the server says it charged for, such as ``ON_DEMAND_FLEX``.
      latency_ms: The duration of the call that succeeded.
      attempts: Calls made for this record, the successful one included.
      throttled_ms: How long this record waited because the server required it.
      from_ledger: Whether an earlier attempt or run paid for the answer.
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
    """A record with its completion, without the rendered body, which is no longer needed."""

    record: Record
    fingerprint: str
    completion: Completion


@dataclasses.dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that will have no result, with the reason.

    Attributes:
      stage: The stage at which it failed.
      error_type: One of `transforms.records.errors.ERROR_TYPES`.
      error_message: For people; contains the wrong value, never a prompt or a secret.
      retryable: Whether the same record may succeed later.
      record_id: None if the record could not be read far enough to have one.
      attempts: Calls made; None if the record failed before the model call.
      throttled_ms: How long this record waited because the server required it.
      fingerprint, finish_reason, output, usage, model_version, service_tier: Those of the request
        and its answer.
      payload: The record as JSON, or the raw line; None if it is not text.
      payload_bytes: The raw bytes if they are not text.
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
        """The dead letter for one failure.

        Args:
          error: A `RecordError`, or any unforeseen exception, which becomes ``internal`` with its
            stack trace.
          stage: Where the failure happened.
          record: The record that failed.
          **known: Other fields of the dead letter.
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
    "Params",
    "Record",
    "Request",
    "Stage",
    "Usage",
]
