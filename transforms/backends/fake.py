"""A backend without a model: deterministic answers and faults, for tests, examples, benchmarks.

The same request always gets the same answer or the same fault, in every run and on every worker.
A marker in a prompt, such as ``[[fake:blocked]]``, forces a fault for exactly that record.

>>> FakeBackend(faults={"blocked": 0.01}).faults
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
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from transforms.backends.base import CallLimits, Capabilities
from transforms.records import json_values
from transforms.records.causes import Cause
from transforms.records.errors import RECORD_ERRORS, ConfigurationError, InvalidRequest, RecordError
from transforms.records.records import Completion, Json, Request, Usage
from transforms.records.smallest_json import smallest

_ERRORS = {error.error_type: error for error in RECORD_ERRORS}
_REFUSED = ("invalid_request", "too_large", "rate_limited", "unavailable", "timeout", "forbidden")
_ANSWERED = ("blocked", "empty_output", "truncated")
"""Faults with a paid answer."""
TRANSIENT = "transient:"
"""Prefix of a fault that only the first attempt meets."""
FAULTS = (
    *_REFUSED,
    *_ANSWERED,
    "schema_violation",
    "internal",
    *(TRANSIENT + name for name in ("rate_limited", "unavailable", "timeout")),
)
"""Every fault: an error type, ``internal`` (a RuntimeError) or ``schema_violation`` (not JSON)."""
_UNKNOWN = f"unknown fault {{!r}}; known: {', '.join(FAULTS)}"
_MARKER = re.compile(r"\[\[fake:([a-z_:]+)\]\]")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _are_shares(value: Any) -> bool:
    shares = list(value.values()) if isinstance(value, Mapping) else [-1]
    return all(_is_number(share) and share >= 0 for share in shares) and sum(shares) <= 1 + 1e-9


OPTIONS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "latency_ms": (lambda n: _is_number(n) and n >= 0, "a number of milliseconds, 0 or more"),
    "faults": (_are_shares, "an object of shares from 0 to 1, together at most 1"),
    "embedding_dimensions": (lambda n: type(n) is int and n > 0, "a whole number above 0"),
}
"""The fields that configure the fake: the check for valid values, and its description."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FakeBackend:
    """The settings of the fake model.

    Attributes:
      model: Any name.
      task: ``embed`` answers with vectors.
      latency_ms: How long each request takes. At 0, a call answers a whole workload batch, at a few
        microseconds per request.
      faults: The share of the records, 0 to 1, that get each fault; see `FAULTS`. ``forbidden``
        ends the run at its start, like a missing permission, only if all records get it.
      embedding_dimensions: Length of a vector.

    Raises:
      ConfigurationError: A value is out of range, or a fault is unknown.
    """

    model: str = "fake"
    task: Literal["generate", "embed"] = "generate"
    latency_ms: float = 0
    faults: Mapping[str, float] = dataclasses.field(default_factory=dict)
    embedding_dimensions: int = 8

    def __post_init__(self) -> None:
        for name, (is_valid, needed) in OPTIONS.items():
            if not is_valid(value := getattr(self, name)):
                raise ConfigurationError(f"{name} is {value!r}: it must be {needed}")
        for name in self.faults:
            if name not in FAULTS:
                raise ConfigurationError(_UNKNOWN.format(name))

    @property
    def family(self) -> str:
        """The registered name; part of every fingerprint."""
        return "fake"

    @property
    def capabilities(self) -> Capabilities:
        """Everything; its options configure the fake, and are not part of a request."""
        return Capabilities(request_options=False)

    async def open(self) -> "FakeClient":
        """A client; a `BatchClient` if requests take no time."""
        return FakeClient(self) if self.latency_ms else FakeBatchClient(self)


