"""The dispatcher: one outcome per request, and who pays for which failure.

No test waits for real time or asserts on it: back-offs are a thousandth of a second, and where the
order of waits matters the dispatcher gets a clock of the test's own.
"""

import asyncio
import collections
import concurrent.futures
import gc
import subprocess
import sys
import textwrap
import types
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from transforms.dispatch import dispatcher as module
from transforms.dispatch import loop
from transforms.dispatch.dispatcher import Dispatcher, DispatchLimits, Failure, Outcome
from transforms.errors import (
    BackendUnusable,
    Blocked,
    Forbidden,
    InvalidRequest,
    RateLimited,
    RecordError,
    RequestTimeout,
    Unavailable,
)
from transforms.records import Completion, Record, Request, Usage

QUICK: dict[str, Any] = {"first_backoff_s": 0.001, "max_backoff_s": 0.001}


def _requests(count: int) -> list[Request]:
    return [Request(Record(str(n), {}), {"n": n}, {}, f"{n:064x}", 1) for n in range(count)]


def _limits(**given: Any) -> DispatchLimits:
    return DispatchLimits(**{**QUICK, **given})


class Client:
    """Answers by a function of the request's number and of how often it was asked before.

    The function gives an output, or an exception to raise.
    """

    def __init__(self, reply: Callable[[int, int], Any]) -> None:
        self.reply = reply
        self.asked: collections.Counter[int] = collections.Counter()
        self.order: list[int] = []
        self.closed = 0

    async def generate(self, request: Request) -> Completion:
        n = request.body["n"]
        before = self.asked[n]
        self.asked[n] += 1
        self.order.append(n)
        reply = self.reply(n, before)
        await asyncio.sleep(0)
        if isinstance(reply, BaseException):
            raise reply
        return Completion(output=reply)

    async def close(self) -> None:
        self.closed += 1


class ManyClient(Client):
    """Likewise, and by the batch with a function of the requests."""

    def __init__(
        self,
        many: Callable[[Sequence[Request]], Any],
        reply: Callable[[int, int], Any] = lambda n, _: f"alone {n}",
    ) -> None:
        super().__init__(reply)
        self.many = many
        self.batches: list[int] = []

    async def generate_many(self, requests: Sequence[Request]) -> Any:
        self.batches.append(len(requests))
        replies = self.many(requests)
        if isinstance(replies, BaseException):
            raise replies
        return replies


def _answer(client: Client, count: int, **limits: Any) -> list[Outcome]:
    return Dispatcher(client, _limits(**limits)).answer(_requests(count))


def _failures(outcomes: list[Outcome]) -> list[tuple[str, str, int] | None]:
    """Class, message and attempts of each failure; None for a completion."""
    return [
        (type(outcome.error).__name__, str(outcome.error), outcome.attempts)
        if isinstance(outcome, Failure)
        else None
        for outcome in outcomes
    ]


def _outputs(outcomes: list[Outcome]) -> list[str | None]:
    return [outcome.output if isinstance(outcome, Completion) else None for outcome in outcomes]


# One outcome each


def test_one_outcome_each_in_order() -> None:
    """However the calls end, outcomes are in the order of the requests."""

    class Shuffled(Client):
        async def generate(self, request: Request) -> Completion:
            for _ in range(request.body["n"] * 7 % 13):
                await asyncio.sleep(0)
            return await super().generate(request)

    outcomes = _answer(Shuffled(lambda n, _: f"answer {n}"), 100)
    assert _outputs(outcomes) == [f"answer {n}" for n in range(100)]
    assert {type(outcome) for outcome in outcomes} == {Completion}
    assert {o.attempts for o in outcomes if isinstance(o, Completion)} == {1}
    assert {type(o.latency_ms) for o in outcomes if isinstance(o, Completion)} == {int}


def test_no_requests() -> None:
    """Nothing in, nothing out."""
    assert _answer(Client(lambda n, _: ""), 0) == []
    assert _answer(ManyClient(lambda requests: []), 0) == []


