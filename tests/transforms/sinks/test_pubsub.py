"""Dead letters as messages: within Pub/Sub's limits, and counted when acknowledged."""

import base64
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given
from hypothesis import strategies as st

from tests.emulators.pubsub import PubSubEmulator
from tests.transforms import pipeline
from transforms.accounting.sink_report import SinkReport
from transforms.records.errors import ConfigurationError, RunError
from transforms.records.records import DeadLetter
from transforms.results.prices import TokenPrices
from transforms.results.rows import RunInfo, dead_letter_row
from transforms.sinks.base import EncodedRow
from transforms.sinks.pubsub import (
    MAX_ATTRIBUTES,
    MAX_MESSAGE_BYTES,
    MAX_VALUE_BYTES,
    PublishDeadLetters,
    _PublishDoFn,
    cut_text,
    dead_letter_message,
    message_bytes,
)
from transforms.sinks.write import WriteDeadLetters, encode_dead_letter
from transforms.sources.base import IdRule
from transforms.sources.pubsub import parse_message

RUN = RunInfo(run_id="run-1", backend="fake", model="m")
FREE = TokenPrices(None, "m")
OURS = {"error_type": "parse_error", "stage": "read", "run_id": "run-1", "retryable": "false"}


def row_of(**known: Any) -> dict[str, Any]:
    """The dead-letter row of a parse error."""
    letter = DeadLetter("read", "parse_error", known.pop("message", "why"), **known)
    return dead_letter_row(letter, RUN, FREE)


def message_of(**known: Any) -> tuple[bytes, dict[str, str]]:
    """The message of a parse error."""
    return dead_letter_message(row_of(**known))


def test_a_message() -> None:
    """A message has the original payload, the original attributes, and ours over them."""
    known = {"payload": "raw ü", "record_id": "7", "attributes": {"tenant": "x", "stage": "mine"}}
    assert message_of(**known) == (
        "raw ü".encode(),
        {"tenant": "x", "record_id": "7", "error_message": "why", **OURS},
    )


def test_payloads() -> None:
    """A payload is text, bytes, fields as JSON, or empty."""
    assert message_of(payload_bytes=b"\xff\x00")[0] == b"\xff\x00"
    assert message_of(fields={"a": [1]})[0] == b'{"a":[1]}'
    assert message_of() == (b"", {"error_message": "why", **OURS})


def test_retryable() -> None:
    """``retryable`` is text, so that a subscription's filter can use it."""
    letter = DeadLetter("infer", "rate_limited", "429", retryable=True)
    assert dead_letter_message(dead_letter_row(letter, RUN, FREE))[1]["retryable"] == "true"


