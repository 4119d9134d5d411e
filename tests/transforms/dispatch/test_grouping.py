"""Calls of several requests to a server: a permit and a timeout per call, an outcome per request.

Tests run on virtual time: times are exact.
"""

import asyncio
import concurrent.futures
import dataclasses
import math
import threading
import weakref
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.transforms.dispatch.clients import (
    HANG,
    RemoteClient,
    answer,
    collect,
    completions,
    drain,
    failures,
    make_requests,
    outputs,
    virtual_now,
)
from tests.transforms.dispatch.virtual_time import Clock
from transforms.backends.base import CallLimits
from transforms.dispatch import interrupt, loop
from transforms.dispatch.completion_queue import CompletionQueue
from transforms.dispatch.dispatcher import Dispatcher, DispatchLimits
from transforms.records.causes import Cause
from transforms.records.errors import (
    BackendUnusable,
    Blocked,
    Forbidden,
    Interrupted,
    InvalidRequest,
    RateLimited,
    RecordError,
    Unavailable,
)
from transforms.records.records import Completion

pytestmark = pytest.mark.usefixtures("clock")


# The content of a call


def test_as_many_as_fit() -> None:
    """Requests travel together up to the limit; each has its outcome, in order."""
    client = RemoteClient(completions, max_requests=100)
    outcomes = answer(client, 250)
    assert outputs(outcomes) == [f"{n}" for n in range(250)]
    assert client.sizes == [100, 100, 50]
    assert {(o.attempts, o.latency_ms) for o in outcomes if isinstance(o, Completion)} == {
        (1, 1000)
    }


@pytest.mark.parametrize(
    "limits",
    [{"max_tokens": 10}, {"max_bytes": 10 * len(b'{"n":0}')}, {"max_requests": 10}],
)
def test_each_limit(limits: dict[str, Any]) -> None:
    """A call ends at the first limit it reaches: requests, estimated tokens, or bytes."""
    client = RemoteClient(completions, lambda n, _: f"{n}", **limits)
    assert outputs(answer(client, 10)) == [f"{n}" for n in range(10)]
    assert client.sizes == [10]
    client.sets.clear()
    assert outputs(answer(client, 25)) == [f"{n}" for n in range(25)]
    assert client.sizes[:2] == [10, 10] if "max_bytes" not in limits else client.sizes[0] == 10


def test_a_call_of_one_is_a_plain_call() -> None:
    """A call of one request is sent without a wrapper."""
    client = RemoteClient(lambda _: pytest.fail("not asked"))
    assert outputs(answer(client, 1)) == ["alone 0"]


def test_bundles_share_a_call(clock: Clock) -> None:
    """Requests of all threads share a call, once none has come for a tenth of a second."""
    client = RemoteClient(completions, max_requests=100)
    shared = Dispatcher(client, DispatchLimits())
    first, second = CompletionQueue(), CompletionQueue()

    def submit() -> None:  # on the loop, so that both arrive at the same moment
        shared.submit(make_requests(3), first, "first")
        shared.submit(make_requests(2, 10), second, "second")

    with clock.hold():
        loop.call(submit)
        clock.sleep(0.5)
        shared.submit(make_requests(2, 20), second, "third")
        clock.sleep(0.2)
        assert client.sets == [(0.1, [0, 1, 2, 10, 11]), (0.6, [20, 21])]
    assert [e.batch for e in collect(first)] == ["first"] * 3
    assert [e.batch for e in collect(second)] == ["second"] * 2 + ["third"] * 2


def test_requests_that_wait_for_a_permit_are_grouped() -> None:
    """A call takes one permit, however many requests it carries."""
    client = RemoteClient(completions, max_requests=4)
    assert outputs(answer(client, 20, max_concurrency=2)) == [f"{n}" for n in range(20)]
    assert [at for at, _ in client.sets] == [0, 0, 1, 1, 2]
    assert client.sizes == [4] * 5


