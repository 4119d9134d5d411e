"""When a record is retried and when it is given up; an outage costs nothing.

Tests run on virtual time: times are exact.
"""

from collections.abc import Callable
from typing import Any

import pytest

from tests.transforms.dispatch.clients import (
    HANG,
    Client,
    answer,
    collect,
    drain,
    failures,
    make_requests,
    outputs,
    virtual_now,
)
from tests.transforms.dispatch.virtual_time import Clock
from transforms.dispatch.completion_queue import CompletionQueue
from transforms.dispatch.dispatcher import Dispatcher, DispatchLimits, Failure
from transforms.records.causes import Cause
from transforms.records.errors import Blocked, RateLimited, RequestTimeout, Unavailable
from transforms.records.records import Completion, Usage

pytestmark = pytest.mark.usefixtures("clock")


# Retries


def test_retryable_is_retried() -> None:
    """A retryable failure is retried until it succeeds, and every call counts."""
    client = Client(lambda n, before: f"{n}" if before == 2 else Unavailable("503"))
    outcomes = answer(client, 3)
    assert outputs(outcomes) == ["0", "1", "2"]
    assert [o.attempts for o in outcomes if isinstance(o, Completion)] == [3, 3, 3]
    assert client.asked == {0: 3, 1: 3, 2: 3}


@pytest.mark.parametrize("most", [1, 2, 4])
def test_max_attempts(most: int) -> None:
    """A retryable failure costs an attempt; the last one's error is the outcome."""
    client = Client(lambda n, before: Unavailable(f"call {before + 1}"))
    outcomes = answer(client, 2, max_attempts=most)
    assert failures(outcomes) == [("Unavailable", f"call {most}", most)] * 2
    assert client.asked == {0: most, 1: most}


def test_one_attempt_is_one_call() -> None:
    """One attempt is one call, also where nothing else shows whose failure it is."""
    client = Client(lambda n, _: Unavailable("500") if n else "up")
    shared = Dispatcher(client, DispatchLimits(max_attempts=1))
    assert outputs(shared.answer(make_requests(1))) == ["up"]
    assert failures(shared.answer(make_requests(3, 1))) == [("Unavailable", "500", 1)] * 3


def test_non_retryable_fails_at_once() -> None:
    """A non-retryable failure is final after one call and does not affect others."""
    error = Blocked("no", finish_reason="SAFETY", usage=Usage(1))
    client = Client(lambda n, _: error if n == 1 else f"{n}")
    outcomes = answer(client, 3)
    assert outputs(outcomes) == ["0", None, "2"]
    assert outcomes[1] == Failure(error, 1)
    assert client.asked == {0: 1, 1: 1, 2: 1}


def test_request_timeout() -> None:
    """A call without an answer is cancelled; the timeout is retryable and costs an attempt."""
    client = Client(lambda n, _: f"{n}" if n else HANG, 1.0)
    limits = {"request_timeout_s": 7.5, "max_attempts": 2, "first_backoff_s": 1}
    outcomes = answer(client, 20, max_concurrency=2, **limits)
    assert failures(outcomes)[0] == (
        "RequestTimeout", "no answer within 7.5 s (`request_timeout_s`)", 2
    )  # fmt: skip
    assert isinstance(outcomes[0], Failure)
    assert isinstance(outcomes[0].error, RequestTimeout)
    assert outputs(outcomes[1:]) == [f"{n}" for n in range(1, 20)]
    assert client.cancelled == [0, 0]
    assert [at for at, n in client.calls if n == 0] == [0, 8.5]


def test_backoff_doubles_up_to_its_ceiling() -> None:
    """The longest waits of full jitter are 1, 2, 4 … seconds, up to the ceiling."""
    client = Client(lambda n, _: Unavailable("503"))
    outcomes = answer(client, 1, max_attempts=7, first_backoff_s=1, max_backoff_s=10)
    assert failures(outcomes) == [("Unavailable", "503", 7)]
    assert client.times == [0, 1, 3, 7, 15, 25, 35]


def test_unanswered_is_retried_at_once() -> None:
    """The first unanswered call, as on a stale connection, is retried without a wait."""
    client = Client(lambda n, _: Unavailable("reset", cause=Cause.STALE_CONNECTION))
    outcomes = answer(client, 1, max_attempts=4, first_backoff_s=1)
    assert failures(outcomes) == [("Unavailable", "reset", 4)]
    assert client.times == [0, 0, 2, 6]


def test_unanswered_after_another_failure() -> None:
    """Only a record's first failure is retried without a wait."""
    errors = [Unavailable("500"), Unavailable("reset", cause=Cause.STALE_CONNECTION)]
    client = Client(lambda n, before: errors[before] if before < 2 else "late")
    answer(client, 1, first_backoff_s=1)
    assert client.times == [0, 1, 3]


