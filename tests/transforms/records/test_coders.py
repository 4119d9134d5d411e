"""Coders: golden bytes, tolerance of older and newer writers, and Beam's use of them."""

import collections
import dataclasses
import decimal
import math
import pickle
import struct
from collections.abc import Mapping
from typing import Any

import apache_beam as beam
import msgspec
import numpy as np
import pytest
from apache_beam.coders import registry
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.transforms import JSON_OBJECTS, coded, pipeline
from transforms.records import json_values
from transforms.records.coders import (
    VERSION,
    AnswerCoder,
    DeadLetterCoder,
    RecordCoder,
    RequestCoder,
    UnreadableBytes,
    VersionedCoder,
    layout_of,
)
from transforms.records.errors import ERROR_TYPES
from transforms.records.records import (
    STAGES,
    Answer,
    Completion,
    DeadLetter,
    Params,
    Record,
    Request,
    Usage,
)

RECORD = Record(
    "7",
    {"text": "grüße", "n": 2**64, "deep": [None, {"x": 1.5}]},
    {"k": "v"},
    "gs://b/f",
    29_000_000,
)
REQUEST = Request(
    Record("8", {"text": "hi"}),
    {"messages": [{"role": "user", "content": "hi"}]},
    Params({"generation_config": {"temperature": 0}}),
    "ab" * 32,
    12,
)
ANSWER = Answer(
    Record("8", {"text": "hi"}),
    "ab" * 32,
    Completion(
        output="yes",
        output_json='{"a":1}',
        embedding=(0.5, -1.25),
        finish_reason="STOP",
        usage=Usage(1, 2, 3, 4),
        model_version="m-001",
        service_tier="ON_DEMAND",
        latency_ms=250,
        attempts=2,
        throttled_ms=40,
        from_ledger=True,
    ),
)
LETTER = DeadLetter(
    stage="validate",
    error_type="schema_violation",
    error_message="at $.a: no",
    retryable=True,
    record_id="8",
    attempts=2,
    throttled_ms=40,
    fingerprint="ab" * 32,
    finish_reason="STOP",
    output="nope",
    usage=Usage(1, 2, 3, 4),
    model_version="m-001",
    payload="line",
    payload_bytes=b"\x00\xff",
    attributes={"k": "v"},
    stacktrace="Traceback",
    read_minute=29_000_000,
    fields={"text": "hi"},
    service_tier="ON_DEMAND_FLEX",
)
GOLDEN: list[tuple[Any, str]] = [
    (
        RECORD,
        (
            "0295a13783a474657874a76772c3bcc39f65a16ec70901010000000000000000a46465657092c081a178"
            "cb3ff800000000000081a16ba176a867733a2f2f622f66ce01ba8140"
        ),
    ),
    (
        REQUEST,
        (
            "029595a13881a474657874a2686980a0c081a86d657373616765739182a4726f6c65a475736572a7636f"
            "6e74656e74a26869ac306562616130303663386364d94061626162616261626162616261626162616261"
            "626162616261626162616261626162616261626162616261626162616261626162616261626162616261"
            "6261620c"
        ),
    ),
    (
        ANSWER,
        (
            "029395a13881a474657874a2686980a0c0d9406162616261626162616261626162616261626162616261"
            "62616261626162616261626162616261626162616261626162616261626162616261626162616261629b"
            "a3796573a77b2261223a317dc410000000000000e03f000000000000f4bfa453544f509401020304a56d"
            "2d303031a94f4e5f44454d414e44ccfa0228c3"
        ),
    ),
    (
        LETTER,
        (
            "02dc0013a876616c6964617465b0736368656d615f76696f6c6174696f6eaa617420242e613a206e6fc3"
            "a1380228d940616261626162616261626162616261626162616261626162616261626162616261626162"
            "61626162616261626162616261626162616261626162616261626162a453544f50a46e6f706594010203"
            "04a56d2d303031a46c696e65c40200ff81a16ba176a954726163656261636bce01ba814081a474657874"
            "a26869ae4f4e5f44454d414e445f464c4558"
        ),
    ),
]
CODERS = {
    Record: RecordCoder,
    Request: RequestCoder,
    Answer: AnswerCoder,
    DeadLetter: DeadLetterCoder,
}

