r"""One way from any value to JSON, for every source, hash, coder and sink.

Values that JSON cannot hold are escaped, not refused, so that one odd value never fails a load:

============================  ==========================================================
value                         becomes
============================  ==========================================================
NaN, Infinity, -Infinity      the strings ``"NaN"``, ``"Infinity"``, ``"-Infinity"``
a lone surrogate              its escape as six characters: ``\ud83d``
Decimal (NUMERIC)             string, in plain notation: ``"12.50"``
bytes                         base64 string
datetime, date, time          RFC 3339 string; a naive datetime is UTC
int beyond 64 bits            the same digits
============================  ==========================================================

>>> to_json_value({"price": decimal.Decimal("12.50"), "ratio": float("nan")})
{'price': '12.50', 'ratio': 'NaN'}
>>> loads(b'{"emoji": "\\ud83d"}')
{'emoji': '\\ud83d'}
>>> canonical({"b": 1, "a": [1.5, None]})
b'{"a":[1.5,null],"b":1}'
"""

import base64
import datetime as dt
import decimal
import json
import math
from typing import Any

import orjson

MAX_DEPTH = 200
"""Deepest nesting accepted: parsers and writers further on stop at about 250 levels."""

_EXACT_FLOAT_BELOW = 2.0**63
_BIG_OPTIONS: dict[str, Any] = {
    "ensure_ascii": False,
    "allow_nan": False,
    "separators": (",", ":"),
}


def loads(text: bytes | str, max_depth: int = MAX_DEPTH) -> Any:
    """Parses JSON and normalises it; big integers stay exact, NaN and Infinity are accepted.

    Args:
      text: The JSON.
      max_depth: How deep lists and objects may be nested.

    Raises:
      UnicodeDecodeError: The bytes are not UTF-8.
      ValueError: Not JSON, or nested too deeply.
    """
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        value = None
    else:
        if not _needs_care(value, max_depth):
            return value
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    try:
        value = json.loads(text)
        check_depth(value, max_depth)
        return to_json_value(value)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def check_depth(value: Any, max_depth: int = MAX_DEPTH) -> None:
    """Raises `ValueError` if lists and objects are nested deeper than `max_depth`."""
    kind = type(value)
    if kind is dict:
        value = value.values()
    elif kind is not list:
        return
    if max_depth < 1:
        raise ValueError("nested too deeply")
    for item in value:
        kind = type(item)
        if kind is dict or kind is list:
            check_depth(item, max_depth - 1)


def _needs_care(value: Any, max_depth: int) -> bool:
    """Whether orjson may have read an integer beyond 64 bits as a float, or nesting is too deep."""
    kind = type(value)
    if kind is float:
        return not -_EXACT_FLOAT_BELOW < value < _EXACT_FLOAT_BELOW
    if kind is dict:
        value = value.values()
    elif kind is not list:
        return False
    if max_depth < 1:
        return True
    max_depth -= 1
    for item in value:
        kind = type(item)
        if (kind is float or kind is dict or kind is list) and _needs_care(item, max_depth):
            return True
    return False


def dumps(value: Any) -> bytes:
    """Compact JSON of a JSON value, with keys in their order."""
    try:
        return orjson.dumps(value)
    except TypeError:  # integers beyond 64 bits, lone surrogates, deep nesting
        return _dumps_with_care(to_json_value(value), None)


def canonical(value: Any) -> bytes:
    """Compact JSON with sorted keys: equal values have equal bytes."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError:
        return _dumps_with_care(to_json_value(value), orjson.OPT_SORT_KEYS)


def _dumps_with_care(value: Any, option: int | None) -> bytes:
    """The bytes that orjson would write if it knew integers beyond 64 bits."""
    try:
        return orjson.dumps(_with_fragments(value), option=option)
    except TypeError:  # deep nesting
        text = json.dumps(value, sort_keys=option is not None, **_BIG_OPTIONS)
        return text.encode("utf-8")


def _with_fragments(value: Any) -> Any:
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return orjson.Fragment(str(value))
    if isinstance(value, dict):
        return {key: _with_fragments(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_fragments(item) for item in value]
    return value


def clean_text(text: str) -> str:
    """The text with lone surrogates escaped; the same object if it has none."""
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text


def to_json_value(value: Any) -> Any:
    """Any value as a JSON value, by the table above; values of other types become their text."""
    if isinstance(value, str):
        return clean_text(value)
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {clean_text(str(key)): to_json_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json_value(item) for item in value]
    if isinstance(value, decimal.Decimal):
        return format(value, "f") if value.is_finite() else str(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return base64.b64encode(bytes(value)).decode("ascii")
    if isinstance(value, dt.datetime):
        return rfc3339(value)
    if isinstance(value, (dt.date, dt.time)):
        return value.isoformat()
    if hasattr(value, "tolist"):  # NumPy scalars and arrays
        return to_json_value(value.tolist())
    if hasattr(value, "to_utc_datetime"):  # Beam's Timestamp
        return rfc3339(value.to_utc_datetime())
    return clean_text(str(value))


def rfc3339(moment: dt.datetime) -> str:
    """``2026-11-21T08:00:00.123456Z``; a naive datetime counts as UTC."""
    if moment.tzinfo is not None:
        try:
            moment = moment.astimezone(dt.timezone.utc).replace(tzinfo=None)
        except OverflowError:  # in UTC the year is outside 1 to 9999
            return moment.isoformat()
    return moment.isoformat() + "Z"
