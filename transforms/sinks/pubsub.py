"""Dead letters to a Pub/Sub topic: the original payload, with attributes that describe the error.

A message's data is the raw payload (a record as JSON, a raw line, or bytes), so that publishing it
to the input topic again is a retry. Its attributes are those of the original message, overridden by

.. code-block:: text

    error_type  stage  run_id  retryable  error_message      always
    record_id  payload_truncated                             where they apply

`dead_letter_message` is the pure part.
"""

import base64
import dataclasses
import re
from collections.abc import Iterator
from typing import Any, ClassVar

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from transforms.accounting import metrics
from transforms.accounting.sink_report import SinkReport
from transforms.records.errors import ConfigurationError, RunError
from transforms.results.rows import Row, cut_payload
from transforms.sinks.base import EncodedRow, NeverRejected, Written

MAX_MESSAGE_BYTES = 10_000_000
"""Pub/Sub's limit for a message, and for the request that publishes it (Pub/Sub quotas)."""

MAX_ATTRIBUTES = 100
MAX_KEY_BYTES = 256
MAX_VALUE_BYTES = 1024
"""Pub/Sub's limits for attributes; the service counts bytes of UTF-8, its emulator nothing."""

_ENVELOPE_BYTES = 2048
"""Room for the topic's name and for the framing of the message in its request."""

_ATTRIBUTE_BYTES = 16
"""Room for the framing of one attribute."""

_MAX_REQUEST = 1_000
"""Pub/Sub's limit of messages in one request."""

_TOPIC = re.compile(
    r"projects/[a-z][-a-z0-9:.]{4,61}[a-z0-9]/topics/[A-Za-z][A-Za-z0-9._~+%-]{2,254}"
)

Message = tuple[bytes, dict[str, str]]
"""A message's data and attributes."""


def check_topic_name(topic: str) -> str:
    """Returns the name of a topic if it is written in full; calls no service.

    Raises:
      ConfigurationError: It is not.
    """
    if not _TOPIC.fullmatch(topic):
        raise ConfigurationError(
            f"the topic is {topic!r}, but must be written as projects/PROJECT/topics/NAME: a "
            "project's id has at least 6 characters, NAME at least 3"
        )
    return topic


def dead_letter_message(row: Row) -> Message:
    """The message of one dead-letter row, within Pub/Sub's limits whatever the row holds.

    A payload that would make the message too large is cut as in a table's row
    (`transforms.results.rows.cut_payload`: 1 MiB), and the attribute ``payload_truncated`` says so.
    A value is cut at a character's end at 1,024 bytes. Original attributes that cannot be published
    (a reserved name, too long a name, more than fit) are left out; ours never are.
    """
    data = _data(row)
    ours = _attributes(row)
    original = {
        pair["key"]: cut_text(pair["value"], MAX_VALUE_BYTES)
        for pair in row["attributes"]
        if _is_publishable(pair["key"])
    }
    free = MAX_ATTRIBUTES - len(ours) - 1
    attributes = dict(list(original.items())[:free]) | ours
    if message_bytes(data, attributes) > MAX_MESSAGE_BYTES:
        data = _data(cut_payload(row))
        attributes["payload_truncated"] = "true"
    return data, attributes


def message_bytes(data: bytes, attributes: dict[str, str]) -> int:
    """An upper bound of the bytes that publishing a message takes."""
    return (
        _ENVELOPE_BYTES
        + len(data)
        + sum(
            len(key.encode()) + len(value.encode()) + _ATTRIBUTE_BYTES
            for key, value in attributes.items()
        )
    )


def cut_text(text: str, limit: int) -> str:
    """The longest prefix of a text that takes at most ``limit`` bytes of UTF-8.

    >>> cut_text("naïve", 3)
    'na'
    """
    encoded = text.encode("utf-8", "backslashreplace")
    return encoded[:limit].decode("utf-8", "ignore")


def _data(row: Row) -> bytes:
    if row["payload"] is not None:
        return str(row["payload"]).encode("utf-8", "backslashreplace")
    text = row["payload_bytes"]
    return b"" if text is None else base64.b64decode(text)