WORDS = st.none() | st.text()
COUNTS = st.none() | st.integers(0, 2**70)
ATTRIBUTES = st.dictionaries(st.text(), st.text(), max_size=3)
USAGES = st.builds(Usage, COUNTS, COUNTS, COUNTS, COUNTS)
RECORDS = st.builds(Record, st.text(), JSON_OBJECTS, ATTRIBUTES, st.text(), COUNTS)
REQUESTS = st.builds(
    Request, RECORDS, JSON_OBJECTS, JSON_OBJECTS.map(Params), st.text(), st.integers(0)
)
COMPLETIONS = st.builds(
    Completion,
    WORDS,
    WORDS,
    st.none() | st.lists(st.floats(allow_nan=False), max_size=5).map(tuple),
    WORDS,
    USAGES,
    WORDS,
    WORDS,
    COUNTS,
    st.integers(0),
    st.integers(0),
    st.booleans(),
)
ANSWERS = st.builds(Answer, RECORDS, st.text(), COMPLETIONS)
LETTERS = st.builds(
    DeadLetter,
    st.sampled_from(STAGES),
    st.sampled_from(ERROR_TYPES),
    st.text(),
    st.booleans(),
    WORDS,
    COUNTS,
    st.integers(0),
    WORDS,
    WORDS,
    WORDS,
    USAGES,
    WORDS,
    WORDS,
    st.none() | st.binary(),
    ATTRIBUTES,
    WORDS,
    COUNTS,
    st.none() | JSON_OBJECTS,
    WORDS,
)


def _coder(value: Any) -> Any:
    return CODERS[type(value)]()


def _fields(encoded: bytes) -> list[Any]:
    """The array after the version, read without our code."""
    assert encoded[0] == VERSION
    return list(
        msgspec.msgpack.decode(encoded[1:], ext_hook=lambda code, data: [code, bytes(data)])
    )


@pytest.mark.parametrize(("value", "golden"), GOLDEN, ids=lambda v: type(v).__name__)
def test_golden_bytes(value: Any, golden: str) -> None:
    """The bytes of version 2 never change, because the state of updated jobs holds them."""
    coder = _coder(value)
    assert coder.encode(value).hex() == golden
    assert coder.decode(bytes.fromhex(golden)) == value


def test_golden_instances_are_full() -> None:
    """No field of a golden instance has its default, so that the golden bytes hold them all."""
    pairs: list[tuple[Any, Any]] = [
        (RECORD, Record("", {})),
        (REQUEST, Request(Record("", {}), {}, {}, "", 0)),
        (LETTER, DeadLetter("read", "internal", "")),
        (ANSWER.completion, Completion()),
        (ANSWER.completion.usage, Usage()),
    ]
    for full, plain in pairs:
        for name in type(full).__slots__:
            assert getattr(full, name) != getattr(plain, name), (type(full), name)


def test_every_field_is_encoded_in_the_order_of_its_definition() -> None:
    """Every field of the dataclass is in the array, in order."""
    assert len(_fields(DeadLetterCoder().encode(LETTER))) == len(DeadLetter.__slots__)
    assert _fields(RecordCoder().encode(RECORD)) == [
        "7",
        {"text": "grüße", "n": [1, (2**64).to_bytes(9, "big")], "deep": [None, {"x": 1.5}]},
        {"k": "v"},
        "gs://b/f",
        29_000_000,
    ]
    record, fingerprint, completion = _fields(AnswerCoder().encode(ANSWER))
    assert (record[0], fingerprint) == ("8", "ab" * 32)
    assert completion[2] == struct.pack("<2d", 0.5, -1.25)
    assert completion[4] == [1, 2, 3, 4]


@settings(deadline=None)
@given(RECORDS | REQUESTS | ANSWERS | LETTERS)
@example(DeadLetter("read", "internal", "", payload_bytes=b""))
@example(Answer(Record("", {}), "", Completion(embedding=())))
@example(Record("", {"n": [2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**400, -(10**400)]}))
@example(Record("", {"x": [1e308, 5e-324, -0.0, 9e18, 1e19], "b": [True, 1, 1.0]}))
def test_round_trip(value: Any) -> None:
    """Every value that a stage passes on comes back equal, with equal types and order."""
    coder = _coder(value)
    encoded = coder.encode(value)
    decoded = coder.decode(encoded)
    assert decoded == value
    assert coder.encode(decoded) == encoded
    if isinstance(value, Request):  # sealed params are equal, but show their key
        decoded, value = [dataclasses.replace(one, params={}) for one in (decoded, value)]
    assert repr(decoded) == repr(value)


