"""The dispatcher: one outcome per request, and who pays for which failure.

Every test runs on virtual time: see `tests.transforms.dispatch.virtual_time`. Times are exact.
"""

import asyncio
import collections
import concurrent.futures
import gc
import queue
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.transforms.dispatch.virtual_time import Clock
from transforms.dispatch import interrupt, loop
from transforms.dispatch.dispatcher import Dispatcher, DispatchLimits, Failure, Outcome
from transforms.dispatch.inbox import Ended, Inbox
from transforms.errors import (
    BackendUnusable,
    Blocked,
    Forbidden,
    Interrupted,
    InvalidRequest,
    RateLimited,
    RequestTimeout,
    Unavailable,
)
from transforms.records import Completion, Record, Request, Usage

pytestmark = pytest.mark.usefixtures("clock")

HANG = object()
"""A reply that never comes."""

BACKLOG = 2048


def _requests(count: int, first: int = 0) -> list[Request]:
    return [
        Request(Record(str(n), {}), {"n": n}, {}, f"{n:064x}", 1)
        for n in range(first, first + count)
    ]


class Client:
    """Answers by a function of the request's number and of how often it was asked before.

    The function gives an output, a completion, an exception to raise, or `HANG`. Calls take
    `seconds`: a number, or such a function.
    """

    def __init__(self, reply: Callable[[int, int], Any], seconds: Any = 0.0) -> None:
        self.reply = reply
        self.seconds = seconds if callable(seconds) else lambda n, before: seconds
        self.asked: collections.Counter[int] = collections.Counter()
        self.calls: list[tuple[float, int]] = []
        """When each call was made, and for which request."""
        self.cancelled: list[int] = []
        self.flying = self.highest = self.closed = 0

    async def generate(self, request: Request) -> Completion:
        n = request.body["n"]
        before = self.asked[n]
        self.asked[n] += 1
        self.calls.append((_now(), n))
        self.flying += 1
        self.highest = max(self.highest, self.flying)
        try:
            reply = self.reply(n, before)
            await asyncio.sleep(self.seconds(n, before))
            if reply is HANG:
                await asyncio.Future()
        except asyncio.CancelledError:
            self.cancelled.append(n)
            raise
        finally:
            self.flying -= 1
        if isinstance(reply, BaseException):
            raise reply
        return reply if isinstance(reply, Completion) else Completion(output=reply)

    async def close(self) -> None:
        self.closed += 1

    @property
    def times(self) -> list[float]:
        """When each call was made."""
        return [at for at, _ in self.calls]

    @property
    def order(self) -> list[int]:
        """For which request each call was made."""
        return [n for _, n in self.calls]


class ManyClient(Client):
    """Likewise, and by the batch with a function of the requests."""

    def __init__(
        self,
        many: Callable[[Sequence[Request]], Any],
        reply: Callable[[int, int], Any] = lambda n, _: f"alone {n}",
        seconds: Any = 0.0,
        many_seconds: float = 0.0,
    ) -> None:
        super().__init__(reply, seconds)
        self.many = many
        self.many_seconds = many_seconds
        self.batches: list[int] = []

    async def generate_many(self, requests: Sequence[Request]) -> Any:
        self.batches.append(len(requests))
        replies = self.many(requests)
        await asyncio.sleep(self.many_seconds)
        if isinstance(replies, BaseException):
            raise replies
        return replies


def _now() -> float:
    clock: Any = loop.event_loop()
    return float(clock.clock.now)


def _answer(client: Client, count: int, **limits: Any) -> list[Outcome]:
    return Dispatcher(client, DispatchLimits(**limits)).answer(_requests(count))


def _collect(inbox: Inbox) -> list[Ended]:
    """Everything that is still to come, in the order in which it ended."""
    ended = []
    while inbox.outstanding:
        item = inbox.get(30.0)
        if item is not None:
            ended.append(item)
    return ended


def _drain(inbox: Inbox) -> list[Ended | None]:
    """Everything that is there now."""
    items = []
    while True:
        try:
            items.append(inbox.get(0.0))
        except queue.Empty:
            return items


def _failures(outcomes: Sequence[Outcome]) -> list[tuple[str, str, int] | None]:
    """Class, message and attempts of each failure; None for a completion."""
    return [
        (type(outcome.error).__name__, str(outcome.error), outcome.attempts)
        if isinstance(outcome, Failure)
        else None
        for outcome in outcomes
    ]


def _outputs(outcomes: Sequence[Outcome]) -> list[str | None]:
    return [outcome.output if isinstance(outcome, Completion) else None for outcome in outcomes]


def _kinds(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """How many outcomes there are of each class."""
    return dict(
        collections.Counter(
            type(outcome.error if isinstance(outcome, Failure) else outcome).__name__
            for outcome in outcomes
        )
    )


# One outcome each


def test_one_outcome_each_in_order() -> None:
    """However the calls end, outcomes are in the order of the requests."""
    client = Client(lambda n, _: f"answer {n}", lambda n, _: n * 7 % 13)
    outcomes = _answer(client, 100)
    assert _outputs(outcomes) == [f"answer {n}" for n in range(100)]
    assert [
        (o.attempts, o.latency_ms, o.throttled_ms) for o in outcomes if isinstance(o, Completion)
    ] == [(1, n * 7 % 13 * 1000, 0) for n in range(100)]


def test_no_requests() -> None:
    """Nothing in, nothing out."""
    assert _answer(Client(lambda n, _: ""), 0) == []
    assert _answer(ManyClient(lambda requests: []), 0) == []


def test_many_threads_share_one_client() -> None:
    """Bundles of several threads meet; each gets its own outcomes."""
    client = Client(lambda n, _: f"{n}")
    shared = Dispatcher(client, DispatchLimits(max_concurrency=3))
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda count: shared.answer(_requests(count)), range(1, 30)))
    assert [_outputs(outcomes) for outcomes in found] == [
        [f"{n}" for n in range(count)] for count in range(1, 30)
    ]