def test_retry_after_is_kept() -> None:
    """The server's Retry-After overrides the back-off."""
    client = Client(lambda n, before: Unavailable("503", retry_after_s=7) if not before else "a")
    assert outputs(answer(client, 1)) == ["a"]
    assert client.times == [0, 7]


# Congestion and deadlines


def test_congestion_costs_no_attempt() -> None:
    """Ten refusals cost no attempt; their waits are counted as throttling."""
    client = Client(lambda n, before: RateLimited("429") if before < 10 else "late")
    (outcome,) = answer(client, 1, max_attempts=2, first_backoff_s=1, max_backoff_s=4)
    assert isinstance(outcome, Completion)
    assert (outcome.output, outcome.attempts) == ("late", 11)
    assert client.times == [0, 1, 3, 7, 11, 15, 19, 23, 27, 31, 35]
    assert outcome.throttled_ms == 35_000


def test_congestion_between_attempts() -> None:
    """Refusals between failures cost no attempt."""
    refused, failed = RateLimited("429"), Unavailable("500")
    replies = [refused, failed, refused, refused, "late"]
    client = Client(lambda n, before: replies[before])
    (outcome,) = answer(client, 1, max_attempts=2, first_backoff_s=1, max_backoff_s=64)
    assert isinstance(outcome, Completion)
    assert (outcome.output, outcome.attempts) == ("late", 5)
    assert client.times == [0, 1, 2, 4, 8]
    assert outcome.throttled_ms == 7000


def test_congestion_ends_at_the_deadline() -> None:
    """At its deadline a refused record is a retryable dead letter with all of its attempts."""
    client = Client(lambda n, _: RateLimited("429", retry_after_s=30))
    (outcome,) = answer(client, 1, max_attempts=1, record_deadline_s=100)
    assert failures([outcome]) == [("RateLimited", "429", 4)]
    assert isinstance(outcome, Failure)
    assert isinstance(outcome.error, RateLimited)
    assert outcome.error.retryable
    assert outcome.throttled_ms == 90_000
    assert client.times == [0, 30, 60, 90]


def test_deadline_begins_with_the_first_call() -> None:
    """A record's deadline begins with its first call: waiting for a slot does not count."""
    client = Client(lambda n, before: Unavailable("503") if not before and n == 9 else f"{n}", 60)
    outcomes = answer(client, 10, max_concurrency=1, record_deadline_s=100, first_backoff_s=1)
    assert outputs(outcomes) == [f"{n}" for n in range(10)]


def test_deadline_ends_retries() -> None:
    """A wait that would end after the deadline is not begun."""
    client = Client(lambda n, _: Unavailable("503", retry_after_s=60))
    assert failures(answer(client, 1, record_deadline_s=100)) == [("Unavailable", "503", 2)]
    assert client.times == [0, 60]


@pytest.mark.parametrize("most", [1, 2])
def test_retry_after_holds_the_process(most: int) -> None:
    """During a Retry-After no request is sent, not even one that had waited for its slot."""
    refused = RateLimited("429", retry_after_s=30)
    client = Client(lambda n, before: refused if n == 0 and not before else f"{n}")
    shared = Dispatcher(client, DispatchLimits(max_concurrency=most))
    assert outputs(shared.answer(make_requests(6))) == [f"{n}" for n in range(6)]
    assert client.calls[:most] == [(0, n) for n in range(most)]
    later = client.calls[most:]
    assert {at for at, _ in later} == {30}
    assert sorted(n for _, n in later) == [n for n in range(6) if n not in range(1, most)]
    shared.answer(make_requests(1))
    assert client.calls[-1] == (30, 0)


def test_retry_after_holds_every_thread(clock: Clock) -> None:
    """A Retry-After also holds requests that any thread hands over meanwhile."""
    refused = RateLimited("429", retry_after_s=30)
    client = Client(lambda n, before: refused if n == 0 and not before else f"{n}")
    shared = Dispatcher(client, DispatchLimits())
    queues = [CompletionQueue() for _ in range(3)]
    with clock.hold():
        shared.submit(make_requests(1), queues[0])
        clock.sleep(10)
        shared.submit(make_requests(1, 1), queues[1])
        shared.submit(make_requests(1, 2), queues[2])
    for completions in queues:
        collect(completions)
    assert client.calls[0] == (0, 0)
    assert sorted(client.calls[1:]) == [(30, 0), (30, 1), (30, 2)]