def test_embedding_keeps_every_bit() -> None:
    """Each number keeps its eight bytes, also one that JSON cannot write."""
    vector = (0.1, 1e-320, -0.0, math.inf, -math.inf, math.nan)
    coder = AnswerCoder()
    encoded = coder.encode(Answer(Record("1", {}), "f", Completion(embedding=vector)))
    packed = struct.pack("<6d", *vector)
    assert packed in encoded
    decoded = coder.decode(encoded).completion.embedding
    assert struct.pack("<6d", *decoded) == packed


@pytest.mark.parametrize("text", ["\ud83d", "é\udc00", "\ud83d and 2**70"])
def test_lone_surrogates_never_fail_a_bundle(text: str) -> None:
    """A text that UTF-8 cannot hold is escaped; bytes around it stay bytes."""
    letter = DeadLetter("infer", "internal", text, output=text, payload_bytes=b"\xff")
    clean = json_values.clean_text(text)
    coder = DeadLetterCoder()
    assert coder.decode(coder.encode(letter)) == DeadLetter(
        "infer", "internal", clean, output=clean, payload_bytes=b"\xff"
    )
    record = Record("1", {text: [text, 2**70]})
    assert RecordCoder().decode(RecordCoder().encode(record)) == Record(
        "1", {clean: [clean, 2**70]}
    )


class _Text(str):
    """A subclass, as template engines return them."""

    __slots__ = ()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (_Text("text"), "text"),
        ({"a": (1, 2)}, {"a": [1, 2]}),
        (collections.OrderedDict(a=_Text("b")), {"a": "b"}),
        (Params({"a": 1}), {"a": 1}),
        (complex(1, 2), "(1+2j)"),
        (np.float64(1.5), 1.5),
        (np.int64(7), 7),
        (np.array([1, 2]), [1, 2]),
        (decimal.Decimal("1.50"), "1.50"),
        (math.inf, math.inf),
    ],
)
def test_almost_json(value: Any, expected: Any) -> None:
    """Values that are almost JSON become JSON instead of failing a bundle."""
    decoded = RecordCoder().decode(RecordCoder().encode(Record("1", {"v": value})))
    assert decoded == Record("1", {"v": expected})
    assert type(decoded.fields["v"]) is type(expected)


@pytest.mark.parametrize("number", [b"1", b"18446744073709551616"])
def test_the_deepest_record_is_encoded(number: bytes) -> None:
    """Every record that `loads` accepts can be encoded and decoded inside a request."""
    deepest = json_values.loads(
        b'{"a":' * json_values.MAX_DEPTH + number + b"}" * json_values.MAX_DEPTH
    )
    request = Request(Record("1", deepest), {"messages": [deepest]}, {}, "f", 1)
    assert RequestCoder().decode(RequestCoder().encode(request)) == request


@pytest.mark.parametrize(("kind", "number"), [(list, 1), (dict, 1), (list, 2**64), (dict, 2**64)])
def test_nesting_beyond_the_deepest_record(kind: type, number: int) -> None:
    """Twice the depth that sources accept leaves room for a stage's wrapping of a record."""
    nested: Any = number
    for _ in range(2 * json_values.MAX_DEPTH):
        nested = [nested] if kind is list else {"a": nested}
    record = Record("1", {"deep": nested})
    assert RecordCoder().decode(RecordCoder().encode(record)) == record


@pytest.mark.parametrize("kept", range(2, 5))
def test_a_shorter_record(kept: int) -> None:
    """An older release's record takes the defaults, alone and inside other types."""
    fields = ["7", {"a": 1}, {"k": "v"}, "file", 5][:kept]
    expected = Record(*fields)
    assert RecordCoder().decode(coded(*fields)) == expected
    assert RequestCoder().decode(coded(fields, {}, "", "f", 1)) == Request(expected, {}, {}, "f", 1)
    assert AnswerCoder().decode(coded(fields, "f", [])) == Answer(expected, "f", Completion())