def test_many_threads_share_one_client() -> None:
    """Bundles of several threads meet; each gets its own outcomes."""
    client = Client(lambda n, _: f"{n}")
    shared = Dispatcher(client, _limits(max_concurrency=3))
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda count: shared.answer(_requests(count)), range(1, 30)))
    assert [_outputs(outcomes) for outcomes in found] == [
        [f"{n}" for n in range(count)] for count in range(1, 30)
    ]


@pytest.mark.parametrize("most", [1, 4, 50])
def test_max_concurrency(most: int) -> None:
    """So many calls are in flight at once, never more, also over several batches."""

    class Counting(Client):
        flying = highest = 0

        async def generate(self, request: Request) -> Completion:
            self.flying += 1
            self.highest = max(self.highest, self.flying)
            for _ in range(3):
                await asyncio.sleep(0)
            self.flying -= 1
            return Completion()

    client = Counting(lambda n, _: "")
    shared = Dispatcher(client, _limits(max_concurrency=most))
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda _: shared.answer(_requests(60)), range(2)))
    assert client.highest == most


def test_completion_is_kept() -> None:
    """All of the client's completion comes through."""
    made = Completion("o", '{"a":1}', (0.5,), "STOP", Usage(1, 2, 3, 4), "v", "FLEX")

    class One(Client):
        async def generate(self, request: Request) -> Completion:
            return made

    (outcome,) = _answer(One(lambda n, _: ""), 1)
    assert isinstance(outcome, Completion)
    assert outcome.latency_ms is not None
    assert outcome == Completion(
        "o", '{"a":1}', (0.5,), "STOP", Usage(1, 2, 3, 4), "v", "FLEX", outcome.latency_ms
    )


# Retries


def test_retryable_is_retried() -> None:
    """Until it succeeds; every call counts."""
    client = Client(lambda n, before: f"{n}" if before == 2 else Unavailable("503"))
    outcomes = _answer(client, 3)
    assert _outputs(outcomes) == ["0", "1", "2"]
    assert [o.attempts for o in outcomes if isinstance(o, Completion)] == [3, 3, 3]
    assert client.asked == {0: 3, 1: 3, 2: 3}


@pytest.mark.parametrize("most", [1, 2, 5])
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
    assert isinstance(outcomes[0], Failure)
    assert type(outcomes[0].error) is TypeError


def test_request_timeout() -> None:
    """A call without an answer is cancelled, is a retryable timeout, and costs an attempt."""
    cancelled = []

    class Hanging(Client):
        async def generate(self, request: Request) -> Completion:
            if request.body["n"]:
                return await super().generate(request)
            try:
                return await asyncio.Future()
            except asyncio.CancelledError:
                cancelled.append(request.body["n"])
                raise

    outcomes = _answer(Hanging(lambda n, _: f"{n}"), 2, request_timeout_s=0.001, max_attempts=2)
    assert _outputs(outcomes) == [None, "1"]
    assert _failures(outcomes)[0] == (
        "RequestTimeout", "no answer within 0.001 s (--request_timeout_s)", 2
    )  # fmt: skip
    assert isinstance(outcomes[0], Failure)
    assert isinstance(outcomes[0].error, RequestTimeout)
    assert outcomes[0].error.retryable
    assert cancelled == [0, 0]


# A clock of the test's own


class Clock:
    """Time that moves only by what is slept, in the dispatcher alone."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(round(seconds, 6))
        until = self.now + seconds
        for _ in range(10):  # whatever is ready goes first
            await asyncio.sleep(0)
        self.now = max(self.now, until)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Replaces the dispatcher's time, and its dice by their highest throw."""
    clock = Clock()
    patched = types.SimpleNamespace(**{n: getattr(asyncio, n) for n in dir(asyncio)})
    patched.sleep = clock.sleep
    monkeypatch.setattr(module, "asyncio", patched)
    monkeypatch.setattr(module, "time", types.SimpleNamespace(monotonic=clock.monotonic))
    monkeypatch.setattr(module, "random", types.SimpleNamespace(uniform=lambda low, high: high))
    return clock


