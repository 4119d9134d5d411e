"""When the next call may be sent: the limits, ``Retry-After``, the breaker and the clocks."""

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transforms.dispatch.simulation import Server, simulate
from transforms.dispatch.breaker import Stopwatch
from transforms.dispatch.pace import Pace, Permit
from transforms.dispatch.rate import AdaptiveRate, Sample
from transforms.records.causes import Verdict

FAILURES = pytest.mark.parametrize("failure", [Verdict.BROKEN, Verdict.OVERLOADED])


def _ask(pace: Pace, now: float, reply: Verdict, **known: Any) -> None:
    """One call that ends at once."""
    pace.ended(pace.sent(now, 0.0), now, reply, **known)


def _send(pace: Pace, calls: int, now: float) -> list[Permit]:
    return [pace.sent(now, 0.0) for _ in range(calls)]


def _broken(now: float = 0.0) -> Pace:
    """A pace whose breaker has just opened."""
    pace = Pace(100, 0.0)
    for _ in range(10):
        _ask(pace, now, Verdict.BROKEN)
    return pace


# The limits


def test_concurrency() -> None:
    """At the limit only the end of a call permits another, however it ended."""
    pace = Pace(3, 0.0)
    assert (pace.limit, pace.in_flight, pace.wait_s(0.0)) == (3, 0, 0.0)
    permits = _send(pace, 3, 0.0)
    for permit, reply in zip(permits, Verdict, strict=False):
        assert pace.wait_s(0.0) == math.inf
        pace.ended(permit, 0.0, reply)
        assert (pace.in_flight, pace.wait_s(0.0)) == (2, 0.0)
        pace.sent(0.0, 0.0)


def test_requests_per_minute() -> None:
    """A share of a quota is spent evenly, after a second's worth at once."""
    pace = Pace(100, 0.0, requests_per_minute=600)
    _send(pace, 10, 0.0)
    pace.sent(0.0, 0.0)
    assert pace.wait_s(0.0) == pytest.approx(0.1, abs=1e-5)
    assert pace.wait_s(0.2) == 0


def test_share_is_kept() -> None:
    """Exactly the share is sent, however many calls could be served."""
    run = simulate(Server(), 40, requests_per_minute=3000)
    assert [second.calls for second in run.seconds[10:]] == [50] * 30
    calls = 0
    for seconds, second in enumerate(run.seconds, 1):
        calls += second.calls
        assert calls <= 50 * seconds + 50 + 1
    assert run.limited(0) == 0


def test_tokens_per_minute() -> None:
    """A call takes its expected tokens at first, and in the end the tokens that it used."""
    pace = Pace(100, 0.0, tokens_per_minute=6000)
    permit = pace.sent(0.0, 300.0)
    assert pace.wait_s(0.0) == pytest.approx(2.0, abs=1e-5)
    pace.ended(permit, 0.0, Verdict.SERVED, tokens=250.0)
    assert pace.wait_s(0.0) == pytest.approx(1.5, abs=1e-5)
    assert pace.wait_s(1.6) == 0
    permit = pace.sent(2.0, 50.0)  # there were 50
    pace.ended(permit, 2.0, Verdict.SERVED, tokens=500.0)
    assert pace.wait_s(2.0) == pytest.approx(4.5, abs=1e-5)


def test_unknown_tokens() -> None:
    """Without the server's count of tokens the expectation stands."""
    pace = Pace(100, 0.0, tokens_per_minute=6000)
    pace.ended(pace.sent(0.0, 300.0), 0.0, Verdict.SERVED)
    assert pace.wait_s(0.0) == pytest.approx(2.0, abs=1e-5)


def test_the_longest_wait_counts() -> None:
    """Of several limits, the one with the longest wait decides."""
    pace = Pace(100, 0.0, requests_per_minute=60, tokens_per_minute=60)
    pace.ended(pace.sent(0.0, 4.0), 0.0, Verdict.LIMITED, retry_after_s=2.0)
    assert pace.wait_s(0.0) == pytest.approx(3.0, abs=1e-5)
    pace.ended(pace.sent(3.5, 0.0), 3.5, Verdict.LIMITED, retry_after_s=5.0)
    assert pace.wait_s(3.5) == pytest.approx(5.0, abs=1e-5)


