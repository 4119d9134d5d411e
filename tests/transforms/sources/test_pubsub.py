"""Each message is one record or one dead letter, and none makes a reader fail."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.io.gcp.pubsub import PubsubMessage
from hypothesis import given
from hypothesis import strategies as st

from tests.emulators.pubsub import PubSubEmulator
from tests.transforms import JSON_OBJECTS, JSON_VALUES, pipeline
from transforms.records import json_values
from transforms.records.coders import layout_of
from transforms.records.errors import ConfigurationError
from transforms.records.records import DeadLetter, Record
from transforms.sources import pubsub as pubsub_source
from transforms.sources.base import IdRule
from transforms.sources.pubsub import PubSubSource, ReadMessages, parse_message

SUBSCRIPTION = "projects/a-project/subscriptions/tickets"
NAMED = IdRule("ticket", required=True)
ATTRIBUTES = st.dictionaries(st.text(), st.text(), max_size=4)
ID_RULES = st.sampled_from([IdRule(), NAMED, IdRule("", required=True)])
MESSAGE_IDS = st.text("0123456789")


def parsed(
    data: bytes,
    attributes: Mapping[str, str] | None = None,
    rule: IdRule = IdRule(),  # noqa: B008 - frozen
    message_id: str = "77",
) -> Record | DeadLetter:
    """The record or dead letter of one message, read in minute 5."""
    return parse_message(data, attributes or {}, message_id, SUBSCRIPTION, rule, 5)


def dead(message: str, **known: Any) -> DeadLetter:
    """A ``parse_error`` of message 77, read in minute 5."""
    message = f"{SUBSCRIPTION}, message 77: {message}"
    return DeadLetter("read", "parse_error", message, record_id="77", read_minute=5, **known)


# Ids


@pytest.mark.parametrize(
    ("data", "attributes", "rule", "record_id"),
    [
        (b'{"id":"a"}', {}, IdRule(), "a"),
        (b'{"id":7}', {}, IdRule(), "7"),
        (b'{"id":"a"}', {"id": "b"}, IdRule(), "a"),
        (b'{"id":null}', {"id": "b"}, IdRule(), "b"),
        (b'{"id":""}', {}, IdRule(), "77"),
        (b"{}", {}, IdRule(), "77"),
        (b'{"id":"a","ticket":[1]}', {}, NAMED, "[1]"),
        (b'{"id":"a"}', {"ticket": "t"}, NAMED, "t"),
    ],
)
def test_the_id(data: bytes, attributes: dict[str, str], rule: IdRule, record_id: str) -> None:
    """The id is the field, as in a backfill, else the attribute, else the message id."""
    fields = json.loads(data)
    assert parsed(data, attributes, rule) == Record(record_id, fields, attributes, SUBSCRIPTION, 5)


def test_a_required_id_is_missing() -> None:
    """Without a required id the message is a dead letter with its fields under the message id."""
    assert parsed(b'{"ticket":""}', {"a": "b"}, NAMED) == DeadLetter(
        "read",
        "missing_field",
        "id field 'ticket' is missing or empty, and no attribute has that name",
        record_id="77",
        attributes={"a": "b"},
        read_minute=5,
        fields={"ticket": ""},
    )


def test_no_id_at_all() -> None:
    """Without any id a record gets its hash, as in a file; a dead letter has none."""
    record, letter = (parsed(data, message_id="") for data in (b'{"a":1}', b"x"))
    assert record.record_id == IdRule().record_id({"a": 1})
    assert letter.record_id is None
    assert isinstance(letter, DeadLetter)
    assert letter.error_message.startswith(f"{SUBSCRIPTION}, message without an id: not JSON: ")


# Messages that are not records


@pytest.mark.parametrize(
    ("data", "letter"),
    [
        (b"", dead("the body is empty", payload="")),
        (b"[1]", dead("a JSON array, not an object", payload="[1]")),
        (b"NaN", dead("a JSON string, not an object", payload="NaN")),
        (b'{"a"\xff', dead("not UTF-8: byte 5 is 0xff", payload_bytes=b'{"a"\xff')),
        (b'{"a":' * 300, dead("not JSON: ", payload='{"a":' * 300)),
        (b"\x00", dead("not JSON: ", payload="\x00")),
    ],
)
def test_malformed(data: bytes, letter: DeadLetter) -> None:
    """A malformed message is a dead letter with the whole body, as text if possible."""
    found = parsed(data)
    assert isinstance(found, DeadLetter)
    assert found.error_message.startswith(letter.error_message)
    assert dataclasses.replace(found, error_message=letter.error_message) == letter


def test_a_malformed_message_keeps_the_id_of_its_attributes() -> None:
    """A malformed message keeps all of its attributes and the id among them."""
    attributes = {"ticket": "t-1", "tenant": "x"}
    letter = parsed(b"{", attributes, NAMED)
    assert (letter.record_id, letter.attributes) == ("t-1", attributes)


def test_nan_is_not_malformed() -> None:
    """NaN is not malformed: it becomes text, as for every source."""
    record = parsed(b'{"a":NaN,"b":[-Infinity],"id":Infinity}')
    assert isinstance(record, Record)
    assert record.fields == {"a": "NaN", "b": ["-Infinity"], "id": "Infinity"}
    assert record.record_id == "Infinity"


def test_an_unexpected_error_is_a_dead_letter_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unexpected error is a dead letter with its stacktrace; the next message is read."""

    def fails(data: bytes) -> Any:
        raise RuntimeError("who knows")

    monkeypatch.setattr(pubsub_source, "json_object", fails)
    letter = parsed(b"{}")
    assert isinstance(letter, DeadLetter)
    assert (letter.error_type, letter.record_id, letter.payload) == ("internal", "77", "{}")
    assert letter.stacktrace is not None
    assert "who knows" in letter.stacktrace


