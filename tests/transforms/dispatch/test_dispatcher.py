"""The dispatcher: one outcome per request, in order and at the pace; its gauges; its end.

Tests run on virtual time: see `tests.transforms.dispatch.virtual_time`. Times are exact.
"""

import asyncio
import collections
import concurrent.futures
import gc
from collections.abc import Callable
from typing import Any

import pytest

from tests.transforms.dispatch.clients import (
    HANG,
    Client,
    HoldingClient,
    ManyClient,
    MeasuredClient,
    answer,
    collect,
    drain,
    failures,
    kinds,
    make_requests,
    outputs,
    virtual_now,
)
from tests.transforms.dispatch.virtual_time import Clock
from transforms.dispatch import completion_queue, loop
from transforms.dispatch.completion_queue import CompletionQueue
from transforms.dispatch.dispatcher import Dispatcher, DispatchLimits
from transforms.dispatch.pace import Pace
from transforms.records.causes import Cause
from transforms.records.errors import BackendUnusable, Blocked, Forbidden, RateLimited, Unavailable
from transforms.records.records import Completion, Record, Request, Usage

BACKLOG = 2048

pytestmark = pytest.mark.usefixtures("clock")


# One outcome each


def test_one_outcome_each_in_order() -> None:
    """Outcomes are in the order of the requests, however the calls end."""
    client = Client(lambda n, _: f"answer {n}", lambda n, _: n * 7 % 13)
    outcomes = answer(client, 100)
    assert outputs(outcomes) == [f"answer {n}" for n in range(100)]
    assert [
        (o.attempts, o.latency_ms, o.throttled_ms) for o in outcomes if isinstance(o, Completion)
    ] == [(1, n * 7 % 13 * 1000, 0) for n in range(100)]


def test_no_requests() -> None:
    """No requests have no outcomes."""
    assert answer(Client(lambda n, _: ""), 0) == []
    assert answer(ManyClient(lambda requests: []), 0) == []


def test_many_threads_share_one_client() -> None:
    """Bundles of several threads share one client, and each gets its own outcomes."""
    client = Client(lambda n, _: f"{n}")
    shared = Dispatcher(client, DispatchLimits(max_concurrency=3))
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda count: shared.answer(make_requests(count)), range(1, 30)))
    assert [outputs(outcomes) for outcomes in found] == [
        [f"{n}" for n in range(count)] for count in range(1, 30)
    ]


def test_batches_come_back_with_their_outcomes() -> None:
    """Each outcome comes with its batch's context and its request's index."""
    shared = Dispatcher(Client(lambda n, _: f"{n}"), DispatchLimits())
    completions = CompletionQueue()
    shared.submit(make_requests(2), completions, "first")
    shared.submit(make_requests(1, 7), completions, "second")
    assert [
        (e.index, e.batch, e.request.record.record_id, e.outcome.output)  # type: ignore[union-attr]
        for e in sorted(collect(completions), key=lambda e: (e.batch, e.index))
    ] == [(0, "first", "0", "0"), (1, "first", "1", "1"), (0, "second", "7", "7")]


@pytest.mark.parametrize("most", [1, 4, 50])
def test_max_concurrency(most: int) -> None:
    """No more calls than the limit are in flight at once, also over several batches."""
    client = Client(lambda n, _: "", 1.0)
    shared = Dispatcher(client, DispatchLimits(max_concurrency=most))
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda _: shared.answer(make_requests(200)), range(2)))
    assert client.highest == most


def test_concurrency_climbs() -> None:
    """The limit starts at 32 and doubles while throughput follows."""
    client = Client(lambda n, _: "", 1.0)
    answer(client, 1000)
    sent = collections.Counter(client.times)
    assert sent[0.0] == 32
    assert client.highest > 200
    assert max(client.times) < 10


def test_completion_is_kept() -> None:
    """The client's whole completion is passed on."""
    made = Completion("o", '{"a":1}', (0.5,), "STOP", Usage(1, 2, 3, 4), "v", "FLEX")
    (outcome,) = answer(Client(lambda n, _: made, 2.5), 1)
    assert outcome == Completion(
        "o", '{"a":1}', (0.5,), "STOP", Usage(1, 2, 3, 4), "v", "FLEX", 2500
    )