# The server's suggestion


def _told(wanted: list[int], most: int = 2048) -> Pace:
    """A pace whose server suggests the last of these limits."""
    return Pace(most, 0.0, wanted=lambda: wanted[-1])


def test_the_suggestion_is_the_limit() -> None:
    """The limit follows the suggestion up and down at once, to the ceiling."""
    wanted = [0]
    pace = _told(wanted, most=500)
    seen = []
    for told in (0, 320, 40, 600, 0, 100):
        wanted.append(told)
        pace.wait_s(0.0)
        seen.append(pace.limit)
    assert seen == [32, 320, 40, 500, 500, 100]


def test_a_suggestion_ends_a_climb() -> None:
    """A suggestion replaces a limit that the process found; nothing is tried above it."""
    run = simulate(Server(slots=1000), 30, wanted=lambda: 320)
    assert run.paces[0].limit == 320
    assert run.busy(1) == pytest.approx(320, rel=0.01)


def _time_out(pace: Pace, now: float) -> int:
    """Sends the permitted calls, nine in ten of which time out; returns the limit afterwards."""
    permits = []
    while not pace.wait_s(now):
        permits.append(pace.sent(now, 0.0))
    for number, permit in enumerate(permits):
        reply = Verdict.OVERLOADED if number % 10 else Verdict.SERVED
        pace.ended(permit, now + 120, reply)
    return pace.limit


def _recovery(pace: Pace, now: float, to: int = 32) -> list[int]:
    """The limits from then on, while each call takes a second and requests suffice."""
    permits, limits = [], [pace.limit]
    while limits[-1] < to:
        while not pace.wait_s(now):
            permits.append(pace.sent(now, 0.0))
        pace.waiting(math.inf, now)
        now += 1 / len(permits)
        pace.ended(permits.pop(0), now, Verdict.SERVED)
        if pace.limit != limits[-1]:
            limits.append(pace.limit)
    return limits


def test_timeouts_lower_a_suggested_limit() -> None:
    """Timeouts cut a suggested limit once per event, and again until it helps."""
    wanted = [640]
    pace = _told(wanted)
    limits = [_time_out(pace, 120.0 * n) for n in range(4)]
    assert limits == [448, 313, 219, 153]
    wanted.append(100)
    pace.wait_s(480.0)
    assert pace.limit == 100, "the smaller of the two"


def test_a_suggestion_counts_again_after_the_recovery() -> None:
    """A cut limit rises in steps while calls are answered; then the suggestion counts again."""
    wanted = [640]
    pace = _told(wanted)
    assert _time_out(pace, 0.0) == 448
    assert _recovery(pace, 120.0, to=640) == [448, 560, 640]
    pace.wait_s(1000.0)
    wanted.append(700)
    pace.wait_s(1000.0)
    assert pace.limit == 700


def test_an_outage_halves_a_suggested_limit() -> None:
    """An outage halves a suggested limit, which rises again by itself."""
    pace = _told([320])
    for _ in range(10):
        pace.wait_s(0.0)
        _ask(pace, 0.0, Verdict.OVERLOADED)
    _ask(pace, 1.0, Verdict.SERVED)
    pace.wait_s(1.0)
    assert pace.limit == 160


def test_refusals_above_the_limit_of_a_server() -> None:
    """A server that suggests 300 and answers 503 above 100 calls still refuses few."""
    run = simulate(Server(hard_limit=100), 120, wanted=lambda: 300)
    assert run.busy(20) >= 0.7 * 100
    assert run.overloaded(20) < 0.15


# Retry-After


@pytest.mark.parametrize("reply", [Verdict.LIMITED, Verdict.OVERLOADED])
def test_retry_after(reply: Verdict) -> None:
    """No call is sent before the Retry-After is over, even if a shorter one follows."""
    pace = Pace(100, 0.0)
    first, second = _send(pace, 2, 0.0)
    pace.ended(first, 1.0, reply, retry_after_s=7.0)
    pace.ended(second, 2.0, reply, retry_after_s=3.0)
    assert [pace.wait_s(now) for now in (2.0, 7.5, 8.0)] == [6.0, 0.5, 0.0]


