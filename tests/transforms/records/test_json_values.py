"""One conversion to JSON: total, exact where JSON is, and escaped where it is not."""

import base64
import datetime as dt
import decimal
import enum
import fractions
import json
import math
import uuid
from typing import Any

import numpy as np
import pytest
from apache_beam.utils.timestamp import Timestamp
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.transforms import JSON_VALUES
from transforms.records.json_values import (
    MAX_DEPTH,
    canonical,
    check_depth,
    clean_text,
    dumps,
    loads,
    rfc3339,
    to_json_value,
)

SURROGATES = st.text(st.sampled_from("aé\ud83d\ude00\udc00\\😀\0"))
OFFSETS = st.integers(-1439, 1439).map(lambda minutes: dt.timezone(dt.timedelta(minutes=minutes)))
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    SURROGATES,
    st.binary(),
    st.binary().map(bytearray),
    st.binary().map(lambda data: memoryview(data)),  # noqa: PLW0108 (it is generic)
    st.decimals(allow_nan=True),
    st.datetimes(timezones=st.none() | OFFSETS),
    st.dates(),
    st.times(),
    st.timedeltas(),
    st.uuids(),
    st.fractions(),
    st.complex_numbers(),
    st.floats(width=32).map(np.float32),
    st.integers(-(2**63), 2**63 - 1).map(np.int64),
    st.just(object),
)
ANYTHING: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(SURROGATES | st.integers() | st.none(), inner, max_size=4)
    ),
    max_leaves=10,
)


def _nested(depth: int, kind: str = "list") -> bytes:
    opening, closing = (b"[", b"]") if kind == "list" else (b'{"a":', b"}")
    return opening * depth + (b"" if kind == "list" else b"1") + closing * depth


def _reversed_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _reversed_keys(value[key]) for key in reversed(value)}
    if isinstance(value, list):
        return [_reversed_keys(item) for item in value]
    return value


def _is_json(value: Any) -> bool:
    if type(value) is dict:
        return all(type(key) is str and _is_json(item) for key, item in value.items())
    if type(value) is list:
        return all(map(_is_json, value))
    if type(value) is str:
        return value.encode("utf-8", "replace").decode() == value
    return value is None or type(value) in (bool, int) or math.isfinite(value)


@settings(deadline=None)
@given(JSON_VALUES)
@example(2**64)
@example(-(2**63) - 1)
@example([2**63 - 1, 2**63, 1e22, 1e300, 5e-324, -0.0, {"a": [10**4000]}])
def test_round_trip(value: Any) -> None:
    """Any JSON value survives unchanged, with types, digits and the order of keys."""
    assert repr(loads(dumps(value))) == repr(value)
    assert repr(loads(dumps(value).decode())) == repr(value)


@settings(deadline=None)
@given(JSON_VALUES)
def test_dumps_is_compact_json(value: Any) -> None:
    """The standard library reads the same value, and no byte is a line break."""
    line = dumps(value)
    assert repr(json.loads(line)) == repr(value)
    assert b"\n" not in line


@settings(deadline=None)
@given(JSON_VALUES)
def test_canonical(value: Any) -> None:
    """Equal values have equal bytes, whatever the order of their keys; unequal ones do not."""
    line = canonical(value)
    assert canonical(_reversed_keys(value)) == line
    assert canonical(loads(dumps(value))) == line
    assert canonical(loads(line)) == line
    assert canonical([value, None]) != canonical([value])


def test_canonical_sorts_at_every_depth() -> None:
    """Keys are sorted by code point at every depth, also for huge integers."""
    assert canonical({"b": [{"z": 1, "a": 2}], "B": None, "é": 1, "😀": 2, "\uffff": 3}) == (
        '{"B":null,"b":[{"a":2,"z":1}],"é":1,"\uffff":3,"😀":2}'.encode()
    )
    assert canonical({"b": 2**70, "a": {"d": 1, "c": 2}}) == (
        b'{"a":{"c":2,"d":1},"b":1180591620717411303424}'
    )


