"""The local stream: holds leases until messages are processed, drains, returns them on failure."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pvalue import AsList
from apache_beam.runners.direct import executor, transform_evaluator
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import (
    BagStateSpec,
    ReadModifyWriteStateSpec,
    TimerSpec,
    on_timer,
)

from pipeline.local import runner as local_streaming
from tests.emulators.pubsub import PubSubEmulator

DEADLINE_S = 60.0


def wait_until(condition: Callable[[], bool]) -> None:
    """Returns once the condition holds."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not true within {DEADLINE_S:g} s"
        threading.Event().wait(0.02)


class Stream:
    """A pipeline that reads a subscription on the local streaming runner, in a thread."""

    def __init__(
        self, subscription: str, then: Callable[[beam.PCollection[bytes]], object]
    ) -> None:
        built = beam.Pipeline(local_streaming.RUNNER, options=PipelineOptions(["--streaming"]))
        then(built | beam.io.ReadFromPubSub(subscription=subscription))
        self.failure: BaseException | None = None
        self.state = ""
        self.result: Any = built.run()
        self._thread = threading.Thread(target=self._wait, daemon=True)
        self._thread.start()

    def _wait(self) -> None:
        try:
            self.state = self.result.wait_until_finish()
        except BaseException as error:
            self.failure = error

    def join(self) -> None:
        """Returns when the stream has ended."""
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()


class Seen:
    """Items seen by steps, in the runner's only thread."""

    items: ClassVar[list[Any]] = []


@pytest.fixture(autouse=True)
def _nothing_seen() -> Iterator[None]:
    Seen.items.clear()
    yield
    local_streaming._draining.clear()


def see(item: Any) -> None:
    """The last step of a pipeline."""
    Seen.items.append(item)


def subscribed(pubsub: PubSubEmulator, *bodies: bytes) -> str:
    """A subscription with these messages waiting in it."""
    topic = pubsub.new_topic()
    subscription = pubsub.new_subscription(topic)
    pubsub.publish(topic, [(body, {}) for body in bodies])
    return subscription


def test_a_drained_stream_ends_as_a_bounded_pipeline(pubsub: PubSubEmulator) -> None:
    """A drained stream processes all messages taken, side inputs included; none is redelivered."""
    bodies = [b"%d" % n for n in range(700)]
    subscription = subscribed(pubsub, *bodies)

    def steps(messages: beam.PCollection[bytes]) -> None:
        seen = messages | beam.Reshuffle() | beam.Map(lambda body: see(body) or body)
        once = messages.pipeline | beam.Create([None])
        _ = once | "Whole" >> beam.Map(lambda _, whole: see(len(whole)), AsList(seen))

    stream = Stream(subscription, steps)
    wait_until(lambda: len(Seen.items) == 700)
    local_streaming.drain()
    stream.join()
    assert (stream.failure, stream.state) == (None, "DONE")
    assert Seen.items[700:] == [700]
    assert sorted(Seen.items[:700]) == sorted(bodies)
    assert pubsub.unacknowledged(subscription) == []


def test_an_empty_stream_drains(pubsub: PubSubEmulator) -> None:
    """An empty stream drains with empty side inputs."""

    def steps(messages: beam.PCollection[bytes]) -> None:
        once = messages.pipeline | beam.Create([None])
        _ = once | "Whole" >> beam.Map(lambda _, whole: see(whole), AsList(messages))

    local_streaming.drain()  # before it starts
    stream = Stream(subscribed(pubsub), steps)
    stream.join()
    assert (stream.failure, Seen.items) == (None, [[]])


def test_a_failing_step_returns_its_messages(pubsub: PubSubEmulator) -> None:
    """A failing step returns all of its messages: no unprocessed message is acknowledged."""

    def fail(body: bytes) -> None:
        raise ValueError("unlucky")

    bodies = [b"%d" % n for n in range(20)]
    subscription = subscribed(pubsub, *bodies)
    stream = Stream(subscription, lambda messages: messages | beam.Map(fail))
    stream.join()
    assert isinstance(stream.failure, ValueError)
    back = pubsub.unacknowledged(subscription)
    assert sorted(received.message.data for received in back) == sorted(bodies)