def test_backoff_doubles_up_to_its_ceiling(clock: Clock) -> None:
    """The longest waits of full jitter: 1, 2, 4 … and never beyond the ceiling."""
    limits = DispatchLimits(max_attempts=7, first_backoff_s=1, max_backoff_s=10)
    client = Client(lambda n, _: Unavailable("503"))
    outcomes = Dispatcher(client, limits).answer(_requests(1))
    assert _failures(outcomes) == [("Unavailable", "503", 7)]
    assert clock.slept == [1, 2, 4, 8, 10, 10]


def test_retry_after_is_kept(clock: Clock) -> None:
    """What the server asks for goes before the back-off."""
    client = Client(lambda n, before: Unavailable("503", retry_after_s=7) if not before else "a")
    outcomes = Dispatcher(client, DispatchLimits()).answer(_requests(1))
    assert _outputs(outcomes) == ["a"]
    assert clock.slept == [7]


def test_congestion_costs_no_attempt(clock: Clock) -> None:
    """Ten refusals do not use up two attempts; the waits are counted as throttling."""
    client = Client(
        lambda n, before: RateLimited("429", congestion=True) if before < 10 else "late"
    )
    limits = DispatchLimits(max_attempts=2, first_backoff_s=1, max_backoff_s=4)
    (outcome,) = Dispatcher(client, limits).answer(_requests(1))
    assert isinstance(outcome, Completion)
    assert (outcome.output, outcome.attempts) == ("late", 11)
    assert clock.slept == [1, 2, 4, 4, 4, 4, 4, 4, 4, 4]
    assert outcome.throttled_ms == sum(clock.slept) * 1000


def test_congestion_between_attempts(clock: Clock) -> None:
    """Refusals use up none of the attempts that failures may."""
    refused, failed = RateLimited("429", congestion=True), Unavailable("500")
    replies = [refused, failed, refused, refused, "late"]
    client = Client(lambda n, before: replies[before])
    limits = DispatchLimits(max_attempts=2, first_backoff_s=1, max_backoff_s=64)
    (outcome,) = Dispatcher(client, limits).answer(_requests(1))
    assert isinstance(outcome, Completion)
    assert (outcome.output, outcome.attempts) == ("late", 5)
    assert clock.slept == [1, 1, 2, 4]
    assert outcome.throttled_ms == 7000


def test_congestion_ends_at_the_deadline(clock: Clock) -> None:
    """Then it is a retryable dead letter with all that was tried."""
    client = Client(lambda n, _: RateLimited("429", congestion=True, retry_after_s=30))
    limits = DispatchLimits(max_attempts=1, record_deadline_s=100)
    (outcome,) = Dispatcher(client, limits).answer(_requests(1))
    assert _failures([outcome]) == [("RateLimited", "429", 4)]
    assert isinstance(outcome, Failure)
    assert isinstance(outcome.error, RecordError)
    assert outcome.error.retryable
    assert clock.slept == [30, 30, 30]


def test_deadline_begins_with_the_first_call(clock: Clock) -> None:
    """Waiting for a slot behind others is not a record's own time."""

    class Slow(Client):
        async def generate(self, request: Request) -> Completion:
            clock.now += 60
            return await super().generate(request)

    client = Slow(lambda n, before: Unavailable("503") if not before and n == 9 else f"{n}")
    limits = DispatchLimits(max_concurrency=1, record_deadline_s=100, first_backoff_s=1)
    outcomes = Dispatcher(client, limits).answer(_requests(10))
    assert _outputs(outcomes) == [f"{n}" for n in range(10)]


def test_deadline_ends_retries(clock: Clock) -> None:
    """A wait that would end behind the deadline is not begun."""
    client = Client(lambda n, _: Unavailable("503", retry_after_s=60))
    (outcome,) = Dispatcher(client, DispatchLimits(record_deadline_s=100)).answer(_requests(1))
    assert _failures([outcome]) == [("Unavailable", "503", 2)]
    assert clock.slept == [60]


