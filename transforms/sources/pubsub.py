"""Pub/Sub as a source: one record per message, unbounded; unreadable messages are dead letters.

`parse_message` is the pure part. It never raises: a message that made the reader fail would be
delivered and fail again for as long as the subscription keeps it.
"""

import dataclasses
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal

import apache_beam as beam
from apache_beam.io.gcp.pubsub import PubsubMessage, ReadFromPubSub
from apache_beam.pvalue import TaggedOutput

from transforms.records.errors import ConfigurationError, MissingField, ParseError, RecordError
from transforms.records.records import DeadLetter, Json, Record
from transforms.sources.base import IdRule, ReadResult
from transforms.sources.lines import dead_line, json_object

_SUBSCRIPTION = re.compile(
    r"projects/[a-z][-a-z0-9:.]{4,61}[a-z0-9]/subscriptions/[A-Za-z][A-Za-z0-9._~+%-]{2,254}"
)
PREVIEW_TIMEOUT_S = 5.0
"""How long a preview waits for another message."""


def parse_message(
    data: bytes,
    attributes: Mapping[str, str],
    message_id: str,
    source: str,
    id_rule: IdRule,
    read_minute: int,
) -> Record | DeadLetter:
    """The record of one message, or a dead letter that says why there is none; never raises.

    A dead letter holds the whole body, the attributes, and an id: the attribute that the rule
    names, else the message id.

    Args:
      data: The body: a JSON object in UTF-8.
      attributes: The message's attributes; they are kept, but not as fields.
      message_id: The service's id of the message; ``""`` if unknown.
      source: The subscription.
      id_rule: Names a field or, for a record without that field, an attribute.
      read_minute: Minutes since the Unix epoch.
    """
    known: dict[str, Any] = {"attributes": dict(attributes), "read_minute": read_minute}
    position = f"{source}, message {message_id or 'without an id'}"
    fields: dict[str, Json] | None = None
    try:
        if not data:
            raise ParseError("the body is empty")
        fields = json_object(data)
        record_id = _record_id(fields, attributes, message_id, id_rule)
        return Record(record_id, fields, dict(attributes), source, read_minute)
    except MissingField as error:
        letter = DeadLetter.of(error, stage="read", fields=fields)
    except RecordError as error:
        letter = dead_line(type(error)(f"{position}: {error}"), data)
    except Exception as error:  # an unforeseen error is this message's `internal`
        letter = dead_line(error, data)
    known["record_id"] = attributes.get(id_rule.field) or message_id or None
    return dataclasses.replace(letter, **known)


def _record_id(
    fields: dict[str, Json], attributes: Mapping[str, str], message_id: str, id_rule: IdRule
) -> str:
    """The field's value as text, else the attribute's; for the default rule then the message id.

    Raises:
      MissingField: The user named the id field, and the message has no such field or attribute.
    """
    if fields.get(id_rule.field) in (None, ""):
        if attribute := attributes.get(id_rule.field):
            return attribute
        if id_rule.required:
            raise MissingField(
                f"id field {id_rule.field!r} is missing or empty, and no attribute has that name"
            )
        if message_id:
            return message_id
    return id_rule.record_id(fields)


def _minute() -> int:
    return int(time.time() // 60)


class _ParseDoFn(beam.DoFn):
    def __init__(self, source: str, id_rule: IdRule, minute: Callable[[], int]) -> None:
        self._source, self._id_rule, self._minute = source, id_rule, minute

    def process(
        self, message: PubsubMessage
    ) -> Iterator[Record | TaggedOutput[Literal["unread"], DeadLetter]]:
        item = parse_message(
            message.data or b"",
            message.attributes or {},
            message.message_id or "",
            self._source,
            self._id_rule,
            self._minute(),
        )
        yield item if isinstance(item, Record) else TaggedOutput("unread", item)


@dataclasses.dataclass(kw_only=True, eq=False)
class ReadMessages(beam.PTransform):
    """Reads a subscription; unbounded, at least once, in no order.

    A message that is not a JSON object is a dead letter and is acknowledged like any other: it is
    not redelivered. Dataflow acknowledges a message when its output is committed, and then
    redelivers it only in rare cases; with ``id_attribute`` Dataflow drops copies of messages of the
    last ten minutes. Local runners refuse ``id_attribute``.

    Args:
      subscription: ``projects/P/subscriptions/S``.
      id_rule: The field, or else attribute, that holds a record's id; by default also the message
      id.
      id_attribute: The attribute by which Dataflow de-duplicates; None to not de-duplicate.
      minute: Returns the current minute since the Unix epoch.

    Returns:
      ``(records, unread)``: PCollections of `Record` and of `DeadLetter` (stage ``read``), in the
      global window, with the time of publishing as their timestamp.
    """

    subscription: str
    id_rule: IdRule = IdRule()
    id_attribute: str | None = None
    minute: Callable[[], int] = _minute

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, root: beam.Pipeline) -> ReadResult:
        messages = root | "ReadFromPubSub" >> ReadFromPubSub(
            subscription=self.subscription, id_label=self.id_attribute, with_attributes=True
        )
        parsed = messages | "ParseMessages" >> beam.ParDo(
            _ParseDoFn(self.subscription, self.id_rule, self.minute)
        ).with_outputs("unread", main="records")
        return parsed.records, parsed.unread


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PubSubSource:
    """A Pub/Sub subscription: see `ReadMessages`.

    Attributes:
      subscription: ``projects/P/subscriptions/S``.
      id_attribute: The attribute by which Dataflow de-duplicates; None to not de-duplicate.
      bounded: False, because a subscription never ends.
    """

    bounded: ClassVar[bool] = False

    subscription: str
    id_attribute: str | None = None

    def __post_init__(self) -> None:
        if not _SUBSCRIPTION.fullmatch(self.subscription):
            raise ConfigurationError(
                f"the subscription is {self.subscription!r}, but must be written as "
                "projects/PROJECT/subscriptions/NAME: a project's id has at least 6 characters, "
                "NAME at least 3"
            )

    def transform(self, id_rule: IdRule) -> beam.PTransform:
        """The transform that reads the subscription."""
        return ReadMessages(
            subscription=self.subscription, id_rule=id_rule, id_attribute=self.id_attribute
        )

    def first(self, id_rule: IdRule, count: int) -> Iterator[Record | DeadLetter]:
        """Up to ``count`` waiting messages; all return to the subscription and are read again."""
        from google.api_core.exceptions import DeadlineExceeded
        from google.cloud import pubsub_v1

        left = count
        taken: list[str] = []
        with pubsub_v1.SubscriberClient() as client:
            try:
                while left:
                    answer = client.pull(
                        subscription=self.subscription,
                        max_messages=left,
                        timeout=PREVIEW_TIMEOUT_S,
                        retry=None,
                    )
                    if not answer.received_messages:
                        return
                    taken += [received.ack_id for received in answer.received_messages]
                    left -= len(answer.received_messages)
                    for received in answer.received_messages:
                        message = received.message
                        yield parse_message(
                            message.data,
                            dict(message.attributes),
                            message.message_id,
                            self.subscription,
                            id_rule,
                            _minute(),
                        )
            except DeadlineExceeded:
                return
            finally:
                if taken:
                    client.modify_ack_deadline(
                        subscription=self.subscription, ack_ids=taken, ack_deadline_seconds=0
                    )