@pytest.mark.parametrize("reply", [Verdict.SERVED, Verdict.BROKEN])
def test_retry_after_of_others(reply: Verdict) -> None:
    """A Retry-After of an error that is unrelated to load delays no call."""
    pace = Pace(100, 0.0)
    _ask(pace, 0.0, reply, retry_after_s=7.0)
    assert pace.wait_s(0.0) == 0


@pytest.mark.parametrize(("asked_s", "waits_s"), [(119.0, 119.0), (120.0, 120.0), (1e9, 120.0)])
def test_longest_retry_after(asked_s: float, waits_s: float) -> None:
    """A Retry-After is capped at two minutes."""
    pace = Pace(100, 0.0)
    _ask(pace, 0.0, Verdict.LIMITED, retry_after_s=asked_s)
    assert pace.wait_s(0.0) == waits_s


# The breaker


@FAILURES
def test_breaker_opens(failure: Verdict) -> None:
    """The tenth failure in a row opens the breaker."""
    pace = Pace(100, 0.0)
    for _ in range(9):
        _ask(pace, 1.0, failure)
        assert not pace.in_outage
        assert pace.wait_s(1.0) == 0
    _ask(pace, 1.0, failure)
    assert pace.in_outage
    assert pace.wait_s(1.0) == 0.5


@pytest.mark.parametrize("reply", [Verdict.SERVED, Verdict.LIMITED])
def test_breaker_stays_closed(reply: Verdict) -> None:
    """Any sign that the backend works resets the count of failures."""
    pace = Pace(100, 0.0)
    for failure in ([Verdict.BROKEN] * 9 + [reply]) * 3:
        _ask(pace, 0.0, failure)
        assert not pace.in_outage


def test_a_restart_is_not_an_outage() -> None:
    """A restart is no outage: the limit stays, and everything may be sent at once afterwards."""
    pace = _told([320])
    for _ in range(3):
        permits = []
        while not pace.wait_s(0.0):
            permits.append(pace.sent(0.0, 0.0))
        assert len(permits) == 320
        for permit in permits:
            pace.ended(permit, 1.0, Verdict.RESTARTING)
    assert not pace.in_outage


def test_a_restart_ends_a_probe() -> None:
    """A restart during a probe proves nothing: the next probe is sent."""
    pace = _broken()
    pace.ended(pace.sent(0.5, 0.0), 1.0, Verdict.RESTARTING)
    assert pace.in_outage
    assert pace.wait_s(1.0) == 0


@FAILURES
def test_probes(failure: Verdict) -> None:
    """Probes are sent one at a time and at growing intervals."""
    pace, now, waits = _broken(), 0.0, []
    for _ in range(7):
        waits.append(pace.wait_s(now))
        now += waits[-1]
        assert pace.wait_s(now) == 0
        probe = pace.sent(now, 0.0)
        now += 3.0
        assert pace.wait_s(now) == math.inf
        pace.ended(probe, now, failure)
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    assert pace.in_outage


@pytest.mark.parametrize("reply", [Verdict.SERVED, Verdict.LIMITED])
def test_breaker_closes(reply: Verdict) -> None:
    """The first success closes the breaker at half the limit; the next outage starts afresh."""
    pace = _broken()
    assert pace.limit == 32
    _ask(pace, 0.5, Verdict.BROKEN)
    _ask(pace, 1.5, reply)
    assert not pace.in_outage
    assert pace.limit == 16
    assert pace.wait_s(1.5) == 0
    for _ in range(10):
        assert not pace.in_outage
        _ask(pace, 2.0, Verdict.BROKEN)
    assert pace.in_outage
    assert pace.wait_s(2.0) == 0.5


def test_limit_recovers() -> None:
    """After an outage the limit rises to its former value."""
    pace = _broken()
    _ask(pace, 0.5, Verdict.SERVED)
    assert _recovery(pace, 0.5) == [16, 20, 25, 31, 32]


@FAILURES
def test_limit_recovers_from_a_long_outage(failure: Verdict) -> None:
    """Failed calls and probes of a long outage do not lower the limit to recover."""
    pace, now = Pace(100, 0.0), 0.0
    permits = _send(pace, 32, now)
    for permit in permits:
        pace.ended(permit, 30.0, failure)
    now = 30.0
    for _ in range(500):
        now += pace.wait_s(now)
        probe = pace.sent(now, 0.0)
        now += 30.0
        pace.ended(probe, now, failure)
        assert pace.limit == 32
    now += pace.wait_s(now)
    _ask(pace, now, Verdict.SERVED)
    assert _recovery(pace, now) == [16, 20, 25, 31, 32]