@pytest.mark.parametrize("most", [1, 2])
def test_retry_after_holds_the_process(clock: Clock, most: int) -> None:
    """No request is sent while it lasts, nor one that waited for its slot when it began."""

    class Timed(Client):
        def __init__(self, reply: Callable[[int, int], Any]) -> None:
            super().__init__(reply)
            self.times: list[tuple[float, int]] = []

        async def generate(self, request: Request) -> Completion:
            self.times.append((clock.now - 1000, request.body["n"]))
            return await super().generate(request)

    refused = RateLimited("429", congestion=True, retry_after_s=30)
    client = Timed(lambda n, before: refused if n == 0 and not before else f"{n}")
    shared = Dispatcher(client, DispatchLimits(max_concurrency=most))
    assert _outputs(shared.answer(_requests(6))) == [f"{n}" for n in range(6)]
    at_once = [(0, n) for n in range(most)]
    assert client.times[:most] == at_once
    later = client.times[most:]
    assert {time for time, _ in later} == {30}
    assert sorted(n for _, n in later) == [n for n in range(6) if n not in range(1, most)]
    shared.answer(_requests(1))
    assert client.times[-1] == (30, 0)


@pytest.mark.parametrize("congestion", [True, False])
def test_retry_after_that_is_not_believed(clock: Clock, congestion: bool) -> None:
    """Beyond two minutes the process asks again, rather than waiting for a day."""
    refused = Unavailable("503", congestion=congestion, retry_after_s=86_400)
    client = Client(lambda n, before: "late" if before == 2 else refused)
    assert _outputs(Dispatcher(client, DispatchLimits()).answer(_requests(1))) == ["late"]
    assert clock.slept == [120, 120]


def test_nothing_succeeds_for_too_long(clock: Clock) -> None:
    """An outage that does not end stops the run with its last error, before any record's deadline."""
    client = Client(lambda n, before: Unavailable(f"503 number {before}", congestion=True))
    limits = DispatchLimits(give_up_after_s=200, first_backoff_s=64, max_backoff_s=64)
    with pytest.raises(BackendUnusable) as raised:
        Dispatcher(client, limits).answer(_requests(1))
    assert str(raised.value) == "nothing has succeeded for 200 s; the last error: 503 number 4"
    assert clock.slept == [64, 64, 64, 64]


def test_a_success_ends_the_outage(clock: Clock) -> None:
    """The time begins anew with the next failure."""
    refused = Unavailable("503", congestion=True, retry_after_s=100)
    limits = DispatchLimits(give_up_after_s=150)
    client = Client(lambda n, before: "late" if before % 2 else refused)
    shared = Dispatcher(client, limits)
    for _ in range(5):
        assert _outputs(shared.answer(_requests(1))) == ["late"]
    assert clock.slept == [100] * 5


def test_a_success_by_the_batch_ends_the_outage(clock: Clock) -> None:
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
    assert clock.slept == [100] * 5


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


def test_generate_many_retry_after(clock: Clock) -> None:
    """A refusal by the batch is waited out, too."""
    client = ManyClient(lambda requests: [RateLimited("429", congestion=True, retry_after_s=5)])
    (outcome,) = Dispatcher(client, DispatchLimits()).answer(_requests(1))
    assert isinstance(outcome, Completion)
    assert (outcome.attempts, outcome.throttled_ms) == (2, 5000)
    assert clock.slept == [5]


def test_generate_many_of_something_else() -> None:
    """What is neither an answer nor an error costs its record."""
    client = ManyClient(lambda requests: [Completion("a"), None])
    outcomes = _answer(client, 2)
    assert _failures(outcomes) == [
        None, ("TypeError", "generate_many gave a NoneType for a request", 1)
    ]  # fmt: skip


# What stops the run

_FATAL = [
    lambda: Forbidden("401: no credentials", fatal_at_start=True),
    lambda: Forbidden("403: no permission", fatal_at_start=True),
    lambda: InvalidRequest("404: no such model", fatal_at_start=True),
    lambda: Unavailable("connection refused", fatal_at_start=True),
]