def _attributes(row: Row) -> dict[str, str]:
    values = {name: row[name] for name in ("error_type", "stage", "run_id", "error_message")}
    values["retryable"] = "true" if row["retryable"] else "false"
    if row["record_id"] is not None:
        values["record_id"] = row["record_id"]
    if row["payload_truncated"]:
        values["payload_truncated"] = "true"
    return {name: cut_text(value, MAX_VALUE_BYTES) for name, value in values.items()}


def _is_publishable(key: Any) -> bool:
    """Pub/Sub rejects names that are empty, too long, not UTF-8, or begin with ``goog``."""
    return bool(key) and not key.lower().startswith("goog") and cut_text(key, MAX_KEY_BYTES) == key


class _PublishDoFn(beam.DoFn):
    """Publishes a bundle's rows; the bundle ends when the service has acknowledged each of them.

    It calls the service's own method, not the client library's
    ``publish(topic, data, **attributes)``, which takes an attribute named ``timeout`` or ``topic``
    for its own argument.
    """

    _published_counter = Metrics.counter(metrics.NAMESPACE, "published_dead_letters")

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._client: Any = None

    def setup(self) -> None:
        from google.pubsub_v1 import PublisherClient

        self._client = PublisherClient()

    def start_bundle(self) -> None:
        self._waiting: list[Message] = []
        self._waiting_bytes = self._published = 0

    def process(self, row: EncodedRow) -> Iterator[SinkReport | NeverRejected]:
        message = dead_letter_message(row.values)
        size = message_bytes(*message)
        if self._waiting_bytes + size > MAX_MESSAGE_BYTES or len(self._waiting) >= _MAX_REQUEST:
            self._publish()
        self._waiting.append(message)
        self._waiting_bytes += size
        return iter(())

    def finish_bundle(self) -> Iterator[WindowedValue]:
        self._publish()
        if not self._published:
            return
        self._published_counter.inc(self._published)
        window = GlobalWindow()
        report = SinkReport("dead_letters", "pubsub", self._topic, self._published)
        yield WindowedValue(report, window.max_timestamp(), [window])

    def teardown(self) -> None:
        if self._client is not None:
            self._client.transport.close()
            self._client = None

    def _publish(self) -> None:
        if not self._waiting:
            return
        messages = [{"data": data, "attributes": attributes} for data, attributes in self._waiting]
        try:
            self._client.publish(request={"topic": self._topic, "messages": messages})
        except Exception as error:  # rejected, or no answer in ten minutes of the client's retries
            raise RunError(
                f"{self._topic}: {len(messages)} dead letters were not published: "
                f"{type(error).__name__}: {error}"
            ) from error
        self._published += len(messages)
        self._waiting, self._waiting_bytes = [], 0


@dataclasses.dataclass(kw_only=True, eq=False)
class PublishDeadLetters(beam.PTransform):
    """Publishes encoded dead-letter rows to a topic; bounded or unbounded, at least once; a `Sink`.

    A bundle ends when the service has acknowledged each of its messages; a bundle that Beam repeats
    publishes again. Order is not kept.

    Args:
      topic: ``projects/P/topics/T``; it exists.

    Returns:
      `Written`: nothing is rejected; one report per bundle that published messages, and one of no
      rows at the beginning. They count messages that the service has acknowledged, those of a
      repeated bundle once.
    """

    topic: str

    can_reject: ClassVar[bool] = False
    whole_payloads: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__init__()
        check_topic_name(self.topic)

    def expand(self, rows: beam.PCollection[EncodedRow]) -> Written:
        published = rows | "Publish" >> beam.ParDo(_PublishDoFn(self.topic)).with_outputs(
            "rejected", main="reports"
        )
        none = SinkReport("dead_letters", "pubsub", self.topic, 0)
        nothing_yet = rows.pipeline | "NothingYet" >> beam.Create([none])
        reports = (published.reports, nothing_yet) | "Reports" >> beam.Flatten()
        return Written(rows, published.rejected, reports)