@given(st.binary(), ATTRIBUTES, MESSAGE_IDS, ID_RULES)
def test_any_bytes(data: bytes, attributes: dict[str, str], message_id: str, rule: IdRule) -> None:
    """Any bytes become a dead letter that holds every byte and survives its coder."""
    item = parse_message(data, attributes, message_id, SUBSCRIPTION, rule, 5)
    assert (item.attributes, item.read_minute) == (attributes, 5)
    layout = layout_of(type(item))
    assert layout.decode(layout.encode(item)) == item
    if isinstance(item, Record):
        return
    assert item.error_type in ("parse_error", "missing_field")
    if item.error_type == "parse_error":
        whole = item.payload_bytes if item.payload is None else item.payload.encode()
        assert whole == data
    assert item.record_id == (attributes.get(rule.field) or message_id or None)


@given(JSON_OBJECTS, ATTRIBUTES, MESSAGE_IDS, ID_RULES)
def test_any_object(
    fields: dict[str, Any], attributes: dict[str, str], message_id: str, rule: IdRule
) -> None:
    """Any object becomes a record with its fields and an id, unless a required id is missing."""
    item = parse_message(
        json_values.dumps(fields), attributes, message_id, SUBSCRIPTION, rule, read_minute=5
    )
    assert item.fields == json_values.loads(json_values.dumps(fields))
    has_id = item.fields.get(rule.field) not in (None, "") or attributes.get(rule.field)
    assert isinstance(item, Record) is bool(has_id or not rule.required)
    if isinstance(item, Record):
        assert item.record_id
        assert item.source == SUBSCRIPTION


@given(JSON_VALUES.filter(lambda value: not isinstance(value, dict)))
def test_any_other_json(value: Any) -> None:
    """Any other JSON is a ``parse_error``."""
    letter = parsed(json_values.dumps(value))
    assert isinstance(letter, DeadLetter)
    assert letter.error_type == "parse_error"


# The transform and the source


def test_the_transform_separates_messages() -> None:
    """Records are in one output, dead letters in the other, each with its minute of reading."""
    messages = [
        PubsubMessage(b'{"n":1}', {"a": "b"}, message_id="1"),
        PubsubMessage(b"", {"only": "attributes"}, message_id="2"),
        PubsubMessage(None, {"no": "body"}, message_id="3"),
    ]
    parse = pubsub_source._ParseDoFn(SUBSCRIPTION, IdRule(), lambda: 9)
    found = [
        getattr(item, "value", item) for message in messages for item in parse.process(message)
    ]
    assert [(type(item), item.record_id, item.read_minute) for item in found] == [
        (Record, "1", 9),
        (DeadLetter, "2", 9),
        (DeadLetter, "3", 9),
    ]


def test_the_read_is_unbounded_and_de_duplicates_only_on_request() -> None:
    """The read is unbounded; an id attribute is passed to Dataflow by Beam's read."""
    for attribute in (None, "event_id"):
        built = pipeline("--streaming")
        source = PubSubSource(subscription=SUBSCRIPTION, id_attribute=attribute)
        records, unread = built | "Read" >> source.transform(IdRule())
        assert not records.is_bounded
        assert not unread.is_bounded
        reads: list[Any] = []

        class _Visitor(beam.pipeline.PipelineVisitor):
            def enter_composite_transform(self, node: Any, reads: Any = reads) -> None:
                if isinstance(node.transform, beam.io.ReadFromPubSub):
                    reads.append(node.transform)

        built.visit(_Visitor())
        (read,) = reads
        assert read.with_attributes
        assert read._source.full_subscription == SUBSCRIPTION
        assert read._source.id_label == attribute


@pytest.mark.parametrize(
    "name", ["tickets", "projects/a-project/topics/t", "", "projects/p/subscriptions/tickets"]
)
def test_an_incomplete_name(name: str) -> None:
    """An incomplete name is rejected with the required form."""
    with pytest.raises(ConfigurationError) as refused:
        PubSubSource(subscription=name)
    assert str(refused.value) == (
        f"the subscription is {name!r}, but must be written as projects/PROJECT/subscriptions/NAME"
        ": a project's id has at least 6 characters, NAME at least 3"
    )


def test_a_preview_returns_every_message(
    pubsub: PubSubEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A preview reads as many messages as requested or available, and removes none."""
    monkeypatch.setattr(pubsub_source, "PREVIEW_TIMEOUT_S", 1.0)
    topic = pubsub.new_topic()
    subscription = pubsub.new_subscription(topic, ack_deadline_s=600)
    ids = pubsub.publish(topic, [(b'{"n":1}', {}), (b"bad", {}), (b'{"n":3}', {})])
    source = PubSubSource(subscription=subscription)
    for count in (2, 3, 10):
        seen = [item.record_id for item in source.first(IdRule(), count)]
        assert len(seen) == len(set(seen)) == min(count, 3)
        assert set(seen) <= set(ids)


def test_read_messages_alone() -> None:
    """`ReadMessages` works without `PubSubSource`, with its own clock."""
    read = ReadMessages(subscription=SUBSCRIPTION, minute=lambda: 3)
    assert (read.minute(), read.id_attribute, read.id_rule) == (3, None, IdRule())
