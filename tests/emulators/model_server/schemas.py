"""Values that satisfy a schema, filled from a text: JSON Schema and Vertex's OpenAPI dialect.

Understood: types in either case and as lists, ``nullable``, ``enum``, ``const``, ``anyOf``,
``oneOf``, ``allOf``, ``$ref`` within the document, ``properties``, ``required``, ``items``,
``prefixItems``, ``minItems``/``maxItems``, ``minimum``/``maximum`` and the exclusive forms,
``multipleOf``, ``minLength``/``maxLength``, ``format``. Not understood: ``pattern``, ``not``,
``if``; such a value may violate its schema.

This does not prove what a model would write, or which schemas a real service accepts. It is written
from vendor documentation; no real endpoint was called.
"""

import math
import re
import zlib
from typing import Any

from tests.emulators.model_server import keywords

_MARKERS = re.compile(r"\s*\[\[[^\]]*\]\]")
_LABEL = re.compile(
    r"^[ \t#*]*(?:\w+ ){0,3}(?:ticket|message|text|review|email|input|document|body|content"
    r"|description|comment|feedback)[* ]*:[* ]*",
    re.IGNORECASE | re.MULTILINE,
)
_TAG = re.compile(r"<(ticket|message|text|review|email|document)>(.*?)</\1>", re.DOTALL)
_FORMATS = {
    "date": "2026-11-21",
    "date-time": "2026-11-21T00:00:00Z",
    "time": "00:00:00Z",
    "uri": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "ipv4": "192.0.2.1",
    "duration": "P1D",
}
_MAX_DEPTH = 8


def subject(text: str) -> str:
    """A prompt's subject: without markers, inside ``<ticket>``-like tags or after a label."""
    clean = _MARKERS.sub("", text)
    if tagged := _TAG.search(clean):
        return tagged[2].strip().removeprefix("Subject:").strip()
    label = _LABEL.search(clean)
    return (clean[label.end() :] if label else clean).strip() or clean.strip()


def first_sentence(text: str) -> str:
    """The text up to its first full stop, question or exclamation mark, or line end."""
    match = re.match(r"\s*(.+?(?:[.!?](?=\s|$)|$))", text, re.MULTILINE)
    return match.group(1).strip() if match else text.strip()


def fill(schema: Any, text: str) -> Any:
    """A value that satisfies ``schema``; equal schemas and texts have equal values.

    Examples:
        >>> fill({"type": "OBJECT", "properties": {"a": {"type": "INTEGER", "minimum": 3,
        ...       "maximum": 3}}}, "x")
        {'a': 3}
    """
    return _Filler(schema if isinstance(schema, dict) else {}, subject(text)).value(schema, "", 0)


