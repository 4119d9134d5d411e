"""Google's Pub/Sub emulator for tests: real publishing, leases, redelivery and acknowledgement."""

import contextlib
import os
import sys
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import grpc
from google.cloud import pubsub_v1
from google.pubsub_v1 import PublisherClient
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport
from google.pubsub_v1.types import ReceivedMessage

from tests.emulators.environment import REPOSITORY
from tests.emulators.google_cloud import PROJECT
from tests.emulators.processes import ServerProcess
from tests.emulators.pubsub_environment import emulator_jar, java

_REQUEST_BYTES = 9_000_000


@dataclass(frozen=True, slots=True)
class PubSubEmulator:
    """A running emulator; ``running`` starts and ends one.

    Attributes:
        environment: the variables that lead Google's clients to it; no credentials are needed.
        project: the project of all topics and subscriptions.
    """

    environment: Mapping[str, str] = field(repr=False)
    project: str = PROJECT

    @classmethod
    @contextlib.contextmanager
    def running(cls, folder: Path) -> Iterator["PubSubEmulator"]:
        """Starts the emulator, one to two seconds, and kills it when the block ends.

        Args:
            folder: an existing folder for its log.

        Raises:
            EnvironmentUnavailableError: the emulator or Java is unavailable.
            ServerStartError: it did not start; the message ends with its log.
        """
        command = [sys.executable, "-m", "tests.emulators.pubsub_server", str(java())]
        server = ServerProcess(
            "pubsub", [*command, str(emulator_jar())], log=folder / "pubsub.log", folder=REPOSITORY
        )
        with server:
            yield cls(
                {
                    "PUBSUB_EMULATOR_HOST": server.addresses["grpc"],
                    "GOOGLE_CLOUD_PROJECT": PROJECT,
                    "NO_PROXY": "127.0.0.1,localhost",
                    "no_proxy": "127.0.0.1,localhost",
                }
            )

    def subprocess_environment(self, **more: str) -> dict[str, str]:
        """Returns a whole environment for a sub-process that uses this emulator."""
        return dict(os.environ) | dict(self.environment) | more

    @contextlib.contextmanager
    def clients_redirected(self) -> Iterator[None]:
        """Points Pub/Sub clients that are made in this process at the emulator, until the end."""
        with mock.patch.dict(os.environ, self.environment):
            yield

    def new_topic(self) -> str:
        """Creates a topic and returns its unique name, ``projects/…/topics/…``."""
        name = f"projects/{self.project}/topics/test-{uuid.uuid4().hex[:12]}"
        with self.clients_redirected():
            PublisherClient().create_topic(name=name)
        return name

    def new_subscription(self, topic: str, ack_deadline_s: int = 10) -> str:
        """Creates a subscription of a topic and returns its unique name.

        Args:
            topic: the topic's full name.
            ack_deadline_s: seconds until an unacknowledged message is redelivered.
        """
        name = f"projects/{self.project}/subscriptions/test-{uuid.uuid4().hex[:12]}"
        with self.clients_redirected(), pubsub_v1.SubscriberClient() as client:
            client.create_subscription(
                request={"name": name, "topic": topic, "ack_deadline_seconds": ack_deadline_s}
            )
        return name

    def publish(self, topic: str, messages: list[tuple[bytes, dict[str, str]]]) -> list[str]:
        """Publishes messages (data, attributes) in order; returns their ids, in that order."""
        with self.clients_redirected():
            client = PublisherClient()  # not the library's own, which has no attribute "topic"
        ids: list[str] = []
        request: list[dict[str, object]] = []
        size = 0
        for data, attributes in messages:
            if request and (size + len(data) > _REQUEST_BYTES or len(request) >= 100):
                ids += client.publish(topic=topic, messages=request).message_ids
                request, size = [], 0
            request.append({"data": data, "attributes": attributes})
            size += len(data) + 2048
        if request:
            ids += client.publish(topic=topic, messages=request).message_ids
        return ids

    def pull(
        self, subscription: str, *, timeout_s: float = 1.0, acknowledge: bool = True
    ) -> list[ReceivedMessage]:
        """Pulls once; acknowledges the messages, unless ``acknowledge=False``.

        Args:
            subscription: its full name.
            timeout_s: how long to wait for a first message.
            acknowledge: whether to acknowledge; otherwise messages are returned at once (a "nack").
        """
        from google.api_core.exceptions import DeadlineExceeded

        # The client library accepts 4 MB at most from an emulator, and any size from the service.
        unlimited = [("grpc.max_receive_message_length", -1)]
        channel = grpc.insecure_channel(self.environment["PUBSUB_EMULATOR_HOST"], unlimited)
        transport = SubscriberGrpcTransport(channel=channel)
        with self.clients_redirected(), pubsub_v1.SubscriberClient(transport=transport) as client:
            try:
                answer = client.pull(
                    subscription=subscription, max_messages=100, timeout=timeout_s, retry=None
                )
            except DeadlineExceeded:
                return []
            received = list(answer.received_messages)
            ack_ids = [message.ack_id for message in received]
            if ack_ids and acknowledge:
                client.acknowledge(subscription=subscription, ack_ids=ack_ids)
            elif ack_ids:
                client.modify_ack_deadline(
                    subscription=subscription, ack_ids=ack_ids, ack_deadline_seconds=0
                )
            return received

    def unacknowledged(self, subscription: str) -> list[ReceivedMessage]:
        """Pulls up to 100 unacknowledged messages at once, whoever has leased them.

        Seeking a snapshot of the subscription ends all leases; a pull alone would not show leased
        messages. It tries ten times, because a stream closed just now is still served.

        Args:
            subscription: its full name; it must have no reader any more.
        """
        snapshot = f"projects/{self.project}/snapshots/test-{uuid.uuid4().hex[:12]}"
        with self.clients_redirected(), pubsub_v1.SubscriberClient() as client:
            client.create_snapshot(name=snapshot, subscription=subscription)
            for _ in range(10):
                client.seek(request={"subscription": subscription, "snapshot": snapshot})
                if received := self.pull(subscription):
                    return received
        return []

    def is_acknowledged(self, subscription: str, mirror: str) -> bool:
        """Whether all messages are acknowledged at this moment; leases stay as they are.

        Args:
            subscription: its full name; it has a reader.
            mirror: another subscription of the same topic, which has no reader.
        """
        snapshot = f"projects/{self.project}/snapshots/test-{uuid.uuid4().hex[:12]}"
        with self.clients_redirected(), pubsub_v1.SubscriberClient() as client:
            client.create_snapshot(name=snapshot, subscription=subscription)
            client.seek(request={"subscription": mirror, "snapshot": snapshot})
        return self.pull(mirror) == []