def test_late_probe_of_an_earlier_outage() -> None:
    """A late probe of an earlier outage is an ordinary call in the next one."""
    pace = Pace(100, 0.0)
    early = pace.sent(0.0, 0.0)
    for _ in range(10):
        _ask(pace, 0.0, Verdict.BROKEN)
    late = pace.sent(0.5, 0.0)
    pace.ended(early, 1.0, Verdict.SERVED)
    assert not pace.in_outage
    for _ in range(10):
        _ask(pace, 2.0, Verdict.BROKEN)
    assert pace.in_outage
    pace.ended(late, 2.2, Verdict.BROKEN)
    assert pace.wait_s(2.2) == pytest.approx(0.3)
    probe = pace.sent(2.5, 0.0)
    assert pace.wait_s(2.5) == math.inf
    pace.ended(probe, 3.0, Verdict.BROKEN)
    assert pace.wait_s(3.0) == 1.0


def test_late_probe_during_a_probe() -> None:
    """A late probe of an earlier outage does not replace the current probe."""
    pace = Pace(100, 0.0)
    early = pace.sent(0.0, 0.0)
    for _ in range(10):
        _ask(pace, 0.0, Verdict.BROKEN)
    late = pace.sent(0.5, 0.0)
    pace.ended(early, 1.0, Verdict.SERVED)
    for _ in range(10):
        _ask(pace, 2.0, Verdict.BROKEN)
    pace.sent(2.5, 0.0)
    pace.ended(late, 3.0, Verdict.BROKEN)
    assert pace.wait_s(60.0) == math.inf
    assert pace.in_flight == 1


def test_probes_keep_max_concurrency() -> None:
    """With one call allowed, no probe is sent next to a call from before the outage."""
    pace = Pace(2, 0.0)
    hangs = pace.sent(0.0, 0.0)
    for _ in range(10):
        assert pace.wait_s(0.0) == 0
        _ask(pace, 0.0, Verdict.BROKEN)
    assert pace.in_outage
    pace.sent(0.5, 0.0)
    assert (pace.in_flight, pace.wait_s(60.0)) == (2, math.inf)
    pace.ended(hangs, 61.0, Verdict.BROKEN)
    assert pace.wait_s(61.0) == math.inf


def test_served_at() -> None:
    """`served_at` is when the backend last showed that it works; a used-up quota shows it, too."""
    pace = Pace(100, 0.0)
    assert pace.served_at == -math.inf
    for now, reply in enumerate(
        (Verdict.BROKEN, Verdict.SERVED, Verdict.OVERLOADED, Verdict.LIMITED)
    ):
        _ask(pace, float(now), reply)
    assert pace.served_at == 3.0
    _ask(pace, 4.0, Verdict.BROKEN)
    assert pace.served_at == 3.0


def test_calls_of_before_the_outage() -> None:
    """A probe does not wait for earlier calls, whose success ends the outage."""
    pace = Pace(100, 0.0)
    permits = _send(pace, 12, 0.0)
    for permit in permits[:10]:
        pace.ended(permit, 1.0, Verdict.BROKEN)
    assert pace.in_outage
    assert pace.wait_s(1.5) == 0
    probe = pace.sent(1.5, 0.0)
    pace.ended(permits[10], 5.0, Verdict.BROKEN)
    assert pace.wait_s(5.0) == math.inf, "the probe is still under way"
    pace.ended(permits[11], 6.0, Verdict.SERVED)
    assert not pace.in_outage
    assert pace.outage_s(7.0) == 5.0
    assert pace.wait_s(7.0) == 0
    pace.ended(probe, 8.0, Verdict.BROKEN)
    assert not pace.in_outage
    assert pace.in_flight == 0


def test_retry_after_in_an_outage() -> None:
    """A Retry-After also delays probes."""
    pace = Pace(100, 0.0)
    for _ in range(10):
        _ask(pace, 0.0, Verdict.OVERLOADED, retry_after_s=30.0)
    assert pace.in_outage
    assert [pace.wait_s(now) for now in (0.0, 20.0, 30.0)] == [30.0, 10.0, 0.0]


