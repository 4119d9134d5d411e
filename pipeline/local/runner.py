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

from pipeline.local.lease import Lease
from pipeline.local.steps import LongLivedDoFns, NoReshuffle, kept_elements, tear_down

RUNNER = f"{__name__}.LocalStreamingRunner"


_draining = threading.Event()
_log = logging.getLogger(__name__)


def drain() -> None:
    """Has the local stream of this process, or the next if none runs, end in good order."""
    _draining.set()


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