@pytest.mark.parametrize("kind", ["payload", "payload_bytes"])
def test_a_payload_that_is_too_large_is_cut_as_for_a_table(kind: str) -> None:
    """A payload above 1 MiB is cut and marked, as for a table; one that just fits is whole."""
    for size, kept in ((9_990_000, 9_990_000), (10_000_000, 1 << 20)):
        payload: Any = b"x" * size
        known = {kind: payload if kind == "payload_bytes" else payload.decode()}
        data, attributes = message_of(**known)
        expected = kept if kind == "payload" or kept == size else (kept // 4 * 4) * 3 // 4
        assert len(data) == expected
        assert attributes.get("payload_truncated") == (None if kept == size else "true")
        assert message_bytes(data, attributes) <= MAX_MESSAGE_BYTES


def test_attribute_limits() -> None:
    """Long attributes are cut, invalid ones are left out, and ours stay."""
    original = {f"k{n}": "é" * 600 for n in range(120)}
    original |= {"googclient_schema": "x", "n" * 257: "x", "": "x", "record_id": "theirs"}
    _, attributes = message_of(attributes=original, record_id="r" * 2000, message="m" * 2000)
    assert len(attributes) < MAX_ATTRIBUTES
    assert attributes["k0"] == "é" * 512
    assert attributes["record_id"] == "r" * MAX_VALUE_BYTES
    assert attributes["error_message"] == "m" * MAX_VALUE_BYTES
    assert not {"googclient_schema", "n" * 257, ""} & set(attributes)
    assert set(OURS.items()) <= set(attributes.items())


def test_cut_text() -> None:
    """Text is cut at the end of a character."""
    assert cut_text("aé", 2) == "a"
    assert cut_text("aé", 3) == "aé"


@given(
    st.binary(max_size=200),
    st.dictionaries(st.text(), st.text(), max_size=6),
    st.text(max_size=50),
)
def test_any_malformed_message_comes_out_as_it_went_in(
    data: bytes, attributes: dict[str, str], message: str
) -> None:
    """A dead letter published to the input again is a retry with the same bytes."""
    letter = parse_message(b"\xff" + data, attributes, "7", "s", IdRule(), 0)
    assert isinstance(letter, DeadLetter)
    out, given_attributes = dead_letter_message(dead_letter_row(letter, RUN, FREE))
    assert out == b"\xff" + data
    assert message_bytes(out, given_attributes) <= MAX_MESSAGE_BYTES
    for key, value in given_attributes.items():
        assert 0 < len(key.encode()) <= 256
        assert len(value.encode()) <= MAX_VALUE_BYTES


def test_the_topic_is_written_in_full() -> None:
    """A topic without its project is rejected when the pipeline is built."""
    with pytest.raises(ConfigurationError, match=r"the topic is 'dead', but must be written as "):
        PublishDeadLetters(topic="dead")


# On the emulator


def taken(pubsub: PubSubEmulator, subscription: str, count: int) -> list[tuple[bytes, Any]]:
    """The next messages of a subscription, exactly this many."""
    found: list[tuple[bytes, Any]] = []
    while len(found) < count:
        received = pubsub.pull(subscription, timeout_s=30)
        assert received, f"{len(found)} of {count} messages came"
        found += [(m.message.data, dict(m.message.attributes)) for m in received]
    assert pubsub.pull(subscription) == []
    return found


def test_a_batch_pipeline_publishes_each_dead_letter(pubsub: PubSubEmulator) -> None:
    """Each dead letter is one message; the report counts acknowledged messages."""
    topic = pubsub.new_topic()
    subscription = pubsub.new_subscription(topic)
    letters = [
        DeadLetter("read", "parse_error", "why", record_id=str(n), payload=f"{n}" * 5)
        for n in range(1200)
    ]
    letters += [
        DeadLetter("read", "parse_error", "why", record_id=f"huge {n}", payload="x" * 600_000)
        for n in range(20)
    ]
    letters.append(DeadLetter("read", "parse_error", "why", attributes={"timeout": "no number"}))
    letters.append(DeadLetter("read", "parse_error", "why", attributes={"topic": "t", "data": "d"}))
    with pipeline() as p:
        sink = PublishDeadLetters(topic=topic)
        reports, _ = (
            p
            | beam.Create(letters)
            | WriteDeadLetters(run=RUN, price=FREE, sinks=[("Publish", sink)])
        )
        assert_that(
            reports | beam.Map(lambda report: report.rows) | beam.CombineGlobally(sum),
            equal_to([1222]),
        )
    found = taken(pubsub, subscription, 1222)
    ids = sorted(attributes.get("record_id", "") for _, attributes in found)
    assert ids == sorted([letter.record_id or "" for letter in letters])
    (timed,) = [attributes for _, attributes in found if "timeout" in attributes]
    assert timed == {"timeout": "no number", "error_message": "why", **OURS}
    assert {len(data) for data, a in found if "huge" in a.get("record_id", "")} == {600_000}


def test_a_payload_at_the_limit_is_published(pubsub: PubSubEmulator) -> None:
    """A payload just below the cut fits into a publish request."""
    topic = pubsub.new_topic()
    pubsub.new_subscription(topic)
    row = row_of(payload="x" * 9_990_000, attributes={f"k{n}": "v" * 1024 for n in range(4)})
    publish = _PublishDoFn(topic)
    publish.setup()
    publish.start_bundle()
    publish.process(encode_dead_letter(row))
    (published,) = publish.finish_bundle()
    publish.teardown()
    assert published.value == SinkReport("dead_letters", "pubsub", topic, 1)


def test_nothing_to_publish(pubsub: PubSubEmulator) -> None:
    """A run without dead letters reports none."""
    topic = pubsub.new_topic()
    with pipeline() as p:
        none = p | beam.Create([]).with_output_types(EncodedRow)
        written = none | PublishDeadLetters(topic=topic)
        held = [SinkReport("dead_letters", "pubsub", topic, 0)]
        assert_that(written.reports, equal_to(held), "Reports")
        assert_that(written.rejected, equal_to([]), "Rejected")


def test_a_topic_that_is_gone_fails_the_run(pubsub: PubSubEmulator) -> None:
    """A missing topic fails the run with its name and the number of unpublished dead letters."""
    topic = f"{pubsub.new_topic()}-not"
    publish = _PublishDoFn(topic)
    publish.setup()
    publish.start_bundle()
    publish.process(encode_dead_letter(row_of(payload="x")))
    with pytest.raises(RunError, match="-not: 1 dead letters were not published: NotFound: "):
        list(publish.finish_bundle())
    publish.teardown()


def test_payload_bytes_are_base64_in_a_row() -> None:
    """`dead_letter_message` decodes the base64 payload of a row."""
    assert base64.b64decode(row_of(payload_bytes=b"\xff")["payload_bytes"]) == b"\xff"