def test_requests_of_threads_that_are_gone_are_left_out(clock: Clock) -> None:
    """Requests of abandoned queues are left out of calls."""
    client = RemoteClient(completions, max_requests=4)
    shared = Dispatcher(client, DispatchLimits(max_concurrency=1))
    gone, stays = CompletionQueue(), CompletionQueue()
    with clock.hold():
        shared.submit(make_requests(4), stays)
        clock.sleep(0.5)
        shared.submit(make_requests(3, 10), gone)
        shared.submit(make_requests(3, 20), stays)
        gone.abandoned = True
    assert len(collect(stays)) == 7
    assert client.sets == [(0, [0, 1, 2, 3]), (1, [20, 21, 22])]


def test_gauges(clock: Clock) -> None:
    """Gauges count requests in flight and waiting, and calls where calls are limited."""
    shared = Dispatcher(
        RemoteClient(completions, max_requests=4), DispatchLimits(max_concurrency=2)
    )
    queue = CompletionQueue()
    with clock.hold():
        shared.submit(make_requests(20), queue)
        clock.sleep(0.5)
        gauges = shared.gauges()
    assert (gauges["in_flight_requests"], gauges["waiting_requests"]) == (8, 12)
    assert (gauges["in_flight_calls"], gauges["concurrency_limit"]) == (2, 2)
    collect(queue)


# Quotas, timeouts and refusals are the call's


def test_a_quota_of_requests_counts_calls() -> None:
    """A quota of 60 requests a minute permits one call a second, after a burst of one."""
    client = RemoteClient(completions, max_requests=10, seconds=0.1)
    answer(client, 50, requests_per_minute=60)
    assert client.sizes == [10] * 5
    assert [round(at) for at, _ in client.sets] == [0, 0, 1, 2, 3]


def test_a_call_waits_while_requests_keep_coming(clock: Clock) -> None:
    """A call is sent when full, after a pause of a tenth of a second, or after a second at most."""
    client = RemoteClient(completions, max_requests=100, seconds=0.0)
    shared = Dispatcher(client, DispatchLimits())
    queue = CompletionQueue()
    with clock.hold():
        for number in range(0, 60, 2):  # for 1.5 s
            shared.submit(make_requests(2, number), queue)
            clock.sleep(0.05)
        clock.sleep(1.0)
        shared.submit(make_requests(100, 60), queue)
        clock.sleep(0.0)
    assert [(pytest.approx(at), len(asked)) for at, asked in client.sets] == [
        (1.0, 42),
        (1.55, 18),
        (2.5, 100),
    ]
    assert [e.request.record.record_id for e in collect(queue)] == [str(n) for n in range(160)]


def test_a_call_that_is_full_by_tokens_does_not_wait(clock: Clock) -> None:
    """Whichever limit fills it, it goes as soon as the last text that fits has come."""
    client = RemoteClient(completions, seconds=0.0, max_requests=250, max_tokens=3)
    shared, queue = Dispatcher(client, DispatchLimits()), CompletionQueue()
    with clock.hold():
        for n in range(8):
            shared.submit(make_requests(1, n), queue)
            clock.sleep(0.05)
        clock.sleep(0.1)
    assert client.sets == [(0.1, [0, 1, 2]), (0.25, [3, 4, 5]), (0.45, [6, 7])]
    assert len(collect(queue)) == 8


def test_a_body_of_its_own_shares_no_call() -> None:
    """A whole request may differ in its parameters, so it is sent alone and at once."""
    client = RemoteClient(completions, max_requests=100, seconds=0.0)
    requests = make_requests(4)
    requests[2:] = [
        dataclasses.replace(request, body={"request": {}, **request.body})
        for request in requests[2:]
    ]
    shared = Dispatcher(client, DispatchLimits())
    assert outputs(shared.answer(requests)) == ["0", "1", "alone 2", "alone 3"]
    assert client.sets == [(0.1, [0, 1]), (0.1, [2]), (0.1, [3])]


def test_a_client_may_learn_that_its_server_takes_less() -> None:
    """Each call keeps the limits that the client has at that moment."""
    client = RemoteClient(completions, max_requests=4, seconds=1.0)

    def learning(asked: list[int]) -> Any:
        client.call_limits = CallLimits(max_requests=2)
        return completions(asked)

    client.many = learning
    assert len(answer(client, 10, max_concurrency=1)) == 10
    assert [len(asked) for _, asked in client.sets] == [4, 2, 2, 2]


