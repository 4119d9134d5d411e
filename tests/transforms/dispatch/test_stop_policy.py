"""The rules that stop a run, each just before it applies and when it does."""

import asyncio
import concurrent.futures
import logging
import re
from typing import Any

import pytest

from tests.transforms.dispatch.clients import (
    HANG,
    Client,
    ManyClient,
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
from transforms.dispatch import loop
from transforms.dispatch.completion_queue import CompletionQueue
from transforms.dispatch.dispatcher import Dispatcher, Failure
from transforms.dispatch.limits import DispatchLimits
from transforms.dispatch.stop_policy import StopPolicy
from transforms.records.causes import Cause
from transforms.records.errors import (
    BackendUnusable,
    Blocked,
    Forbidden,
    InvalidRequest,
    RateLimited,
    Unavailable,
)
from transforms.records.records import Completion

pytestmark = pytest.mark.usefixtures("clock")


def _rules(**given: Any) -> StopPolicy:
    return StopPolicy(DispatchLimits(**given))


FORBIDDEN = Forbidden("no permission", cause=Cause.CREDENTIALS)
NO_CONNECTION = Unavailable("no connection", cause=Cause.LOST_DURING_ANSWER)
FULL = RateLimited("429")

# No success for a long time


def test_give_up() -> None:
    """After so long without success, the reason names the time and the last error."""
    rules = _rules(give_up_after_s=900.0)
    assert rules.failing(NO_CONNECTION, 100.0) is None
    assert rules.failing(FULL, 1000.0) is None
    assert rules.failing(FULL, 1000.1) == "nothing has succeeded for 900 s: 429"


def test_a_success_begins_anew() -> None:
    """The time counts from the first failure after the last success."""
    rules = _rules(give_up_after_s=10.0)
    assert rules.failing(FULL, 0.0) is None
    rules.served()
    assert rules.failing(FULL, 100.0) is None
    assert rules.failing(FULL, 110.0) is None
    assert rules.failing(FULL, 110.5) == "nothing has succeeded for 10 s: 429"


def test_idle_time_is_not_counted() -> None:
    """Idle time between two bundles is not counted."""
    rules = _rules(give_up_after_s=10.0)
    assert rules.failing(FULL, 0.0) is None
    rules.idle()
    assert rules.failing(FULL, 100.0) is None


def test_hold(caplog: pytest.LogCaptureFixture) -> None:
    """A streaming run goes on and logs this once per outage."""
    rules = _rules(give_up_after_s=10.0, hold=True)
    with caplog.at_level(logging.ERROR, "transforms.dispatch.stop_policy"):
        assert [rules.failing(FULL, now) for now in (0.0, 11.0, 12.0, 13.0)] == [None] * 4
    said = "nothing has succeeded for 10 s: 429; messages are held, and requests are sent again until one succeeds"
    assert caplog.messages == [said]
    rules.served()
    with caplog.at_level(logging.ERROR, "transforms.dispatch.stop_policy"):
        assert [rules.failing(FULL, now) for now in (50.0, 61.0, 62.0)] == [None] * 3
    assert caplog.messages == [said, said]


def test_an_outage_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """An outage is logged once when it begins, with the reason, and once when it ends."""
    rules = _rules()
    with caplog.at_level(logging.WARNING, "transforms.dispatch.stop_policy"):
        for in_outage in (False, True, True, False, False, True):
            rules.watch(in_outage, FULL)
    down = "backend unavailable (429); probing with single calls until it recovers"
    assert caplog.messages == [down, "the backend is available again", down]


# Too many dead letters


def _end(rules: StopPolicy, *errors: Exception | None) -> list[str | None]:
    return [rules.ended(error) for error in errors]


BLOCKED = Blocked("unsafe")


def test_ratio_after_a_thousand_records() -> None:
    """The ratio applies after a thousand records; before, it means too little."""
    rules = _rules(max_dead_letter_ratio=0.2)
    assert _end(rules, *[BLOCKED] * 999) == [None] * 999
    assert rules.ended(BLOCKED) == (
        "1,000 of 1,000 records failed, more than `max_dead_letter_ratio` (0.2); "
        "the last: Blocked: unsafe"
    )


def test_more_than_the_ratio() -> None:
    """Exactly the ratio is allowed."""
    rules = _rules(max_dead_letter_ratio=0.2)
    assert _end(rules, *[None] * 800, *[BLOCKED] * 200) == [None] * 1000
    assert rules.ended(BLOCKED) == (
        "201 of 1,001 records failed, more than `max_dead_letter_ratio` (0.2); "
        "the last: Blocked: unsafe"
    )


def test_a_success_never_stops() -> None:
    """A success never stops the run, however many records failed before."""
    rules = _rules(max_dead_letter_ratio=0.2)
    assert _end(rules, *[BLOCKED] * 999, None) == [None] * 1000


@pytest.mark.parametrize("given", [{"max_dead_letter_ratio": 1.0}, {"hold": True}])
def test_no_ratio(given: dict[str, Any]) -> None:
    """A ratio of 1 never stops a run, and a streaming run never stops."""
    assert _end(_rules(**given), *[BLOCKED] * 3000) == [None] * 3000


def test_no_dead_letters_allowed() -> None:
    """A ratio of 0 stops the run at the first dead letter after a thousand records."""
    rules = _rules(max_dead_letter_ratio=0.0)
    assert _end(rules, BLOCKED, *[None] * 998) == [None] * 999
    assert rules.ended(BLOCKED) == (
        "2 of 1,000 records failed, more than `max_dead_letter_ratio` (0); the last: Blocked: unsafe"
    )


# Unexpected exceptions


def test_ten_unexpected_failures() -> None:
    """Ten unexpected exceptions are tolerated, however few records there are."""
    rules = _rules()
    assert _end(rules, *[KeyError("usage")] * 10) == [None] * 10
    reason = rules.ended(KeyError("usage"))
    assert reason == (
        "11 of 11 records failed with an unforeseen exception; the last: KeyError: 'usage'"
    )


def test_unexpected_ratio() -> None:
    """One unexpected exception in a hundred records is tolerated."""
    rules = _rules()
    assert _end(rules, *[None] * 1980, *[KeyError("usage")] * 20) == [None] * 2000
    assert rules.ended(BLOCKED) is None
    reason = rules.ended(KeyError("usage"))
    assert reason is not None
    assert re.match(r"21 of 2,002 records failed with an unforeseen exception", reason)


def test_expected_failures_do_not_count() -> None:
    """Expected failures, such as blocked prompts, do not count as exceptions."""
    assert _end(_rules(), *[BLOCKED] * 500) == [None] * 500


def test_unexpected_failures_of_a_stream() -> None:
    """Unexpected exceptions never stop a stream."""
    assert _end(_rules(hold=True), *[KeyError("usage")] * 500) == [None] * 500


# In a run, on virtual time: nothing succeeds


def test_a_run_stops_when_nothing_has_ever_succeeded() -> None:
    """An outage from the start stops the run with its last error before any record's deadline."""
    client = Client(lambda n, before: Unavailable(f"503 number {before}", cause=Cause.OVERLOADED))
    with pytest.raises(BackendUnusable) as raised:
        answer(client, 1, give_up_after_s=200, first_backoff_s=64, max_backoff_s=64)
    assert str(raised.value) == "nothing has succeeded for 200 s: 503 number 4"
    assert client.times == [0, 64, 128, 192, 256]


def test_a_run_that_has_succeeded_stops_in_good_order() -> None:
    """After 15 minutes without success, sent requests fail and others are ``not_attempted``."""
    client = Client(lambda n, _: Unavailable("down", cause=Cause.OVERLOADED) if n else "up")
    shared = Dispatcher(client, DispatchLimits(max_concurrency=32))
    assert outputs(shared.answer(make_requests(1))) == ["up"]
    outcomes = shared.answer(make_requests(500, 1))
    reason = "the run stopped: nothing has succeeded for 900 s: down"
    sent = set(client.order)
    assert failures(outcomes) == [
        ("Unavailable", "down", client.asked[n]) if n in sent else ("NotAttempted", reason, 0)
        for n in range(1, 501)
    ]
    assert 33 < len(sent) < 200
    assert 900 < max(client.times) < 912
    assert failures(shared.answer(make_requests(1, 1000))) == [("NotAttempted", reason, 0)]


def test_a_success_ends_the_failing() -> None:
    """After a success the time starts again with the next failure."""
    refused = Unavailable("503", cause=Cause.OVERLOADED, retry_after_s=100)
    client = Client(lambda n, before: "late" if before % 2 else refused)
    shared = Dispatcher(client, DispatchLimits(give_up_after_s=150))
    for _ in range(5):
        assert outputs(shared.answer(make_requests(1))) == ["late"]
    assert max(client.times) == 500


def test_a_refusal_of_a_record_ends_the_failing() -> None:
    """A backend that rejects a single record works."""
    refused = Unavailable("503", cause=Cause.OVERLOADED, retry_after_s=100)
    client = Client(lambda n, before: Blocked("no") if before else refused)
    shared = Dispatcher(client, DispatchLimits(give_up_after_s=150))
    for n in range(5):
        assert failures(shared.answer(make_requests(1, n))) == [("Blocked", "no", 2)]


def test_a_success_by_the_batch_ends_the_failing() -> None:
    """Occasional final failures are no outage while other batch calls are answered."""
    client = ManyClient(
        lambda requests: [Completion("many"), Unavailable("503")],
        lambda n, before: Unavailable("503", retry_after_s=100),
        many_seconds=1.0,
    )
    limits = DispatchLimits(
        give_up_after_s=150, max_attempts=2, first_backoff_s=100, max_backoff_s=100
    )
    shared = Dispatcher(client, limits)
    for _ in range(5):
        assert failures(shared.answer(make_requests(2))) == [None, ("Unavailable", "503", 2)]
    assert client.times == [101, 202, 303, 404, 505]


def test_idleness_is_not_an_outage(clock: Clock) -> None:
    """Two failures with an idle hour between them are not an hour of failures."""
    client = Client(lambda n, _: Unavailable("500"))
    shared = Dispatcher(client, DispatchLimits(max_attempts=1))
    for n in range(5):
        assert failures(shared.answer(make_requests(1, n))) == [("Unavailable", "500", 1)]
        clock.sleep(3600)


def test_a_streaming_run_that_starts_before_its_server() -> None:
    """A streaming run that starts before its server holds its messages."""
    down = Unavailable("refused", cause=Cause.CONNECTION_REFUSED)
    client = Client(lambda n, _: down if virtual_now() < 60 else f"{n}")
    assert outputs(answer(client, 5, hold=True)) == [f"{n}" for n in range(5)]


def test_a_streaming_run_holds(caplog: pytest.LogCaptureFixture) -> None:
    """A streaming run never stops for an outage, logs it once, and goes on after it."""
    down = Unavailable("503", cause=Cause.OVERLOADED)
    client = Client(lambda n, _: down if 0 < virtual_now() < 7200 else f"{n}", 1.0)
    shared = Dispatcher(client, DispatchLimits(hold=True, record_deadline_s=60))
    with caplog.at_level(logging.ERROR):
        outcomes = shared.answer(make_requests(200))
    assert outputs(outcomes) == [f"{n}" for n in range(200)]
    assert [record.getMessage() for record in caplog.records] == [
        "nothing has succeeded for 900 s: 503; messages are held, and requests are sent again until one succeeds"
    ]
    assert 7200 < max(client.times) < 7220


# In a run: too many dead letters


def test_too_many_dead_letters() -> None:
    """More than a fifth of at least 1,000 records stops the run, which finishes calls in flight."""
    client = Client(
        lambda n, _: InvalidRequest("400") if n and n % 4 == 0 else f"{n}",
        lambda n, _: 150.0 if n == 0 else 0.1,
    )
    outcomes = answer(client, 1500, max_concurrency=2, request_timeout_s=200)
    reason = (
        "the run stopped: 250 of 1,000 records failed, more than `max_dead_letter_ratio` (0.2); "
        "the last: InvalidRequest: 400"
    )
    assert kinds(outcomes) == {"Completion": 751, "InvalidRequest": 250, "NotAttempted": 499}
    assert outputs(outcomes)[0] == "0"
    assert failures(outcomes)[1001:] == [("NotAttempted", reason, 0)] * 499


def test_a_tolerated_share_of_dead_letters() -> None:
    """Exactly a fifth of dead letters does not stop the run."""
    client = Client(lambda n, _: InvalidRequest("400") if n % 5 == 4 else f"{n}")
    assert kinds(answer(client, 1500, max_concurrency=1)) == {
        "Completion": 1200, "InvalidRequest": 300
    }  # fmt: skip


@pytest.mark.parametrize("limits", [{"max_dead_letter_ratio": 1.0}, {"hold": True}])
def test_a_run_that_never_stops_for_dead_letters(limits: dict[str, Any]) -> None:
    """A ratio of 1 lets every record fail by itself."""
    client = Client(lambda n, _: InvalidRequest("400"))
    assert failures(answer(client, 1500, **limits)) == [("InvalidRequest", "400", 1)] * 1500


def test_waiting_retries_when_the_run_stops() -> None:
    """When the run stops, waiting retries end at once with their last error."""
    client = Client(lambda n, _: InvalidRequest("400") if n else Unavailable("500"))
    outcomes = answer(client, 1200, max_concurrency=1, first_backoff_s=50)
    assert failures(outcomes)[0] == ("Unavailable", "500", 1)
    assert failures(outcomes)[1] == ("InvalidRequest", "400", 1)
    assert kinds(outcomes)["NotAttempted"] == 199
    assert client.asked[0] == 1
    assert virtual_now() == 0


def test_too_many_unexpected_failures() -> None:
    """The eleventh unexpected exception among few records stops the run."""
    client = Client(lambda n, _: ZeroDivisionError("boom"))
    reason = (
        "the run stopped: 11 of 11 records failed with an unforeseen exception; "
        "the last: ZeroDivisionError: boom"
    )
    assert failures(answer(client, 20, max_concurrency=1)) == (
        [("ZeroDivisionError", "boom", 1)] * 11 + [("NotAttempted", reason, 0)] * 9
    )


# In a run: two records fail alike and none has succeeded

_FATAL = [
    lambda: Forbidden("401: no credentials", cause=Cause.CREDENTIALS),
    lambda: Forbidden("403: no permission", cause=Cause.CREDENTIALS),
    lambda: InvalidRequest("404: no such model", cause=Cause.NOT_SERVED),
    lambda: Unavailable("connection refused", cause=Cause.CONNECTION_REFUSED),
    lambda: Unavailable("reset", cause=Cause.LOST_BEFORE_ANSWER),
]


@pytest.mark.parametrize("make", _FATAL)
@pytest.mark.parametrize("most", [1, 5])
def test_two_records_that_fail_alike_at_the_start(make: Any, most: int) -> None:
    """They stop the run with the server's message, and other calls are cancelled."""
    client = Client(lambda n, _: make() if n < 2 else HANG)
    with pytest.raises(BackendUnusable) as raised:
        answer(client, 6, max_attempts=most)
    assert str(raised.value) == str(make())
    loop.run(asyncio.sleep(0))
    assert sorted(client.cancelled) == [2, 3, 4, 5]
    assert max(client.times) <= 5


def test_a_wrong_key_is_not_tried_often() -> None:
    """A wrong key stops every waiting thread after fewer than a hundred calls."""
    client = Client(lambda n, _: Forbidden("401", cause=Cause.CREDENTIALS), 0.2)
    shared = Dispatcher(client, DispatchLimits())

    def said(_: int) -> str:
        with pytest.raises(BackendUnusable) as raised:
            shared.answer(make_requests(500))
        return str(raised.value)

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        assert list(threads.map(said, range(4))) == ["401"] * 4
    assert len(client.calls) < 100
    with pytest.raises(BackendUnusable, match=r"^401$"):
        shared.answer(make_requests(1))


@pytest.mark.parametrize("wrong", [{3}, {3, 7}])
def test_forbidden_records_that_fail_first(wrong: set[int]) -> None:
    """Quick 403s do not stop the run while calls in flight may show that others work."""
    client = Client(
        lambda n, _: Forbidden("403", cause=Cause.CREDENTIALS) if n in wrong else f"{n}",
        lambda n, _: 0.0 if n in wrong else 1.0,
    )
    outcomes = answer(client, 1000)
    assert {n for n, failure in enumerate(failures(outcomes)) if failure} == wrong
    assert {failure for failure in failures(outcomes) if failure} == {("Forbidden", "403", 1)}
    if len(wrong) == 2:
        assert [at for at in client.times if 0 < at < 1] == []
        assert len([at for at in client.times if at == 0]) < 40


def test_calls_in_flight_have_five_seconds() -> None:
    """Two equal failures stop the run if calls in flight do not succeed within five seconds."""
    client = Client(
        lambda n, _: f"{n}" if n > 1 else Forbidden("403", cause=Cause.CREDENTIALS),
        lambda n, _: 5.5 if n > 1 else 0.0,
    )
    with pytest.raises(BackendUnusable, match=r"^403$"):
        answer(client, 10)
    assert virtual_now() == 5
    client = Client(client.reply, lambda n, _: 4.5 if n > 1 else 0.0)
    assert kinds(answer(client, 10)) == {"Forbidden": 2, "Completion": 8}


@pytest.mark.parametrize("make", _FATAL)
def test_two_records_that_fail_alike_by_the_batch(make: Any) -> None:
    """The same rule holds for clients that answer batch calls."""
    client = ManyClient(lambda requests: [make() for _ in requests], lambda n, _: make())
    with pytest.raises(BackendUnusable) as raised:
        answer(client, 3)
    assert str(raised.value) == str(make())


def test_a_batch_in_flight_may_prove_the_contrary(clock: Clock) -> None:
    """Another thread's batch counts as calls in flight."""
    client = ManyClient(lambda requests: [])
    client.many = lambda requests: [
        Completion("") if request.body["n"] > 9 else Forbidden("403", cause=Cause.CREDENTIALS)
        for request in requests
    ]
    shared = Dispatcher(client, DispatchLimits())
    slow, quick = CompletionQueue(), CompletionQueue()
    with clock.hold():
        client.many_seconds = 3.0
        shared.submit(make_requests(3, 10), slow)
        clock.sleep(1)
        client.many_seconds = 0.0
        shared.submit(make_requests(3), quick)
        clock.settle()
        assert len(drain(quick)) == 2, "admitted, and the first failure; the others wait"
    assert [type(e.outcome) for e in collect(slow)] == [Completion] * 3
    assert [type(e.outcome) for e in collect(quick)] == [Failure] * 2


def test_no_batch_is_sent_while_a_backend_is_suspect(clock: Clock) -> None:
    """While the backend is suspect, a batch waits, and it is sent when the backend is cleared."""
    client = ManyClient(lambda requests: [Completion("")] * len(requests), many_seconds=3.0)
    shared = Dispatcher(client, DispatchLimits())
    slow, quick, late = CompletionQueue(), CompletionQueue(), CompletionQueue()
    with clock.hold():
        shared.submit(make_requests(3, 10), slow)
        clock.sleep(1)
        client.many = lambda requests: [Forbidden("403", cause=Cause.CREDENTIALS) for _ in requests]
        client.many_seconds = 0.0
        shared.submit(make_requests(3), quick)
        clock.sleep(1)
        client.many = lambda requests: [Completion("")] * len(requests)
        shared.submit(make_requests(2, 20), late)
        clock.sleep(0.9)
        assert drain(late) == [None]
        clock.sleep(0.2)
    assert client.calls == []
    assert client.batches == [3, 3, 2]
    assert [type(e.outcome) for e in collect(slow)] == [Completion] * 3
    assert [type(e.outcome) for e in collect(late)] == [Completion] * 2


def test_a_batch_in_flight_has_five_seconds(clock: Clock) -> None:
    """A batch in flight for more than five seconds is not awaited: both threads get the error."""
    client = ManyClient(lambda requests: [Completion("")] * len(requests), many_seconds=20.0)
    shared = Dispatcher(client, DispatchLimits())
    slow, quick = CompletionQueue(), CompletionQueue()
    with clock.hold():
        shared.submit(make_requests(3, 10), slow)
        clock.sleep(1)
        client.many = lambda requests: [Forbidden("403", cause=Cause.CREDENTIALS) for _ in requests]
        client.many_seconds = 0.0
        shared.submit(make_requests(3), quick)
        clock.sleep(4.9)
        drain(quick)
        assert drain(slow) == [None]
    for completions in (slow, quick):
        with pytest.raises(BackendUnusable, match=r"^403$"):
            collect(completions)
    assert clock.now == 6


def test_two_batches_that_fail_alike() -> None:
    """The two records may be in different batches."""
    client = Client(lambda n, _: Forbidden("403", cause=Cause.CREDENTIALS))
    shared = Dispatcher(client, DispatchLimits())
    assert failures(shared.answer(make_requests(1))) == [("Forbidden", "403", 1)]
    with pytest.raises(BackendUnusable, match=r"^403$"):
        shared.answer(make_requests(1, 1))


@pytest.mark.parametrize("make", _FATAL)
def test_one_record_that_fails_at_the_start(make: Any) -> None:
    """One record that fails at the start is a dead letter, settled by the next one's success."""
    client = Client(lambda n, _: make() if n == 0 else f"{n}")
    outcomes = answer(client, 2, max_attempts=2, record_deadline_s=10)
    assert outputs(outcomes) == [None, "1"]
    assert type(outcomes[0].error) is type(make())  # type: ignore[union-attr]
    (alone,) = answer(Client(lambda n, _: make()), 1, max_attempts=2, record_deadline_s=10)
    assert type(alone.error) is type(make())  # type: ignore[union-attr]


@pytest.mark.parametrize("make", _FATAL)
def test_failures_after_a_success(make: Any) -> None:
    """Failures after a success are the records' own."""
    client = Client(lambda n, _: make() if n else "first")
    shared = Dispatcher(client, DispatchLimits(max_attempts=1, record_deadline_s=0.5))
    assert outputs(shared.answer(make_requests(1))) == ["first"]
    failure = (type(make()).__name__, str(make()), 1)
    assert failures(shared.answer(make_requests(4))) == [None, failure, failure, failure]


def test_failures_after_a_success_by_the_batch() -> None:
    """One success in a batch call counts as a success."""
    error = Forbidden("403", cause=Cause.CREDENTIALS)
    client = ManyClient(lambda requests: [error, Completion("a"), error])
    assert failures(answer(client, 3)) == [
        ("Forbidden", "403", 1), None, ("Forbidden", "403", 1)
    ]  # fmt: skip


def test_client_that_stops_the_run() -> None:
    """A client may declare its backend unusable, which stops the run."""
    client = Client(lambda n, _: HANG if n else BackendUnusable("credentials revoked"))
    with pytest.raises(BackendUnusable, match=r"^credentials revoked$"):
        answer(client, 3)
    loop.run(asyncio.sleep(0))
    assert sorted(client.cancelled) == [1, 2]


def test_connection_that_comes_back() -> None:
    """A server that is still starting does not stop the run by its first refused connections."""
    refused = Unavailable("connection refused", cause=Cause.CONNECTION_REFUSED)
    client = Client(lambda n, before: f"{n}" if before else refused)
    assert outputs(answer(client, 5)) == [f"{n}" for n in range(5)]