class _Filler:
    """One walk over one schema."""

    def __init__(self, root: dict[str, Any], text: str) -> None:
        self._root = root
        self._text = text

    def value(self, schema: Any, name: str, depth: int) -> Any:
        schema = self._resolved(schema)
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return self._enum(schema["enum"])
        kind = self._kind(schema)
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            return self._array(schema, name, depth)
        if kind in ("number", "integer"):
            return self._number(schema, name, whole=kind == "integer")
        if kind == "boolean":
            return self._boolean(name)
        if kind == "null":
            return None
        return self._string(schema, name)

    def _resolved(self, schema: Any) -> dict[str, Any]:
        """Follows ``$ref``, merges ``allOf``, takes the first of ``anyOf`` and ``oneOf``."""
        for _ in range(_MAX_DEPTH * 2):
            if not isinstance(schema, dict):
                return {}
            if "$ref" in schema:
                target: Any = self._root
                for part in schema["$ref"].lstrip("#").strip("/").split("/"):
                    target = target.get(part, {}) if part and isinstance(target, dict) else target
                schema = {**{k: v for k, v in schema.items() if k != "$ref"}, **target}
            elif options := _get(schema, "anyOf", "any_of", "oneOf", "one_of"):
                rest = {k: v for k, v in schema.items() if k.lower().replace("_", "") not in _ANY}
                solid = [o for o in options if str(o.get("type", "")).lower() != "null"]
                schema = {**rest, **(solid or options)[0]}
            elif parts := _get(schema, "allOf", "all_of"):
                merged: dict[str, Any] = {k: v for k, v in schema.items() if k != "allOf"}
                for part in map(self._resolved, parts):
                    properties = {**merged.get("properties", {}), **part.get("properties", {})}
                    required = [*merged.get("required", []), *part.get("required", [])]
                    merged = {**merged, **part}
                    if properties:
                        merged |= {"properties": properties, "required": required}
                schema = {k: v for k, v in merged.items() if k != "all_of"}
            else:
                return schema
        return {}

    @staticmethod
    def _kind(schema: dict[str, Any]) -> str:
        kind = schema.get("type")
        if isinstance(kind, list):
            kind = next((k for k in kind if str(k).lower() != "null"), "null")
        if kind:
            return str(kind).lower()
        if "properties" in schema:
            return "object"
        return "array" if "items" in schema or "prefixItems" in schema else "string"

    def _enum(self, options: list[Any]) -> Any:
        if all(isinstance(option, str) for option in options):
            return keywords.choose(options, self._text)
        return options[self._hash("enum") % len(options)]

    def _object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        properties = schema.get("properties") or {}
        required = list(schema.get("required") or [])
        order = _get(schema, "propertyOrdering", "property_ordering") or list(properties)
        names = [n for n in order if n in properties]
        names += [n for n in [*properties, *required] if n not in names]
        if depth >= _MAX_DEPTH:  # a recursive schema ends where it may
            names = [n for n in names if n in required]
        if depth >= 3 * _MAX_DEPTH:
            return {}
        return {n: self.value(properties.get(n, {}), n, depth + 1) for n in dict.fromkeys(names)}

    def _array(self, schema: dict[str, Any], name: str, depth: int) -> list[Any]:
        least = int(_get(schema, "minItems", "min_items") or 0)
        most = _get(schema, "maxItems", "max_items")
        most = int(most) if most is not None else max(least, 2)
        count = least if depth >= _MAX_DEPTH else max(least, min(most, 2))
        prefix = list(schema.get("prefixItems") or [])
        values = [self.value(item, name, depth + 1) for item in prefix]
        if prefix and schema.get("items") in (None, False):
            return values
        item = self._resolved(schema.get("items") or {})
        if item.get("enum"):
            ranked = sorted(item["enum"], key=lambda o: -keywords.score(str(o), self._text.lower()))
            best = keywords.choose(ranked, self._text) if isinstance(ranked[0], str) else ranked[0]
            ranked.remove(best)
            return ([best, *ranked] * (count + 1))[: max(least, min(count, 1))]
        if self._kind(item) == "string" and not item.get("format") and "const" not in item:
            long = re.findall(r"[^\W\d_]{5,}", self._text.lower())
            tags = [*dict.fromkeys(long), *(f"item {n}" for n in range(count))]
            return [self._fit(item, tag) for tag in tags[:count]]
        while len(values) < count:
            values.append(self.value(item, f"{name}{len(values)}", depth + 1))
        return values

    def _number(self, schema: dict[str, Any], name: str, *, whole: bool) -> int | float:
        low, high = _bound(schema, "minimum"), _bound(schema, "maximum")
        step = float(schema.get("multipleOf") or schema.get("multiple_of") or 0)
        over, under = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
        gap = step or (1.0 if whole else 1e-6)
        if isinstance(over, int | float) and not isinstance(over, bool):
            low = max(over + gap, low if low is not None else -math.inf)
        elif over is True and low is not None:
            low += gap
        if isinstance(under, int | float) and not isinstance(under, bool):
            high = min(under - gap, high if high is not None else math.inf)
        elif under is True and high is not None:
            high -= gap
        if low is None:
            low = 0.0 if high is None or high >= 0 else high - 100
        if high is None:
            fraction = {"confidence", "probability", "score"} & set(keywords.words(name))
            high = low + (1 if fraction and not whole else 100)
        raw = low + (high - low) * (self._hash(name) % 1001) / 1000
        if step:
            raw = max(math.floor(raw / step), math.ceil(low / step)) * step
        if whole:
            return min(max(round(raw), math.ceil(low)), math.floor(high))
        return min(max(round(raw, 6), low), high)

    def _boolean(self, name: str) -> bool:
        known = [word for word in keywords.words(name) if word in keywords.RELATED]
        if known:
            return any(keywords.score(word, self._text.lower()) > 0 for word in known)
        return bool(self._hash(name) % 2)

    def _string(self, schema: dict[str, Any], name: str) -> str:
        form = str(schema.get("format") or "")
        if form in _FORMATS:
            return _FORMATS[form]
        parts = set(keywords.words(name))
        if form == "email" or "email" in parts:
            found = re.search(r"[\w.+-]+@[\w-]+\.[\w.-]*\w", self._text)
            return found.group(0) if found else "user@example.com"
        if "language" in parts:
            return self._fit(schema, "en")
        if parts & {"answer", "reply", "response"}:
            return self._fit(schema, f"answer to {self._text[:60]}")
        return self._fit(schema, first_sentence(self._text))

    @staticmethod
    def _fit(schema: dict[str, Any], text: str) -> str:
        least = int(_get(schema, "minLength", "min_length") or 0)
        most = _get(schema, "maxLength", "max_length")
        if len(text) < least:
            text = text.ljust(least, ".")
        return text[: int(most)] if most is not None else text

    def _hash(self, name: str) -> int:
        return zlib.crc32(f"{name}\0{self._text}".encode("utf-8", "surrogatepass"))


_ANY = {"anyof", "oneof"}


def _get(schema: dict[str, Any], *names: str) -> Any:
    return next((schema[name] for name in names if schema.get(name) is not None), None)


def _bound(schema: dict[str, Any], name: str) -> float | None:
    value = schema.get(name)
    return None if value is None else float(value)
