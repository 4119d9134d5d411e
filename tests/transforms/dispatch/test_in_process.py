"""Clients that answer batch calls: one call, and each record's own failure.

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
    numbers,
    outputs,
    virtual_now,
)
from tests.transforms.dispatch.virtual_time import Clock
from transforms.dispatch.completion_queue import CompletionQueue
from transforms.dispatch.dispatcher import Dispatcher, DispatchLimits, Failure
from transforms.records.errors import BackendUnusable, Blocked, RateLimited, Unavailable
from transforms.records.records import Completion

pytestmark = pytest.mark.usefixtures("clock")


def test_generate_many() -> None:
    """A batch is one call."""
    client = ManyClient(lambda requests: [Completion(f"{r.body['n']}") for r in requests])
    assert outputs(answer(client, 5)) == ["0", "1", "2", "3", "4"]
    assert (client.batches, client.asked) == ([5], {})


def test_generate_many_that_raises() -> None:
    """A batch that raises is halved until the request that breaks it is alone and fails alone."""
    client = ManyClient(
        lambda requests: (
            RuntimeError("out of memory")
            if 2 in numbers(requests)
            else [Completion(f"many {n}") for n in numbers(requests)]
        ),
        lambda n, _: RuntimeError("poison") if n == 2 else f"alone {n}",
    )
    outcomes = answer(client, 4)
    assert outputs(outcomes) == ["many 0", "many 1", None, "alone 3"]
    assert failures(outcomes)[2] == ("RuntimeError", "poison", 1)
    assert {o.attempts for o in outcomes} == {1}, "a split is no attempt"
    assert (client.batches, client.asked) == ([4, 2, 2], {2: 1, 3: 1})


@pytest.mark.parametrize("returned", [0, 1, 3])
def test_generate_many_of_the_wrong_length(returned: int) -> None:
    """A wrong number of answers stops the run, because they could not be matched to records."""
    client = ManyClient(lambda requests: [Completion("?")] * returned)
    with pytest.raises(BackendUnusable) as raised:
        answer(client, 2)
    assert str(raised.value) == (
        f"ManyClient.generate_many returned {returned} outcomes for 2 requests"
    )
    assert client.asked == {}


def test_generate_many_that_stops_the_run() -> None:
    """`BackendUnusable` is never retried."""
    client = ManyClient(lambda requests: BackendUnusable("no GPU"))
    with pytest.raises(BackendUnusable, match=r"^no GPU$"):
        answer(client, 2)
    assert client.asked == {}


def test_generate_many_with_failures() -> None:
    """Retryable failures in a batch cost an attempt and are retried; others are final."""
    replies = [
        Completion("many 0"),
        Unavailable("503"),
        Blocked("no"),
        Unavailable("503"),
        RateLimited("429", retry_after_s=7),
    ]
    client = ManyClient(
        lambda requests: replies if len(requests) == 5 else [Completion("two"), replies[3]],
        lambda n, before: f"alone {n}",
        many_seconds=1.0,
    )
    outcomes = answer(client, 5, max_attempts=2)
    assert outputs(outcomes) == ["many 0", "two", None, None, "alone 4"]
    assert failures(outcomes) == [
        None,
        None,
        ("Blocked", "no", 1),
        ("Unavailable", "503", 2),
        None,
    ]
    assert [o.attempts for o in outcomes if isinstance(o, Completion)] == [1, 2, 2]
    assert (client.batches, client.calls) == ([5, 2], [(8.0, 4)])


def test_a_batch_that_shows_that_the_backend_works(clock: Clock) -> None:
    """A batch that succeeds shows that the backend works: other failures are the requests' own."""
    client = ManyClient(
        lambda requests: [Completion("")] * len(requests), lambda n, _: Unavailable("500")
    )
    shared = Dispatcher(client, DispatchLimits(hold=True, first_backoff_s=2))
    poison, others = CompletionQueue(), CompletionQueue()
    with clock.hold():
        shared.submit(make_requests(1), poison)
        for n in range(1, 100):
            shared.submit(make_requests(2, 2 * n), others)
            clock.sleep(1)
        assert client.asked == {0: 6}, "the first failure was before any success"
        admitted, ended = drain(poison)
    assert admitted is None
    assert ended is not None
    assert isinstance(ended.outcome, Failure)


def test_a_large_batch_is_admitted_at_once(clock: Clock) -> None:
    """A client's running batch does not count as waiting."""
    client = ManyClient(lambda requests: [Completion("")] * len(requests), many_seconds=10.0)
    shared = Dispatcher(client, DispatchLimits())
    completions = CompletionQueue()
    with clock.hold():
        shared.submit(make_requests(2000), completions)
        clock.sleep(5)
        assert drain(completions) == [None]


def test_a_batch_waits_while_a_client_works_on_many(clock: Clock) -> None:
    """No further batch is admitted above 2,048 requests in a client, since all are in memory."""
    client = ManyClient(lambda requests: [Completion("")] * len(requests), many_seconds=10.0)
    shared = Dispatcher(client, DispatchLimits())
    first, second = CompletionQueue(), CompletionQueue()
    with clock.hold():
        shared.submit(make_requests(2048), first)
        clock.sleep(5)
        assert drain(first) == [None]
        shared.submit(make_requests(2, 5000), second)
        clock.sleep(4.9)
        assert drain(second) == []
        clock.sleep(0.2)
        assert drain(second) == [None]
    assert len(collect(first)) == 2048
    assert len(collect(second)) == 2


def test_generate_many_keeps_max_attempts() -> None:
    """A batch call counts as an attempt, except when it is refused for reasons of load."""
    replies = [Unavailable("503"), RateLimited("429")]
    client = ManyClient(lambda requests: replies)
    outcomes = answer(client, 2, max_attempts=1)
    assert failures(outcomes) == [("Unavailable", "503", 1), None]
    assert client.asked == {1: 1}


def test_generate_many_retry_after() -> None:
    """The Retry-After of a refused batch is kept, although no pace holds such calls back."""
    client = ManyClient(
        lambda requests: [RateLimited("429", retry_after_s=5)] * 2, lambda n, _: "never"
    )
    client.many = lambda requests: (
        [RateLimited("429", retry_after_s=5)] * 2 if virtual_now() < 5 else [Completion("")] * 2
    )
    outcomes = answer(client, 2)
    assert [(o.attempts, o.throttled_ms) for o in outcomes] == [(2, 5000)] * 2
    assert (client.batches, client.calls) == ([2, 2], [])


def test_generate_many_of_something_else() -> None:
    """An item that is neither an answer nor an error fails its record."""
    client = ManyClient(lambda requests: [Completion("a"), None])
    outcomes = answer(client, 2)
    assert failures(outcomes) == [
        None, ("TypeError", "generate_many returned a NoneType for a request", 1)
    ]  # fmt: skip


def test_gauges_of_a_batch(clock: Clock) -> None:
    """Requests in a client's batch are in flight, not waiting."""
    client = ManyClient(lambda requests: [Completion("")] * len(requests), many_seconds=10.0)
    shared = Dispatcher(client, DispatchLimits())
    completions = CompletionQueue()
    with clock.hold():
        shared.submit(make_requests(7), completions)
        clock.sleep(5)
        gauges = shared.gauges()
    assert (gauges["in_flight_requests"], gauges["waiting_requests"]) == (7, 0)
    collect(completions)
    assert shared.gauges()["in_flight_requests"] == 0