@pytest.mark.parametrize("processed", [False, True])
def test_a_closed_lease_returns_unprocessed_messages(
    pubsub: PubSubEmulator, processed: bool
) -> None:
    """A closed lease acknowledges the processed messages and returns the others."""
    subscription = subscribed(pubsub, b"0")
    lease = local_streaming.MessageLease(subscription)
    wait_until(lambda: bool(lease.take()))
    lease.close(processed=processed)
    back = pubsub.unacknowledged(subscription)
    assert [received.message.data for received in back] == ([] if processed else [b"0"])


def test_nothing_is_taken_or_acknowledged_after_a_failure() -> None:
    """After a failure no message is taken or acknowledged, even if the runner requests more."""

    class Untouchable:
        def take(self) -> list[Any]:
            raise AssertionError("taken after a failure")

    stream = local_streaming._Stream()
    stream.leases["s"] = Untouchable()
    stream.failed = True
    read = object.__new__(type("_Read", (local_streaming._DrainableRead,), {"stream": stream}))
    assert read._bundles_of("s") == []


def test_a_cancelled_stream_returns_unprocessed_messages(pubsub: PubSubEmulator) -> None:
    """A cancelled stream stops between two steps and returns its unprocessed messages."""
    entered, go_on = threading.Event(), threading.Event()
    Seen.items.append((entered, go_on))

    def block(body: bytes) -> None:
        events = Seen.items[0]
        events[0].set()
        assert events[1].wait(DEADLINE_S)

    subscription = subscribed(pubsub, b"only")
    stream = Stream(subscription, lambda messages: messages | beam.Map(block))
    assert entered.wait(DEADLINE_S)
    canceller = threading.Thread(target=stream.result.cancel)
    canceller.start()
    wait_until(lambda: stream.result._stream.failed)
    go_on.set()
    canceller.join(DEADLINE_S)
    back = pubsub.unacknowledged(subscription)
    assert [received.message.data for received in back] == [b"only"]


class _BatchUntilTimer(beam.DoFn):
    BAG = BagStateSpec("bag", beam.coders.BytesCoder())
    TIMER = TimerSpec("timer", TimeDomain.REAL_TIME)

    def __init__(self, wait_s: float = 0.1) -> None:
        self._wait_s = wait_s

    def process(
        self,
        element: tuple[int, bytes],
        bag: Any = beam.DoFn.StateParam(BAG),  # noqa: B008
        timer: Any = beam.DoFn.TimerParam(TIMER),  # noqa: B008
    ) -> None:
        bag.add(element[1])
        timer.set(time.time() + self._wait_s)

    @on_timer(TIMER)
    def flush(self, bag: Any = beam.DoFn.StateParam(BAG)) -> Iterator[list[bytes]]:  # noqa: B008
        yield list(bag.read())
        bag.clear()


def test_timers_fire_while_no_message_arrives(pubsub: PubSubEmulator) -> None:
    """A timer flushes an open batch without waiting for the next message."""
    subscription = subscribed(pubsub, b"a", b"b")

    def steps(messages: beam.PCollection[bytes]) -> None:
        keyed = messages | beam.Map(lambda body: (0, body))
        _ = keyed | beam.ParDo(_BatchUntilTimer()) | "See" >> beam.Map(see)

    stream = Stream(subscription, steps)
    wait_until(lambda: sum(map(len, Seen.items)) == 2)
    local_streaming.drain()
    stream.join()
    assert stream.failure is None


def test_a_message_in_state_is_not_acknowledged(pubsub: PubSubEmulator) -> None:
    """A message in state stays unacknowledged, because a killed process would lose it."""
    topic = pubsub.new_topic()
    subscription = pubsub.new_subscription(topic)

    def steps(messages: beam.PCollection[bytes]) -> None:
        keyed = messages | beam.Map(lambda body: see(body) or (0, body)).with_output_types(
            tuple[int, bytes]
        )
        _ = keyed | beam.ParDo(_BatchUntilTimer(3600))

    stream = Stream(subscription, steps)
    for n, body in enumerate([b"a", b"b", b"c"]):
        pubsub.publish(topic, [(body, {})])
        wait_until(lambda n=n: len(Seen.items) == n + 1)
    stream.result.cancel()
    bodies = {received.message.data for received in pubsub.unacknowledged(subscription)}
    assert bodies == {b"a", b"b", b"c"}