def test_batches_come_back_with_their_outcomes() -> None:
    """What was given with a batch, and each request's index in it."""
    shared = Dispatcher(Client(lambda n, _: f"{n}"), DispatchLimits())
    inbox = Inbox()
    shared.submit(_requests(2), inbox, "first")
    shared.submit(_requests(1, 7), inbox, "second")
    assert [
        (e.index, e.batch, e.request.record.record_id, e.outcome.output)  # type: ignore[union-attr]
        for e in sorted(_collect(inbox), key=lambda e: (e.batch, e.index))
    ] == [(0, "first", "0", "0"), (1, "first", "1", "1"), (0, "second", "7", "7")]


@pytest.mark.parametrize("most", [1, 4, 50])
def test_max_concurrency(most: int) -> None:
    """So many calls are in flight at once, never more, also over several batches."""
    client = Client(lambda n, _: "", 1.0)
    shared = Dispatcher(client, DispatchLimits(max_concurrency=most))
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda _: shared.answer(_requests(200)), range(2)))
    assert client.highest == most


def test_concurrency_climbs() -> None:
    """It starts at 32 and doubles while throughput follows."""
    client = Client(lambda n, _: "", 1.0)
    _answer(client, 1000)
    sent = collections.Counter(client.times)
    assert sent[0.0] == 32
    assert client.highest > 200
    assert max(client.times) < 10


def test_completion_is_kept() -> None:
    """All of the client's completion comes through."""
    made = Completion("o", '{"a":1}', (0.5,), "STOP", Usage(1, 2, 3, 4), "v", "FLEX")
    (outcome,) = _answer(Client(lambda n, _: made, 2.5), 1)
    assert outcome == Completion(
        "o", '{"a":1}', (0.5,), "STOP", Usage(1, 2, 3, 4), "v", "FLEX", 2500
    )


# Order and admission