def test_a_quota_of_tokens_counts_all_requests() -> None:
    """A quota of tokens counts all requests: ten with a hundred tokens make one call a second."""
    client = RemoteClient(completions, max_requests=10, seconds=0.1)
    answer(client, 400, tokens_per_minute=6000)
    late = [at for at, _ in client.sets[20:]]
    assert late[-1] - late[0] == pytest.approx(19, abs=1)


def test_a_timeout_is_the_calls() -> None:
    """A timeout cancels the whole call and costs each request an attempt; the retry is shared."""
    client = RemoteClient(lambda asked: HANG if virtual_now() < 5 else completions(asked))
    outcomes = answer(client, 3, request_timeout_s=5, first_backoff_s=2)
    assert client.sets == [(0.1, [0, 1, 2]), (7.1, [0, 1, 2])]
    assert [o.attempts for o in outcomes] == [2] * 3


def test_a_refusal_is_the_calls() -> None:
    """A refused call is retried whole after its Retry-After, at the cost of no attempt."""
    client = RemoteClient(
        lambda asked: (
            RateLimited("429", retry_after_s=30) if virtual_now() < 90 else completions(asked)
        ),
        max_requests=3,
        seconds=0.0,
    )
    outcomes = answer(client, 3, max_attempts=1)
    assert client.sets == [(30.0 * n, [0, 1, 2]) for n in range(4)]
    assert [(o.attempts, o.throttled_ms) for o in outcomes] == [(4, 90_000)] * 3


def test_an_outage_costs_no_record() -> None:
    """Calls that fail for a minute are retried, hardly any of them in smaller calls."""

    def reply(asked: list[int]) -> Any:
        return Unavailable("500") if 5 <= virtual_now() < 65 else completions(asked)

    client = RemoteClient(reply, max_requests=10)
    outcomes = answer(client, 2000, max_concurrency=8)
    assert outputs(outcomes) == [f"{n}" for n in range(2000)]
    assert client.sizes.count(10) > 0.95 * len(client.sizes)
    assert len([at for at, _ in client.sets if 5 <= at < 65]) < 40


# One bad record fails alone


def refusing(poison: set[int], error: Exception) -> RemoteClient:
    """A server that refuses any call with one of these, however many others it carries."""
    return RemoteClient(
        lambda asked: error if poison & set(asked) else completions(asked),
        lambda n, _: error if n in poison else f"{n}",
    )


@pytest.mark.parametrize(
    "error", [InvalidRequest("400"), Blocked("no"), ZeroDivisionError("a bug")]
)
def test_a_call_that_is_refused_is_split(error: Exception) -> None:
    """A refused call is split until the poison is alone; this costs others no attempt."""
    client = refusing({5}, error)
    outcomes = answer(client, 8)
    assert failures(outcomes)[5] == (type(error).__name__, str(error), 1)
    assert outputs(outcomes) == ["0", "1", "2", "3", "4", None, "6", "7"]
    assert {o.attempts for o in outcomes} == {1}
    assert [asked for _, asked in client.sets] == [
        [0, 1, 2, 3, 4, 5, 6, 7],
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [4, 5],
        [6, 7],
        [4],
        [5],
    ]


@settings(
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.integers(1, 200), st.sets(st.integers(0, 199), max_size=4))
def test_exactly_the_poison_fails(count: int, positions: set[int]) -> None:
    """Exactly the poison fails, in few calls, however many requests surround it."""
    poison = {position % count for position in positions}
    client = refusing(poison, InvalidRequest("400"))
    outcomes = answer(client, count, max_dead_letter_ratio=1.0)
    assert {n for n, failure in enumerate(failures(outcomes)) if failure} == poison
    assert {o.attempts for o in outcomes} == {1}
    levels = math.ceil(math.log2(count)) if count > 1 else 0
    assert len(client.sets) <= 1 + 2 * len(poison) * levels


