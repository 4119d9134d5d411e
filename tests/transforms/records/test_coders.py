"""Coders: golden bytes, tolerance of older and newer writers, and Beam's use of them."""

import json
import math
import struct
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.coders import registry
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.transforms import JSON_OBJECTS, pipeline
from transforms.records import coders, json_values
from transforms.records.coders import (
    AnswerCoder,
    DeadLetterCoder,
    RecordCoder,
    RequestCoder,
    UnreadableBytes,
)
from transforms.records.errors import ERROR_TYPES
from transforms.records.records import (
    STAGES,
    Answer,
    Completion,
    DeadLetter,
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
    {"generation_config": {"temperature": 0}},
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
            "01670000005b2237222c7b2274657874223a226772c3bcc39f65222c226e223a31383434363734343037"
            "333730393535313631362c2264656570223a5b6e756c6c2c7b2278223a312e357d5d7d2c7b226b223a22"
            "76227d2c2267733a2f2f622f66222c32393030303030305d"
        ),
    ),
    (
        REQUEST,
        (
            "01bc0000005b5b2238222c7b2274657874223a226869227d2c7b7d2c22222c6e756c6c5d2c7b226d6573"
            "7361676573223a5b7b22726f6c65223a2275736572222c22636f6e74656e74223a226869227d5d7d2c7b"
            "2267656e65726174696f6e5f636f6e666967223a7b2274656d7065726174757265223a307d7d2c226162"
            "616261626162616261626162616261626162616261626162616261626162616261626162616261626162"
            "6162616261626162616261626162616261626162222c31325d"
        ),
    ),
    (
        ANSWER,
        (
            "01ad0000005b5b2238222c7b2274657874223a226869227d2c7b7d2c22222c6e756c6c5d2c2261626162"
            "616261626162616261626162616261626162616261626162616261626162616261626162616261626162"
            "616261626162616261626162616261626162222c22796573222c227b5c22615c223a317d222c74727565"
            "2c2253544f50222c5b312c322c332c345d2c226d2d303031222c224f4e5f44454d414e44222c3235302c"
            "322c34302c747275655d000000000000e03f000000000000f4bf"
        ),
    ),
    (
        LETTER,
        (
            "01e70000005b2276616c6964617465222c22736368656d615f76696f6c6174696f6e222c22617420242e"
            "613a206e6f222c747275652c2238222c322c34302c226162616261626162616261626162616261626162"
            "616261626162616261626162616261626162616261626162616261626162616261626162616261626162"
            "6162222c2253544f50222c226e6f7065222c5b312c322c332c345d2c226d2d303031222c226c696e6522"
            "2c747275652c7b226b223a2276227d2c2254726163656261636b222c32393030303030302c7b22746578"
            "74223a226869227d2c224f4e5f44454d414e445f464c4558225d00ff"
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
REQUESTS = st.builds(Request, RECORDS, JSON_OBJECTS, JSON_OBJECTS, st.text(), st.integers(0))
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


def _split(encoded: bytes) -> tuple[int, list[Any], bytes]:
    """The three parts that the module's docstring names, read without its code."""
    version, length = struct.unpack_from("<BI", encoded)
    return version, json.loads(encoded[5 : 5 + length]), encoded[5 + length :]


def _join(values: list[Any], tail: bytes = b"") -> bytes:
    body = json.dumps(values).encode()
    return struct.pack("<BI", 1, len(body)) + body + tail


@pytest.mark.parametrize(("value", "golden"), GOLDEN)
def test_golden_bytes(value: Any, golden: str) -> None:
    """The bytes of version 1, for ever: they stand in the state of jobs that are updated."""
    coder = _coder(value)
    assert coder.encode(value).hex() == golden
    assert coder.decode(bytes.fromhex(golden)) == value


def test_golden_instances_are_full() -> None:
    """No field of a golden instance has its default, so that none is left out unseen."""
    letter = coders.decode_dead_letter(coders.encode_dead_letter(LETTER))
    plain = DeadLetter("read", "internal", "")
    assert [
        name for name in DeadLetter.__slots__ if getattr(letter, name) == getattr(plain, name)
    ] == []
    completion, usage = ANSWER.completion, ANSWER.completion.usage
    assert [
        n for n in Completion.__slots__ if getattr(completion, n) == getattr(Completion(), n)
    ] == []
    assert [n for n in Usage.__slots__ if getattr(usage, n) is None] == []
    assert [n for n in Record.__slots__ if getattr(RECORD, n) == getattr(Record("", {}), n)] == []


@settings(deadline=None)
@given(RECORDS | REQUESTS | ANSWERS | LETTERS)
@example(DeadLetter("read", "internal", "", payload_bytes=b""))
@example(Answer(Record("", {}), "", Completion(embedding=())))
def test_round_trip(value: Any) -> None:
    """Whatever a stage may pass on comes back equal, with equal types."""
    coder = _coder(value)
    encoded = coder.encode(value)
    assert repr(coder.decode(encoded)) == repr(value)
    assert coder.encode(coder.decode(encoded)) == encoded


def test_embedding_keeps_every_bit() -> None:
    """Not a digit is lost, and what JSON cannot write travels too."""
    vector = (0.1, 1e-320, -0.0, math.inf, -math.inf, math.nan)
    decoded = coders.decode_answer(
        coders.encode_answer(Answer(Record("1", {}), "f", Completion(embedding=vector)))
    )
    assert decoded.completion.embedding is not None
    assert struct.pack("<6d", *decoded.completion.embedding) == struct.pack("<6d", *vector)


@pytest.mark.parametrize("text", ["\ud83d", "é\udc00", "\ud83d and 2**70"])
def test_lone_surrogates_never_fail_a_bundle(text: str) -> None:
    """A message or a text that is no UTF-8 arrives escaped."""
    letter = DeadLetter("infer", "internal", text, output=text, stacktrace=text)
    clean = json_values.clean_text(text)
    assert coders.decode_dead_letter(coders.encode_dead_letter(letter)) == DeadLetter(
        "infer", "internal", clean, output=clean, stacktrace=clean
    )


@pytest.mark.parametrize("number", [b"1", b"18446744073709551616"])
def test_the_deepest_record_travels(number: bytes) -> None:
    """What `loads` has read can always be encoded, inside a request, and decoded."""
    deepest = json_values.loads(
        b'{"a":' * json_values.MAX_DEPTH + number + b"}" * json_values.MAX_DEPTH
    )
    request = Request(Record("1", deepest), {"messages": [deepest]}, {}, "f", 1)
    assert coders.decode_request(coders.encode_request(request)) == request


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["7", {"a": 1}], Record("7", {"a": 1})),
        (["7", {}, {"k": "v"}], Record("7", {}, {"k": "v"})),
    ],
)
def test_shorter_record(values: list[Any], expected: Record) -> None:
    """An older writer's record takes the defaults, alone and inside the others."""
    assert coders.decode_record(_join(values)) == expected
    assert coders.decode_request(_join([values, {}, {}, "f", 1])) == Request(
        expected, {}, {}, "f", 1
    )
    shortest = [values, "f", None, None, False, None, []]
    assert coders.decode_answer(_join(shortest)) == Answer(expected, "f", Completion())


