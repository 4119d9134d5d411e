"""The dispatcher: one outcome per request, in turn, at the pace; what it shows; its end.

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
    """However the calls end, outcomes are in the order of the requests."""
    client = Client(lambda n, _: f"answer {n}", lambda n, _: n * 7 % 13)
    outcomes = answer(client, 100)
    assert outputs(outcomes) == [f"answer {n}" for n in range(100)]
    assert [
        (o.attempts, o.latency_ms, o.throttled_ms) for o in outcomes if isinstance(o, Completion)
    ] == [(1, n * 7 % 13 * 1000, 0) for n in range(100)]


def test_no_requests() -> None:
    """Nothing in, nothing out."""
    assert answer(Client(lambda n, _: ""), 0) == []
    assert answer(ManyClient(lambda requests: []), 0) == []


def test_many_threads_share_one_client() -> None:
    """Bundles of several threads meet; each gets its own outcomes."""
    client = Client(lambda n, _: f"{n}")
    shared = Dispatcher(client, DispatchLimits(max_concurrency=3))
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda count: shared.answer(make_requests(count)), range(1, 30)))
    assert [outputs(outcomes) for outcomes in found] == [
        [f"{n}" for n in range(count)] for count in range(1, 30)
    ]


def test_batches_come_back_with_their_outcomes() -> None:
    """What was given with a batch, and each request's index in it."""
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
    """So many calls are in flight at once, never more, also over several batches."""
    client = Client(lambda n, _: "", 1.0)
    shared = Dispatcher(client, DispatchLimits(max_concurrency=most))
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda _: shared.answer(make_requests(200)), range(2)))
    assert client.highest == most


def test_concurrency_climbs() -> None:
    """It starts at 32 and doubles while throughput follows."""
    client = Client(lambda n, _: "", 1.0)
    answer(client, 1000)
    sent = collections.Counter(client.times)
    assert sent[0.0] == 32
    assert client.highest > 200
    assert max(client.times) < 10


def test_completion_is_kept() -> None:
    """All of the client's completion comes through."""
    made = Completion("o", '{"a":1}', (0.5,), "STOP", Usage(1, 2, 3, 4), "v", "FLEX")
    (outcome,) = answer(Client(lambda n, _: made, 2.5), 1)
    assert outcome == Completion(
        "o", '{"a":1}', (0.5,), "STOP", Usage(1, 2, 3, 4), "v", "FLEX", 2500
    )


def test_unforeseen_exception_costs_its_record() -> None:
    """It is not retried and keeps its stack trace."""
    client = Client(lambda n, _: ZeroDivisionError("boom") if n == 1 else f"{n}")
    outcomes = answer(client, 3)
    assert outputs(outcomes) == ["0", None, "2"]
    assert failures(outcomes)[1] == ("ZeroDivisionError", "boom", 1)
    trace = outcomes[1].error.__traceback__  # type: ignore[union-attr]
    while trace.tb_next:  # type: ignore[union-attr]
        trace = trace.tb_next  # type: ignore[union-attr]
    assert trace.tb_frame.f_code.co_name == "generate"  # type: ignore[union-attr]


def test_client_that_gives_no_completion() -> None:
    """A client's bug is its record's failure too."""

    class Wrong(Client):
        async def generate(self, request: Request) -> Completion:
            return await super().generate(request) if request.body["n"] else None  # type: ignore[return-value]

    outcomes = answer(Wrong(lambda n, _: f"{n}"), 2)
    assert outputs(outcomes) == [None, "1"]
    assert failures(outcomes)[0] == ("TypeError", "generate returned a NoneType", 1)