def test_oldest_first() -> None:
    """First in, first out, over several batches and threads' inboxes."""
    client = Client(lambda n, _: "", 1.0)
    shared = Dispatcher(client, DispatchLimits(max_concurrency=3))
    inboxes = [Inbox(), Inbox()]
    for first in (0, 10, 20, 30):
        shared.submit(_requests(10, first), inboxes[first // 10 % 2])
    for inbox in inboxes:
        _collect(inbox)
    assert client.order == list(range(40))


def test_retries_go_before_newer_records() -> None:
    """A record that has waited out its back-off is the oldest again."""
    client = Client(lambda n, before: Unavailable("500") if n == 0 and not before else "", 1.0)
    _answer(client, 8, max_concurrency=1, first_backoff_s=2.5)
    assert client.calls == [
        (0, 0), (1, 1), (2, 2), (3, 3), (4, 0), (5, 4), (6, 5), (7, 6), (8, 7)
    ]  # fmt: skip


def test_a_large_batch_is_let_in_late(clock: Clock) -> None:
    """None comes when all of it but 2,048 requests was sent."""
    shared = Dispatcher(Client(lambda n, _: "", 1.0), DispatchLimits(max_concurrency=1))
    inbox = Inbox()
    shared.submit(_requests(BACKLOG + 4), inbox)
    clock.sleep(10)
    items = _drain(inbox)
    assert items.index(None) == 3


def test_an_interrupted_answer_drops_what_waits(clock: Clock) -> None:
    """A thread that leaves `answer` by an exception will not come back for its outcomes."""
    client = Client(lambda n, _: HANG if not n else "")
    shared = Dispatcher(client, DispatchLimits(max_concurrency=1, request_timeout_s=1e9))

    def leave() -> None:
        raise KeyboardInterrupt

    clock.held = True
    with pytest.raises(KeyboardInterrupt):
        shared.answer(_requests(5), leave)
    (inbox,) = shared._inboxes
    clock.held = False
    assert inbox.abandoned


# Retries


def test_retryable_is_retried() -> None:
    """Until it succeeds; every call counts."""
    client = Client(lambda n, before: f"{n}" if before == 2 else Unavailable("503"))
    outcomes = _answer(client, 3)
    assert _outputs(outcomes) == ["0", "1", "2"]
    assert [o.attempts for o in outcomes if isinstance(o, Completion)] == [3, 3, 3]
    assert client.asked == {0: 3, 1: 3, 2: 3}


@pytest.mark.parametrize("most", [1, 2, 4])
def test_max_attempts(most: int) -> None:
    """A retryable failure costs an attempt; the last one's error is the outcome."""
    client = Client(lambda n, before: Unavailable(f"call {before + 1}"))
    outcomes = _answer(client, 2, max_attempts=most)
    assert _failures(outcomes) == [("Unavailable", f"call {most}", most)] * 2
    assert client.asked == {0: most, 1: most}


def test_non_retryable_fails_at_once() -> None:
    """One call; the others are not touched."""
    error = Blocked("no", finish_reason="SAFETY", usage=Usage(1))
    client = Client(lambda n, _: error if n == 1 else f"{n}")
    outcomes = _answer(client, 3)
    assert _outputs(outcomes) == ["0", None, "2"]
    assert outcomes[1] == Failure(error, 1)
    assert client.asked == {0: 1, 1: 1, 2: 1}


def test_unforeseen_exception_costs_its_record() -> None:
    """It is not retried and keeps its stack trace."""
    client = Client(lambda n, _: ZeroDivisionError("boom") if n == 1 else f"{n}")
    outcomes = _answer(client, 3)
    assert _outputs(outcomes) == ["0", None, "2"]
    assert _failures(outcomes)[1] == ("ZeroDivisionError", "boom", 1)
    trace = outcomes[1].error.__traceback__  # type: ignore[union-attr]
    while trace.tb_next:  # type: ignore[union-attr]
        trace = trace.tb_next  # type: ignore[union-attr]
    assert trace.tb_frame.f_code.co_name == "generate"  # type: ignore[union-attr]


def test_client_that_gives_no_completion() -> None:
    """A client's bug is its record's failure too."""

    class Wrong(Client):
        async def generate(self, request: Request) -> Completion:
            return await super().generate(request) if request.body["n"] else None  # type: ignore[return-value]

    outcomes = _answer(Wrong(lambda n, _: f"{n}"), 2)
    assert _outputs(outcomes) == [None, "1"]
    assert _failures(outcomes)[0] == ("TypeError", "generate gave a NoneType", 1)


@pytest.mark.parametrize("by_the_batch", [False, True])
def test_a_client_that_cancels_itself(clock: Clock, by_the_batch: bool) -> None:
    """A cancellation that nobody here asked for is a failure like another, not silence."""
    client: Client = Client(lambda n, _: asyncio.CancelledError() if not n else f"{n}")
    if by_the_batch:
        client = ManyClient(lambda requests: asyncio.CancelledError(), client.reply)
    inbox = Inbox()
    shared = Dispatcher(client, DispatchLimits())
    shared.submit(_requests(2), inbox)
    clock.sleep(10_000)
    ended = [item for item in _drain(inbox) if item is not None]
    assert sorted(item.index for item in ended) == [0, 1]


def test_request_timeout() -> None:
    """A call without an answer is cancelled, is a retryable timeout, and costs an attempt."""
    client = Client(lambda n, _: f"{n}" if n else HANG)
    outcomes = _answer(client, 2, request_timeout_s=7.5, max_attempts=2, first_backoff_s=1)
    assert _outputs(outcomes) == [None, "1"]
    assert _failures(outcomes)[0] == (
        "RequestTimeout", "no answer within 7.5 s (--request_timeout_s)", 2
    )  # fmt: skip
    assert isinstance(outcomes[0], Failure)
    assert isinstance(outcomes[0].error, RequestTimeout)
    assert client.cancelled == [0, 0]
    assert client.calls == [(0, 0), (0, 1), (8.5, 0)]


def test_backoff_doubles_up_to_its_ceiling() -> None:
    """The longest waits of full jitter: 1, 2, 4 … and never beyond the ceiling."""
    client = Client(lambda n, _: Unavailable("503"))
    outcomes = _answer(client, 1, max_attempts=7, first_backoff_s=1, max_backoff_s=10)
    assert _failures(outcomes) == [("Unavailable", "503", 7)]
    assert client.times == [0, 1, 3, 7, 15, 25, 35]


def test_unanswered_is_asked_again_at_once() -> None:
    """A stale connection costs no wait the first time; then it is a failure like any other."""
    client = Client(lambda n, _: Unavailable("reset", unanswered=True))
    outcomes = _answer(client, 1, max_attempts=4, first_backoff_s=1)
    assert _failures(outcomes) == [("Unavailable", "reset", 4)]
    assert client.times == [0, 0, 2, 6]


def test_unanswered_after_another_failure() -> None:
    """Only a first failure is repeated at once."""
    errors = [Unavailable("500"), Unavailable("reset", unanswered=True)]
    client = Client(lambda n, before: errors[before] if before < 2 else "late")
    _answer(client, 1, first_backoff_s=1)
    assert client.times == [0, 1, 3]


def test_retry_after_is_kept() -> None:
    """What the server asks for goes before the back-off."""
    client = Client(lambda n, before: Unavailable("503", retry_after_s=7) if not before else "a")
    assert _outputs(_answer(client, 1)) == ["a"]
    assert client.times == [0, 7]


# Congestion and deadlines


def test_congestion_costs_no_attempt() -> None:
    """Ten refusals do not use up two attempts; the waits are counted as throttling."""
    client = Client(
        lambda n, before: RateLimited("429", congestion=True) if before < 10 else "late"
    )
    (outcome,) = _answer(client, 1, max_attempts=2, first_backoff_s=1, max_backoff_s=4)
    assert isinstance(outcome, Completion)
    assert (outcome.output, outcome.attempts) == ("late", 11)
    assert client.times == [0, 1, 3, 7, 11, 15, 19, 23, 27, 31, 35]
    assert outcome.throttled_ms == 35_000


def test_congestion_between_attempts() -> None:
    """Refusals use up none of the attempts that failures may."""
    refused, failed = RateLimited("429", congestion=True), Unavailable("500")
    replies = [refused, failed, refused, refused, "late"]
    client = Client(lambda n, before: replies[before])
    (outcome,) = _answer(client, 1, max_attempts=2, first_backoff_s=1, max_backoff_s=64)
    assert isinstance(outcome, Completion)
    assert (outcome.output, outcome.attempts) == ("late", 5)
    assert client.times == [0, 1, 2, 4, 8]
    assert outcome.throttled_ms == 7000


def test_congestion_ends_at_the_deadline() -> None:
    """Then it is a retryable dead letter with all that was tried."""
    client = Client(lambda n, _: RateLimited("429", congestion=True, retry_after_s=30))
    (outcome,) = _answer(client, 1, max_attempts=1, record_deadline_s=100)
    assert _failures([outcome]) == [("RateLimited", "429", 4)]
    assert isinstance(outcome, Failure)
    assert isinstance(outcome.error, RateLimited)
    assert outcome.error.retryable
    assert outcome.throttled_ms == 90_000
    assert client.times == [0, 30, 60, 90]


def test_deadline_begins_with_the_first_call() -> None:
    """Waiting for a slot behind others is not a record's own time."""
    client = Client(lambda n, before: Unavailable("503") if not before and n == 9 else f"{n}", 60)
    outcomes = _answer(client, 10, max_concurrency=1, record_deadline_s=100, first_backoff_s=1)
    assert _outputs(outcomes) == [f"{n}" for n in range(10)]


def test_deadline_ends_retries() -> None:
    """A wait that would end behind the deadline is not begun."""
    client = Client(lambda n, _: Unavailable("503", retry_after_s=60))
    assert _failures(_answer(client, 1, record_deadline_s=100)) == [("Unavailable", "503", 2)]
    assert client.times == [0, 60]


@pytest.mark.parametrize("most", [1, 2])
def test_retry_after_holds_the_process(most: int) -> None:
    """No request is sent while it lasts, nor one that waited for its slot when it began."""
    refused = RateLimited("429", congestion=True, retry_after_s=30)
    client = Client(lambda n, before: refused if n == 0 and not before else f"{n}")
    shared = Dispatcher(client, DispatchLimits(max_concurrency=most))
    assert _outputs(shared.answer(_requests(6))) == [f"{n}" for n in range(6)]
    assert client.calls[:most] == [(0, n) for n in range(most)]
    later = client.calls[most:]
    assert {at for at, _ in later} == {30}
    assert sorted(n for _, n in later) == [n for n in range(6) if n not in range(1, most)]
    shared.answer(_requests(1))
    assert client.calls[-1] == (30, 0)


def test_retry_after_holds_every_thread(clock: Clock) -> None:
    """Also what is handed over meanwhile, from whichever thread."""
    refused = RateLimited("429", congestion=True, retry_after_s=30)
    client = Client(lambda n, before: refused if n == 0 and not before else f"{n}")
    shared = Dispatcher(client, DispatchLimits())
    inboxes = [Inbox() for _ in range(3)]
    shared.submit(_requests(1), inboxes[0])
    clock.sleep(10)
    with clock.hold():
        shared.submit(_requests(1, 1), inboxes[1])
        shared.submit(_requests(1, 2), inboxes[2])
    for inbox in inboxes:
        _collect(inbox)
    assert client.calls[0] == (0, 0)
    assert sorted(client.calls[1:]) == [(30, 0), (30, 1), (30, 2)]


@pytest.mark.parametrize("congestion", [True, False])
def test_retry_after_that_is_not_believed(congestion: bool) -> None:
    """Beyond two minutes the process asks again, rather than waiting for a day."""
    refused = Unavailable("503", congestion=congestion, retry_after_s=86_400)
    client = Client(lambda n, before: "late" if before == 2 else refused)
    assert _outputs(_answer(client, 1)) == ["late"]
    assert client.times == [0, 120, 240]


def test_a_shared_quota_is_kept() -> None:
    """Never more calls than a second's worth at once, and the quota on average."""
    client = Client(lambda n, _: "", 0.1)
    outcomes = _answer(client, 600, requests_per_minute=600)
    per_s = collections.Counter(int(at) for at in client.times)
    assert _kinds(outcomes) == {"Completion": 600}
    assert max(per_s.values()) <= 20
    assert max(client.times) == pytest.approx(59, abs=1)
    assert {per_s[s] for s in range(1, 58)} <= {9, 10, 11}


def test_a_quota_of_tokens_is_kept() -> None:
    """What answers really took is spent; the estimate is only for the start of a call."""
    answer = Completion("", usage=Usage(60, None, 30, 10))
    client = Client(lambda n, _: answer, 0.1)
    _answer(client, 300, tokens_per_minute=60_000)
    per_s = collections.Counter(int(at) for at in client.times)
    late = [per_s[s] for s in range(10, 25)]
    assert sum(late) / len(late) == pytest.approx(10, abs=0.5)
    assert max(late) <= 21


def test_refusals_do_not_spend_a_quota_of_tokens() -> None:
    """The tokens of a call that failed are given back, unless the server billed them."""
    client = Client(lambda n, before: "" if before else RateLimited("429", congestion=True))
    request = Request(Record("0", {}), {"n": 0}, {}, "0", 1000)
    shared = Dispatcher(client, DispatchLimits(tokens_per_minute=60_000, first_backoff_s=1))
    shared.answer([request])
    assert client.times == [0, 1]


# What may be seen


def test_throttled_time(clock: Clock) -> None:
    """Seconds in which requests waited for a quota; not those in which they waited for a slot."""
    shared = Dispatcher(
        Client(lambda n, _: "", 0.0), DispatchLimits(requests_per_minute=60, max_concurrency=1)
    )
    shared.answer(_requests(11))
    assert shared.throttled_s() == pytest.approx(clock.now)
    assert clock.now == pytest.approx(9, abs=0.1)
    slow = Dispatcher(Client(lambda n, _: "", 1.0), DispatchLimits(max_concurrency=1))
    slow.answer(_requests(10))
    assert slow.throttled_s() == 0


def test_throttled_time_of_a_retry_after() -> None:
    """Records that wait behind somebody else's Retry-After."""
    refused = RateLimited("429", congestion=True, retry_after_s=30)
    client = Client(lambda n, before: refused if n == 0 and not before else f"{n}")
    shared = Dispatcher(client, DispatchLimits(max_concurrency=1))
    outcomes = shared.answer(_requests(3))
    assert shared.throttled_s() == pytest.approx(30)
    assert [o.throttled_ms for o in outcomes] == [30_000, 0, 0]


def test_throttled_time_of_a_lone_record() -> None:
    """The record that was refused waits for the Retry-After, too."""
    refused = RateLimited("429", congestion=True, retry_after_s=30)
    shared = Dispatcher(Client(lambda n, before: "late" if before else refused), DispatchLimits())
    shared.answer(_requests(1))
    assert shared.throttled_s() == pytest.approx(30)


def test_failed_calls_are_counted() -> None:
    """By type, retried ones included, once."""
    replies = {0: Blocked("no"), 1: Unavailable("500"), 2: RateLimited("429", congestion=True)}
    client = Client(lambda n, before: replies[n] if n in replies and before < 2 else "")
    shared = Dispatcher(client, DispatchLimits())
    shared.answer(_requests(5))
    assert shared.take_failed_calls() == {"blocked": 1, "unavailable": 2, "rate_limited": 2}
    assert shared.take_failed_calls() == {}


# Outages

_DOWN: dict[str, Callable[[], Any]] = {
    "refused": lambda: Unavailable("refused", fatal_at_start=True, congestion=True),
    "503": lambda: Unavailable("503", congestion=True),
    "reset": lambda: Unavailable("reset", fatal_at_start=True, unanswered=True),
    "hang": lambda: HANG,
}


@pytest.mark.parametrize("how", _DOWN)
def test_an_outage_costs_no_record(clock: Clock, how: str) -> None:
    """A backend that is away for a minute: everything waits, and goes on by itself."""

    def reply(n: int, before: int) -> Any:
        return _DOWN[how]() if 5 <= clock.now < 65 else f"{n}"

    client = Client(reply, lambda n, _: 0.01 if 5 <= clock.now < 65 else 1.0)
    outcomes = _answer(client, 1000, max_concurrency=32, request_timeout_s=10)
    assert _outputs(outcomes) == [f"{n}" for n in range(1000)]
    during = [at for at in client.times if 5 <= at < 65]
    assert len(during) < 32 + 10 + 32 + 10
    after = [at for at in client.times if at >= 65]
    assert after[0] < 65 + 21
    assert max(after) < 65 + 21 + 2 * 1000 / 32


def test_probes_are_single_rare_and_of_different_records() -> None:
    """Ten failures open the breaker; then one call at a time, ever more rarely, each another's."""
    down = Unavailable("503", congestion=True)
    client = Client(lambda n, _: down if _now() < 60 else f"{n}")
    outcomes = _answer(client, 20, first_backoff_s=1)
    assert _outputs(outcomes) == [f"{n}" for n in range(20)]
    assert client.calls[:20] == [(0, n) for n in range(20)]
    probes = client.calls[20:29]
    assert [at for at, _ in probes] == [0.5, 1.5, 3.5, 7.5, 15.5, 25.5, 35.5, 45.5, 55.5]
    assert len({n for _, n in probes}) == 9
    assert client.times[29] == 65.5
    assert max(client.times) < 75


def _answer_until(client: Client, count: int, seconds: float, **limits: Any) -> None:
    """Lets a dispatcher work for some time, and leaves it."""
    shared = Dispatcher(client, DispatchLimits(**limits))
    inbox = Inbox()
    shared.submit(_requests(count), inbox)
    virtual: Any = loop.event_loop()
    virtual.clock.sleep(seconds)
    inbox.abandoned = True


@pytest.mark.xfail(strict=True, reason="probes of few records use up their attempts")
@pytest.mark.parametrize("count", [1, 3])
def test_an_outage_of_few_records(count: int) -> None:
    """An outage costs no attempt, however few records there are to see it."""
    client = Client(lambda n, _: Unavailable("500") if _now() < 60 else f"{n}")
    outcomes = _answer(client, count)
    assert _outputs(outcomes) == [f"{n}" for n in range(count)]


def test_probes_keep_retry_after() -> None:
    """Nobody sends before the time that the server asked for is over."""
    down = Unavailable("503", congestion=True, retry_after_s=30)
    client = Client(lambda n, before: f"{n}" if before else down)
    _answer(client, 20)
    assert {at for at in client.times if at > 0} == {30}


def test_an_outage_does_not_count_in_the_deadline() -> None:
    """A record's own time is that in which the backend might have answered it."""
    client = Client(lambda n, _: Unavailable("503", congestion=True) if _now() < 600 else f"{n}")
    outcomes = _answer(client, 40, record_deadline_s=30)
    assert _outputs(outcomes) == [f"{n}" for n in range(40)]
    assert max(client.times) >= 600


def test_few_failures_are_no_outage() -> None:
    """Nine in a row: every record is retried by itself."""
    client = Client(lambda n, before: Unavailable("500") if not before else "", 0)
    _answer(client, 9, first_backoff_s=1)
    assert client.times == [0] * 9 + [1] * 9


# What stops the run: nothing succeeds


def test_nothing_succeeds_for_too_long(clock: Clock) -> None:
    """An outage from the start stops the run with its last error, before any record's deadline."""
    client = Client(lambda n, before: Unavailable(f"503 number {before}", congestion=True))
    with pytest.raises(BackendUnusable) as raised:
        _answer(client, 1, give_up_after_s=200, first_backoff_s=64, max_backoff_s=64)
    assert str(raised.value) == "nothing has succeeded for 200 s: 503 number 4"
    assert client.times == [0, 64, 128, 192, 256]


def test_a_run_that_has_succeeded_stops_in_good_order() -> None:
    """After 15 minutes without success: last errors for the sent, ``not_attempted`` for the rest."""
    client = Client(lambda n, _: Unavailable("down", congestion=True) if n else "up")
    shared = Dispatcher(client, DispatchLimits(max_concurrency=32))
    assert _outputs(shared.answer(_requests(1))) == ["up"]
    outcomes = shared.answer(_requests(500, 1))
    reason = "the run stopped: nothing has succeeded for 900 s: down"
    sent = set(client.order)
    assert _failures(outcomes) == [
        ("Unavailable", "down", client.asked[n]) if n in sent else ("NotAttempted", reason, 0)
        for n in range(1, 501)
    ]
    assert 33 < len(sent) < 200
    assert 900 < max(client.times) < 912
    assert _failures(shared.answer(_requests(1, 1000))) == [("NotAttempted", reason, 0)]


def test_a_success_ends_the_failing() -> None:
    """The time begins anew with the next failure."""
    refused = Unavailable("503", congestion=True, retry_after_s=100)
    client = Client(lambda n, before: "late" if before % 2 else refused)
    shared = Dispatcher(client, DispatchLimits(give_up_after_s=150))
    for _ in range(5):
        assert _outputs(shared.answer(_requests(1))) == ["late"]
    assert max(client.times) == 500


def test_a_refusal_of_a_record_ends_the_failing() -> None:
    """A backend that says what is wrong with a record works."""
    refused = Unavailable("503", congestion=True, retry_after_s=100)
    client = Client(lambda n, before: Blocked("no") if before else refused)
    shared = Dispatcher(client, DispatchLimits(give_up_after_s=150))
    for n in range(5):
        assert _failures(shared.answer(_requests(1, n))) == [("Blocked", "no", 2)]


def test_a_success_by_the_batch_ends_the_failing() -> None:
    """Records that fail for good now and then are no outage while others are answered."""
    client = ManyClient(
        lambda requests: [Completion("many"), Unavailable("503")],
        lambda n, before: Unavailable("503", retry_after_s=100),
    )
    limits = DispatchLimits(
        give_up_after_s=150, max_attempts=2, first_backoff_s=100, max_backoff_s=100
    )
    shared = Dispatcher(client, limits)
    for _ in range(5):
        assert _failures(shared.answer(_requests(2))) == [None, ("Unavailable", "503", 2)]
    assert client.times == [100, 200, 300, 400, 500]


def test_idleness_is_no_failing(clock: Clock) -> None:
    """A failure, an hour of nothing, and another failure are not an hour of failures."""
    client = Client(lambda n, _: Unavailable("500"))
    shared = Dispatcher(client, DispatchLimits(max_attempts=1))
    for n in range(5):
        assert _failures(shared.answer(_requests(1, n))) == [("Unavailable", "500", 1)]
        clock.sleep(3600)


def test_a_streaming_run_that_starts_before_its_server() -> None:
    """It holds its messages then, too."""
    down = Unavailable("refused", congestion=True, fatal_at_start=True)
    client = Client(lambda n, _: down if _now() < 60 else f"{n}")
    assert _outputs(_answer(client, 5, hold=True)) == [f"{n}" for n in range(5)]


# What stops the run: too many dead letters


@pytest.mark.parametrize("limits", [{"max_dead_letter_ratio": 1.0}, {"hold": True}])
def test_no_ratio(limits: dict[str, Any]) -> None:
    """All may fail, each for itself."""
    client = Client(lambda n, _: InvalidRequest("400"))
    assert _failures(_answer(client, 1500, **limits)) == [("InvalidRequest", "400", 1)] * 1500


def test_waiting_retries_when_the_run_stops() -> None:
    """They keep their last error, and are not asked again."""
    client = Client(lambda n, _: InvalidRequest("400") if n else Unavailable("500"))
    outcomes = _answer(client, 1200, max_concurrency=1, first_backoff_s=50)
    assert _failures(outcomes)[0] == ("Unavailable", "500", 1)
    assert client.asked[0] == 1


def test_a_few_unforeseen_failures() -> None:
    """Ten of them, however few records there are."""
    client = Client(lambda n, _: ZeroDivisionError("boom"))
    assert _failures(_answer(client, 10)) == [("ZeroDivisionError", "boom", 1)] * 10


def test_too_many_unforeseen_failures() -> None:
    """The eleventh of few stops the run."""
    client = Client(lambda n, _: ZeroDivisionError("boom"))
    reason = (
        "the run stopped: 11 of 11 records failed in a way that nobody foresaw; "
        "the last: ZeroDivisionError: boom"
    )
    assert _failures(_answer(client, 20, max_concurrency=1)) == (
        [("ZeroDivisionError", "boom", 1)] * 11 + [("NotAttempted", reason, 0)] * 9
    )


@pytest.mark.parametrize(("every", "unforeseen"), [(100, 30), (80, 11)])
def test_share_of_unforeseen_failures(every: int, unforeseen: int) -> None:
    """One in a hundred goes on; more stops the run as soon as they are more than ten."""
    client = Client(lambda n, _: ZeroDivisionError("boom") if n % every == every - 1 else "")
    kinds = _kinds(_answer(client, 3000, max_concurrency=1))
    assert kinds["ZeroDivisionError"] == unforeseen
    assert ("NotAttempted" in kinds) == (every == 80)


# What stops the run: nothing ever succeeded, and two failed alike

_FATAL = [
    lambda: Forbidden("401: no credentials", fatal_at_start=True),
    lambda: Forbidden("403: no permission", fatal_at_start=True),
    lambda: InvalidRequest("404: no such model", fatal_at_start=True),
    lambda: Unavailable("connection refused", fatal_at_start=True, congestion=True),
    lambda: Unavailable("reset", fatal_at_start=True, unanswered=True),
]


def test_a_wrong_key_is_not_tried_often() -> None:
    """Every thread that waits is told, after fewer than a hundred calls."""
    client = Client(lambda n, _: Forbidden("401", fatal_at_start=True), 0.2)
    shared = Dispatcher(client, DispatchLimits())

    def answer(_: int) -> str:
        with pytest.raises(BackendUnusable) as raised:
            shared.answer(_requests(500))
        return str(raised.value)

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        assert list(threads.map(answer, range(4))) == ["401"] * 4
    assert len(client.calls) < 100
    with pytest.raises(BackendUnusable, match=r"^401$"):
        shared.answer(_requests(1))


@pytest.mark.parametrize("wrong", [{3}, {3, 7}])
def test_forbidden_records_that_fail_first(wrong: set[int]) -> None:
    """403s come at once and successes take a second: calls in flight prove that others work."""
    client = Client(
        lambda n, _: Forbidden("403", fatal_at_start=True) if n in wrong else f"{n}",
        lambda n, _: 0.0 if n in wrong else 1.0,
    )
    outcomes = _answer(client, 1000)
    assert {n for n, failure in enumerate(_failures(outcomes)) if failure} == wrong
    assert {failure for failure in _failures(outcomes) if failure} == {("Forbidden", "403", 1)}
    if len(wrong) == 2:
        assert [at for at in client.times if 0 < at < 1] == []
        assert len([at for at in client.times if at == 0]) < 40


def test_calls_in_flight_have_five_seconds() -> None:
    """Then two failures that are alike stop the run."""
    client = Client(
        lambda n, _: f"{n}" if n > 1 else Forbidden("403", fatal_at_start=True),
        lambda n, _: 5.5 if n > 1 else 0.0,
    )
    with pytest.raises(BackendUnusable, match=r"^403$"):
        _answer(client, 10)
    assert _now() == 5
    client = Client(client.reply, lambda n, _: 4.5 if n > 1 else 0.0)
    assert _kinds(_answer(client, 10)) == {"Forbidden": 2, "Completion": 8}


@pytest.mark.parametrize("make", _FATAL)
def test_two_records_that_fail_alike_by_the_batch(make: Any) -> None:
    """The same rule for clients that answer many at once."""
    client = ManyClient(lambda requests: [make() for _ in requests], lambda n, _: make())
    with pytest.raises(BackendUnusable) as raised:
        _answer(client, 3)
    assert str(raised.value) == str(make())


def test_a_batch_in_flight_may_prove_the_contrary(clock: Clock) -> None:
    """Another thread's batch counts as calls in flight."""
    client = ManyClient(lambda requests: [])
    client.many = lambda requests: [
        Completion("") if request.body["n"] > 9 else Forbidden("403", fatal_at_start=True)
        for request in requests
    ]
    shared = Dispatcher(client, DispatchLimits())
    slow, quick = Inbox(), Inbox()
    client.many_seconds = 3.0
    shared.submit(_requests(3, 10), slow)
    clock.sleep(1)
    client.many_seconds = 0.0
    shared.submit(_requests(3), quick)
    assert [type(e.outcome) for e in _collect(slow)] == [Completion] * 3
    assert [type(e.outcome) for e in _collect(quick)] == [Failure] * 3


def test_two_batches_that_fail_alike() -> None:
    """The records need not be in one batch."""
    client = Client(lambda n, _: Forbidden("403", fatal_at_start=True))
    shared = Dispatcher(client, DispatchLimits())
    assert _failures(shared.answer(_requests(1))) == [("Forbidden", "403", 1)]
    with pytest.raises(BackendUnusable, match=r"^403$"):
        shared.answer(_requests(1, 1))


@pytest.mark.parametrize("make", _FATAL)
def test_one_record_that_fails_at_the_start(make: Any) -> None:
    """It may be its own fault: a dead letter, and the next one's success settles it."""
    client = Client(lambda n, _: make() if n == 0 else f"{n}")
    outcomes = _answer(client, 2, max_attempts=2, record_deadline_s=10)
    assert _outputs(outcomes) == [None, "1"]
    assert type(outcomes[0].error) is type(make())  # type: ignore[union-attr]
    (alone,) = _answer(Client(lambda n, _: make()), 1, max_attempts=2, record_deadline_s=10)
    assert type(alone.error) is type(make())  # type: ignore[union-attr]


@pytest.mark.parametrize("make", _FATAL)
def test_failures_after_a_success(make: Any) -> None:
    """They are the records' own."""
    client = Client(lambda n, _: make() if n else "first")
    shared = Dispatcher(client, DispatchLimits(max_attempts=1, record_deadline_s=0.5))
    assert _outputs(shared.answer(_requests(1))) == ["first"]
    failure = (type(make()).__name__, str(make()), 1)
    assert _failures(shared.answer(_requests(4))) == [None, failure, failure, failure]


def test_failures_after_a_success_by_the_batch() -> None:
    """One success among many is one."""
    error = Forbidden("403", fatal_at_start=True)
    client = ManyClient(lambda requests: [error, Completion("a"), error])
    assert _failures(_answer(client, 3)) == [
        ("Forbidden", "403", 1), None, ("Forbidden", "403", 1)
    ]  # fmt: skip


def test_two_records_that_fail_differently() -> None:
    """Each kind once is no reason to stop."""
    errors = [Forbidden("403", fatal_at_start=True), InvalidRequest("404", fatal_at_start=True)]
    assert _failures(_answer(Client(lambda n, _: errors[n]), 2)) == [
        ("Forbidden", "403", 1),
        ("InvalidRequest", "404", 1),
    ]


def test_ordinary_refusals_never_stop_the_run() -> None:
    """All records may be wrong, each for itself."""
    outcomes = _answer(Client(lambda n, _: InvalidRequest("400")), 5)
    assert _failures(outcomes) == [("InvalidRequest", "400", 1)] * 5


def test_client_that_stops_the_run() -> None:
    """A client may say itself that nothing will work."""
    client = Client(lambda n, _: HANG if n else BackendUnusable("credentials revoked"))
    with pytest.raises(BackendUnusable, match=r"^credentials revoked$"):
        _answer(client, 3)
    loop.run(asyncio.sleep(0))
    assert client.cancelled == [1, 2]


def test_connection_that_comes_back() -> None:
    """A server that is still starting does not stop the run at the first refusal."""
    refused = Unavailable("connection refused", fatal_at_start=True, congestion=True)
    client = Client(lambda n, before: f"{n}" if before else refused)
    assert _outputs(_answer(client, 5)) == [f"{n}" for n in range(5)]


# An error of our own


def test_the_error_of_a_broken_run_does_not_grow() -> None:
    """Retried bundles that fail again do not keep each other's frames alive."""
    client = Client(lambda n, _: BackendUnusable("revoked"))
    shared = Dispatcher(client, DispatchLimits())
    lengths = []
    for _ in range(3):
        with pytest.raises(BackendUnusable) as raised:
            shared.answer(_requests(1))
        lengths.append(len(raised.traceback))
    assert lengths == [lengths[0]] * 3


# Many at once


def test_generate_many() -> None:
    """One call for the batch."""
    client = ManyClient(lambda requests: [Completion(f"{r.body['n']}") for r in requests])
    assert _outputs(_answer(client, 5)) == ["0", "1", "2", "3", "4"]
    assert (client.batches, client.asked) == ([5], {})


def test_generate_many_that_raises() -> None:
    """Each is tried alone: the one that broke the batch costs itself."""
    client = ManyClient(
        lambda requests: RuntimeError("out of memory"),
        lambda n, _: RuntimeError("poison") if n == 2 else f"alone {n}",
    )
    outcomes = _answer(client, 4)
    assert _outputs(outcomes) == ["alone 0", "alone 1", None, "alone 3"]
    assert _failures(outcomes)[2] == ("RuntimeError", "poison", 1)
    assert (client.batches, client.asked) == ([4], {0: 1, 1: 1, 2: 1, 3: 1})


@pytest.mark.parametrize("returned", [0, 1, 3])
def test_generate_many_of_the_wrong_length(returned: int) -> None:
    """Nobody knows whose answers these are: the run stops rather than mixing records up."""
    client = ManyClient(lambda requests: [Completion("?")] * returned)
    with pytest.raises(BackendUnusable) as raised:
        _answer(client, 2)
    assert str(raised.value) == (
        f"ManyClient.generate_many returned {returned} outcomes for 2 requests"
    )
    assert client.asked == {}


def test_generate_many_that_stops_the_run() -> None:
    """`BackendUnusable` is never tried again."""
    client = ManyClient(lambda requests: BackendUnusable("no GPU"))
    with pytest.raises(BackendUnusable, match=r"^no GPU$"):
        _answer(client, 2)
    assert client.asked == {}


def test_generate_many_with_failures() -> None:
    """Retryable ones are retried alone, each with an attempt spent; the others are final."""
    replies = [
        Completion("many 0"),
        Unavailable("503"),
        Blocked("no"),
        Unavailable("503"),
        RateLimited("429", congestion=True),
    ]
    client = ManyClient(
        lambda requests: replies,
        lambda n, before: f"alone {n}" if n != 3 else Unavailable(f"alone {before + 1}"),
    )
    outcomes = _answer(client, 5, max_attempts=3)
    assert _outputs(outcomes) == ["many 0", "alone 1", None, None, "alone 4"]
    assert _failures(outcomes) == [
        None,
        None,
        ("Blocked", "no", 1),
        ("Unavailable", "alone 2", 3),
        None,
    ]
    assert [o.attempts for o in outcomes if isinstance(o, Completion)] == [1, 2, 2]
    assert client.asked == {1: 1, 3: 2, 4: 1}


def test_generate_many_keeps_max_attempts() -> None:
    """The batch was the attempt; congestion is still none."""
    replies = [Unavailable("503"), RateLimited("429", congestion=True)]
    client = ManyClient(lambda requests: replies)
    outcomes = _answer(client, 2, max_attempts=1)
    assert _failures(outcomes) == [("Unavailable", "503", 1), None]
    assert client.asked == {1: 1}


def test_generate_many_retry_after() -> None:
    """A refusal by the batch is waited out, too."""
    client = ManyClient(lambda requests: [RateLimited("429", congestion=True, retry_after_s=5)])
    (outcome,) = _answer(client, 1)
    assert isinstance(outcome, Completion)
    assert (outcome.attempts, outcome.throttled_ms) == (2, 5000)
    assert client.times == [5]


def test_generate_many_of_something_else() -> None:
    """What is neither an answer nor an error costs its record."""
    client = ManyClient(lambda requests: [Completion("a"), None])
    outcomes = _answer(client, 2)
    assert _failures(outcomes) == [
        None, ("TypeError", "generate_many gave a NoneType for a request", 1)
    ]  # fmt: skip


# Its end


def test_a_broken_dispatcher_is_closed() -> None:
    """What was cancelled holds nothing."""
    client = Client(lambda n, _: HANG if n > 1 else Forbidden("401", fatal_at_start=True))
    with pytest.raises(BackendUnusable):
        _answer(client, 5)
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
    shared.answer(_requests(4))
    gauges = shared.gauges()
    assert (gauges["in_flight_requests"], gauges["waiting_requests"]) == (0, 0)
    loop.run(asyncio.sleep(0))
    assert shared._tasks == set()


def test_threads_that_share_nothing_are_not_held_up() -> None:
    """One dispatcher's end does not touch another's."""
    broken = Dispatcher(Client(lambda n, _: BackendUnusable("no")), DispatchLimits())
    works = Dispatcher(Client(lambda n, _: f"{n}"), DispatchLimits())
    with pytest.raises(BackendUnusable):
        broken.answer(_requests(1))
    assert _outputs(works.answer(_requests(2))) == ["0", "1"]


def test_stop_while_a_batch_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that comes between the wish to stop and the stop does not keep others waiting."""
    monkeypatch.setattr(interrupt, "_open", weakref.WeakSet())
    monkeypatch.setattr(interrupt, "_asked", threading.Event())
    client = Client(lambda n, _: HANG)
    shared = Dispatcher(client, DispatchLimits(request_timeout_s=1e9))
    waiting, late = Inbox(), Inbox()
    shared.submit(_requests(3), waiting)
    assert waiting.get(30.0) is None
    interrupt._asked.set()
    shared.submit(_requests(3), late)
    interrupt.stop_all()
    loop.run(asyncio.sleep(0))
    for inbox in (late, waiting):
        with pytest.raises(Interrupted, match=r"^the run was asked to stop$"):
            inbox.get(0.0)
    assert sorted(client.cancelled) == [0, 1, 2]


def test_stop() -> None:
    """`stop_all` interrupts every call and refuses further ones; it is for good."""
    script = """
        import asyncio, threading
        from transforms.dispatch.dispatcher import Dispatcher, DispatchLimits
        from transforms.dispatch.interrupt import stop_all
        from transforms.errors import Interrupted
        from transforms.records import Completion, Record, Request

        started = threading.Semaphore(0)
        ended = []

        class Hanging:
            async def generate(self, request):
                started.release()
                await asyncio.Future()
            async def close(self):
                pass

        class Many(Hanging):
            async def generate_many(self, requests):
                return [Completion() for _ in requests]

        def answer(dispatcher):
            try:
                dispatcher.answer([Request(Record("1", {}), {}, {}, "f", 1)] * 3)
            except Interrupted as error:
                ended.append(str(error))

        dispatcher = Dispatcher(Hanging(), DispatchLimits())
        threads = [threading.Thread(target=answer, args=[dispatcher]) for _ in range(2)]
        for thread in threads:
            thread.start()
        for _ in range(6):
            started.acquire()
        stop_all()
        for thread in threads:
            thread.join()
        answer(dispatcher)
        answer(Dispatcher(Many(), DispatchLimits()))
        print(ended == ["the run was asked to stop"] * 4)
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")
