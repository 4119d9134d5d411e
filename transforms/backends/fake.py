"""A model that is none: deterministic answers and faults, for tests, examples and measurements.

The same request always meets the same answer and the same fault, in every run and on every worker.
A marker in a prompt, such as ``[[fake:blocked]]``, forces a fault for exactly that record.

>>> FakeBackend.from_request_options({"faults": {"blocked": 0.01}}).faults
{'blocked': 0.01}
"""

import asyncio
import bisect
import dataclasses
import functools
import hashlib
import itertools
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from transforms.backends.base import CallLimits
from transforms.records import json_values
from transforms.records.errors import (
    RECORD_ERRORS,
    ConfigurationError,
    InvalidRequest,
    RecordError,
)
from transforms.records.records import Completion, Json, Request, Usage

_RAISED = (
    "invalid_request",
    "too_large",
    "rate_limited",
    "unavailable",
    "timeout",
    "forbidden",
    "blocked",
    "empty_output",
    "truncated",
)
_ANSWERED = ("blocked", "empty_output", "truncated")
TRANSIENT = "transient:"
"""Prefix of a fault that the first attempt alone meets."""
FAULTS = (
    *_RAISED,
    "schema_violation",
    "internal",
    *(TRANSIENT + name for name in ("rate_limited", "unavailable", "timeout")),
)
"""Every fault: an error type, ``internal`` (a RuntimeError) or ``schema_violation`` (no JSON)."""

_ERRORS = {error.error_type: error for error in RECORD_ERRORS}
_MARKER = re.compile(r"\[\[fake:([a-z_:]+)\]\]")
_MARKER_START = "[[fake:"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FakeBackend:
    """A description of how to pretend.

    Attributes:
      model: Any name.
      task: ``embed`` answers with vectors.
      latency_ms: How long each request takes. Without any, requests are answered by the batch, at
        a few microseconds each.
      faults: Share of the records, 0 to 1, that meet each fault; see `FAULTS`. ``forbidden`` is
        fatal at the start, like a missing permission, only when all records meet it.
      embedding_dimensions: Length of a vector.

    Raises:
      ConfigurationError: A value out of range, or an unknown fault.
    """

    model: str = "fake"
    task: Literal["generate", "embed"] = "generate"
    latency_ms: float = 0
    faults: Mapping[str, float] = dataclasses.field(default_factory=dict)
    embedding_dimensions: int = 8

    def __post_init__(self) -> None:
        _require(_is_number(self.latency_ms) and self.latency_ms >= 0, "latency_ms", self)
        _require(
            type(self.embedding_dimensions) is int and self.embedding_dimensions > 0,
            "embedding_dimensions",
            self,
        )
        _require(isinstance(self.faults, Mapping), "faults", self)
        for name, share in self.faults.items():
            if name not in FAULTS:
                raise ConfigurationError(f"unknown fault {name!r}; known: {', '.join(FAULTS)}")
            _require(_is_number(share) and 0 <= share <= 1, "faults", self)
        _require(sum(self.faults.values()) <= 1 + 1e-9, "faults", self)

    @property
    def family(self) -> str:
        """The registered name; part of every fingerprint."""
        return "fake"

    @classmethod
    def from_request_options(
        cls,
        options: Mapping[str, Any],
        *,
        model: str = "fake",
        task: Literal["generate", "embed"] = "generate",
    ) -> "FakeBackend":
        """A fake that behaves as a run's request options say.

        Args:
          options: ``latency_ms``, ``faults`` and ``embedding_dimensions``, each optional.
          model: Any name.
          task: As everywhere.

        Raises:
          ConfigurationError: An unknown key, or a value out of range.
        """
        known = ("latency_ms", "faults", "embedding_dimensions")
        for name in options:
            if name not in known:
                raise ConfigurationError(
                    f"the fake backend has no option {name!r}; known: {', '.join(known)}"
                )
        return cls(model=model, task=task, **options)

    async def open(self) -> "FakeClient":
        """A client; one that answers by the batch if nothing takes time."""
        return FakeClient(self) if self.latency_ms else FakeBatchClient(self)