def test_late_failures_do_not_delay_the_probe() -> None:
    """Failures of calls sent before the outage do not delay the probe."""
    pace = Pace(100, 0.0)
    permits = _send(pace, 20, 0.0)
    for permit in permits:
        pace.ended(permit, 1.0, Verdict.BROKEN)
    assert pace.wait_s(1.0) == 0.5
    assert pace.wait_s(1.5) == 0


def test_outage_s() -> None:
    """`outage_s` adds up all outages, the current one included."""
    pace = _broken(now=1.0)
    assert [pace.outage_s(now) for now in (1.0, 1.5, 3.0)] == [0.0, 0.5, 2.0]
    _ask(pace, 3.0, Verdict.SERVED)
    assert pace.outage_s(9.0) == 2.0
    for _ in range(10):
        _ask(pace, 10.0, Verdict.OVERLOADED)
    assert pace.outage_s(11.0) == 3.0


def test_gauges() -> None:
    """Gauges show the current state; the rate is 0 until refusals have shown one."""
    pace = _broken(now=1.0)
    pace.sent(1.5, 0.0)
    assert pace.gauges(3.6) == {
        "in_flight_calls": 1,
        "concurrency_limit": 32,
        "rate_limit_per_minute": 0,
        "outage_s": 3,
    }
    pace = Pace(100, 0.0)
    permits = [pace.sent(n / 100, 0.0) for n in range(100)]
    pace.ended(permits[-1], 1.0, Verdict.LIMITED, retry_after_s=1.0)
    gauges = pace.gauges(2.0)
    assert 60 * 90 < gauges.pop("rate_limit_per_minute") < 60 * 100
    assert gauges == {"in_flight_calls": 99, "concurrency_limit": 32, "outage_s": 0}


def test_stopwatch() -> None:
    """A stopwatch adds up all spans and the current one; repeated switches change nothing."""
    watch = Stopwatch()
    assert (watch.running, watch.total_s(5.0), watch.present_s(5.0)) == (False, 0.0, 0.0)
    watch.run(False, 5.0)
    watch.run(True, 10.0)
    watch.run(True, 11.0)
    assert (watch.running, watch.total_s(12.0), watch.present_s(12.0)) == (True, 2.0, 2.0)
    watch.run(False, 13.0)
    watch.run(False, 14.0)
    assert (watch.running, watch.total_s(20.0), watch.present_s(20.0)) == (False, 3.0, 0.0)
    watch.run(True, 20.0)
    assert (watch.total_s(21.0), watch.present_s(21.0)) == (4.0, 1.0)


class _Meddling(float):
    """A time: while it is computed with, another thread runs."""

    def __new__(cls, value: float, meddle: Callable[[], None]) -> "_Meddling":
        made = super().__new__(cls, value)
        made.meddle = meddle
        return made

    meddle: Callable[[], None]

    def __radd__(self, other: float) -> float:
        self.meddle()
        return other + float(self)

    def __sub__(self, other: float) -> float:
        self.meddle()
        return float(self) - other


@pytest.mark.parametrize("read", [Stopwatch.total_s, Stopwatch.present_s])
def test_stopwatch_read_while_it_is_switched(read: Callable[[Stopwatch, float], float]) -> None:
    """A concurrent reader sees the value before or after a switch, and nothing in between."""
    watch = Stopwatch()
    watch.run(True, 10.0)
    switched = []

    def switch() -> None:
        watch.run(False, 12.0)
        switched.append(read(watch, 15.0))

    assert read(watch, _Meddling(15.0, switch)) == 5.0
    assert switched == [read(watch, 15.0)]


# The time for which requests waited


def test_throttled_s() -> None:
    """Throttled time is time spent waiting for a quota, not for calls to end or for requests."""
    pace = Pace(100, 0.0)
    pace.waiting(None, 0.0)
    pace.waiting(math.inf, 10.0)
    assert pace.throttled_s(20.0) == 0
    pace.waiting(0.5, 20.0)
    pace.waiting(0.25, 20.25)
    assert pace.throttled_s(20.5) == 0.5
    pace.waiting(None, 21.0)
    assert pace.throttled_s(30.0) == 1.0
    pace.waiting(0.5, 30.0)
    pace.waiting(math.inf, 32.0)
    assert pace.throttled_s(40.0) == 3.0


