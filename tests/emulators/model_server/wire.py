"""Code that both dialects share: the call, the refusal, JSON in and out, mixed-case lookups.

This does not prove that a real service accepts or refuses the same bodies. It is written from
captures and vendor documentation; no real endpoint was called.
"""

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from tests.emulators.model_server.faults import NO_PLAN, Plan

Json = dict[str, Any]

CREATED = 1_795_219_200
"""A fixed creation time (2026-11-21): equal prompts get equal bytes."""


class Refused(Exception):
    """The request cannot be served; the dialect's own error format carries the message.

    Attributes:
        status: HTTP status.
        message: Text for the client.
        code: Machine-readable code of the OpenAI dialect, None for the status's usual one.
        body: A whole error body, in place of the dialect's own format.
    """

    def __init__(
        self, status: int, message: str, code: str | None = None, body: Json | None = None
    ) -> None:
        """Keeps the parts of the refusal."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.body = body


@dataclass(frozen=True, slots=True)
class Call:
    """One request to a model, as an operation sees it.

    Attributes:
        body: The parsed request body.
        model: Model or endpoint id of the path (Vertex) or the body (OpenAI).
        path: The variable parts of the path by name.
        headers: Request headers, case-insensitive.
        plans: The faults that markers request, one per text of the operation, in order.
        strict: Omit the fields that break the SDKs' strict response types.
        answer_mode: ``canned`` or ``schema``.
        max_texts: The most texts of an embedding request in the OpenAI dialect, as Text Embeddings
            Inference limits them; None for OpenAI's own limits.
    """

    body: Json
    model: str
    path: Mapping[str, str]
    headers: Mapping[str, str]
    plans: tuple[Plan, ...] = ()
    strict: bool = False
    answer_mode: str = "canned"
    max_texts: int | None = None

    @property
    def plan(self) -> Plan:
        """The plan of an operation that has one text."""
        return self.plans[0] if self.plans else NO_PLAN


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of a dialect, as pure functions of parsed bodies.

    Attributes:
        texts: The texts whose markers decide; raises Refused on a body it cannot read.
        answer: The response body of a call.
        error: ``(status, message, code, plan)`` as the dialect's error body.
        headers: Headers added to an answer.
    """

    texts: Callable[[Call], list[str]]
    answer: Callable[[Call], Json]
    error: Callable[[int, str, str | None, Plan], Json]
    headers: dict[str, str] = field(default_factory=dict)


@functools.lru_cache(maxsize=256)
def _snake(camel: str) -> str:
    return "".join("_" + letter.lower() if letter.isupper() else letter for letter in camel)


def pick(mapping: Any, camel: str) -> Any:
    """The value under ``camel`` or its snake_case spelling: SDK bodies mix both. None if absent."""
    if not isinstance(mapping, Mapping):
        return None
    value = mapping.get(camel)
    return mapping.get(_snake(camel)) if value is None else value


def load(raw: bytes) -> Json:
    """A request body as an object.

    Raises:
        Refused: 400 if the bytes are not a JSON object.
    """
    try:
        body = orjson.loads(raw)
    except ValueError:
        try:  # orjson refuses lone surrogates and NaN, which a real client may send
            body = json.loads(raw)
        except ValueError:
            raise Refused(400, "Invalid JSON payload received.") from None
    if not isinstance(body, dict):
        raise Refused(400, "Invalid JSON payload received: the body must be an object.")
    return body


def dump(value: Any) -> bytes:
    """JSON bytes in which lone surrogates are escaped."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value).encode()


def to_int(value: Any, default: int) -> int:
    """A whole number, also from a string, as proto3 JSON writes int64."""
    try:
        return int(value)
    except (TypeError, ValueError):
        return default


def check_media(uri: Any, schemes: tuple[str, ...]) -> None:
    """Accepts a URI without opening it.

    Raises:
        Refused: 400 for another scheme, 403 if the URI contains ``forbidden``.
    """
    if not isinstance(uri, str) or not uri.startswith(schemes):
        raise Refused(400, f"The media URI must start with one of {', '.join(schemes)}.")
    if "forbidden" in uri:
        raise Refused(403, "Permission denied on the media object, or it may not exist.")


def instances_of(call: Call) -> list[Any]:
    """The instances of a ``:predict`` body.

    Raises:
        Refused: 400 if there are none.
    """
    instances = pick(call.body, "instances")
    if not isinstance(instances, list) or not instances:
        raise Refused(400, "Invalid value: instances must be a non-empty list.")
    return instances


def texts_of(content: Any) -> list[str]:
    """The text parts of one Content."""
    parts = pick(content, "parts") or []
    parts = [parts] if isinstance(parts, dict) else parts
    return [part["text"] for part in parts if isinstance(pick(part, "text"), str)]
