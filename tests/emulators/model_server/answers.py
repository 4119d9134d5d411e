"""The server's answers: canned text, JSON that satisfies a schema, unit vectors, token counts.

Everything is a function of the request, so equal prompts get equal answers.

This does not prove anything about a model's quality, or a tokenizer's counts (a token is four
characters here). Written from vendor documentation; no real endpoint was called.
"""

import hashlib
import json
import math
import struct
from dataclasses import dataclass
from typing import Any

from tests.emulators.model_server import schemas

THOUGHTS = 3
"""Reasoning tokens of an ordinary answer; a ``thoughts-only`` answer has 64."""

DIMENSIONS = 8

TICKET_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "category": {"enum": ["billing", "shipping", "technical", "account", "other"]},
        "priority": {"enum": ["low", "normal", "high", "urgent"]},
        "sentiment": {"enum": ["positive", "neutral", "negative"]},
        "summary": {"type": "string"},
    },
    "required": ["category", "priority", "sentiment", "summary"],
}
"""The answer of ``--answer schema`` to a request without a schema of its own."""

_OPEN_SCHEMA = {"type": "object", "properties": {"answer": {"type": "string"}}}


@dataclass(frozen=True, slots=True)
class Asked:
    """The form of output that a request asks for.

    Attributes:
        as_json: Whether it asks for JSON at all.
        schema: The request's schema, if any.
        bare_enum: Whether the value of an enum is sent without quotes (``text/x.enum``).
    """

    as_json: bool = False
    schema: dict[str, Any] | None = None
    bare_enum: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer in neutral words; each dialect translates ``finish``.

    Attributes:
        text: The text, empty for "no text", or None where there is no content at all.
        finish: ``stop``, ``length``, ``filter`` or ``new``.
        thoughts: Reasoning tokens.
    """

    text: str | None
    finish: str = "stop"
    thoughts: int = THOUGHTS


def tokens(text: str) -> int:
    """Tokens of a text: one per four characters or part of them; 0 for an empty text."""
    return (len(text) + 3) // 4


def canned(text: str) -> str:
    """The default answer to a prompt.

    Examples:
        >>> canned("What is 2+2?")
        'answer to What is 2+2?'
    """
    return f"answer to {text[:60]}"


def digest(text: str) -> str:
    """Sixteen hexadecimal digits that name a prompt."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def compose(text: str, asked: Asked, fault: str | None, mode: str = "canned") -> Answer:
    """The answer to one prompt under one soft fault (``faults.SOFT``).

    Args:
        text: The text that decides, which is the last text part of the last user message.
        asked: The form of output that the request asks for.
        fault: A soft fault, or None. Those that concern a response without content
            (``prompt-blocked``, ``no-candidates``) are the dialect's business.
        mode: ``canned`` or ``schema``.
    """
    if fault == "blocked":
        return Answer(None, "filter", thoughts=0)
    if fault == "empty":
        return Answer("")
    if fault == "thoughts-only":
        return Answer(None, "length", thoughts=64)
    if fault in _JSON_FAULTS:
        return Answer(_broken_json(text, asked, fault))
    answer = _json_text(text, asked) if asked.as_json or mode == "schema" else canned(text)
    if fault == "truncated":
        return Answer(answer[: max(1, len(answer) // 2)], "length")
    if fault == "unknown-finish":
        return Answer(answer, "new")
    if fault == "surrogate":
        return Answer(_with_surrogate(answer, asked))
    return Answer(answer)


def unit_vector(text: str, dimensions: int) -> list[float]:
    """A vector of length 1, determined by a hash of the text.

    Examples:
        >>> round(sum(x * x for x in unit_vector("a", 16)), 6)
        1.0
    """
    raw = hashlib.shake_128(text.encode("utf-8", "surrogatepass")).digest(2 * dimensions)
    numbers = [n + 0.5 for n in struct.unpack(f"<{dimensions}h", raw)]
    length = math.hypot(*numbers)
    return [n / length for n in numbers]


_JSON_FAULTS = frozenset({"fenced", "chatty", "two-json", "not-json", "schema-wrong", "nan-json"})


def _value(text: str, asked: Asked) -> Any:
    if asked.schema is not None:
        return schemas.fill(asked.schema, text)
    return schemas.fill(_OPEN_SCHEMA if asked.as_json else TICKET_SCHEMA, text)


def _json_text(text: str, asked: Asked) -> str:
    value = _value(text, asked)
    if asked.bare_enum and isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _broken_json(text: str, asked: Asked, fault: str) -> str:
    if fault == "not-json":
        return "I am sorry, I cannot express this as JSON."
    schema = asked.schema if asked.schema is not None else _OPEN_SCHEMA
    value = schemas.fill(schema, text)
    good = json.dumps(value, ensure_ascii=False)
    if fault == "fenced":
        return f"```json\n{good}\n```"
    if fault == "chatty":
        return f"Sure! Here is the JSON you asked for:\n{good}\nLet me know if you need more."
    if fault == "two-json":
        other = json.dumps(schemas.fill(schema, f"On second thought. {text}"), ensure_ascii=False)
        other = other if other != good else '{"unexpected": true}'
        return f"One reading is {good} and another one is {other}."
    if fault == "nan-json":
        return json.dumps(_with_nan(value), ensure_ascii=False)
    return json.dumps(_violating(value, schema), ensure_ascii=False)


def _with_nan(value: Any) -> Any:
    """The value with its first top-level number (else its first property) replaced by NaN."""
    if not isinstance(value, dict) or not value:
        return {"value": math.nan}
    numeric = (k for k, v in value.items() if isinstance(v, int | float) and v is not True)
    return {**value, next(numeric, next(iter(value))): math.nan}


def _violating(value: Any, schema: dict[str, Any]) -> Any:
    """A value that breaks the schema: without its first required property, or of another type."""
    required = schema.get("required") or []
    if isinstance(value, dict) and required:
        return {name: item for name, item in value.items() if name != required[0]}
    return "wrong" if isinstance(value, dict | list | bool | int | float) else {"unexpected": True}


def _with_surrogate(answer: str, asked: Asked) -> str:
    """Adds a lone surrogate: to plain text, or escaped in the first string of an object."""
    if not asked.as_json:
        return f"{answer} \ud83d"
    value = json.loads(answer) if not asked.bare_enum else answer
    if isinstance(value, dict):
        name = next((k for k, v in value.items() if isinstance(v, str)), "surrogate")
        return json.dumps({**value, name: f"{value.get(name, '')}\ud83d"})
    return json.dumps(f"{value}\ud83d")
