"""Streaming in this process: Beam's bundle-based runner, with a read that can be drained.

Beam's own local read acknowledges messages before they are processed, takes ten at a time, keeps
the only worker waiting up to 30 seconds while nothing comes, and never ends. This one

- leases messages in the background, in the client library's streaming pull, which prolongs leases,
- acknowledges a bundle when every step has done with it and no step keeps any of it,
- waits a twentieth of a second at most while nothing comes, so that timers fire in time, and
- ends when `drain` is called: what was not yet taken is given back, what was taken is finished,
  and then the pipeline ends as a bounded one does. In two steps: at the window's end timers hand
  over what they hold, and everything behind them works; only then there is no more time, and side
  inputs are whole.

Rows in files are there, under their final names, before their messages are acknowledged, and stay when
the stream fails or is killed.

It leans on names of Beam 2.77 that begin with an underscore; a test drives all of them.
"""

import contextlib
import functools
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import apache_beam as beam
from apache_beam.io.gcp.pubsub import PubsubMessage
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.direct import evaluation_context, executor, transform_evaluator
from apache_beam.runners.direct.direct_runner import BundleBasedDirectRunner
from apache_beam.runners.direct.watermark_manager import WatermarkManager
from apache_beam.transforms.window import GlobalWindow, GlobalWindows
from apache_beam.utils.timestamp import Timestamp

from pipeline.local_steps import LongLivedDoFns, NoReshuffle, kept_elements, tear_down

RUNNER = f"{__name__}.LocalStreamingRunner"

MIN_BUNDLE, MAX_BUNDLE = 500, 2000
"""Messages in a bundle. The runner's cost is per bundle and step, and a bundle ends with its slowest
record: few messages make it slow. What a slow model has answered is written when its bundle ends:
many keep results waiting."""

BUNDLE_S = 10.0
"""How long a bundle of more than the least may take."""

_MAX_LEASED = 4 * MAX_BUNDLE
"""Messages at a time: those of a bundle, the next one's, and what waits in open batches."""

_MAX_LEASED_BYTES = 100 << 20
LEASE_S = 30
"""A lease is prolonged by so much at a time: what a process that died held comes again behind it.
The client library prolongs it when nine tenths are over: of ten seconds a busy process misses some,
and what it holds is delivered twice."""

_IDLE_WAIT_S = 0.05
_BACK_IN_S = 1

_draining = threading.Event()
_log = logging.getLogger(__name__)


def drain() -> None:
    """Has the local stream of this process, or the next if none runs, end in good order."""
    _draining.set()