@pytest.mark.parametrize("kept", range(7, 13))
def test_shorter_answer(kept: int) -> None:
    """An older writer's answer takes the defaults for the rest."""
    _, values, tail = _split(coders.encode_answer(ANSWER))
    decoded = coders.decode_answer(_join(values[:kept], tail))
    names = ("model_version", "service_tier", "latency_ms", "attempts", "throttled_ms")
    for place, name in enumerate((*names, "from_ledger"), start=7):
        whole = ANSWER.completion if place < kept else Completion()
        assert getattr(decoded.completion, name) == getattr(whole, name)
    assert decoded.completion.embedding == (0.5, -1.25)
    assert decoded.completion.usage == Usage(1, 2, 3, 4)


@pytest.mark.parametrize("kept", range(14, 19))
def test_shorter_dead_letter(kept: int) -> None:
    """An older writer's dead letter takes the defaults for the rest."""
    _, values, tail = _split(coders.encode_dead_letter(LETTER))
    decoded = coders.decode_dead_letter(_join(values[:kept], tail))
    plain = DeadLetter("read", "internal", "")
    for place, name in enumerate(DeadLetter.__slots__):
        assert getattr(decoded, name) == getattr(LETTER if place < kept else plain, name)


def test_shorter_usage() -> None:
    """An older writer counted fewer kinds of tokens."""
    _, values, tail = _split(coders.encode_answer(ANSWER))
    values[6] = [1, 2]
    assert coders.decode_answer(_join(values, tail)).completion.usage == Usage(1, 2)