def test_an_unexpected_exception_fails_its_record() -> None:
    """An unexpected exception fails its record without a retry and keeps its stack trace."""
    client = Client(lambda n, _: ZeroDivisionError("boom") if n == 1 else f"{n}")
    outcomes = answer(client, 3)
    assert outputs(outcomes) == ["0", None, "2"]
    assert failures(outcomes)[1] == ("ZeroDivisionError", "boom", 1)
    trace = outcomes[1].error.__traceback__  # type: ignore[union-attr]
    while trace.tb_next:  # type: ignore[union-attr]
        trace = trace.tb_next  # type: ignore[union-attr]
    assert trace.tb_frame.f_code.co_name == "generate"  # type: ignore[union-attr]


def test_a_client_without_a_completion() -> None:
    """A client's bug, such as a missing completion, fails its record too."""

    class Wrong(Client):
        async def generate(self, request: Request) -> Completion:
            return await super().generate(request) if request.body["n"] else None  # type: ignore[return-value]

    outcomes = answer(Wrong(lambda n, _: f"{n}"), 2)
    assert outputs(outcomes) == [None, "1"]
    assert failures(outcomes)[0] == ("TypeError", "generate returned a NoneType", 1)


@pytest.mark.parametrize("by_the_batch", [False, True])
def test_a_client_that_cancels_itself(clock: Clock, by_the_batch: bool) -> None:
    """A cancellation that the client itself raises is a failure like any other."""
    client: Client = Client(lambda n, _: asyncio.CancelledError() if not n else f"{n}")
    if by_the_batch:
        client = ManyClient(lambda requests: asyncio.CancelledError(), client.reply)
    completions = CompletionQueue()
    shared = Dispatcher(client, DispatchLimits())
    shared.submit(make_requests(2), completions)
    clock.sleep(10_000)
    ended = [item for item in drain(completions) if item is not None]
    assert sorted(item.index for item in ended) == [0, 1]


# Order and admission


