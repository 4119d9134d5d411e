"""Unbounded input without a service, on the local runner that has real-time timers.

`FnApiRunner` has no `TestStream` and fires real-time timers at once, so these tests run on
`BundleBasedDirectRunner`. A `TestStream` has its own clock, which starts at 0 and which no DoFn can
read: `at` sets the clock of our transforms to the time that an element names.

A step collects the outputs in order. `assert_that` groups, and here misses the end.
"""

import contextlib
import datetime as dt
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import apache_beam as beam
from apache_beam.coders import Coder
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.pipeline_context import PipelineContext
from apache_beam.testing.test_stream import TestStream
from apache_beam.transforms.window import GlobalWindow, TimestampedValue
from google.cloud import pubsub

DIRECT_RUNNER = "apache_beam.runners.direct.direct_runner.BundleBasedDirectRunner"
SUBSCRIPTION = "projects/project/subscriptions/subscription"

_now_s = 0.0


def stream_clock() -> float:
    """The time in seconds that the latest element of a `TestStream` named."""
    return _now_s


def at(moment: tuple[float, Any]) -> Any:
    """Sets the clock and passes the element on."""
    global _now_s  # DoFns are pickled for each bundle, modules are not
    _now_s = moment[0]
    return moment[1]


def stream(*events: Any) -> TestStream:
    """Bundles ``(moment, values)`` or ``(moment, values, timestamp)``; an int moves the watermark.

    Processing time moves to each moment before its values, which come in pairs with it: pass them
    to `at`. At the end the watermark goes to infinity, as in a drain, but stops at the global
    window's end first. Timers should hold it back there; on this runner they do not, and without
    the stop their output would be late for the next grouping and dropped.
    """
    made, now = TestStream().advance_watermark_to(0), 0.0
    for event in events:
        if isinstance(event, int):
            made = made.advance_watermark_to(event)
            continue
        moment, values, *timestamp = event
        if moment > now:
            made, now = made.advance_processing_time(moment - now), moment
        made = made.add_elements(
            [TimestampedValue((moment, value), *timestamp or [0]) for value in values]
        )
    return made.advance_watermark_to(GlobalWindow().end).advance_watermark_to_infinity()


_collected: list[Any] = []


def collect(value: Any) -> None:
    """The last step: `collected_from` returns the elements that it gets."""
    _collected.append(value)


def streaming_pipeline() -> beam.Pipeline:
    """A streaming pipeline on the local runner that ignores the command line of the test run."""
    return beam.Pipeline(DIRECT_RUNNER, options=PipelineOptions(["--streaming"]))


def collected_from(build: Callable[[beam.Pipeline], beam.PCollection[Any]]) -> list[Any]:
    """Runs a streaming pipeline that ends; returns its output in order."""
    _collected.clear()
    with streaming_pipeline() as root:
        _ = build(root) | "Collect" >> beam.Map(collect)
    return list(_collected)


@contextlib.contextmanager
def messages_from(pull: Callable[[], Sequence[bytes]]) -> Iterator[beam.PTransform]:
    """A read of messages from a function, one bundle for each call, without a service.

    The runner's own unbounded read runs with a Pub/Sub client in this process.
    """

    def response(**_: Any) -> Any:
        now = dt.datetime.now(dt.timezone.utc)
        message = [
            types.SimpleNamespace(
                data=data, attributes={}, message_id="", publish_time=now, ordering_key=""
            )
            for data in pull()
        ]
        return types.SimpleNamespace(
            received_messages=[types.SimpleNamespace(message=m, ack_id="") for m in message]
        )

    client = mock.Mock(spec_set=["pull", "acknowledge", "close"], pull=response)
    made = mock.Mock(return_value=client, subscription_path=lambda *_: SUBSCRIPTION)
    with mock.patch.object(pubsub, "SubscriberClient", made):
        yield beam.io.ReadFromPubSub(subscription=SUBSCRIPTION)


def described(pipeline: beam.Pipeline, under: str = "") -> list[str]:
    """The parts of a job that its update must find again, below one label."""
    proto = pipeline.to_runner_api()
    context = PipelineContext(proto.components)
    lines = []
    for step in proto.components.transforms.values():
        prefix = f"{under}/" if under else ""
        if not step.unique_name.startswith(prefix) or step.subtransforms or not step.unique_name:
            continue
        name = step.unique_name.removeprefix(prefix)
        for tag, output in sorted(step.outputs.items()):
            coder = context.coders.get_by_id(proto.components.pcollections[output].coder_id)
            lines.append(f"{name} [{tag}] {coder!r}")
        if step.spec.urn == "beam:transform:pardo:v1":
            lines += (f"{name} {kept}" for kept in _kept(step.spec.payload, context))
    return sorted(lines)


def _kept(payload: bytes, context: PipelineContext) -> Iterator[str]:
    pardo = beam.portability.api.beam_runner_api_pb2.ParDoPayload.FromString(payload)
    for name, state in pardo.state_specs.items():
        kind = state.WhichOneof("spec")
        spec = getattr(state, kind)
        coder: Coder = context.coders.get_by_id(
            spec.element_coder_id if kind == "bag_spec" else spec.coder_id
        )
        yield f"state {name} {kind} {coder!r}"
    for name, timer in pardo.timer_family_specs.items():
        yield f"timer {name} {timer.time_domain}"