@pytest.mark.parametrize("make", _FATAL)
@pytest.mark.parametrize("most", [1, 5])
def test_two_records_that_fail_alike_at_the_start(make: Any, most: int) -> None:
    """Before any success they stop the run with the server's words, and the rest is cancelled."""
    cancelled = []

    class Waiting(Client):
        async def generate(self, request: Request) -> Completion:
            if request.body["n"] > 1:
                try:
                    await asyncio.Future()
                except asyncio.CancelledError:
                    cancelled.append(request.body["n"])
                    raise
            return await super().generate(request)

    client = Waiting(lambda n, _: make())
    with pytest.raises(BackendUnusable) as raised:
        _answer(client, 6, max_attempts=most)
    assert str(raised.value) == str(make())
    assert sorted(cancelled) == [2, 3, 4, 5]
    assert set(client.asked) == {0, 1}


@pytest.mark.parametrize("make", _FATAL)
def test_two_records_that_fail_alike_by_the_batch(make: Any) -> None:
    """The same rule for clients that answer many at once."""
    client = ManyClient(lambda requests: [make() for _ in requests], lambda n, _: make())
    with pytest.raises(BackendUnusable) as raised:
        _answer(client, 3)
    assert str(raised.value) == str(make())


def test_two_batches_that_fail_alike() -> None:
    """The records need not be in one batch."""
    client = Client(lambda n, _: Forbidden("403", fatal_at_start=True))
    shared = Dispatcher(client, _limits())
    assert _failures(shared.answer(_requests(1))) == [("Forbidden", "403", 1)]
    with pytest.raises(BackendUnusable, match=r"^403$"):
        shared.answer(_requests(2)[1:])


@pytest.mark.parametrize("make", _FATAL)
def test_one_record_that_fails_at_the_start(make: Any) -> None:
    """It may be its own fault: a dead letter, and the next one's success settles it."""
    client = Client(lambda n, _: make() if n == 0 else f"{n}")
    outcomes = _answer(client, 2, max_attempts=2)
    error = make()
    attempts = 2 if error.retryable else 1
    assert _failures(outcomes) == [(type(error).__name__, str(error), attempts), None]
    (alone,) = _answer(Client(lambda n, _: make()), 1, max_attempts=2)
    assert _failures([alone]) == [(type(error).__name__, str(error), attempts)]


@pytest.mark.parametrize("make", _FATAL)
def test_failures_after_a_success(make: Any) -> None:
    """They are the records' own."""
    client = Client(lambda n, _: make() if n else "first")
    shared = Dispatcher(client, _limits(max_attempts=1))
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
    client = Client(lambda n, _: BackendUnusable("credentials revoked"))
    with pytest.raises(BackendUnusable, match=r"^credentials revoked$"):
        _answer(client, 3)


def test_connection_that_comes_back() -> None:
    """A server that is still starting does not stop the run at the first refusal."""
    refused = Unavailable("connection refused", fatal_at_start=True)
    client = Client(lambda n, before: f"{n}" if before else refused)
    assert _outputs(_answer(client, 5)) == [f"{n}" for n in range(5)]


# Its end


def test_client_is_closed_with_its_dispatcher() -> None:
    """Exactly once, when nobody holds the dispatcher any more."""
    client = Client(lambda n, _: "")
    shared = Dispatcher(client, _limits())
    shared.answer(_requests(3))
    assert client.closed == 0
    del shared
    gc.collect()
    loop.run(asyncio.sleep(0))
    assert client.closed == 1


def test_stop() -> None:
    """`stop_all` interrupts every call and refuses further ones; it is for good."""
    script = """
        import asyncio, threading
        from transforms.dispatch.dispatcher import Dispatcher, DispatchLimits, stop_all
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

        dispatcher = Dispatcher(Hanging(), DispatchLimits(max_concurrency=2))
        threads = [threading.Thread(target=answer, args=[dispatcher]) for _ in range(2)]
        for thread in threads:
            thread.start()
        started.acquire()
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