class FakeClient:
    """Answers one request per call, after the backend's latency."""

    def __init__(self, backend: FakeBackend) -> None:
        self._backend = backend
        self._names: list[str | None] = [*backend.faults, None]
        # A CRC of the fingerprint, 32 bits, falls below the threshold of the fault it draws.
        self._thresholds = [
            share * 2**32 for share in itertools.accumulate(backend.faults.values())
        ]
        self._failed_once: set[str] = set()

    async def generate(self, request: Request) -> Completion:
        """Answers, or raises the fault of this request."""
        if self._backend.latency_ms:
            await asyncio.sleep(self._backend.latency_ms / 1000)
        outcome = self._outcome(request)
        if isinstance(outcome, RecordError):
            raise outcome
        return outcome

    async def close(self) -> None:
        """Nothing to release."""

    def _outcome(self, request: Request) -> Completion | RecordError:
        fault = self._fault(request)
        if fault is not None and fault != "schema_violation":
            return self._failure(fault, request)
        backend, input_tokens = self._backend, request.estimated_tokens
        if backend.task == "embed":
            vector = _vector(request.fingerprint, backend.embedding_dimensions)
            return Completion(None, None, vector, None, _usage(input_tokens, None))
        output = "not what the schema says" if fault else _output(request)
        usage = _usage(input_tokens, len(output.split()))
        return Completion(output, None, None, "STOP", usage, backend.model)

    def _fault(self, request: Request) -> str | None:
        """The fault of this attempt: its marker's, else the one drawn for its record."""
        fault = None
        if self._thresholds:
            draw = zlib.crc32(request.fingerprint.encode())
            fault = self._names[bisect.bisect_right(self._thresholds, draw)]
        content = _content(request.body)
        if "[[fake:" in content and (marked := _MARKER.search(content)):
            fault = marked[1]
        if fault in FAULTS and fault.startswith(TRANSIENT):
            if request.fingerprint in self._failed_once:
                self._failed_once.remove(request.fingerprint)
                return None
            self._failed_once.add(request.fingerprint)
            return fault.removeprefix(TRANSIENT)
        return fault

    def _failure(self, fault: str, request: Request) -> RecordError:
        if fault not in FAULTS:
            return InvalidRequest(_UNKNOWN.format(fault))
        if fault == "internal":
            raise RuntimeError("an unforeseen crash")
        known: dict[str, Any] = {}
        if fault in _ANSWERED:
            output = None if fault == "empty_output" else _output(request)
            known = {
                "finish_reason": fault.upper(),
                "output": output,
                "usage": _usage(request.estimated_tokens, len((output or "").split())),
                "model_version": self._backend.model,
            }
        all_forbidden = fault == "forbidden" and self._backend.faults.get(fault) == 1
        return _ERRORS[fault](
            f"a fault of the fake backend: {fault}",
            cause=Cause.CREDENTIALS if all_forbidden else None,
            **known,
        )


class FakeBatchClient(FakeClient):
    """Answers a whole workload batch per call, without a task per request."""

    @property
    def call_limits(self) -> CallLimits:
        """No limit below a whole workload batch: the answers are computed in this process."""
        return CallLimits(max_requests=None, in_process=True)

    async def generate_many(
        self, requests: Sequence[Request]
    ) -> Sequence[Completion | RecordError]:
        """One outcome per request, in order; one ``internal`` fault crashes the whole call."""
        return list(map(self._outcome, requests))


def _content(body: Mapping[str, Json]) -> str:
    """The text that may hold a marker: the prompt, else the whole body as JSON."""
    messages = body.get("messages")
    only = messages[0] if messages and len(messages) == 1 else {}
    content = only.get("content", body.get("text"))
    return content if isinstance(content, str) else json_values.dumps(body).decode()


def _output(request: Request) -> str:
    schema = request.params.get("output_schema")
    if schema is None:
        return f"fake answer {request.fingerprint[:12]}"
    return json_values.dumps(smallest(schema, schema)).decode()


@functools.lru_cache(maxsize=4096)
def _usage(input_tokens: int, output_tokens: int | None) -> Usage:
    return Usage(input_tokens, None, output_tokens)


def _vector(fingerprint: str, dimensions: int) -> tuple[float, ...]:
    """Numbers from -1 to 1 that depend on nothing but the fingerprint."""
    noise = hashlib.shake_128(fingerprint.encode()).digest(4 * dimensions)
    return tuple(map((2.0**-31).__mul__, struct.unpack(f"<{dimensions}i", noise)))