@pytest.mark.parametrize("cause", [Cause.OVERLOADED, Cause.SERVER_ERROR])
def test_retry_after_that_is_not_believed(cause: Cause) -> None:
    """A Retry-After above two minutes is capped."""
    refused = Unavailable("503", cause=cause, retry_after_s=86_400)
    client = Client(lambda n, before: "late" if before == 2 else refused)
    assert outputs(answer(client, 1)) == ["late"]
    assert client.times == [0, 120, 240]


# Outages

_DOWN: dict[str, Callable[[], Any]] = {
    "refused": lambda: Unavailable("refused", cause=Cause.CONNECTION_REFUSED),
    "503": lambda: Unavailable("503", cause=Cause.OVERLOADED),
    "500": lambda: Unavailable("500"),
    "reset": lambda: Unavailable("reset", cause=Cause.LOST_BEFORE_ANSWER),
    "hang": lambda: HANG,
}


@pytest.mark.parametrize("how", _DOWN)
def test_an_outage_costs_no_record(clock: Clock, how: str) -> None:
    """An outage of a minute fails no record: all wait and then go on."""

    def reply(n: int, before: int) -> Any:
        return _DOWN[how]() if 5 <= clock.now < 65 else f"{n}"

    client = Client(reply, lambda n, _: 0.01 if 5 <= clock.now < 65 else 1.0)
    outcomes = answer(client, 1000, max_concurrency=32, request_timeout_s=10)
    assert outputs(outcomes) == [f"{n}" for n in range(1000)]
    during = [at for at in client.times if 5 <= at < 65]
    assert len(during) < 32 + 10 + 32 + 10
    after = [at for at in client.times if at >= 65]
    assert after[0] < 65 + 21
    assert max(after) < 65 + 21 + 2 * 1000 / 32


def test_probes_are_single_rare_and_of_different_records() -> None:
    """After ten failures single probes follow, ever more rarely, each of another record."""
    down = Unavailable("503", cause=Cause.OVERLOADED)
    client = Client(lambda n, _: down if virtual_now() < 60 else f"{n}")
    outcomes = answer(client, 20, first_backoff_s=1)
    assert outputs(outcomes) == [f"{n}" for n in range(20)]
    assert client.calls[:20] == [(0, n) for n in range(20)]
    probes = client.calls[20:29]
    assert [at for at, _ in probes] == [0.5, 1.5, 3.5, 7.5, 15.5, 25.5, 35.5, 45.5, 55.5]
    assert len({n for _, n in probes}) == 9
    assert client.times[29] == 65.5
    assert max(client.times) < 75


def test_probes_take_their_time(clock: Clock) -> None:
    """The next wait begins when the probe has ended, however long it took."""
    client = Client(lambda n, _: HANG)
    shared = Dispatcher(client, DispatchLimits(request_timeout_s=10))
    completions = CompletionQueue()
    with clock.hold():
        shared.submit(make_requests(20), completions)
        clock.sleep(100)
        completions.abandoned = True
    assert client.times[:20] == [0] * 20
    assert client.times[20:] == [10.5, 21.5, 33.5, 47.5, 65.5, 85.5]


def test_probes_keep_max_concurrency() -> None:
    """Probes keep the limit while calls from before the outage still hang."""
    client = Client(lambda n, _: HANG if n % 2 else Unavailable("503", cause=Cause.OVERLOADED))
    client.reply = lambda n, _: f"{n}" if virtual_now() > 60 else HANG if n % 2 else _DOWN["503"]()
    outcomes = answer(client, 40, max_concurrency=12, request_timeout_s=30)
    assert outputs(outcomes) == [f"{n}" for n in range(40)]
    assert client.highest == 12


@pytest.mark.parametrize("how", _DOWN)
@pytest.mark.parametrize("hold", [False, True])
@pytest.mark.parametrize("count", [1, 3])
def test_an_outage_of_few_records(count: int, hold: bool, how: str) -> None:
    """An outage after a success costs no attempt, however few records notice it."""
    client = Client(lambda n, _: _DOWN[how]() if n and virtual_now() < 60 else f"{n}")
    shared = Dispatcher(client, DispatchLimits(hold=hold, request_timeout_s=10))
    assert outputs(shared.answer(make_requests(1))) == ["0"]
    outcomes = shared.answer(make_requests(count, 1))
    assert outputs(outcomes) == [f"{n}" for n in range(1, count + 1)]


@pytest.mark.parametrize("how", _DOWN)
@pytest.mark.parametrize("served", [False, True])
def test_a_stream_of_one_record_outlasts_an_hour(served: bool, how: str) -> None:
    """A stream keeps a record until the backend is back, whether or not it has ever answered."""
    client = Client(lambda n, _: _DOWN[how]() if n and virtual_now() < 3600 else f"{n}")
    shared = Dispatcher(client, DispatchLimits(hold=True))
    if served:
        assert outputs(shared.answer(make_requests(1))) == ["0"]
    assert outputs(shared.answer(make_requests(1, 1))) == ["1"]
    assert max(client.times) >= 3600