@pytest.mark.parametrize("kept", range(len(Completion.__slots__) + 1))
def test_shorter_completion(kept: int) -> None:
    """An older release's completion takes the defaults for missing fields, as does its usage."""
    record, fingerprint, completion = _fields(AnswerCoder().encode(ANSWER))
    decoded = AnswerCoder().decode(coded(record, fingerprint, completion[:kept])).completion
    for place, name in enumerate(Completion.__slots__):
        whole = ANSWER.completion if place < kept else Completion()
        assert getattr(decoded, name) == getattr(whole, name)
    completion[4] = [1, 2]
    decoded = AnswerCoder().decode(coded(record, fingerprint, completion)).completion
    assert decoded.usage == Usage(1, 2)


@pytest.mark.parametrize("kept", range(3, len(DeadLetter.__slots__) + 1))
def test_shorter_dead_letter(kept: int) -> None:
    """An older release's dead letter takes the defaults for missing fields."""
    fields = _fields(DeadLetterCoder().encode(LETTER))
    decoded = DeadLetterCoder().decode(coded(*fields[:kept]))
    plain = DeadLetter("read", "internal", "")
    for place, name in enumerate(DeadLetter.__slots__):
        assert getattr(decoded, name) == getattr(LETTER if place < kept else plain, name)


@pytest.mark.parametrize("value", [REQUEST, ANSWER, LETTER], ids=lambda v: type(v).__name__)
def test_longer_arrays(value: Any) -> None:
    """A newer release's unknown fields are dropped, at the end and in nested arrays."""
    fields = _fields(_coder(value).encode(value))
    nested = {Request: [0], Answer: [0, 2], DeadLetter: [10]}[type(value)]
    for place in nested:
        fields[place] = [*fields[place], "new", {"x": 1}]
    assert _coder(value).decode(coded(*fields, "new", None)) == value


@pytest.mark.parametrize(("value", "golden"), GOLDEN, ids=lambda v: type(v).__name__)
@pytest.mark.parametrize("version", [0, 1, 3, 255])
def test_unknown_version(value: Any, golden: str, version: int) -> None:
    """The message names both versions and the remedy."""
    with pytest.raises(
        UnreadableBytes,
        match=rf"^coder version {version} wrote this {type(value).__name__}, but this release reads "
        "version 2 only: drain the job with the release that started it, then start a new job "
        "instead of updating it$",
    ):
        _coder(value).decode(bytes([version]) + bytes.fromhex(golden)[1:])


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        (b"", r"^Record: there are no bytes to decode, not even the version$"),
        (b"\x02", r"^Record: the 1 bytes are cut or damaged \("),
        (coded("7", {})[:-1], r"^Record: the 4 bytes are cut or damaged \("),
        (coded("7", {}) + b"x", r"^Record: the 6 bytes are cut or damaged \("),
        (coded("7"), "cut or damaged .*missing 1 required positional argument: 'fields'"),
        (b"\x02\x07", "cut or damaged"),
        (
            coded("7", {"n": msgspec.msgpack.Ext(9, b"")}),
            "extension type 9 is not known to this release",
        ),
    ],
)
def test_damaged_bytes(encoded: bytes, message: str) -> None:
    """Bytes that are not a whole record are rejected."""
    with pytest.raises(UnreadableBytes, match=message):
        RecordCoder().decode(encoded)


@settings(deadline=None)
@given(st.sampled_from([value for value, _ in GOLDEN]), st.data())
def test_no_cut_value_is_decoded(value: Any, data: st.DataObject) -> None:
    """A value cut at any byte is rejected."""
    encoded = _coder(value).encode(value)
    with pytest.raises(UnreadableBytes):
        _coder(value).decode(encoded[: data.draw(st.integers(0, len(encoded) - 1))])


@dataclasses.dataclass(frozen=True, slots=True)
class _Older:
    name: str
    counts: tuple[bytes, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class _Newer:
    name: str
    counts: tuple[bytes, ...] = ()
    older: _Older | None = None
    cost: decimal.Decimal | None = None
    words: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)