@pytest.mark.parametrize("by_the_batch", [False, True])
def test_a_client_that_cancels_itself(clock: Clock, by_the_batch: bool) -> None:
    """A cancellation that nobody here asked for is a failure like another, not silence."""
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
    """First in, first out, over several batches and threads' queues."""
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
    """At most 2,048 requests wait before the next batch is asked for; those in flight go extra."""
    shared = Dispatcher(Client(lambda n, _: "", 1.0), DispatchLimits(max_concurrency=1))
    completions, other = CompletionQueue(), CompletionQueue()
    with clock.hold():
        shared.submit(make_requests(BACKLOG + 1), completions)
        shared.submit(make_requests(1), other)
        clock.sleep(0.5)
        assert drain(completions) == [None]
        assert drain(other) == []
        clock.sleep(1.0)
        assert [item is None for item in drain(completions)] == [False]
        assert drain(other) == [None]


def test_a_large_batch_is_admitted_late(clock: Clock) -> None:
    """None comes when all of it but 2,048 requests was sent."""
    shared = Dispatcher(Client(lambda n, _: "", 1.0), DispatchLimits(max_concurrency=1))
    completions = CompletionQueue()
    with clock.hold():
        shared.submit(make_requests(BACKLOG + 4), completions)
        clock.sleep(10.5)
        items = drain(completions)
    assert len(items) == 11
    assert items.index(None) == 3


def test_an_abandoned_queue_drops_what_waits(clock: Clock) -> None:
    """Nobody comes back for it, so nobody pays for it; other threads' requests go on."""
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
    """Also what waits for its back-off is not asked again."""
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