def next_bundle(limit: int, messages: int, seconds: float) -> int:
    """How many messages to take at most, by how the ones before went; no more than twice as many.

    >>> next_bundle(500, messages=500, seconds=2.5), next_bundle(2000, messages=2000, seconds=40.0)
    (1000, 1000)
    """
    if messages < limit:  # nothing more had come
        return limit
    wanted = int(messages * BUNDLE_S / max(seconds, 1e-3))
    return min(max(wanted, limit // 2, MIN_BUNDLE), limit * 2, MAX_BUNDLE)


class Lease:
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
        """Acknowledges what has been done with; returns what has arrived, waiting for a moment.

        Args:
          kept: The oldest elements that steps keep, by identity. What was taken before is held
            until those that were kept then are not any more.

        Raises:
          Exception: What ended the stream, such as a subscription that was deleted.
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
        """Ends the stream and gives back what only arrived.

        Not at once, but in a second: what is given back while the service still takes the stream
        for open may be delivered to it again, and is then held until that lease ends.

        Args:
          processed: Whether what was taken is acknowledged, or given back too.
        """
        self._stream.cancel()
        with contextlib.suppress(Exception):  # why it ended does not matter any more
            self._stream.result()
        self._client.close()
        taken = [message for messages, _ in self._held for message in messages] + self._taken
        back = [] if processed else taken
        with contextlib.suppress(queue.Empty):
            while True:
                back.append(self._arrived.get_nowait())
        with _subscriber() as client:
            if processed:
                self._tell(client.acknowledge, taken)
            end = functools.partial(client.modify_ack_deadline, ack_deadline_seconds=_BACK_IN_S)
            self._tell(end, back)
        self._taken, self._held = [], []

    def _tell(self, call: Callable[..., object], messages: list[Any]) -> None:
        for first in range(0, len(messages), MAX_BUNDLE):
            ack_ids = [message.ack_id for message in messages[first : first + MAX_BUNDLE]]
            try:
                call(subscription=self._subscription, ack_ids=ack_ids)
            except Exception as error:  # they come again when their lease ends
                _log.warning("%s: a lease was not ended: %s", self._subscription, error)


def _subscriber() -> Any:
    """A client; from an emulator the library's own takes no more than 4 MB at a time."""
    from google.cloud import pubsub_v1

    host = os.environ.get("PUBSUB_EMULATOR_HOST")
    if not host:
        return pubsub_v1.SubscriberClient()
    import grpc
    from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

    channel = grpc.insecure_channel(host, options=[("grpc.max_receive_message_length", -1)])
    return pubsub_v1.SubscriberClient(transport=SubscriberGrpcTransport(channel=channel))


class _Stream:
    """What one run of a pipeline has leased, and whether it has failed or is about to end."""

    def __init__(self) -> None:
        self.leases: dict[str, Lease] = {}
        self.steps: dict[Any, Any] = {}
        self.failed = False
        self.ending = False

    def close(self, *, processed: bool) -> None:
        """Closes every lease; see `Lease.close`."""
        while self.leases:
            self.leases.popitem()[1].close(processed=processed)


class _DrainableRead(transform_evaluator._PubSubReadEvaluator):
    """Beam's evaluator of a Pub/Sub read, reading from a `Lease`.

    The runner asks for the next bundle when nothing is left to do of the one before, or when a
    step has failed for good: then nothing is acknowledged any more.
    """

    stream: _Stream

    def finish_bundle(self) -> Any:
        result = transform_evaluator.TransformResult
        stream = self.stream
        root = self._applied_ptransform
        if stream.ending and not stream.failed:
            stream.close(processed=True)
            return result(self, [], [], None, {None: WatermarkManager.WATERMARK_POS_INF})
        again = self._evaluation_context.create_bundle(
            root.inputs[0] if root.inputs else beam.pvalue.PBegin(root.transform.pipeline)
        )
        if _draining.is_set() and not stream.failed:
            stream.ending = True
            return result(self, [], [again], None, {None: GlobalWindow().end})
        bundles = self._bundles_of(self._sub_name)
        return result(self, bundles, [again], None, {None: Timestamp.now()})

    def _bundles_of(self, subscription: str) -> list[Any]:
        if self.stream.failed:
            return []
        lease = self.stream.leases.get(subscription)
        if lease is None:
            lease = self.stream.leases[subscription] = Lease(subscription)
        messages = lease.take(kept_elements(self.stream.steps))
        if not messages:
            return []
        bundle = self._evaluation_context.create_bundle(next(iter(self._outputs)))
        for message in messages:
            element = PubsubMessage._from_message(message)
            moment = Timestamp.from_utc_datetime(message.publish_time)
            bundle.output(
                GlobalWindows.windowed_value(
                    element if self.source.with_attributes else element.data, timestamp=moment
                )
            )
        return [bundle]


class _WholeSideInputs(evaluation_context._SideInputsContainer):
    """Side inputs of the global window wait for the end of all time, not only of the window.

    This runner holds no watermark back for timers: what they emit at the window's end would come
    too late for a side input that is ready then.
    """

    def get_value_or_block_until_ready(
        self, side_input: Any, task: Any, block_until: Timestamp
    ) -> Any:
        if block_until >= GlobalWindow().end:
            block_until = WatermarkManager.WATERMARK_POS_INF
        return super().get_value_or_block_until_ready(side_input, task, block_until)


class _FailureNoted(executor._CompletionCallback):
    """Beam's callback of a bundle, which also notes that one has failed for good."""

    stream: _Stream

    def handle_exception(self, *arguments: Any) -> None:
        self.stream.failed = True
        super().handle_exception(*arguments)


class LocalStreamingRunner(BundleBasedDirectRunner):
    """Runs an unbounded pipeline in this process until `drain` is called, or it fails.

    At least once into files, tables and topics: a message whose bundle has not been processed when
    the process dies is delivered again when its lease ends, and at once when the pipeline fails. One
    thread works; the model's calls of a bundle overlap.
    """

    def run_pipeline(self, pipeline: beam.Pipeline, options: PipelineOptions) -> Any:
        stream = _Stream()
        read = type("_Read", (_DrainableRead,), {"stream": stream})
        callback = type("_Callback", (_FailureNoted,), {"stream": stream})
        steps = type("_Steps", (LongLivedDoFns,), {"steps": stream.steps})
        pipeline.replace_all([NoReshuffle()])
        with (
            _replaced(transform_evaluator, "_ParDoEvaluator", steps),
            _replaced(transform_evaluator, "_PubSubReadEvaluator", read),
            _replaced(executor, "_CompletionCallback", callback),
            _replaced(evaluation_context, "_SideInputsContainer", _WholeSideInputs),
        ):
            result = super().run_pipeline(pipeline, options)
        return _StreamResult(result, stream)


class _StreamResult:
    """Beam's result; when the pipeline has failed, its messages are given back."""

    def __init__(self, result: Any, stream: _Stream) -> None:
        self._result, self._stream = result, stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._result, name)

    def wait_until_finish(self, duration: int | None = None) -> Any:
        """Waits until the stream is drained or has failed."""
        try:
            return self._result.wait_until_finish(duration)
        finally:
            self._end()

    def cancel(self) -> None:
        """Stops at once, between two steps; what was not processed is given back."""
        self._stream.failed = True
        self._result.cancel()
        self._end()

    def _end(self) -> None:
        tear_down(self._stream.steps)
        self._stream.close(processed=False)
        _draining.clear()  # not when it begins: it may be asked to end before


@contextlib.contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    """The runner looks these classes up while it starts a pipeline, and never again."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)