@settings(deadline=None)
@given(ANYTHING)
@example(dt.datetime.min.replace(tzinfo=dt.timezone(dt.timedelta(hours=1))))
@example(dt.datetime.max.replace(tzinfo=dt.timezone(-dt.timedelta(hours=1))))
@example({None: 1, 2: b"\xff", "\ud83d": ()})
def test_to_json_value_is_total(value: Any) -> None:
    """Any Python value becomes a JSON value, which converts to itself."""
    made = to_json_value(value)
    assert _is_json(made)
    assert repr(to_json_value(made)) == repr(made)
    assert repr(loads(dumps(made))) == repr(made)
    assert dumps(made).decode("utf-8")


class _Colour(enum.Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), "NaN"),
        (float("inf"), "Infinity"),
        (float("-inf"), "-Infinity"),
        ("\ud83d", r"\ud83d"),
        ("a\udc00é", r"a\udc00é"),
        ({"\ud83d": 1}, {r"\ud83d": 1}),
        (decimal.Decimal("12.50"), "12.50"),
        (decimal.Decimal("1E+3"), "1000"),
        (decimal.Decimal("-1E-9"), "-0.000000001"),
        (decimal.Decimal("NaN"), "NaN"),
        (decimal.Decimal("-Infinity"), "-Infinity"),
        (b"\x00\xff", "AP8="),
        (bytearray(b"\x00"), "AA=="),
        (memoryview(b"ab"), "YWI="),
        (dt.datetime(2026, 11, 21, 8), "2026-11-21T08:00:00Z"),
        (
            dt.datetime(2026, 11, 21, 8, 0, 0, 5, tzinfo=dt.timezone(dt.timedelta(hours=-5))),
            "2026-11-21T13:00:00.000005Z",
        ),
        (dt.date(2026, 11, 21), "2026-11-21"),
        (dt.time(8, 30), "08:30:00"),
        (2**80, 2**80),
        (True, True),
        ((1, (2,)), [1, [2]]),
        ({1: "a", None: "b"}, {"1": "a", "None": "b"}),
        (np.int64(7), 7),
        (np.float32(0.5), 0.5),
        (np.float64("nan"), "NaN"),
        (np.bool_(True), True),
        (np.str_("x"), "x"),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (np.array([np.nan]), ["NaN"]),
        (np.datetime64("2026-11-21T08:00:00", "us"), "2026-11-21T08:00:00Z"),
        (Timestamp(1_795_248_000), "2026-11-21T08:00:00Z"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (fractions.Fraction(1, 3), "1/3"),
        (_Colour.RED, "_Colour.RED"),
    ],
)
def test_to_json_value(value: Any, expected: Any) -> None:
    """Every line of the module's table holds."""
    made = to_json_value(value)
    assert made == expected
    assert _is_json(loads(dumps(made)))


def test_bytes_survive() -> None:
    """Bytes become base64 of exactly these bytes."""
    assert base64.b64decode(to_json_value(bytes(range(256)))) == bytes(range(256))


@settings(deadline=None)
@given(SURROGATES)
def test_clean_text(text: str) -> None:
    """Clean text is valid UTF-8, and the same object if it already was."""
    clean = clean_text(text)
    assert clean.encode("utf-8").decode("utf-8") == clean
    assert clean_text(clean) is clean
    if clean != text:
        with pytest.raises(UnicodeEncodeError):
            text.encode("utf-8")