class FakeClient:
    """Answers one by one, each after the backend's latency."""

    def __init__(self, backend: FakeBackend) -> None:
        self._backend = backend
        self._embeds = backend.task == "embed"
        self._latency_s = backend.latency_ms / 1000
        self._names: list[str | None] = [*backend.faults, None]
        # A CRC of the fingerprint, 32 bits, falls below the threshold of the fault it draws.
        self._thresholds = [
            share * 2**32 for share in itertools.accumulate(backend.faults.values())
        ]
        self._failed_once: set[str] = set()

    async def generate(self, request: Request) -> Completion:
        """Answers, or raises the fault of this request."""
        if self._latency_s:
            await asyncio.sleep(self._latency_s)
        outcome = self._outcome(request)
        if isinstance(outcome, RecordError):
            raise outcome
        return outcome

    async def close(self) -> None:
        """Nothing is held."""

    def _outcome(self, request: Request) -> Completion | RecordError:
        fingerprint = request.fingerprint
        fault = None
        if self._thresholds:
            draw = zlib.crc32(fingerprint.encode())
            fault = self._names[bisect.bisect_right(self._thresholds, draw)]
        content = _content(request.body)
        if _MARKER_START in content:
            marked = _MARKER.search(content)
            fault = marked[1] if marked else fault
        if fault is not None:
            failure = self._failure(fault, request)
            if failure is not None:
                return failure
        if self._embeds:
            vector = _vector(fingerprint, self._backend.embedding_dimensions)
            return Completion(None, None, vector, None, _usage(request.estimated_tokens, None))
        output = _output(request) if fault != "schema_violation" else "not what the schema says"
        usage = _usage(request.estimated_tokens, len(output.split()))
        return Completion(output, None, None, "STOP", usage, self._backend.model)

    def _failure(self, fault: str, request: Request) -> RecordError | None:
        if fault not in FAULTS:
            return InvalidRequest(f"unknown fault {fault!r}; known: {', '.join(FAULTS)}")
        if fault == "internal":
            raise RuntimeError("a crash that nobody foresaw")
        if fault == "schema_violation":
            return None
        if fault.startswith(TRANSIENT):
            if request.fingerprint in self._failed_once:
                self._failed_once.remove(request.fingerprint)
                return None
            self._failed_once.add(request.fingerprint)
            fault = fault.removeprefix(TRANSIENT)
        known: dict[str, Any] = {}
        if fault in _ANSWERED:
            output = None if fault == "empty_output" else _output(request)
            known = {"finish_reason": fault.upper(), "output": output}
            known["usage"] = _usage(request.estimated_tokens, len((output or "").split()))
            known["model_version"] = self._backend.model
        return _ERRORS[fault](
            f"a fault of the fake backend: {fault}",
            congestion=fault == "rate_limited",
            fatal_at_start=fault == "forbidden" and self._backend.faults.get(fault) == 1,
            **known,
        )


class FakeBatchClient(FakeClient):
    """Answers by the batch, without a task per request."""

    @property
    def call_limits(self) -> CallLimits:
        """A whole workload batch: the model computes in this process."""
        return CallLimits(max_requests=None, in_process=True)

    async def generate_many(
        self, requests: Sequence[Request]
    ) -> Sequence[Completion | RecordError]:
        """One outcome per request, in order; one ``internal`` fault crashes the whole call."""
        return list(map(self._outcome, requests))


def _content(body: Mapping[str, Json]) -> str:
    """What may hold a marker: the prompt, else the whole body as JSON."""
    messages = body.get("messages")
    # Several messages have no one text, and are searched as JSON.
    only = messages[0] if messages and len(messages) == 1 else {}
    content = only.get("content", body.get("text"))
    return content if isinstance(content, str) else json_values.dumps(body).decode()


def _output(request: Request) -> str:
    schema = request.params.get("output_schema")
    if schema is None:
        return f"fake answer {request.fingerprint[:12]}"
    return json_values.dumps(minimal(schema, schema)).decode()


@functools.lru_cache(maxsize=4096)
def _usage(input_tokens: int, output_tokens: int | None) -> Usage:
    return Usage(input_tokens, None, output_tokens)


def _vector(fingerprint: str, dimensions: int) -> tuple[float, ...]:
    """Numbers from -1 to 1 that depend on nothing but the fingerprint."""
    noise = hashlib.shake_128(fingerprint.encode()).digest(4 * dimensions)
    return tuple(map((2.0**-31).__mul__, struct.unpack(f"<{dimensions}i", noise)))


def minimal(schema: Json, root: Json) -> Json:
    """The smallest value that a simple JSON schema allows; a pattern or format is not looked at.

    >>> minimal({"properties": {"a": {"enum": ["x", "y"]}, "b": {"type": "integer"}}}, {})
    {'a': 'x', 'b': 0}
    """
    if not isinstance(schema, Mapping):
        return None
    reference = schema.get("$ref", "")
    if reference.startswith("#/"):
        target = root
        for key in reference[2:].split("/"):
            target = target[key]
        return minimal(target, root)
    if "const" in schema or "enum" in schema:
        return schema["const"] if "const" in schema else schema["enum"][0]
    for choice in ("anyOf", "oneOf"):
        if choice in schema:
            return minimal(schema[choice][0], root)
    kind = schema.get("type", "object" if "properties" in schema else None)
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        properties = schema.get("properties") or {}
        return {name: minimal(inner, root) for name, inner in properties.items()}
    if kind == "array":
        return [minimal(schema.get("items"), root)] * schema.get("minItems", 0)
    if kind == "string":
        return "x" * schema.get("minLength", 0)
    if kind in ("integer", "number"):
        return schema.get("minimum", 0)
    return False if kind == "boolean" else None


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _require(fine: bool, name: str, backend: FakeBackend) -> None:
    if not fine:
        needs = {
            "latency_ms": "a number of milliseconds, 0 or more",
            "embedding_dimensions": "a whole number above 0",
            "faults": "an object of shares from 0 to 1, together at most 1",
        }
        raise ConfigurationError(f"{name} is {getattr(backend, name)!r}: it must be {needs[name]}")
