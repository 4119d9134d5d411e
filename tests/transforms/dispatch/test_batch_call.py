"""Clients that answer by the batch: one call, and each record's own failure.

Tests run on virtual time: times are exact.
"""

import pytest

from tests.transforms.dispatch.clients import (
    ManyClient,
    answer,
    collect,
    drain,
    failures,
    make_requests,
    outputs,
)
from tests.transforms.dispatch.virtual_time import Clock
from transforms.dispatch.completion_queue import Inbox
from transforms.dispatch.dispatcher import Dispatcher, DispatchLimits, Failure
from transforms.records.errors import BackendUnusable, Blocked, RateLimited, Unavailable
from transforms.records.records import Completion

pytestmark = pytest.mark.usefixtures("clock")


def test_generate_many() -> None:
    """One call for the batch."""
    client = ManyClient(lambda requests: [Completion(f"{r.body['n']}") for r in requests])
    assert outputs(answer(client, 5)) == ["0", "1", "2", "3", "4"]
    assert (client.batches, client.asked) == ([5], {})


def test_generate_many_that_raises() -> None:
    """Each is tried alone: the one that broke the batch costs itself."""
    client = ManyClient(
        lambda requests: RuntimeError("out of memory"),
        lambda n, _: RuntimeError("poison") if n == 2 else f"alone {n}",
    )
    outcomes = answer(client, 4)
    assert outputs(outcomes) == ["alone 0", "alone 1", None, "alone 3"]
    assert failures(outcomes)[2] == ("RuntimeError", "poison", 1)
    assert (client.batches, client.asked) == ([4], {0: 1, 1: 1, 2: 1, 3: 1})


@pytest.mark.parametrize("returned", [0, 1, 3])
def test_generate_many_of_the_wrong_length(returned: int) -> None:
    """Nobody knows whose answers these are: the run stops rather than mixing records up."""
    client = ManyClient(lambda requests: [Completion("?")] * returned)
    with pytest.raises(BackendUnusable) as raised:
        answer(client, 2)
    assert str(raised.value) == (
        f"ManyClient.generate_many returned {returned} outcomes for 2 requests"
    )
    assert client.asked == {}


def test_generate_many_that_stops_the_run() -> None:
    """`BackendUnusable` is never tried again."""
    client = ManyClient(lambda requests: BackendUnusable("no GPU"))
    with pytest.raises(BackendUnusable, match=r"^no GPU$"):
        answer(client, 2)
    assert client.asked == {}


def test_generate_many_with_failures() -> None:
    """Retryable ones are retried alone, each with an attempt spent; the others are final."""
    replies = [
        Completion("many 0"),
        Unavailable("503"),
        Blocked("no"),
        Unavailable("503"),
        RateLimited("429"),
    ]
    client = ManyClient(
        lambda requests: replies,
        lambda n, before: f"alone {n}" if n != 3 else Unavailable(f"alone {before + 1}"),
        many_seconds=1.0,
    )
    outcomes = answer(client, 5, max_attempts=2)
    assert outputs(outcomes) == ["many 0", "alone 1", None, None, "alone 4"]
    assert failures(outcomes) == [
        None,
        None,
        ("Blocked", "no", 1),
        ("Unavailable", "alone 1", 2),
        None,
    ]
    assert [o.attempts for o in outcomes if isinstance(o, Completion)] == [1, 2, 2]
    assert client.asked == {1: 1, 3: 1, 4: 1}


def test_a_batch_that_shows_that_the_backend_works(clock: Clock) -> None:
    """Others succeed by the batch meanwhile: failures of one that is asked alone are its own."""
    client = ManyClient(
        lambda requests: [Completion("") if r.body["n"] else Unavailable("500") for r in requests],
        lambda n, _: Unavailable("500"),
    )
    shared = Dispatcher(client, DispatchLimits(hold=True, first_backoff_s=2))
    poison, others = Inbox(), Inbox()
    with clock.hold():
        shared.submit(make_requests(1), poison)
        for n in range(1, 100):
            shared.submit(make_requests(1, n), others)
            clock.sleep(1)
        assert client.asked == {0: 5}
        let_in, ended = drain(poison)
    assert let_in is None
    assert ended is not None
    assert isinstance(ended.outcome, Failure)


def test_a_large_batch_is_let_in_at_once(clock: Clock) -> None:
    """What a client works on does not wait."""
    client = ManyClient(lambda requests: [Completion("")] * len(requests), many_seconds=10.0)
    shared = Dispatcher(client, DispatchLimits())
    inbox = Inbox()
    with clock.hold():
        shared.submit(make_requests(2000), inbox)
        clock.sleep(5)
        assert drain(inbox) == [None]


def test_a_batch_waits_while_a_client_works_on_many(clock: Clock) -> None:
    """Above 2,048 requests no further batch is asked for: they are all in memory."""
    client = ManyClient(lambda requests: [Completion("")] * len(requests), many_seconds=10.0)
    shared = Dispatcher(client, DispatchLimits())
    first, second = Inbox(), Inbox()
    with clock.hold():
        shared.submit(make_requests(2048), first)
        clock.sleep(5)
        assert drain(first) == [None]
        shared.submit(make_requests(1, 5000), second)
        clock.sleep(4.9)
        assert drain(second) == []
        clock.sleep(0.2)
        assert drain(second) == [None]
    assert len(collect(first)) == 2048
    assert len(collect(second)) == 1


def test_generate_many_keeps_max_attempts() -> None:
    """The batch was the attempt; congestion is still none."""
    replies = [Unavailable("503"), RateLimited("429")]
    client = ManyClient(lambda requests: replies)
    outcomes = answer(client, 2, max_attempts=1)
    assert failures(outcomes) == [("Unavailable", "503", 1), None]
    assert client.asked == {1: 1}


def test_generate_many_retry_after() -> None:
    """A refusal by the batch is waited out, too."""
    client = ManyClient(lambda requests: [RateLimited("429", retry_after_s=5)])
    (outcome,) = answer(client, 1)
    assert isinstance(outcome, Completion)
    assert (outcome.attempts, outcome.throttled_ms) == (2, 5000)
    assert client.times == [5]


def test_generate_many_of_something_else() -> None:
    """What is neither an answer nor an error costs its record."""
    client = ManyClient(lambda requests: [Completion("a"), None])
    outcomes = answer(client, 2)
    assert failures(outcomes) == [
        None, ("TypeError", "generate_many gave a NoneType for a request", 1)
    ]  # fmt: skip


def test_gauges_of_a_batch(clock: Clock) -> None:
    """What a client works on is in flight, and does not wait."""
    client = ManyClient(lambda requests: [Completion("")] * len(requests), many_seconds=10.0)
    shared = Dispatcher(client, DispatchLimits())
    inbox = Inbox()
    with clock.hold():
        shared.submit(make_requests(7), inbox)
        clock.sleep(5)
        gauges = shared.gauges()
    assert (gauges["in_flight_requests"], gauges["waiting_requests"]) == (7, 0)
    collect(inbox)
    assert shared.gauges()["in_flight_requests"] == 0