@pytest.mark.parametrize("most", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [2, 3, 64, 100])
@pytest.mark.parametrize("others", [False, True])
@pytest.mark.parametrize("make", [lambda: Unavailable("500"), lambda: HANG])
def test_poison_that_breaks_the_server(most: int, count: int, others: bool, make: Any) -> None:
    """Requests that failed in one call with poison are sent in smaller calls and answered."""
    poison = {count // 2}
    client = RemoteClient(
        lambda asked: make() if poison & set(asked) else completions(asked),
        lambda n, _: make() if n in poison else f"{n}",
        max_requests=count,
    )
    limits = {"max_attempts": most, "max_concurrency": 4, "request_timeout_s": 5}
    outcomes = answer(client, count * (1 + 20 * others), **limits)
    assert {n for n, failure in enumerate(failures(outcomes)) if failure} == poison
    assert outcomes[count // 2].attempts >= min(most, 2)


def test_calls_of_poison_get_smaller() -> None:
    """A failed call is retried whole, then in quarters, and finally one request at a time."""
    client = RemoteClient(
        lambda asked: Unavailable("500") if 5 in asked else completions(asked),
        lambda n, _: Unavailable("500"),
        max_requests=64,
        seconds=0.0,
    )
    outcomes = answer(client, 64, max_attempts=5)
    assert failures(outcomes)[5] == ("Unavailable", "500", 5)
    assert [len(asked) for _, asked in client.sets if 5 in asked] == [64, 64, 16, 4, 1]
    assert len(client.sets) == 1 + 1 + 4 + 4 + 4


def test_poison_in_a_stream_without_other_traffic(clock: Clock) -> None:
    """Smaller calls answer the neighbours of poison, and so show that it fails alone."""
    client = RemoteClient(
        lambda asked: Unavailable("500") if 5 in asked else completions(asked),
        lambda n, _: Unavailable("500") if n == 5 else f"{n}",
    )
    shared = Dispatcher(client, DispatchLimits(hold=True))
    queue = CompletionQueue()
    with clock.hold():
        shared.submit(make_requests(50), queue)
        clock.sleep(300)
        ended = [item for item in drain(queue) if item is not None]
    assert {item.index: failures([item.outcome])[0] for item in ended} == {
        n: ("Unavailable", "500", client.asked[5] + 4) if n == 5 else None for n in range(50)
    }


def test_isolated_poison_stays_alone() -> None:
    """Poison that waits for its next attempt shares its call with no other request."""
    client = RemoteClient(
        lambda asked: Unavailable("500") if 5 in asked else completions(asked),
        lambda n, _: Unavailable("500") if n == 5 else f"{n}",
        max_requests=8,
        seconds=0.5,
    )
    outcomes = answer(client, 400, max_attempts=3, max_concurrency=1)
    assert [n for n, failure in enumerate(failures(outcomes)) if failure] == [5]
    assert [len(asked) for _, asked in client.sets if 5 in asked] == [8, 8, 1]


def test_failures_of_single_requests() -> None:
    """A successful call may fail single requests: retryable ones are retried, others are final."""
    replies = {0: "a", 1: Blocked("no"), 2: Unavailable("500")}

    def many(asked: list[int]) -> Any:
        known = [replies[n] for n in asked]
        return [Completion(each) if isinstance(each, str) else each for each in known]

    client = RemoteClient(many, lambda n, _: "late", seconds=0.0)
    outcomes = answer(client, 3, first_backoff_s=3)
    assert outputs(outcomes) == ["a", None, "late"]
    assert failures(outcomes)[1] == ("Blocked", "no", 1)
    assert client.sets == [(0.1, [0, 1, 2]), (3.1, [2])]


def test_failures_come_back_together() -> None:
    """Requests that failed singly in one call wait equally long and share the next call."""
    client = RemoteClient(
        lambda asked: (
            [Unavailable("500")] * len(asked) if virtual_now() < 1 else completions(asked)
        ),
        seconds=0.0,
    )
    assert outputs(answer(client, 5)) == [f"{n}" for n in range(5)]
    assert client.sets == [(0.1, [0, 1, 2, 3, 4]), (1.1, [0, 1, 2, 3, 4])]


@pytest.mark.parametrize("returned", [0, 1, 3])
def test_another_number_of_outcomes(returned: int) -> None:
    """A wrong number of outcomes stops the run, because answers could not be matched to records."""
    client = RemoteClient(lambda _: completions(range(returned)))
    with pytest.raises(BackendUnusable) as raised:
        answer(client, 2)
    assert str(raised.value) == (
        f"RemoteClient.generate_many returned {returned} outcomes for 2 requests"
    )


# The run


@pytest.mark.parametrize(
    "make",
    [
        lambda: Forbidden("403", cause=Cause.CREDENTIALS),
        lambda: InvalidRequest("404", cause=Cause.NOT_SERVED),
        lambda: Unavailable("refused", cause=Cause.CONNECTION_REFUSED),
    ],
)
def test_an_error_of_every_record_ends_the_run(make: Any) -> None:
    """An error that every record would share ends the run at its start, after few calls."""
    client = RemoteClient(lambda _: make(), lambda n, _: make(), max_requests=100, seconds=0.1)
    with pytest.raises(BackendUnusable, match=f"^{make()}$"):
        answer(client, 100)
    assert len(client.sets) <= 5


@pytest.mark.parametrize("cause", [Cause.LOST_BEFORE_ANSWER, Cause.LOST_DURING_ANSWER])
@pytest.mark.parametrize("most", [1, 64])
def test_poison_in_the_first_call_does_not_end_the_run(cause: Cause, most: int) -> None:
    """All requests of a call fail with it: that is one failure, not that of many records alike."""
    lost = Unavailable("the connection broke", cause=cause)
    client = RemoteClient(
        lambda asked: lost if 40 in asked else completions(asked),
        lambda n, _: lost if n == 40 else f"{n}",
    )
    outcomes = answer(client, 100, max_concurrency=most)
    assert [n for n, failure in enumerate(failures(outcomes)) if failure] == [40]


def test_one_forbidden_record_does_not_end_the_run() -> None:
    """One forbidden record does not end the run: another half of its call is served."""
    error = Forbidden("403", cause=Cause.CREDENTIALS)
    outcomes = answer(refusing({3}, error), 16)
    assert {n for n, failure in enumerate(failures(outcomes)) if failure} == {3}


def test_an_interrupt(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """An interrupt cancels calls in flight and tells every thread."""
    monkeypatch.setattr(interrupt, "_open", weakref.WeakSet())
    monkeypatch.setattr(interrupt, "_asked", threading.Event())
    cancelled: list[list[int]] = []

    class Hanging(RemoteClient):
        async def generate_many(self, requests: Any) -> Any:
            try:
                return await super().generate_many(requests)
            except asyncio.CancelledError:
                cancelled.append([request.body["n"] for request in requests])
                raise

    shared = Dispatcher(Hanging(lambda _: HANG, max_requests=2), DispatchLimits(max_concurrency=1))
    queues = [CompletionQueue(), CompletionQueue()]
    with clock.hold():
        for number, queue in enumerate(queues):
            shared.submit(make_requests(2, 10 * number), queue)
        clock.sleep(1)
        assert [drain(queue) for queue in queues] == [[None], [None]]
        interrupt.stop_all()
        clock.settle()
    for queue in queues:
        with pytest.raises(Interrupted):
            queue.get(0.0)
    assert cancelled == [[0, 1]]


def test_in_process_calls_have_no_timeout_and_no_permit() -> None:
    """In-process calls have no quota and no timeout, but keep the limits of a call."""
    client = RemoteClient(completions, max_requests=10, in_process=True, seconds=1000.0)
    outcomes = answer(client, 50, max_concurrency=1, request_timeout_s=5, requests_per_minute=1)
    assert outputs(outcomes) == [f"{n}" for n in range(50)]
    assert client.sets == [(0, list(range(first, first + 10))) for first in range(0, 50, 10)]


def test_threads_share_one_client() -> None:
    """Bundles of several threads share a client; each gets its own outcomes, whatever was split."""
    poison = {7, 19}
    error = InvalidRequest("400")
    shared = Dispatcher(refusing(poison, error), DispatchLimits(max_concurrency=3))
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda count: shared.answer(make_requests(count)), range(1, 30)))
    assert [[n for n, failure in enumerate(failures(each)) if failure] for each in found] == [
        sorted(n for n in poison if n < count) for count in range(1, 30)
    ]
    loop.run(asyncio.sleep(0))


def test_a_failure_costs_no_more_than_its_class_says() -> None:
    """The error of a call reaches each of its records as it was raised."""
    error = Unavailable("500")
    outcomes = answer(RemoteClient(lambda _: error, lambda n, _: error), 1, max_attempts=2)
    assert [isinstance(o.error, RecordError) for o in outcomes] == [True]  # type: ignore[union-attr]
