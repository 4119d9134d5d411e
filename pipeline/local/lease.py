"""Messages that a local stream holds, and the leases that keep them from other subscribers."""

import contextlib
import functools
import logging
import os
import queue
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

_log = logging.getLogger(__name__)

MIN_BUNDLE, MAX_BUNDLE = 500, 2000
"""Messages per bundle. The runner's overhead is per bundle and step, and a bundle ends with its
slowest record, so small bundles are slow. Results are written only when their bundle ends, so large
bundles delay them."""
BUNDLE_S = 10.0
"""Target duration of a bundle larger than the minimum."""
_MAX_LEASED = 4 * MAX_BUNDLE
"""Messages held at a time: those of this bundle, of the next one, and of open batches."""
_MAX_LEASED_BYTES = 100 << 20
LEASE_S = 30
"""Each extension of a lease. A dead process's messages are redelivered when it ends. The client
library extends a lease when nine tenths of it are over: with ten seconds a busy process extends
some too late, and their messages are delivered twice."""
_IDLE_WAIT_S = 0.05
_BACK_IN_S = 1


def next_bundle(limit: int, messages: int, seconds: float) -> int:
    """The next bundle's message limit, from how long the last one took; at most twice the last.

    >>> next_bundle(500, messages=500, seconds=2.5), next_bundle(2000, messages=2000, seconds=40.0)
    (1000, 1000)
    """
    if messages < limit:  # nothing more had come
        return limit
    wanted = int(messages * BUNDLE_S / max(seconds, 1e-3))
    return min(max(wanted, limit // 2, MIN_BUNDLE), limit * 2, MAX_BUNDLE)


class MessageLease:
    """A subscription's messages, leased in the background until they are acknowledged.

    Args:
      subscription: ``projects/P/subscriptions/S``.
    """

    def __init__(self, subscription: str) -> None:
        from google.cloud.pubsub_v1.types import FlowControl

        self._subscription = subscription
        self._arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._taken: list[Any] = []
        self._held: list[tuple[list[Any], Mapping[int, object]]] = []
        self._taken_at, self._limit = 0.0, MIN_BUNDLE
        self._client = _subscriber()
        self._stream = self._client.subscribe(
            subscription,
            callback=self._arrived.put,
            flow_control=FlowControl(
                max_messages=_MAX_LEASED,
                max_bytes=_MAX_LEASED_BYTES,
                min_duration_per_lease_extension=LEASE_S,
                max_duration_per_lease_extension=LEASE_S,
            ),
        )

    def take(self, kept: Mapping[int, object] = MappingProxyType({})) -> list[Any]:
        """Acknowledges processed messages; returns arrived ones, waiting briefly for the first.

        Args:
          kept: The oldest elements that steps keep in state, by identity. Messages taken earlier
            stay leased while a step keeps any of the elements that it kept at that time.

        Raises:
          Exception: The stream has ended, for example because the subscription was deleted.
        """
        if self._taken:
            self._held.append((self._taken, kept))
        held, self._held = self._held, []
        for messages, kept_then in held:
            if kept_then.keys() & kept.keys():
                self._held.append((messages, kept_then))
            else:
                for message in messages:
                    message.ack()
        now = time.monotonic()
        self._limit = next_bundle(self._limit, len(self._taken), now - self._taken_at)
        self._taken, self._taken_at = [], now
        if self._stream.done():
            self._stream.result()
        with contextlib.suppress(queue.Empty):
            self._taken.append(self._arrived.get(timeout=_IDLE_WAIT_S))
            while len(self._taken) < self._limit:
                self._taken.append(self._arrived.get_nowait())
        return self._taken

    def close(self, *, processed: bool) -> None:
        """Ends the stream and returns messages that were not taken to the subscription.

        They become available after a second, not immediately: while the service still considers the
        stream open, it might deliver them to it again and hold them until that lease ends.

        Args:
          processed: Acknowledge the messages that were taken; else return them too.
        """
        self._stream.cancel()
        with contextlib.suppress(Exception):  # the reason no longer matters
            self._stream.result()
        self._client.close()
        taken = [message for messages, _ in self._held for message in messages] + self._taken
        back = [] if processed else taken
        with contextlib.suppress(queue.Empty):
            while True:
                back.append(self._arrived.get_nowait())
        with _subscriber() as client:
            if processed:
                self._send(client.acknowledge, taken)
            end = functools.partial(client.modify_ack_deadline, ack_deadline_seconds=_BACK_IN_S)
            self._send(end, back)
        self._taken, self._held = [], []

    def _send(self, call: Callable[..., object], messages: list[Any]) -> None:
        for first in range(0, len(messages), MAX_BUNDLE):
            ack_ids = [message.ack_id for message in messages[first : first + MAX_BUNDLE]]
            try:
                call(subscription=self._subscription, ack_ids=ack_ids)
            except Exception as error:  # redelivered when the lease ends
                _log.warning(
                    "%s: cannot end the lease of %d messages, they may be delivered again: %s",
                    self._subscription,
                    len(ack_ids),
                    error,
                )


def _subscriber() -> Any:
    """A client; with an emulator one without the library's limit of 4 MB per response."""
    from google.cloud import pubsub_v1

    host = os.environ.get("PUBSUB_EMULATOR_HOST")
    if not host:
        return pubsub_v1.SubscriberClient()
    import grpc
    from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

    channel = grpc.insecure_channel(host, options=[("grpc.max_receive_message_length", -1)])
    return pubsub_v1.SubscriberClient(transport=SubscriberGrpcTransport(channel=channel))