@pytest.mark.parametrize("wait_s", [0.5, math.inf])
def test_an_outage_is_throttled_time(wait_s: float) -> None:
    """Waiting for a probe, and for its answer, is throttled time: the worker is not too slow."""
    pace = _broken()
    pace.waiting(wait_s, 0.0)
    assert pace.throttled_s(4.0) == 4.0


@settings(deadline=None)
@given(
    st.integers(1, 64),
    st.booleans(),
    st.booleans(),
    st.lists(
        st.tuples(
            st.floats(0, 5),
            st.integers(0, 40),
            st.integers(0, 40),
            st.sampled_from(Verdict),
            st.none() | st.floats(0, 300),
            st.none() | st.floats(0, 1e4),
        ),
        max_size=30,
    ),
)
def test_whatever_happens(
    ceiling: int,
    has_requests: bool,
    has_tokens: bool,
    steps: list[tuple[float, int, int, Verdict, float | None, float | None]],
) -> None:
    """Waits are never negative, clocks never run back, and every permit is returned."""
    pace = Pace(
        ceiling,
        0.0,
        requests_per_minute=600 if has_requests else None,
        tokens_per_minute=60_000 if has_tokens else None,
    )
    now, throttled_s, outage_s = 0.0, 0.0, 0.0
    permits: list[Permit] = []
    for seconds, sends, ends, reply, retry_after_s, tokens in steps:
        now += seconds
        wait_s: float | None = None
        for _ in range(sends):
            wait_s = pace.wait_s(now)
            assert wait_s >= 0
            if wait_s:
                break
            permits.append(pace.sent(now, 100.0))
            assert pace.in_flight <= ceiling
        pace.waiting(wait_s or None, now)
        for permit in permits[:ends]:
            pace.ended(permit, now, reply, retry_after_s=retry_after_s, tokens=tokens)
        del permits[:ends]
        assert pace.in_flight == len(permits)
        assert 1 <= pace.limit <= ceiling
        assert throttled_s - 1e-9 <= pace.throttled_s(now) <= now + 1e-9
        assert outage_s - 1e-9 <= pace.outage_s(now) <= now + 1e-9
        throttled_s, outage_s = pace.throttled_s(now), pace.outage_s(now)
    for permit in permits:
        pace.ended(permit, now, Verdict.SERVED)
    assert pace.in_flight == 0
    assert math.isfinite(pace.wait_s(now))


class _Three:
    """A fixed limit of calls in flight without a rate."""

    limit = 3

    def __init__(self) -> None:
        self.noted: list[Any] = []

    def follow(self, wanted: int) -> None:
        self.noted.append(wanted)

    def binds(self, binding: bool, now: float) -> None:
        pass

    def ended(self, sent_at: float, now: float, *, refused: bool) -> None:
        self.noted.append(refused)

    def restart(self, now: float) -> None:
        self.noted.append("restart")


class _Refused(AdaptiveRate):
    """Records the Retry-After of each refusal."""

    def __init__(self) -> None:
        super().__init__(0.0)
        self.gates_s: list[float] = []

    def refused(self, sample: Sample, now: float, gate_s: float) -> None:
        self.gates_s.append(gate_s)


def test_other_limits() -> None:
    """A pace uses the limits passed to it and reports to each the events that concern it."""
    concurrency, rate = _Three(), _Refused()
    pace = Pace(100, 0.0, concurrency=concurrency, rate=rate, wanted=lambda: 7)
    permits = []
    while not pace.wait_s(0.0):
        permits.append(pace.sent(0.0, 0.0))
    assert (len(permits), pace.limit, pace.wait_s(0.0)) == (3, 3, math.inf)
    assert concurrency.noted == [7] * 5
    concurrency.noted.clear()
    verdicts = [Verdict.SERVED, Verdict.LIMITED, Verdict.OVERLOADED]
    for permit, verdict in zip(permits, verdicts, strict=True):
        pace.ended(permit, 1.0, verdict, retry_after_s=5.0)
    assert (concurrency.noted, rate.gates_s) == ([False, True], [5.0])
