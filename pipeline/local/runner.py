"""Streaming in this process: Beam's bundle-based runner, with a Pub/Sub read that can be drained.

Beam's own local read acknowledges messages before they are processed, takes ten at a time, blocks
the only worker for up to 30 seconds on an idle subscription, and never ends. This one

- leases messages in the background by the client library's streaming pull, which extends leases,
- acknowledges a bundle once every step has processed it and no step keeps any of it in state,
- waits at most 50 ms for messages, so that timers fire on time, and
- ends after `drain`: messages not yet taken return to the subscription, those taken are processed,
  and then the pipeline ends like a bounded one. It ends in two steps: at the window's end timers
  emit what they hold, and the steps after them process it; only then does the watermark reach
  infinity, and side inputs are complete.

Rows in files have their final names before their messages are acknowledged, and remain if the
stream fails or is killed.

It relies on private names of Beam 2.77; a test exercises all of them.
"""

import contextlib
import logging
import threading
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.io.gcp.pubsub import PubsubMessage
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.direct import evaluation_context, executor, transform_evaluator
from apache_beam.runners.direct.direct_runner import BundleBasedDirectRunner
from apache_beam.runners.direct.watermark_manager import WatermarkManager
from apache_beam.transforms.window import GlobalWindow, GlobalWindows
from apache_beam.utils.timestamp import Timestamp

from pipeline.local.lease import MessageLease
from pipeline.local.steps import LongLivedDoFns, NoReshuffle, kept_elements, tear_down

RUNNER = f"{__name__}.LocalStreamingRunner"


_draining = threading.Event()
_log = logging.getLogger(__name__)


def drain() -> None:
    """Ends this process's local stream in order; if none runs, the next one when it starts."""
    _draining.set()


class _Stream:
    """The leases of one pipeline run, and whether it has failed or is ending."""

    def __init__(self) -> None:
        self.leases: dict[str, MessageLease] = {}
        self.steps: dict[Any, Any] = {}
        self.failed = False
        self.ending = False

    def close(self, *, processed: bool) -> None:
        """Closes every lease; see `MessageLease.close`."""
        while self.leases:
            self.leases.popitem()[1].close(processed=processed)


class _DrainableRead(transform_evaluator._PubSubReadEvaluator):
    """Beam's evaluator of a Pub/Sub read, reading from a `MessageLease`.

    The runner requests the next bundle when the last one is done, or when a step has failed for
    good: from then on nothing is acknowledged.
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
            lease = self.stream.leases[subscription] = MessageLease(subscription)
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
    """Side inputs of the global window wait for an infinite watermark, not for the window's end.

    This runner does not hold the watermark for timers: their output at the window's end would be
    too late for a side input that is ready by then.
    """

    def get_value_or_block_until_ready(
        self, side_input: Any, task: Any, block_until: Timestamp
    ) -> Any:
        if block_until >= GlobalWindow().end:
            block_until = WatermarkManager.WATERMARK_POS_INF
        return super().get_value_or_block_until_ready(side_input, task, block_until)


class _FailureNoted(executor._CompletionCallback):
    """Beam's bundle callback; also records that a bundle has failed for good."""

    stream: _Stream

    def handle_exception(self, *arguments: Any) -> None:
        self.stream.failed = True
        super().handle_exception(*arguments)


class LocalStreamingRunner(BundleBasedDirectRunner):
    """Runs an unbounded pipeline in this process until `drain` is called, or it fails.

    Delivers at least once into files, tables and topics: a message whose bundle was not finished
    when the process died is redelivered when its lease ends; when the pipeline fails, about a
    second later. One thread runs the steps; the model calls of a bundle overlap.
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
    """Beam's result; if the pipeline fails, its messages return to the subscription."""

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
        """Stops between two steps; unprocessed messages return to the subscription."""
        self._stream.failed = True
        self._result.cancel()
        self._end()

    def _end(self) -> None:
        tear_down(self._stream.steps)
        self._stream.close(processed=False)
        _draining.clear()  # not at the start: a drain may be requested before it


@contextlib.contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    """Replaces a name of a module; the runner looks it up only when it starts a pipeline."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)