class _CountAndBatch(_BatchUntilTimer):
    COUNT = ReadModifyWriteStateSpec("count", beam.coders.VarIntCoder())

    def process(
        self,
        element: tuple[int, bytes],
        bag: Any = beam.DoFn.StateParam(_BatchUntilTimer.BAG),  # noqa: B008
        timer: Any = beam.DoFn.TimerParam(_BatchUntilTimer.TIMER),  # noqa: B008
        count: Any = beam.DoFn.StateParam(COUNT),  # noqa: B008
    ) -> None:
        super().process(element, bag, timer)
        count.write((count.read() or 0) + 1)


def test_a_message_that_left_state_is_acknowledged(pubsub: PubSubEmulator) -> None:
    """A message that has left state is acknowledged while the stream runs."""
    topic = pubsub.new_topic()
    subscription, mirror = pubsub.new_subscription(topic), pubsub.new_subscription(topic)
    pubsub.publish(topic, [(b"a", {}), (b"b", {})])

    def steps(messages: beam.PCollection[bytes]) -> None:
        keyed = messages | beam.Map(lambda body: (0, body)).with_output_types(tuple[int, bytes])
        _ = keyed | beam.ParDo(_CountAndBatch()) | "See" >> beam.Map(see)

    stream = Stream(subscription, steps)
    wait_until(lambda: sum(map(len, Seen.items)) == 2)
    wait_until(lambda: pubsub.is_acknowledged(subscription, mirror))
    local_streaming.drain()
    stream.join()
    assert stream.failure is None


class _BatchUntilTheEnd(beam.DoFn):
    BAG = BagStateSpec("bag", beam.coders.BytesCoder())
    TIMER = TimerSpec("timer", TimeDomain.WATERMARK)

    def process(
        self,
        element: tuple[int, bytes],
        window: Any = beam.DoFn.WindowParam,
        bag: Any = beam.DoFn.StateParam(BAG),  # noqa: B008
        timer: Any = beam.DoFn.TimerParam(TIMER),  # noqa: B008
    ) -> None:
        bag.add(element[1])
        timer.set(window.end)

    @on_timer(TIMER)
    def flush(self, bag: Any = beam.DoFn.StateParam(BAG)) -> Iterator[list[bytes]]:  # noqa: B008
        yield sorted(bag.read())
        bag.clear()


def test_output_of_a_timer_at_the_end_is_not_lost(pubsub: PubSubEmulator) -> None:
    """Output of a timer at the end passes two stateful steps and is part of the side input."""
    subscription = subscribed(pubsub, b"a", b"b")

    def steps(messages: beam.PCollection[bytes]) -> None:
        seen = messages | "Seen" >> beam.Map(lambda body: see(body) or body).with_output_types(
            bytes
        )
        keyed = seen | beam.WithKeys(0).with_output_types(tuple[int, bytes])
        first = keyed | "First" >> beam.ParDo(_BatchUntilTheEnd()) | beam.Reshuffle()
        again = first | beam.FlatMap(lambda batch: ((1, body) for body in batch)).with_output_types(
            tuple[int, bytes]
        )
        second = again | "Second" >> beam.ParDo(_BatchUntilTheEnd()) | "Keep" >> beam.Reshuffle()
        once = messages.pipeline | beam.Create([None])
        _ = once | "Whole" >> beam.Map(lambda _, whole: see(whole), AsList(second))

    stream = Stream(subscription, steps)
    wait_until(lambda: len(Seen.items) == 2)
    local_streaming.drain()
    stream.join()
    assert stream.failure is None
    assert Seen.items[2:] == [[[b"a", b"b"]]]
    assert pubsub.unacknowledged(subscription) == []


def test_a_missing_subscription_fails_the_stream(pubsub: PubSubEmulator) -> None:
    """A missing subscription fails the stream with the service's own error."""
    subscription = f"{subscribed(pubsub)}-not"
    stream = Stream(subscription, lambda messages: messages | beam.Map(see))
    stream.join()
    assert "NotFound" in type(stream.failure).__name__


def test_beam_is_restored(pubsub: PubSubEmulator) -> None:
    """After a stream, other pipelines in this process use Beam's own evaluators again."""
    before = (transform_evaluator._PubSubReadEvaluator, executor._CompletionCallback)
    local_streaming.drain()
    stream = Stream(subscribed(pubsub), lambda messages: messages | beam.Map(see))
    stream.join()
    assert (transform_evaluator._PubSubReadEvaluator, executor._CompletionCallback) == before
    assert not local_streaming._draining.is_set()
