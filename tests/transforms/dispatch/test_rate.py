"""The rate of calls: a known quota is kept, an unknown one is found, and chance is no quota."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transforms.dispatch.simulation import Outcome, Server, simulate
from transforms.dispatch.rate import AdaptiveRate, Call, TokenBucket

# A known quota


def test_bucket_begins_full() -> None:
    """What a burst may take, then evenly; what was taken too much is waited for."""
    bucket = TokenBucket(10.0, 2.0, 0.0)
    waits = []
    for _ in range(22):
        waits.append(round(bucket.wait_s(0.0), 3))
        bucket.spend(1.0, 0.0)
    assert waits == [0.0] * 20 + [0.0, 0.1]
    assert bucket.wait_s(0.0) == pytest.approx(0.2, abs=1e-5)
    assert bucket.wait_s(0.15) == pytest.approx(0.05, abs=1e-5)
    assert bucket.wait_s(0.25) == 0


def test_bucket_holds_a_burst_at_most() -> None:
    """What is not spent is not saved up beyond it; nor is what is given back."""
    bucket = TokenBucket(10.0, 2.0, 0.0)
    bucket.spend(1.0, 100.0)
    bucket.spend(-50.0, 100.0)
    bucket.spend(20.0, 100.0)
    assert bucket.wait_s(100.0) == pytest.approx(0.0, abs=1e-5)
    bucket.spend(5.0, 100.0)
    assert bucket.wait_s(100.0) == pytest.approx(0.5, abs=1e-5)


def test_small_bucket() -> None:
    """A quota below one call in its burst still lets whole calls through."""
    bucket = TokenBucket(0.1, 1.0, 0.0)
    assert bucket.wait_s(0.0) == 0
    bucket.spend(1.0, 0.0)
    assert bucket.wait_s(0.0) == pytest.approx(0.0, abs=1e-4)
    bucket.spend(1.0, 0.0)
    assert bucket.wait_s(0.0) == pytest.approx(10.0, abs=1e-4)


STEPS = st.lists(st.tuples(st.floats(0, 10), st.floats(0, 100)), min_size=1, max_size=60)
"""Seconds that pass, and what is spent then."""


@settings(deadline=None)
@given(st.floats(0.1, 1000), st.floats(0.1, 10), STEPS)
def test_bucket_never_gives_more(
    per_s: float, burst_s: float, steps: list[tuple[float, float]]
) -> None:
    """Before each spending, no more than the burst and what came in since has been spent."""
    bucket, now, spent = TokenBucket(per_s, burst_s, 0.0), 0.0, 0.0
    for seconds, amount in steps:
        now += seconds
        wait_s = bucket.wait_s(now)
        assert wait_s >= 0
        if wait_s == 0:
            assert spent <= (max(1.0, per_s * burst_s) + per_s * now) * (1 + 1e-9) + 1e-6
            bucket.spend(amount, now)
            spent += amount


@settings(deadline=None)
@given(st.floats(0.1, 1000), st.floats(0.1, 10), st.floats(0, 1e5))
def test_bucket_waits_no_longer_than_needed(per_s: float, burst_s: float, amount: float) -> None:
    """After the wait something may be spent, and not long before it."""
    bucket = TokenBucket(per_s, burst_s, 0.0)
    bucket.spend(amount, 0.0)
    wait_s = bucket.wait_s(0.0)
    assert bucket.wait_s(wait_s * 0.9 - 1e-6) > 0 or wait_s < 1e-4
    assert bucket.wait_s(wait_s * (1 + 1e-6) + 1e-6) == 0


# An unknown one


def _send(rate: AdaptiveRate, calls: int, start: float, per_s: float) -> list[Call]:
    """Calls at a steady rate, whatever may be sent."""
    return [rate.sent(start + n / per_s) for n in range(calls)]


def _fallen(gate_s: float = 0.0) -> AdaptiveRate:
    """100/s were sent for a second, the last 10 refused: at 1.0 it fell to 90/s."""
    rate = AdaptiveRate(0.0)
    calls = _send(rate, 100, 0.0, 100.0)
    for call in calls[90:]:
        call.refused = True
    rate._recent_refused = 9  # the tenth is told below
    rate.refused(calls[-1], 1.0, gate_s)
    return rate


def test_no_limit_until_refused() -> None:
    """Any rate, for as long as nothing is refused."""
    rate = AdaptiveRate(0.0)
    for n in range(10_000):
        assert rate.wait_s(n / 1000) == 0
        rate.sent(n / 1000)
    assert math.isinf(rate.rate(10.0))


def test_few_refusals_are_chance() -> None:
    """Two in a hundred and two more are tolerated."""
    rate = AdaptiveRate(0.0)
    calls = _send(rate, 100, 0.0, 100.0)
    for call in calls[:4]:
        rate.refused(call, 1.0, 0.0)
        assert math.isinf(rate.rate(1.0))
    rate.refused(calls[4], 1.0, 0.0)
    assert rate.rate(1.0) == pytest.approx(0.97 * 95, rel=0.02)


def test_few_calls_tell_nothing() -> None:
    """Below 25 calls nothing can be measured."""
    rate = AdaptiveRate(0.0)
    calls = _send(rate, 24, 0.0, 100.0)
    for call in calls:
        rate.refused(call, 1.0, 1.0)
    assert math.isinf(rate.rate(1.0))
    rate.refused(rate.sent(1.0), 1.0, 1.0)
    assert math.isfinite(rate.rate(1.0))


def test_retry_after_is_no_chance() -> None:
    """Who asks to be left alone means it: one refusal is enough."""
    rate = AdaptiveRate(0.0)
    calls = _send(rate, 100, 0.0, 100.0)
    rate.refused(calls[-1], 1.0, 2.0)
    assert rate.rate(1.0) == rate.rate(3.0), "the curve begins when sending does"
    assert rate.rate(3.0) == pytest.approx(0.97 * 99, rel=0.02)


def test_one_event_one_fall() -> None:
    """Refusals of calls that were sent before the rate fell do not lower it again."""
    rate = AdaptiveRate(0.0)
    calls = _send(rate, 200, 0.0, 100.0)
    for call in calls[100:106]:
        rate.refused(call, 2.0, 0.0)
    fallen = rate.rate(2.0)
    assert math.isfinite(fallen)
    for call in calls[106:]:
        rate.refused(call, 3.0, 0.0)
    assert rate.rate(2.0) == fallen


def test_rises_again() -> None:
    """From 97 % of what was accepted, slowly around it, then ever faster; it doubles in 5 to 15 s."""
    rate = _fallen()
    level = 91.0
    assert rate.rate(1.0) == pytest.approx(0.97 * level, rel=0.02)
    rates = [rate.rate(1.0 + second / 10) for second in range(200)]
    assert rates == sorted(rates)
    rises = [later - earlier for earlier, later in itertools.pairwise(rates)]
    slowest = rises.index(min(rises))
    assert rates[slowest] == pytest.approx(level, rel=0.02)
    assert rises[slowest + 1 :] == sorted(rises[slowest + 1 :])
    doubled_after_s = next(n for n, each in enumerate(rates) if each > 2 * level) / 10
    assert 5 <= doubled_after_s <= 15


def test_waits_keep_the_rate() -> None:
    """Whoever waits as told sends as many calls as the rate allows, without any burst."""
    rate = _fallen()
    sent_at = []
    now = 1.0
    while now < 3.0:
        if wait_s := rate.wait_s(now):
            now += wait_s
        else:
            rate.sent(now)
            sent_at.append(now)
    assert len(sent_at) == pytest.approx(2 * 90, rel=0.05)
    gaps = [later - earlier for earlier, later in itertools.pairwise(sent_at[2:])]
    assert min(gaps) == pytest.approx(1 / 91, rel=0.1)


def _use(rate: AdaptiveRate, start: float, seconds: float, per_s: float) -> None:
    """Asks and sends steadily."""
    for n in range(int(seconds * per_s)):
        now = start + n / per_s
        if rate.wait_s(now) == 0:
            rate.sent(now)


def test_forgotten() -> None:
    """A rate that has limited nothing for 10 s is none, and what falls in vain have shown is past."""
    rate = _fallen()
    rate._in_vain, rate._resume_at = [(100, 20)], 500.0
    _use(rate, 1.0, 9.5, 20.0)
    assert math.isfinite(rate.rate(10.5))
    assert rate._in_vain
    _use(rate, 10.5, 1.0, 20.0)
    assert math.isinf(rate.rate(11.5))
    assert (rate._in_vain, rate._resume_at) == ([], math.inf)


def test_a_share_that_grew_is_not_measured_by_its_past() -> None:
    """Little was sent for long: a fall goes by what is refused now, not by what was accepted then."""
    rate = _fallen()
    _use(rate, 1.0, 9.0, 1.0)
    calls = _send(rate, 200, 10.0, 100.0)
    for call in calls[::10]:
        rate.refused(call, 12.0, 0.0)
    assert 0.97 * 0.7 * 0.9 * 90 < rate.rate(12.0) < 100


def test_refusals_that_come_to_be_expected() -> None:
    """No fall has followed them, so they are chance; but never more than three in a hundred."""
    rate = AdaptiveRate(0.0)
    for n in range(3000):
        call = Call(0.0)
        call.refused = n % 50 == 0
        rate._recent_refused += call.refused
        rate._settle(call)
    assert rate._expected == pytest.approx(0.02, abs=0.005)
    for _ in range(1000):
        call = Call(0.0)
        call.refused = True
        rate._recent_refused += 1
        rate._settle(call)
    assert rate._expected == 0.03
    assert rate._recent_refused == 0


def test_expected_refusals_that_do_not_come() -> None:
    """What an experiment taught is unlearnt with the calls that are not refused."""
    rate = AdaptiveRate(0.0)
    rate._expected = rate._observed = 0.4
    expected = []
    for _ in range(2000):
        rate._settle(Call(0.0))
        expected.append(rate._expected)
    assert expected == sorted(expected, reverse=True)
    assert expected[0] == 0.4
    assert expected[-1] < 0.015


@pytest.mark.parametrize(("expected", "tolerated"), [(0.0, 2.0), (0.01, 6.4), (0.2, 51.9)])
def test_tolerated(expected: float, tolerated: float) -> None:
    """Two in a hundred, or half more than expected and four standard deviations."""
    rate = AdaptiveRate(0.0)
    rate._expected = expected
    _send(rate, 100, 0.0, 100.0)
    assert rate._tolerated() == pytest.approx(tolerated, abs=0.05)


def test_remembered_while_it_binds() -> None:
    """A rate that keeps calls waiting now and then is remembered, and goes on rising."""
    rate = _fallen()
    now = 1.0
    for second in range(8):
        _use(rate, now + second, 1.0, 500.0)
    assert math.isfinite(rate.rate(9.0))
    bound = rate._bound_at
    _use(rate, 9.0, bound + 9.9 - 9.0, 20.0)
    assert math.isfinite(rate.rate(bound + 9.9))


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.floats(0, 3), st.integers(0, 60), st.floats(0, 1), st.sampled_from([0.0, 1.0])
        ),
        max_size=30,
    )
)
def test_rate_and_wait_are_sane(steps: list[tuple[float, int, float, float]]) -> None:
    """Whatever is refused, there is a rate above 0, and no wait below it."""
    rate, now = AdaptiveRate(0.0), 0.0
    for seconds, calls, refused, gate_s in steps:
        now += seconds
        assert rate.wait_s(now) >= 0
        sent = [rate.sent(now + n / 1000) for n in range(calls)]
        now += calls / 1000
        for call in sent[: int(calls * refused)]:
            rate.refused(call, now, gate_s)
            assert rate.rate(now) >= 0.2


def test_unlimited_calls_are_no_debt() -> None:
    """A fast minute without any limit is not waited off when the first limit is found."""
    rate = AdaptiveRate(0.0)
    _send(rate, 60_000, 0.0, 1000.0)
    calls = _send(rate, 500, 60.0, 50.0)
    rate.refused(calls[-1], 70.0, 1.0)
    assert rate.rate(70.0) == pytest.approx(0.97 * 50, rel=0.05)
    assert rate.wait_s(71.0) < 1


# The experiment: refusals that stay although the rate falls


def _refuse_always(
    rate: AdaptiveRate, start: float, seconds: float, share: float
) -> list[tuple[float, float]]:
    """Uses what it allows, up to 200/s; so much of it is refused evenly: each fall, and its level."""
    now, refused, level, falls = start, 0.0, rate._level, []
    while now < start + seconds:
        if wait_s := rate.wait_s(now):
            now += wait_s
            continue
        call = rate.sent(now)
        refused += share
        if refused >= 1:
            refused -= 1
            rate.refused(call, now, 0.0)
        if rate._level != level:
            level = rate._level
            falls.append((now, level))
        now += 1 / 200
    return falls


def _vainly_fallen() -> AdaptiveRate:
    """A fifth of all is refused, whatever is sent: at 10.0 the experiment is under way."""
    rate = AdaptiveRate(0.0)
    _refuse_always(rate, 0.0, 10.0, 0.2)
    return rate


def test_falls_in_vain() -> None:
    """Three times it falls by what is refused, then it goes back up, and expects that share."""
    rate = AdaptiveRate(0.0)
    falls = _refuse_always(rate, 0.0, 10.0, 0.2)
    levels = [level for _, level in falls]
    assert len(levels) == 4
    for earlier, later in itertools.pairwise(levels[:3]):
        assert later == pytest.approx(0.8 * earlier, rel=0.05)
    assert levels[3] == pytest.approx(4 * 0.8 * levels[2], rel=0.05)
    assert rate._expected == pytest.approx(0.2, abs=0.02)


def test_an_experiment_that_failed() -> None:
    """More than expected is refused: the rate was to blame. For a minute there is no other one."""
    rate = _vainly_fallen()
    assert rate._expected == pytest.approx(0.2, abs=0.02)
    (first, *falls) = _refuse_always(rate, 10.0, 60.0, 0.5)
    assert rate._expected == 0
    assert rate._believe_from == first[0] + 60
    levels = [first[1], *(level for _, level in falls)]
    assert len(levels) > 5
    assert levels == sorted(levels, reverse=True)


def test_doubt_doubles() -> None:
    """The next experiment waits for a minute, then for two, then for four."""
    rate = _vainly_fallen()
    now, waits = 10.0, []
    for _ in range(3):
        rate._expected = 0.2
        falls = _refuse_always(rate, now, 60.0, 0.5)
        fell_at = next(at for at, level in falls if math.isfinite(level))
        waits.append(round(rate._believe_from - fell_at, 6))
        now += 1000.0
    assert waits == [60, 120, 240]


def _unless_in_vain(rate: AdaptiveRate, times: int, now: float = 1.0) -> list[float]:
    """What is made of so many falls to 50/s in a row, with a fifth refused."""
    found = []
    for _ in range(times):
        rate._sent, rate._refused = 100, 20
        found.append(rate._unless_in_vain(50.0, now))
    return found


def test_fourth_fall_in_vain() -> None:
    """The rate of before, but no more than four times what was accepted; then it begins anew."""
    rate = _fallen()
    assert _unless_in_vain(rate, 8) == [50, 50, 50, 200, 50, 50, 50, 200]
    assert rate._expected == rate._observed == 0.2
    rate = _fallen()
    rate._resume_at = 120.0
    assert _unless_in_vain(rate, 4) == [50, 50, 50, 120]


def test_most_that_is_expected() -> None:
    """However much was refused."""
    rate = _fallen()
    for _ in range(4):
        rate._sent, rate._refused = 100, 90
        rate._unless_in_vain(50.0, 1.0)
    assert rate._expected == 0.4


def test_a_fall_that_helped() -> None:
    """Few refused: the rate was to blame, and earlier falls were not in vain."""
    rate = _fallen()
    _unless_in_vain(rate, 3)
    rate._sent, rate._refused = 100, 7
    assert rate._unless_in_vain(50.0, 1.0) == 50
    assert _unless_in_vain(rate, 3) == [50, 50, 50]
    assert rate._resume_at == rate.rate(1.0)


def test_a_rate_that_had_risen() -> None:
    """It was far above what was accepted: no wonder that it is refused."""
    rate = _fallen()
    _unless_in_vain(rate, 3)
    later = next(1.0 + s / 10 for s in range(200) if rate.rate(1.0 + s / 10) > 1.6 * rate._level)
    rate._sent, rate._refused = 1000, 300
    assert rate._unless_in_vain(50.0, later) == 50
    assert rate._in_vain == []
    assert rate._resume_at == rate.rate(later)


def test_no_experiment_in_doubt() -> None:
    """Falls in vain are counted, and believed later."""
    rate = _fallen()
    rate._believe_from = 100.0
    assert _unless_in_vain(rate, 10, now=1.0) == [50] * 10
    assert len(rate._in_vain) == 10
    rate._rising_from = 100.0
    assert _unless_in_vain(rate, 1, now=100.0) == [200]


@pytest.mark.parametrize("gate_s", [0.0, 1.0])
def test_retry_after_is_no_experiment(gate_s: float) -> None:
    """Who says when to come back speaks of the rate."""
    rate = _fallen(gate_s)
    rate._in_vain = [(100, 20)] * 3
    rate._sent, rate._refused = 100, 20
    rate._recent.extend(Call(2.0) for _ in range(100))
    rate._recent_refused = 20
    rate._fall(3.0, gate_s)
    assert (len(rate._in_vain), rate._expected) == ((3, 0) if gate_s else (0, pytest.approx(0.2)))


# Against a backend that answers 429

RETRY_AFTER = pytest.mark.parametrize("retry_after_s", [None, 1.0])


@RETRY_AFTER
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(("quota", "seconds"), [(50.0, 100), (500.0, 50)])
def test_quota_is_found(quota: float, seconds: int, seed: int, retry_after_s: float | None) -> None:
    """It is used to the full, for a few refusals."""
    run = simulate(Server(quota=quota, retry_after_s=retry_after_s, seed=seed), seconds)
    assert run.goodput(20) >= 0.95 * quota
    assert run.limited(20) <= 0.035
    assert run.paces[0].in_flight == 0


def _windows(run: Outcome, first: int, last: int) -> list[float]:
    """The goodput over five seconds, for each of these seconds that they may begin with."""
    return [run.goodput(second, second + 5) for second in range(first, last)]


@RETRY_AFTER
@pytest.mark.parametrize("quota", [50.0, 500.0])
def test_quota_halves_and_returns(quota: float, retry_after_s: float | None) -> None:
    """Within 15 s the goodput is at the new level, be it lower or higher."""
    server = Server(quota=quota, retry_after_s=retry_after_s)
    events = [
        (30.0, lambda: server.set_quota(quota / 2)),
        (60.0, lambda: server.set_quota(quota)),
    ]
    run = simulate(server, 90, events=events)
    halved = _windows(run, 40, 55)
    assert min(halved) >= 0.8 * quota / 2
    assert max(halved) <= 1.25 * quota / 2
    returned = _windows(run, 60, 75)
    assert max(returned) >= 0.85 * quota
    assert max(_windows(run, 60, 85)) <= 1.25 * quota


@RETRY_AFTER
@pytest.mark.parametrize("seed", [1, 2])
def test_two_paces_share_a_quota(seed: int, retry_after_s: float | None) -> None:
    """Together they use it, and neither starves."""
    run = simulate(Server(quota=500.0, retry_after_s=retry_after_s, seed=seed), 60, paces=2)
    assert run.goodput(20) >= 0.9 * 500
    served = run.served(20)
    assert min(served) >= 0.3 * sum(served)
    assert [pace.in_flight for pace in run.paces] == [0, 0]


@pytest.mark.parametrize("quota", [50.0, 200.0])
def test_two_paces_share_a_small_quota(quota: float) -> None:
    """Each gets its part. The mean of four runs: chance decides much in a small one."""
    runs = [simulate(Server(quota=quota, seed=seed), 150, paces=2) for seed in range(1, 5)]
    shares = [min(run.served(30)) / sum(run.served(30)) for run in runs]
    assert sum(shares) / 4 >= 0.3
    assert min(run.goodput(0) for run in runs) >= 0.95 * quota


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("quota", [50.0, 200.0])
@pytest.mark.parametrize("paces", [4, 8])
def test_many_paces_share_a_quota(paces: int, quota: float, seed: int) -> None:
    """They do not teach each other that refusals are normal, and storm."""
    run = simulate(Server(quota=quota, seed=seed), 150, paces=paces)
    assert run.goodput(0) >= 0.95 * quota
    assert run.limited(0) <= 0.25
    assert min(run.served(30)) > 0


@pytest.mark.parametrize(("limited", "busy"), [(0.05, 0.4), (0.2, 0.7)])
def test_random_refusals_do_not_collapse(limited: float, busy: float) -> None:
    """Others share the backend: what it refuses is not this rate's doing. The mean of four runs."""
    runs = [simulate(Server(slots=256, limited=limited, seed=seed), 150) for seed in range(1, 5)]
    assert sum(run.busy(40) for run in runs) / 4 >= busy * 256
