"""What stops a run: each rule, just before it applies and when it does."""

import logging
import re
from typing import Any

import pytest

from transforms.dispatch.limits import DispatchLimits
from transforms.dispatch.stops import StopRules
from transforms.errors import Blocked, Forbidden, RateLimited, RecordError, Unavailable


def _rules(**given: Any) -> StopRules:
    return StopRules(DispatchLimits(**given))


FORBIDDEN = Forbidden("no permission", fatal_at_start=True)
NO_CONNECTION = Unavailable("no connection", fatal_at_start=True)
FULL = RateLimited("429", congestion=True)

# What fails every record alike


def test_second_record_is_fatal() -> None:
    """One record's failure says nothing, however often it is tried."""
    rules = _rules()
    assert [rules.fatal_at_start(1, FORBIDDEN, now) for now in (0.0, 1.0, 100.0)] == [False] * 3
    assert rules.fatal_at_start(2, FORBIDDEN, 100.0)


def test_different_failures_are_not_alike() -> None:
    """Two records that fail in two ways may each be at fault."""
    rules = _rules(first_backoff_s=0.0)
    assert not rules.fatal_at_start(1, FORBIDDEN, 0.0)
    assert not rules.fatal_at_start(2, NO_CONNECTION, 0.0)
    assert rules.fatal_at_start(3, NO_CONNECTION, 0.0)


@pytest.mark.parametrize("error", [Forbidden("this one"), Unavailable("500"), FULL])
def test_other_failures_are_not_fatal(error: RecordError) -> None:
    """What does not fail every record costs records only."""
    rules = _rules()
    assert not any(rules.fatal_at_start(record, error, 10.0 * record) for record in range(10))


def test_nothing_is_fatal_after_a_success() -> None:
    """Where one record succeeded, others are at fault themselves."""
    rules = _rules()
    assert not rules.fatal_at_start(1, FORBIDDEN, 0.0)
    assert rules.ended(None) is None
    assert rules.succeeded
    assert not rules.fatal_at_start(2, FORBIDDEN, 0.0)


def test_patience_with_connections() -> None:
    """A server that cannot be reached may be starting: it gets as long as a first retry takes."""
    rules = _rules(first_backoff_s=2.0)
    assert not rules.fatal_at_start(1, NO_CONNECTION, 10.0)
    assert not rules.fatal_at_start(2, NO_CONNECTION, 11.9)
    assert rules.fatal_at_start(2, NO_CONNECTION, 12.0)


def test_no_patience_without_retries() -> None:
    """Where nothing is tried twice, there is nothing to wait for."""
    rules = _rules(first_backoff_s=2.0, max_attempts=1)
    assert not rules.fatal_at_start(1, NO_CONNECTION, 10.0)
    assert rules.fatal_at_start(2, NO_CONNECTION, 10.0)


def test_a_stream_waits_for_a_connection() -> None:
    """A streaming run asks on until the server is there; what it forbids is fatal as ever."""
    rules = _rules(hold=True)
    assert not any(rules.fatal_at_start(n, NO_CONNECTION, 100.0 * n) for n in range(10))
    assert not rules.fatal_at_start(1, FORBIDDEN, 0.0)
    assert rules.fatal_at_start(2, FORBIDDEN, 0.0)


# No success for long


def test_give_up() -> None:
    """When nothing has succeeded for so long, the reason says for how long, and the last error."""
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


def test_idle_time_is_no_failure() -> None:
    """Between two bundles nothing is asked."""
    rules = _rules(give_up_after_s=10.0)
    assert rules.failing(FULL, 0.0) is None
    rules.idle()
    assert rules.failing(FULL, 100.0) is None


def test_hold(caplog: pytest.LogCaptureFixture) -> None:
    """A streaming run goes on, and says so once per outage."""
    rules = _rules(give_up_after_s=10.0, hold=True)
    with caplog.at_level(logging.ERROR, "transforms.dispatch.stops"):
        assert [rules.failing(FULL, now) for now in (0.0, 11.0, 12.0, 13.0)] == [None] * 4
    said = "nothing has succeeded for 10 s: 429; messages are held, and the model is asked on"
    assert caplog.messages == [said]
    rules.served()
    with caplog.at_level(logging.ERROR, "transforms.dispatch.stops"):
        assert [rules.failing(FULL, now) for now in (50.0, 61.0, 62.0)] == [None] * 3
    assert caplog.messages == [said, said]


# Too many dead letters


def _end(rules: StopRules, *errors: Exception | None) -> list[str | None]:
    return [rules.ended(error) for error in errors]


BLOCKED = Blocked("unsafe")


def test_ratio_after_a_thousand_records() -> None:
    """Before, a share says too little."""
    rules = _rules(max_dead_letter_ratio=0.2)
    assert _end(rules, *[BLOCKED] * 999) == [None] * 999
    assert rules.ended(BLOCKED) == (
        "1,000 of 1,000 records failed, more than --max_dead_letter_ratio=0.2; "
        "the last: Blocked: unsafe"
    )


def test_more_than_the_ratio() -> None:
    """Exactly the share is allowed."""
    rules = _rules(max_dead_letter_ratio=0.2)
    assert _end(rules, *[None] * 800, *[BLOCKED] * 200) == [None] * 1000
    assert rules.ended(BLOCKED) == (
        "201 of 1,001 records failed, more than --max_dead_letter_ratio=0.2; "
        "the last: Blocked: unsafe"
    )


def test_a_success_never_stops() -> None:
    """However many failed before."""
    rules = _rules(max_dead_letter_ratio=0.2)
    assert _end(rules, *[BLOCKED] * 999, None) == [None] * 1000


@pytest.mark.parametrize("given", [{"max_dead_letter_ratio": 1.0}, {"hold": True}])
def test_no_ratio(given: dict[str, Any]) -> None:
    """1 is for never, and a streaming run never stops."""
    assert _end(_rules(**given), *[BLOCKED] * 3000) == [None] * 3000


def test_no_dead_letters_allowed() -> None:
    """0 stops at the first one after a thousand records."""
    rules = _rules(max_dead_letter_ratio=0.0)
    assert _end(rules, BLOCKED, *[None] * 998) == [None] * 999
    assert rules.ended(BLOCKED) == (
        "2 of 1,000 records failed, more than --max_dead_letter_ratio=0; the last: Blocked: unsafe"
    )


# What nobody foresaw


def test_ten_unforeseen_failures() -> None:
    """So many are tolerated however few records there are."""
    rules = _rules()
    assert _end(rules, *[KeyError("usage")] * 10) == [None] * 10
    reason = rules.ended(KeyError("usage"))
    assert reason == (
        "11 of 11 records failed in a way that nobody foresaw; the last: KeyError: 'usage'"
    )


def test_unforeseen_ratio() -> None:
    """One in a hundred of many."""
    rules = _rules()
    assert _end(rules, *[None] * 1980, *[KeyError("usage")] * 20) == [None] * 2000
    assert rules.ended(BLOCKED) is None
    reason = rules.ended(KeyError("usage"))
    assert reason is not None
    assert re.match(r"21 of 2,002 records failed in a way that nobody foresaw", reason)


def test_foreseen_failures_are_none() -> None:
    """Blocked prompts are not our errors."""
    assert _end(_rules(), *[BLOCKED] * 500) == [None] * 500


def test_unforeseen_failures_of_a_stream() -> None:
    """It never stops."""
    assert _end(_rules(hold=True), *[KeyError("usage")] * 500) == [None] * 500
