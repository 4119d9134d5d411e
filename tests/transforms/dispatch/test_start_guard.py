"""The rule that ends a run at its start: two records fail alike before any has succeeded."""

from typing import Any

import pytest

from tests.transforms.dispatch.clients import make_requests
from transforms.dispatch.completion_queue import CompletionQueue
from transforms.dispatch.job import Job
from transforms.dispatch.limits import DispatchLimits
from transforms.dispatch.start_guard import StartGuard
from transforms.records.causes import Cause
from transforms.records.errors import Forbidden, RateLimited, RecordError, Unavailable

FORBIDDEN = Forbidden("no permission", cause=Cause.CREDENTIALS)
NO_CONNECTION = Unavailable("no connection", cause=Cause.LOST_DURING_ANSWER)
FULL = RateLimited("429")


def _guard(**given: Any) -> StartGuard:
    return StartGuard(DispatchLimits(**given))


def test_second_record_is_fatal() -> None:
    """One record's failures decide nothing, however often it is tried; a second record's do."""
    guard = _guard()
    assert [guard.failed([1], FORBIDDEN, now) for now in (0.0, 1.0, 100.0)] == [False] * 3
    assert guard.failed([2], FORBIDDEN, 100.0)


def test_calls_of_several_records() -> None:
    """Calls that share a record may have failed for it alone; two that share none have not."""
    guard = _guard(first_backoff_s=0.0)
    assert not guard.failed(range(8), NO_CONNECTION, 0.0)
    assert not guard.failed(range(8), NO_CONNECTION, 1.0)
    assert not guard.failed(range(2, 4), NO_CONNECTION, 2.0)
    assert guard.failed(range(4, 6), NO_CONNECTION, 3.0)


def test_a_call_that_nobody_got() -> None:
    """No record can be why a connection was refused: one call of two is enough."""
    refused = Unavailable("no connection", cause=Cause.CONNECTION_REFUSED)
    guard = _guard(first_backoff_s=2.0)
    assert not guard.failed([1, 2], refused, 0.0)
    assert guard.failed([1, 2], refused, 2.0)
    guard = _guard(first_backoff_s=0.0)
    assert [guard.failed([1], refused, now) for now in (0.0, 1.0)] == [False, False]
    assert guard.failed([2], refused, 2.0)


def test_different_failures_are_not_alike() -> None:
    """Two records that fail differently may each be at fault."""
    guard = _guard(first_backoff_s=0.0)
    assert not guard.failed([1], FORBIDDEN, 0.0)
    assert not guard.failed([2], NO_CONNECTION, 0.0)
    assert guard.failed([3], NO_CONNECTION, 0.0)


@pytest.mark.parametrize("error", [Forbidden("this one"), Unavailable("500"), FULL])
def test_other_failures_are_not_fatal(error: RecordError) -> None:
    """An error that need not affect every record is never fatal."""
    guard = _guard()
    assert not any(guard.failed([record], error, 10.0 * record) for record in range(10))


def test_nothing_is_fatal_after_a_success() -> None:
    """After one success, failures are the records' own."""
    guard = _guard()
    assert not guard.failed([1], FORBIDDEN, 0.0)
    assert guard.clear() == []
    assert guard.proven
    assert not guard.failed([2], FORBIDDEN, 0.0)


def test_patience_with_connections() -> None:
    """A server that cannot be reached may be starting, and has as long as a first retry takes."""
    guard = _guard(first_backoff_s=2.0)
    assert not guard.failed([1], NO_CONNECTION, 10.0)
    assert not guard.failed([2], NO_CONNECTION, 11.9)
    assert guard.failed([2], NO_CONNECTION, 12.0)


def test_no_patience_without_retries() -> None:
    """Without retries there is no time for a server to start."""
    guard = _guard(first_backoff_s=2.0, max_attempts=1)
    assert not guard.failed([1], NO_CONNECTION, 10.0)
    assert guard.failed([2], NO_CONNECTION, 10.0)


def test_a_stream_waits_for_a_connection() -> None:
    """A streaming run waits for its server; a forbidden request is still fatal."""
    guard = _guard(hold=True)
    assert not any(guard.failed([n], NO_CONNECTION, 100.0 * n) for n in range(10))
    assert not guard.failed([1], FORBIDDEN, 0.0)
    assert guard.failed([2], FORBIDDEN, 0.0)


def test_suspicion() -> None:
    """The backend is suspect from the second failure until a success."""
    guard = _guard()
    assert not guard.failed([1], FORBIDDEN, 0.0)
    assert guard.suspicion is None
    second = Forbidden("no permission either", cause=Cause.CREDENTIALS)
    assert guard.failed([2], second, 0.0)
    assert not guard.failed([3], FORBIDDEN, 0.0)
    assert guard.suspicion is second
    job = Job(3, make_requests(1)[0], 0, None, CompletionQueue())
    guard.hold_back(job, FORBIDDEN)
    assert guard.clear() == [(job, FORBIDDEN)]
    assert (guard.suspicion, guard.clear()) == (None, [])


@pytest.mark.parametrize(
    ("given", "error", "may"),
    [
        ({}, FORBIDDEN, True),
        ({}, NO_CONNECTION, True),
        ({}, FULL, False),
        ({}, KeyError("a bug"), False),
        ({}, None, False),
        ({"hold": True}, FORBIDDEN, False),
    ],
)
def test_failures_that_may_end_the_run(
    given: dict[str, Any], error: Exception | None, may: bool
) -> None:
    """Until a success, errors that every record shares may end a run, except for a stream."""
    guard = _guard(**given)
    assert guard.may_end_the_run(error) is may
    guard.clear()
    assert not guard.may_end_the_run(error)