def test_oldest_first() -> None:
    """Requests are first in, first out, over several batches and threads' queues."""
    client = Client(lambda n, _: "", 1.0)
    shared = Dispatcher(client, DispatchLimits(max_concurrency=3))
    queues = [CompletionQueue(), CompletionQueue()]
    for first in (0, 10, 20, 30):
        shared.submit(make_requests(10, first), queues[first // 10 % 2])
    for completions in queues:
        collect(completions)
    assert client.order == list(range(40))


def test_retries_go_before_newer_records() -> None:
    """A record that has waited out its back-off is the oldest again."""
    client = Client(lambda n, before: Unavailable("500") if n == 0 and not before else "", 1.0)
    answer(client, 8, max_concurrency=1, first_backoff_s=2.5)
    assert client.calls == [
        (0, 0), (1, 1), (2, 2), (3, 3), (4, 0), (5, 4), (6, 5), (7, 6), (8, 7)
    ]  # fmt: skip


def test_a_batch_is_admitted_when_there_is_room(clock: Clock) -> None:
    """A batch is admitted once at most 2,048 requests wait; requests in flight do not count."""
    shared = Dispatcher(Client(lambda n, _: "", 1.0), DispatchLimits(max_concurrency=1))
    completions, other = CompletionQueue(), CompletionQueue()
    with clock.hold():
        shared.submit(make_requests(BACKLOG + 1), completions)
        clock.settle()
        shared.submit(make_requests(1), other)
        clock.sleep(0.5)
        assert drain(completions) == [None]
        assert drain(other) == []
        clock.sleep(1.0)
        assert [item is None for item in drain(completions)] == [False]
        assert drain(other) == [None]


def test_a_large_batch_is_admitted_late(clock: Clock) -> None:
    """A large batch admits the next once all but 2,048 of its requests have been sent."""
    shared = Dispatcher(Client(lambda n, _: "", 1.0), DispatchLimits(max_concurrency=1))
    completions = CompletionQueue()
    with clock.hold():
        shared.submit(make_requests(BACKLOG + 4), completions)
        clock.sleep(10.5)
        items = drain(completions)
    assert len(items) == 11
    assert items.index(None) == 3


def test_an_abandoned_queue_drops_waiting_requests(clock: Clock) -> None:
    """Waiting requests of an abandoned queue are never sent; other threads' requests go on."""
    client = Client(lambda n, _: "", 1.0)
    shared = Dispatcher(client, DispatchLimits(max_concurrency=2))
    gone, stays = CompletionQueue(), CompletionQueue()
    with clock.hold():
        shared.submit(make_requests(100), gone)
        shared.submit(make_requests(3, 1000), stays)
        clock.sleep(5.5)
        gone.abandoned = True
    collect(stays)
    assert client.order == [*range(12), 1000, 1001, 1002]
    assert shared.gauges()["waiting_requests"] == 0


def test_abandoned_retries_are_dropped(clock: Clock) -> None:
    """Requests of an abandoned queue that wait for a back-off are not retried."""
    client = Client(lambda n, _: Unavailable("500"))
    shared = Dispatcher(client, DispatchLimits(first_backoff_s=60))
    completions = CompletionQueue()
    with clock.hold():
        shared.submit(make_requests(2), completions)
        clock.sleep(1)
        assert shared.gauges()["waiting_requests"] == 2
        completions.abandoned = True
        clock.sleep(200)
    assert client.calls == [(0, 0), (0, 1)]
    assert shared.gauges()["waiting_requests"] == 0


def test_an_interrupted_answer_drops_waiting_requests(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that leaves `answer` by an exception abandons its waiting requests."""
    monkeypatch.setattr(completion_queue, "TICK_S", 0.0)
    client = Client(lambda n, _: HANG)
    shared = Dispatcher(client, DispatchLimits(max_concurrency=1, request_timeout_s=5))

    def leave() -> None:
        clock.settle()
        raise KeyboardInterrupt

    with clock.hold():
        with pytest.raises(KeyboardInterrupt):
            shared.answer(make_requests(5), leave)
        clock.sleep(100)
    assert client.calls == [(0, 0)]
    assert shared.gauges()["waiting_requests"] == 0


# Known quotas


def test_a_shared_quota_is_kept() -> None:
    """Calls never exceed a second's worth at once, or the quota on average."""
    client = Client(lambda n, _: "", 0.1)
    outcomes = answer(client, 600, requests_per_minute=600)
    per_s = collections.Counter(int(at) for at in client.times)
    assert kinds(outcomes) == {"Completion": 600}
    assert max(per_s.values()) <= 20
    assert max(client.times) == pytest.approx(59, abs=1)
    assert {per_s[s] for s in range(1, 58)} <= {9, 10, 11}


def test_a_quota_of_tokens_is_kept() -> None:
    """Answers spend the tokens that they used; the estimate only decides when a call starts."""
    billed = Completion("", usage=Usage(60, None, 30, 10))
    client = Client(lambda n, _: billed, 0.1)
    answer(client, 300, tokens_per_minute=60_000)
    per_s = collections.Counter(int(at) for at in client.times)
    late = [per_s[s] for s in range(10, 25)]
    assert sum(late) / len(late) == pytest.approx(10, abs=0.5)
    assert max(late) <= 21


def test_refusals_do_not_spend_a_quota_of_tokens() -> None:
    """Tokens of a failed call are returned to the quota, unless the server billed them."""
    client = Client(lambda n, before: "" if before else RateLimited("429"))
    request = Request(Record("0", {}), {"n": 0}, {}, "0", 1000)
    shared = Dispatcher(client, DispatchLimits(tokens_per_minute=60_000, first_backoff_s=1))
    shared.answer([request])
    assert client.times == [0, 1]


# Gauges


def test_gauges(clock: Clock) -> None:
    """Gauges show the current state."""
    shared = Dispatcher(Client(lambda n, _: "", 1.0), DispatchLimits(max_concurrency=3))
    idle = {
        "in_flight_requests": 0,
        "in_flight_calls": 0,
        "concurrency_limit": 3,
        "waiting_requests": 0,
        "backing_off_requests": 0,
        "rate_limit_per_minute": 0,
        "outage_s": 0,
    }
    assert shared.gauges() == idle
    completions = CompletionQueue()
    with clock.hold():
        shared.submit(make_requests(10), completions)
        clock.sleep(1.5)
        assert shared.gauges() == {
            **idle,
            "in_flight_requests": 3,
            "in_flight_calls": 3,
            "waiting_requests": 4,
        }
    collect(completions)
    assert shared.gauges() == idle


@pytest.mark.parametrize(
    ("wanted", "most", "highest"), [(0, 2048, 32), (100, 2048, 100), (100, 50, 50)]
)
def test_the_limit_follows_the_server(wanted: int, most: int, highest: int) -> None:
    """The limit follows a server's suggestion at once, up to the ceiling; without one it climbs."""
    client = MeasuredClient(lambda n, _: f"{n}", 1.0)
    client.wanted = wanted
    shared = Dispatcher(client, DispatchLimits(max_concurrency=most))
    assert shared.gauges()["server_queue"] == 7
    assert outputs(shared.answer(make_requests(200))) == [f"{n}" for n in range(200)]
    assert client.times[:highest] == [0.0] * highest
    assert client.times[highest] > 0


def test_the_limit_grows_with_the_server(clock: Clock) -> None:
    """A server that can use more calls gets them before the next answer, which may be late."""
    client = MeasuredClient(lambda n, _: "", 100.0)
    client.wanted = 10
    completions = CompletionQueue()
    with clock.hold():
        Dispatcher(client, DispatchLimits()).submit(make_requests(60), completions)
        clock.sleep(1.0)
        assert client.flying == 10
        client.wanted = 50
        clock.sleep(0.3)
        assert client.flying == 50
    collect(completions)


def test_held_requests_take_no_slot_and_no_time(clock: Clock) -> None:
    """A held request takes no slot, its time does not run, and holding is no failure."""
    holds = {0: [500.0, 400.0]}
    client = HoldingClient(lambda n, _: f"{n}", 1.0, lambda n: (holds.get(n) or [0.0]).pop(0))
    limits = DispatchLimits(max_concurrency=1, request_timeout_s=2, record_deadline_s=10)
    shared = Dispatcher(client, limits)
    assert outputs(shared.answer(make_requests(3))) == ["0", "1", "2"]
    assert client.calls == [(0.0, 1), (1.0, 2), (900.0, 0)]
    assert shared.throttled_s() == pytest.approx(899.0)


def test_a_crash_costs_no_time_after_the_restart(clock: Clock) -> None:
    """A hundred calls lost in a crash are held while the server starts, then all sent at once."""
    crash = Unavailable("crashed", cause=Cause.RESTARTING)
    client = HoldingClient(
        lambda n, before: "" if before else crash,
        1.0,
        lambda n: 600.0 if 1.0 <= virtual_now() < 600.0 else 0.0,
    )
    limits = DispatchLimits(max_concurrency=32, max_attempts=1, record_deadline_s=30)
    shared = Dispatcher(client, limits)
    assert kinds(shared.answer(make_requests(32))) == {"Completion": 32}
    assert client.times == [0.0] * 32 + [601.0] * 32
    assert shared.gauges()["outage_s"] == 0


def test_a_client_that_holds_for_good(clock: Clock) -> None:
    """An error that the client raises while holding requests ends the run."""

    def gone(n: int) -> float:
        raise BackendUnusable("gone")

    shared = Dispatcher(HoldingClient(lambda n, _: "", 0.0, gone), DispatchLimits())
    with pytest.raises(BackendUnusable, match="gone"):
        shared.answer(make_requests(3))


def test_gauge_of_a_learnt_rate(clock: Clock) -> None:
    """The gauge appears once refusals have shown a rate: here 59 of 60 calls were accepted."""
    refused = RateLimited("429", retry_after_s=1)
    client = Client(lambda n, before: refused if n == 49 and not before else "", 0.1)
    shared = Dispatcher(client, DispatchLimits())
    completions = CompletionQueue()
    with clock.hold():
        shared.submit(make_requests(60), completions)
        clock.sleep(0.15)
        assert shared.gauges()["rate_limit_per_minute"] == 0
        clock.sleep(0.5)
        assert shared.gauges()["rate_limit_per_minute"] == pytest.approx(60 * 59, rel=0.05)
    collect(completions)


def test_gauge_of_an_outage(clock: Clock) -> None:
    """The gauge shows for how long the backend has been down in this outage."""
    client = Client(lambda n, _: "up")
    shared = Dispatcher(client, DispatchLimits())
    for _ in range(2):
        completions = CompletionQueue()
        with clock.hold():
            client.reply = lambda n, _: Unavailable("503", cause=Cause.OVERLOADED)
            shared.submit(make_requests(20), completions)
            clock.sleep(100)
            assert shared.gauges()["outage_s"] == 100
            client.reply = lambda n, _: "up"
        collect(completions)
        assert shared.gauges()["outage_s"] == 0


def test_gauge_of_back_offs(clock: Clock) -> None:
    """The gauge counts waiting requests that are between two attempts."""
    client = Client(lambda n, before: "" if before or n else Unavailable("500"), 1.0)
    shared = Dispatcher(client, DispatchLimits(max_concurrency=1, first_backoff_s=3))
    completions = CompletionQueue()
    with clock.hold():
        shared.submit(make_requests(7), completions)
        clock.sleep(1.5)
        gauges = shared.gauges()
        assert (gauges["waiting_requests"], gauges["backing_off_requests"]) == (6, 1)
        clock.sleep(3)
        gauges = shared.gauges()
        assert (gauges["waiting_requests"], gauges["backing_off_requests"]) == (3, 0)
    collect(completions)


def test_throttled_time(clock: Clock) -> None:
    """Throttled time is time spent waiting for a quota, not for a slot."""
    shared = Dispatcher(
        Client(lambda n, _: "", 0.0), DispatchLimits(requests_per_minute=60, max_concurrency=1)
    )
    shared.answer(make_requests(11))
    assert shared.throttled_s() == pytest.approx(clock.now)
    assert clock.now == pytest.approx(9, abs=0.1)
    slow = Dispatcher(Client(lambda n, _: "", 1.0), DispatchLimits(max_concurrency=1))
    slow.answer(make_requests(10))
    assert slow.throttled_s() == 0


def test_throttled_time_of_a_retry_after() -> None:
    """Waiting for another record's Retry-After is throttled time."""
    refused = RateLimited("429", retry_after_s=30)
    client = Client(lambda n, before: refused if n == 0 and not before else f"{n}")
    shared = Dispatcher(client, DispatchLimits(max_concurrency=1))
    outcomes = shared.answer(make_requests(3))
    assert shared.throttled_s() == pytest.approx(30)
    assert [o.throttled_ms for o in outcomes] == [30_000, 0, 0]


def test_throttled_time_of_a_lone_record() -> None:
    """A refused record's own wait for its Retry-After is throttled time, too."""
    refused = RateLimited("429", retry_after_s=30)
    shared = Dispatcher(Client(lambda n, before: "late" if before else refused), DispatchLimits())
    shared.answer(make_requests(1))
    assert shared.throttled_s() == pytest.approx(30)


def test_failed_calls_are_counted() -> None:
    """Failed calls are counted once by type, with retries; unexpected ones are ``internal``."""
    replies = {
        0: Blocked("no"),
        1: Unavailable("500"),
        2: RateLimited("429"),
        3: ZeroDivisionError("boom"),
    }
    client = Client(lambda n, before: replies[n] if n in replies and before < 2 else "")
    shared = Dispatcher(client, DispatchLimits())
    shared.answer(make_requests(6))
    assert shared.take_failed_calls() == {
        "blocked": 1,
        "unavailable": 2,
        "rate_limited": 2,
        "internal": 1,
    }
    assert shared.take_failed_calls() == {}


# Errors of the dispatcher itself


@pytest.mark.parametrize("method", ["wait_s", "sent", "waiting", "ended"])
def test_an_error_of_our_own_reaches_every_thread(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, method: str
) -> None:
    """A bug in the dispatcher's own steps reaches every waiting thread instead of hanging it."""
    shared = Dispatcher(Client(lambda n, _: f"{n}", 1.0), DispatchLimits(max_concurrency=2))
    queues = [CompletionQueue(), CompletionQueue()]

    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a bug")

    with clock.hold():
        for completions in queues:
            shared.submit(make_requests(5), completions)
        clock.sleep(0.5)
        monkeypatch.setattr(Pace, method, fail)
    for completions in queues:
        with pytest.raises(ZeroDivisionError, match=r"^a bug$"):
            collect(completions)
    with pytest.raises(ZeroDivisionError, match=r"^a bug$"):
        shared.answer(make_requests(1))


def test_an_error_in_a_retry_reaches_every_thread(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    """A bug in a timer reaches every waiting thread, too."""
    shared = Dispatcher(Client(lambda n, _: Unavailable("500")), DispatchLimits(first_backoff_s=9))
    completions = CompletionQueue()

    def fail(*_: Any) -> None:
        raise ZeroDivisionError("a bug")

    with clock.hold():
        shared.submit(make_requests(1), completions)
        clock.sleep(1)
        monkeypatch.setattr(Dispatcher, "_pump", fail)
    with pytest.raises(ZeroDivisionError, match=r"^a bug$"):
        collect(completions)
    assert clock.now == 9


def test_every_thread_gets_an_error_of_its_own(clock: Clock) -> None:
    """Each thread gets its own error with the cause, since raising adds to an error's traceback."""
    cause = OSError("no route to host")

    class Revoked(Client):
        async def generate(self, request: Request) -> Completion:
            raise BackendUnusable("revoked") from cause

    shared = Dispatcher(Revoked(lambda n, _: ""), DispatchLimits())
    queues = [CompletionQueue(), CompletionQueue()]
    with clock.hold():
        for completions in queues:
            shared.submit(make_requests(1), completions)
    errors = []
    for completions in queues:
        with pytest.raises(BackendUnusable, match=r"^revoked$") as raised:
            collect(completions)
        errors.append(raised.value)
    assert errors[0] is not errors[1]
    assert [error.__cause__ for error in errors] == [cause, cause]


def test_the_error_of_a_broken_run_does_not_grow() -> None:
    """Retried bundles that fail again do not keep each other's frames alive."""
    client = Client(lambda n, _: BackendUnusable("revoked"))
    shared = Dispatcher(client, DispatchLimits())
    lengths = []
    for _ in range(3):
        with pytest.raises(BackendUnusable) as raised:
            shared.answer(make_requests(1))
        lengths.append(len(raised.traceback))
    assert lengths == [lengths[0]] * 3


# Its end


@pytest.mark.parametrize("make", [lambda: "", lambda: Unavailable("500"), ZeroDivisionError])
def test_client_is_closed_with_its_dispatcher(make: Callable[[], Any]) -> None:
    """An unused dispatcher closes its client exactly once, however calls ended."""
    client = Client(lambda n, _: make())
    shared = Dispatcher(client, DispatchLimits(max_attempts=2))
    shared.answer(make_requests(3))
    assert client.closed == 0
    del shared
    loop.run(asyncio.sleep(200))
    gc.collect()
    loop.run(asyncio.sleep(0))
    assert client.closed == 1


def test_a_broken_dispatcher_is_closed() -> None:
    """A broken dispatcher is closed: cancelled calls keep no reference."""
    client = Client(lambda n, _: HANG if n > 1 else Forbidden("401", cause=Cause.CREDENTIALS))
    with pytest.raises(BackendUnusable):
        answer(client, 5)
    loop.run(asyncio.sleep(200))
    gc.collect()
    loop.run(asyncio.sleep(0))
    assert client.closed == 1


@pytest.mark.parametrize("reply", ["", Blocked("no"), Unavailable("500"), RuntimeError(), HANG])
def test_nothing_is_left_in_flight(reply: Any) -> None:
    """Slots are free again after every kind of end."""
    shared = Dispatcher(
        Client(lambda n, _: reply), DispatchLimits(max_attempts=2, request_timeout_s=5)
    )
    shared.answer(make_requests(4))
    gauges = shared.gauges()
    assert (gauges["in_flight_requests"], gauges["waiting_requests"]) == (0, 0)
    loop.run(asyncio.sleep(0))
    assert shared._tasks == set()


def test_separate_dispatchers_do_not_affect_each_other() -> None:
    """The end of one dispatcher does not affect another's threads."""
    broken = Dispatcher(Client(lambda n, _: BackendUnusable("no")), DispatchLimits())
    works = Dispatcher(Client(lambda n, _: f"{n}"), DispatchLimits())
    with pytest.raises(BackendUnusable):
        broken.answer(make_requests(1))
    assert outputs(works.answer(make_requests(2))) == ["0", "1"]