@pytest.mark.parametrize(("value", "golden"), GOLDEN)
def test_longer_arrays(value: Any, golden: str) -> None:
    """A newer writer's unknown fields are dropped, at the end and in what is nested."""
    _, values, tail = _split(bytes.fromhex(golden))
    coder = _coder(value)
    assert coder.decode(_join([*values, "new", {"x": 1}], tail)) == value
    nested = {Request: [0], Answer: [0, 6], DeadLetter: [10]}.get(type(value), [])
    for place in nested:
        values[place] = [*values[place], "new"]
    assert coder.decode(_join([*values, None], tail)) == value


@pytest.mark.parametrize(("value", "golden"), GOLDEN)
@pytest.mark.parametrize("version", [0, 2, 255])
def test_unknown_version(value: Any, golden: str, version: int) -> None:
    """The message says which version it is, which is known, and what to do."""
    with pytest.raises(
        UnreadableBytes,
        match=rf"^coder version {version} is not known to this release \(it knows 1\); "
        "drain the job instead of updating it$",
    ):
        _coder(value).decode(bytes([version]) + bytes.fromhex(golden)[1:])


@pytest.mark.parametrize(("kind", "coder"), CODERS.items())
def test_registry(kind: type, coder: type[beam.coders.Coder]) -> None:
    """Beam takes our coders for our types; they are deterministic and know their type."""
    found = registry.get_coder(kind)
    assert type(found) is coder
    assert found == coder()
    assert hash(found) == hash(coder())
    assert found != beam.coders.BytesCoder()
    assert found.is_deterministic()
    assert found.to_type_hint() is kind


def test_coders_differ() -> None:
    """Equality goes by kind: no two of them are taken for each other."""
    made = [coder() for coder in CODERS.values()]
    assert len({*made, *(coder() for coder in CODERS.values())}) == len(made)


@pytest.mark.parametrize("value", [value for value, _ in GOLDEN], ids=lambda v: type(v).__name__)
def test_a_shuffle_carries_them_unchanged(value: Any) -> None:
    """Through a Reshuffle, with the type that Beam needs to choose the coder."""
    with pipeline() as root:
        values = root | beam.Create([value, value])
        assert values.element_type is type(value)
        shuffled = values | beam.Reshuffle()
        assert shuffled.element_type is type(value)
        assert_that(shuffled, equal_to([value, value]))


def test_a_shuffle_uses_our_coder(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands on the wire is ours, not a pickle."""
    decoded = []
    original = coders.decode_record

    def spy(encoded: bytes) -> Record:
        decoded.append(encoded)
        return original(encoded)

    monkeypatch.setattr(RecordCoder, "decoder", staticmethod(spy))
    with pipeline() as root:
        _ = root | beam.Create([RECORD]) | beam.Reshuffle()
    assert decoded
    assert set(decoded) == {coders.encode_record(RECORD)}