@settings(deadline=None)
@given(SURROGATES)
def test_loads_escapes_lone_surrogates(text: str) -> None:
    """A legal JSON escape never becomes a text that cannot be written."""
    value = loads(json.dumps({text: [text]}))
    assert _is_json(value)
    assert loads(dumps(value)) == value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b'{"a": NaN, "b": [Infinity, -Infinity]}', {"a": "NaN", "b": ["Infinity", "-Infinity"]}),
        (b"[1e400, -1e400]", ["Infinity", "-Infinity"]),
        (b"123456789012345678901234567890", 123456789012345678901234567890),
        (b"[18446744073709551616, 0.5]", [18446744073709551616, 0.5]),
        (b"[-9223372036854775809]", [-9223372036854775809]),
        (b"[9223372036854775808.0]", [9223372036854775808.0]),
        (b' {"a": 1, "a": 2} ', {"a": 2}),
        (rb'"\ud83d"', r"\ud83d"),
        (rb'"\ud83d\ude00"', "😀"),
        ('"é"', "é"),
    ],
)
def test_loads(text: bytes | str, expected: Any) -> None:
    """Values that other parsers reject or round are read exactly where JSON is exact."""
    assert repr(loads(text)) == repr(expected)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[1,]", b"{'a': 1}", b"nul", b"1 2", b"\xef\xbb\xbf1x", "\ud83d", "1" * 5000],
)
def test_loads_rejects_text_that_is_not_json(text: bytes | str) -> None:
    """Text that is not JSON is a `ValueError`, which sources turn into a parse error."""
    with pytest.raises(ValueError):
        loads(text)


def test_loads_rejects_other_encodings() -> None:
    """The error says that the bytes are not UTF-8."""
    with pytest.raises(UnicodeDecodeError):
        loads(b'"\xff"')


@pytest.mark.parametrize("kind", ["list", "dict"])
@pytest.mark.parametrize("number", ["", "1e30,", "123456789012345678901234567890,"])
def test_depth(kind: str, number: str) -> None:
    """`MAX_DEPTH` levels can be read and written again; any more are rejected."""
    extra = number.encode()
    for depth in (MAX_DEPTH - 1, MAX_DEPTH - 2):
        value = loads(b"[" + extra + _nested(depth, kind) + b"]")
        check_depth(value)
        assert loads(canonical(value)) == value
        assert loads(dumps(value)) == value
    for depth in (MAX_DEPTH, 300, 900, 1_000, 1_100, 100_000):
        with pytest.raises(ValueError, match="nested too deeply"):
            loads(b"[" + extra + _nested(depth, kind) + b"]")


def test_check_depth_counts_containers() -> None:
    """Scalars have no depth; lists and objects count alike, wide or narrow."""
    check_depth("text", 0)
    check_depth([1, {}, []], 2)
    check_depth({"a": [{"b": 1}], "c": [1] * 1_000}, 3)
    with pytest.raises(ValueError, match="nested too deeply"):
        check_depth([], 0)
    with pytest.raises(ValueError, match="nested too deeply"):
        check_depth([1, {"a": []}], 2)


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        (dt.datetime(2026, 1, 2, 3, 4, 5), "2026-01-02T03:04:05Z"),
        (dt.datetime(2026, 1, 2, 3, 4, 5, 600_000), "2026-01-02T03:04:05.600000Z"),
        (dt.datetime(1, 1, 1, tzinfo=dt.timezone.utc), "0001-01-01T00:00:00Z"),
        (
            dt.datetime(1, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=1))),
            "0001-01-01T00:00:00+01:00",
        ),
    ],
)
def test_rfc3339(moment: dt.datetime, expected: str) -> None:
    """A timestamp is UTC with a Z, or keeps its offset if UTC has no such year."""
    assert rfc3339(moment) == expected


@settings(deadline=None)
@given(JSON_VALUES, JSON_VALUES)
@example(1e-9, 2**64)
@example(1e16, {"\ud83d": -(2**63) - 1})
def test_a_value_has_the_same_bytes_in_any_context(value: Any, beside: Any) -> None:
    """A value has the same bytes next to a huge integer or a surrogate."""
    assert dumps([value, beside]) == b"[%b,%b]" % (dumps(value), dumps(beside))
    assert canonical([value, beside]) == b"[%b,%b]" % (canonical(value), canonical(beside))