def test_a_field_is_added_by_its_definition_alone() -> None:
    """A new field needs only its definition: each release reads the other's bytes."""
    newer = _Newer(
        "a", (b"b",), _Older("c", (b"d", b"")), decimal.Decimal("1.50"), collections.Counter(e=1)
    )
    encoded = layout_of(_Newer).encode(newer)
    assert repr(layout_of(_Newer).decode(encoded)) == repr(newer)
    older = _Older("a", (b"b",))
    assert layout_of(_Older).decode(encoded) == older
    assert layout_of(_Newer).decode(layout_of(_Older).encode(older)) == _Newer("a", (b"b",))


@dataclasses.dataclass(frozen=True)
class _Unwritable:
    fine: int | None
    names: set[str]


@dataclasses.dataclass(frozen=True)
class _Keyed:
    names: Mapping[bytes, int]


@dataclasses.dataclass(frozen=True)
class _Ambiguous:
    name: str | int


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (_Unwritable, r"^_Unwritable\.names is a set\[str\], which the coders cannot write: "),
        (_Keyed, r"^_Keyed\.names is a .*Mapping\[bytes, int\], which the coders cannot write: "),
        (_Ambiguous, r"^_Ambiguous\.name is a str \| int, which the coders cannot write: "),
    ],
)
def test_a_field_without_a_form_is_refused(kind: type, message: str) -> None:
    """A field of an unsupported type is rejected when its coder is defined, not when it encodes."""
    with pytest.raises(TypeError, match=message):
        layout_of(kind)


@dataclasses.dataclass(frozen=True)
class _Plain:
    name: str
    older: _Older


@dataclasses.dataclass(frozen=True)
class _Mapped:
    names: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class _Float:
    number: float


@pytest.mark.parametrize(
    ("kind", "canonical"), [(_Older, True), (_Plain, True), (_Mapped, False), (_Float, False)]
)
def test_canonical_bytes(kind: type, canonical: bool) -> None:
    """Equal mappings of another order, and 0.0 and -0.0, have different bytes."""
    assert layout_of(kind).is_canonical is canonical


@pytest.mark.parametrize(("kind", "coder"), CODERS.items())
def test_registry(kind: type, coder: type[VersionedCoder]) -> None:
    """Beam uses our coders for our types; they know their type and survive a pickle."""
    found = registry.get_coder(kind)
    assert type(found) is coder
    assert found == coder()
    assert hash(found) == hash(coder())
    assert found != beam.coders.BytesCoder()
    assert found.to_type_hint() is kind
    assert pickle.loads(pickle.dumps(found)) == found


def test_equal_records_may_differ_in_their_bytes() -> None:
    """Equal records may differ in bytes, so no coder is deterministic or fit for keys."""
    one, other = Record("1", {"a": 1, "b": 2}), Record("1", {"b": 2, "a": 1})
    assert one == other
    assert RecordCoder().encode(one) != RecordCoder().encode(other)
    assert not any(coder().is_deterministic() for coder in CODERS.values())


def test_coders_differ() -> None:
    """Coders are equal only within their class."""
    made = [coder() for coder in CODERS.values()]
    assert len({*made, *(coder() for coder in CODERS.values())}) == len(made)


@pytest.mark.parametrize("value", [value for value, _ in GOLDEN], ids=lambda v: type(v).__name__)
def test_a_shuffle_carries_them_unchanged(value: Any) -> None:
    """Records pass a Reshuffle unchanged, with the type that Beam needs to choose the coder."""
    with pipeline() as root:
        values = root | beam.Create([value, value])
        assert values.element_type is type(value)
        shuffled = values | beam.Reshuffle()
        assert shuffled.element_type is type(value)
        assert_that(shuffled, equal_to([value, value]))


def test_a_shuffle_uses_our_coder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shuffle holds our bytes, not a pickle."""
    decoded = []
    original = RecordCoder.decode

    def spy(coder: RecordCoder, encoded: bytes) -> Any:
        decoded.append(encoded)
        return original(coder, encoded)

    monkeypatch.setattr(RecordCoder, "decode", spy)
    with pipeline() as root:
        _ = root | beam.Create([RECORD]) | beam.Reshuffle()
    assert set(decoded) == {RecordCoder().encode(RECORD)}