def test_an_interrupted_answer_drops_what_waits(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that leaves `answer` by an exception will not come back for its outcomes."""
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
    """Never more calls than a second's worth at once, and the quota on average."""
    client = Client(lambda n, _: "", 0.1)
    outcomes = answer(client, 600, requests_per_minute=600)
    per_s = collections.Counter(int(at) for at in client.times)
    assert kinds(outcomes) == {"Completion": 600}
    assert max(per_s.values()) <= 20
    assert max(client.times) == pytest.approx(59, abs=1)
    assert {per_s[s] for s in range(1, 58)} <= {9, 10, 11}


def test_a_quota_of_tokens_is_kept() -> None:
    """What answers really took is spent; the estimate is only for the start of a call."""
    billed = Completion("", usage=Usage(60, None, 30, 10))
    client = Client(lambda n, _: billed, 0.1)
    answer(client, 300, tokens_per_minute=60_000)
    per_s = collections.Counter(int(at) for at in client.times)
    late = [per_s[s] for s in range(10, 25)]
    assert sum(late) / len(late) == pytest.approx(10, abs=0.5)
    assert max(late) <= 21


def test_refusals_do_not_spend_a_quota_of_tokens() -> None:
    """The tokens of a call that failed are given back, unless the server billed them."""
    client = Client(lambda n, before: "" if before else RateLimited("429"))
    request = Request(Record("0", {}), {"n": 0}, {}, "0", 1000)
    shared = Dispatcher(client, DispatchLimits(tokens_per_minute=60_000, first_backoff_s=1))
    shared.answer([request])
    assert client.times == [0, 1]


# What may be seen


def test_gauges(clock: Clock) -> None:
    """The state of the moment."""
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
def test_what_the_server_can_use(wanted: int, most: int, highest: int) -> None:
    """It gets it at once, up to the ceiling; where it does not say, the climb begins as ever."""
    client = MeasuredClient(lambda n, _: f"{n}", 1.0)
    client.wanted = wanted
    shared = Dispatcher(client, DispatchLimits(max_concurrency=most))
    assert shared.gauges()["server_queue"] == 7
    assert outputs(shared.answer(make_requests(200))) == [f"{n}" for n in range(200)]
    assert client.times[:highest] == [0.0] * highest
    assert client.times[highest] > 0


def test_what_the_server_can_use_grows(clock: Clock) -> None:
    """It gets more without waiting for an answer, which may take minutes."""
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


def test_what_is_held_takes_no_place_and_no_time(clock: Clock) -> None:
    """Others are sent meanwhile; neither its timeout runs nor its deadline, and it is no failure."""
    holds = {0: [500.0, 400.0]}
    client = HoldingClient(lambda n, _: f"{n}", 1.0, lambda n: (holds.get(n) or [0.0]).pop(0))
    limits = DispatchLimits(max_concurrency=1, request_timeout_s=2, record_deadline_s=10)
    shared = Dispatcher(client, limits)
    assert outputs(shared.answer(make_requests(3))) == ["0", "1", "2"]
    assert client.calls == [(0.0, 1), (1.0, 2), (900.0, 0)]
    assert shared.throttled_s() == pytest.approx(899.0)


def test_a_crash_costs_no_time_after_the_restart(clock: Clock) -> None:
    """A hundred calls are lost, held while the server starts, and all sent at once when it is up."""
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
    """What it raises ends the run."""

    def gone(n: int) -> float:
        raise BackendUnusable("gone")

    shared = Dispatcher(HoldingClient(lambda n, _: "", 0.0, gone), DispatchLimits())
    with pytest.raises(BackendUnusable, match="gone"):
        shared.answer(make_requests(3))


def test_gauge_of_a_learnt_rate(clock: Clock) -> None:
    """It is there as soon as refusals have taught one: 59 of 60 calls of a second were accepted."""
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
    """How long the backend has been down this time."""
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
    """Of the requests that wait, those between two attempts."""
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
    """Seconds in which requests waited for a quota; not those in which they waited for a slot."""
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
    """Records that wait behind somebody else's Retry-After."""
    refused = RateLimited("429", retry_after_s=30)
    client = Client(lambda n, before: refused if n == 0 and not before else f"{n}")
    shared = Dispatcher(client, DispatchLimits(max_concurrency=1))
    outcomes = shared.answer(make_requests(3))
    assert shared.throttled_s() == pytest.approx(30)
    assert [o.throttled_ms for o in outcomes] == [30_000, 0, 0]


def test_throttled_time_of_a_lone_record() -> None:
    """The record that was refused waits for the Retry-After, too."""
    refused = RateLimited("429", retry_after_s=30)
    shared = Dispatcher(Client(lambda n, before: "late" if before else refused), DispatchLimits())
    shared.answer(make_requests(1))
    assert shared.throttled_s() == pytest.approx(30)


def test_failed_calls_are_counted() -> None:
    """By type, retried ones included, once; what nobody foresaw is ``internal``."""
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


# An error of our own


@pytest.mark.parametrize("method", ["wait_s", "sent", "waiting", "ended"])
def test_an_error_of_our_own_reaches_every_thread(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, method: str
) -> None:
    """A bug in the dispatcher's own steps stops the threads that wait, rather than hanging them."""
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
    """Timers are steps of our own, too."""
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
    """Raising adds to an error's traceback; why it happened is said to each."""
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
    """Exactly once, when nobody holds the dispatcher any more, however its calls ended."""
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
    """What was cancelled holds nothing."""
    client = Client(lambda n, _: HANG if n > 1 else Forbidden("401", cause=Cause.CREDENTIALS))
    with pytest.raises(BackendUnusable):
        answer(client, 5)
    loop.run(asyncio.sleep(200))
    gc.collect()
    loop.run(asyncio.sleep(0))
    assert client.closed == 1


@pytest.mark.parametrize("reply", ["", Blocked("no"), Unavailable("500"), RuntimeError(), HANG])
def test_nothing_is_left_in_flight(reply: Any) -> None:
    """However calls end, their slots are free again."""
    shared = Dispatcher(
        Client(lambda n, _: reply), DispatchLimits(max_attempts=2, request_timeout_s=5)
    )
    shared.answer(make_requests(4))
    gauges = shared.gauges()
    assert (gauges["in_flight_requests"], gauges["waiting_requests"]) == (0, 0)
    loop.run(asyncio.sleep(0))
    assert shared._tasks == set()


def test_threads_that_share_nothing_are_not_held_up() -> None:
    """One dispatcher's end does not touch another's."""
    broken = Dispatcher(Client(lambda n, _: BackendUnusable("no")), DispatchLimits())
    works = Dispatcher(Client(lambda n, _: f"{n}"), DispatchLimits())
    with pytest.raises(BackendUnusable):
        broken.answer(make_requests(1))
    assert outputs(works.answer(make_requests(2))) == ["0", "1"]