def test_failures_of_an_outage_cost_no_attempt() -> None:
    """Failures in an outage cost no attempt: each record fails thrice although two are allowed."""
    client = Client(lambda n, before: Unavailable("500") if n and before < 3 else f"{n}")
    shared = Dispatcher(client, DispatchLimits(max_attempts=2, first_backoff_s=1))
    assert outputs(shared.answer(make_requests(1))) == ["0"]
    outcomes = shared.answer(make_requests(8, 1))
    assert outputs(outcomes) == [f"{n}" for n in range(1, 9)]
    assert {o.attempts for o in outcomes} == {4}


@pytest.mark.parametrize("hold", [False, True])
@pytest.mark.parametrize(("seconds", "calls"), [(1.5, 5), (0.0, 6)])
def test_poison_among_others(seconds: float, calls: int, hold: bool) -> None:
    """Failures of a record are its own if others succeed meanwhile.

    The first failure is not counted if no other call has ended before it.
    """
    poison = {10, 20, 30}
    client = Client(
        lambda n, _: Unavailable("500") if n in poison else f"{n}",
        lambda n, _: seconds if n in poison else 1.0,
    )
    outcomes = answer(client, 200, max_concurrency=4, hold=hold)
    assert {n: failed for n, failed in enumerate(failures(outcomes)) if failed} == dict.fromkeys(
        poison, ("Unavailable", "500", calls)
    )


@pytest.mark.parametrize("make", [lambda: Unavailable("500"), lambda: RequestTimeout("504")])
def test_poison_at_the_tail(make: Callable[[], Exception]) -> None:
    """The last records, which cannot be compared with others, are given up after two minutes."""
    client = Client(lambda n, _: make() if n < 3 else f"{n}", 1.0)
    shared = Dispatcher(client, DispatchLimits())
    assert outputs(shared.answer(make_requests(1, 3))) == ["3"]
    outcomes = shared.answer(make_requests(3))
    assert [type(o.error) for o in outcomes] == [type(make())] * 3
    assert 120 < virtual_now() < 160
    assert outputs(shared.answer(make_requests(2, 100))) == ["100", "101"]


def test_a_failure_among_successes_at_the_tail() -> None:
    """A record that failed while others succeeded gets no time for an outage at the end."""
    client = Client(lambda n, _: Unavailable("500") if n < 12 else f"{n}", 1.0)
    shared = Dispatcher(client, DispatchLimits(max_concurrency=12))
    outcomes = shared.answer(make_requests(40))
    assert failures(outcomes)[:12] == [("Unavailable", "500", 5)] * 12
    assert outputs(outcomes)[12:] == [f"{n}" for n in range(12, 40)]
    assert virtual_now() < 60


def test_a_stream_keeps_undecided_records(clock: Clock) -> None:
    """A stream holds a lone failing record until another call shows that the backend works."""
    client = Client(lambda n, _: Unavailable("500") if n == 1 else f"{n}", 1.0)
    shared = Dispatcher(client, DispatchLimits(hold=True))
    assert outputs(shared.answer(make_requests(1))) == ["0"]
    poison, others = CompletionQueue(), CompletionQueue()
    with clock.hold():
        shared.submit(make_requests(1, 1), poison)
        clock.sleep(3000)
        assert drain(poison) == [None]
        assert poison.outstanding == 1
        shared.submit(make_requests(1, 2), others)
        clock.sleep(130)
        assert len(drain(others)) == 2
        assert len(drain(poison)) == 1, "it is blamed now"


def test_probes_keep_retry_after() -> None:
    """Probes also wait for the end of a Retry-After."""
    down = Unavailable("503", cause=Cause.OVERLOADED, retry_after_s=30)
    client = Client(lambda n, before: f"{n}" if before else down)
    answer(client, 20)
    assert {at for at in client.times if at > 0} == {30}


def test_an_outage_does_not_count_in_the_deadline() -> None:
    """Time in an outage does not count towards a record's deadline."""
    client = Client(
        lambda n, _: Unavailable("503", cause=Cause.OVERLOADED) if virtual_now() < 600 else f"{n}"
    )
    outcomes = answer(client, 40, record_deadline_s=30)
    assert outputs(outcomes) == [f"{n}" for n in range(40)]
    assert max(client.times) >= 600


def test_few_failures_are_not_an_outage() -> None:
    """Nine failures in a row are no outage: every record is retried by itself."""
    client = Client(lambda n, before: Unavailable("500") if not before else "", 0)
    answer(client, 9, first_backoff_s=1)
    assert client.times == [0] * 9 + [1] * 9
