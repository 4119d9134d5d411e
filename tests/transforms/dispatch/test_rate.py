"""The rate of calls: a known quota is kept, an unknown one is found, and chance is not a quota."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transforms.dispatch.simulation import Outcome, Server, simulate
from transforms.dispatch.rate import (
    AdaptiveRate,
    ChanceRefusals,
    Curve,
    Experiment,
    Sample,
    TokenBucket,
)

# A known quota


def test_bucket_begins_full() -> None:
    """A bucket spends a burst at once and the rest evenly; overdrafts are waited for."""
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
    """A bucket saves up no more than a burst, also of returned tokens."""
    bucket = TokenBucket(10.0, 2.0, 0.0)
    bucket.spend(1.0, 100.0)
    bucket.spend(-50.0, 100.0)
    bucket.spend(20.0, 100.0)
    assert bucket.wait_s(100.0) == pytest.approx(0.0, abs=1e-5)
    bucket.spend(5.0, 100.0)
    assert bucket.wait_s(100.0) == pytest.approx(0.5, abs=1e-5)


def test_small_bucket() -> None:
    """A quota below one call per burst still lets whole calls through."""
    bucket = TokenBucket(0.1, 1.0, 0.0)
    assert bucket.wait_s(0.0) == 0
    bucket.spend(1.0, 0.0)
    assert bucket.wait_s(0.0) == pytest.approx(0.0, abs=1e-4)
    bucket.spend(1.0, 0.0)
    assert bucket.wait_s(0.0) == pytest.approx(10.0, abs=1e-4)


STEPS = st.lists(st.tuples(st.floats(0, 10), st.floats(0, 100)), min_size=1, max_size=60)
"""Seconds that pass, and the amount spent then."""


@settings(deadline=None)
@given(st.floats(0.1, 1000), st.floats(0.1, 10), STEPS)
def test_a_bucket_never_yields_more(
    per_s: float, burst_s: float, steps: list[tuple[float, float]]
) -> None:
    """No more than the burst and the income so far has been spent before each spending."""
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
    """After its wait a bucket has something to spend, and not long before."""
    bucket = TokenBucket(per_s, burst_s, 0.0)
    bucket.spend(amount, 0.0)
    wait_s = bucket.wait_s(0.0)
    assert bucket.wait_s(wait_s * 0.9 - 1e-6) > 0 or wait_s < 1e-4
    assert bucket.wait_s(wait_s * (1 + 1e-6) + 1e-6) == 0


# An unknown one


def _send(rate: AdaptiveRate, calls: int, start: float, per_s: float) -> list[Sample]:
    """Sends calls at a steady rate, whatever the limit."""
    return [rate.sent(start + n / per_s) for n in range(calls)]


def _fallen() -> AdaptiveRate:
    """A rate that fell at 1.0 to just below 95/s: of 100 calls in a second, five were refused."""
    rate = AdaptiveRate(0.0)
    for sample in _send(rate, 100, 0.0, 100.0)[-5:]:
        rate.refused(sample, 1.0, 0.0)
    return rate


def test_no_limit_until_refused() -> None:
    """Any rate is allowed while no call is refused."""
    rate = AdaptiveRate(0.0)
    for n in range(10_000):
        assert rate.wait_s(n / 1000) == 0
        rate.sent(n / 1000)
    assert math.isinf(rate.rate(10.0))


def test_few_refusals_are_chance() -> None:
    """Two refusals plus two in a hundred calls are tolerated as chance."""
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


def test_retry_after_is_not_chance() -> None:
    """One refusal with a Retry-After is enough: it is never chance."""
    rate = AdaptiveRate(0.0)
    calls = _send(rate, 100, 0.0, 100.0)
    rate.refused(calls[-1], 1.0, 2.0)
    assert rate.rate(1.0) == rate.rate(3.0), "the curve begins when sending does"
    assert rate.rate(3.0) == pytest.approx(0.97 * 99, rel=0.02)


def test_one_event_one_fall() -> None:
    """Refusals of calls sent before the rate fell do not lower it again."""
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
    """The rate rises along the curve of the accepted rate."""
    rate, curve = _fallen(), Curve.of(95.0, 1.0)
    assert [rate.rate(1.0 + second / 10) for second in range(200)] == pytest.approx(
        [curve.rate(1.0 + second / 10) for second in range(200)], rel=1e-3
    )


@pytest.mark.parametrize("level", [50.0, 95.0, 1000.0])
def test_the_curve(level: float) -> None:
    """The curve starts at 97 % of a level, flattens near it, then doubles within 5 to 15 s."""
    curve = Curve.of(level, 1.0)
    assert curve.rate(0.0) == curve.rate(1.0) == pytest.approx(0.97 * level)
    rates = [curve.rate(1.0 + second / 10) for second in range(200)]
    assert rates == sorted(rates)
    rises = [later - earlier for earlier, later in itertools.pairwise(rates)]
    slowest = rises.index(min(rises))
    assert rates[slowest] == pytest.approx(level, rel=0.02)
    assert rises[slowest + 1 :] == sorted(rises[slowest + 1 :])
    doubled_after_s = next(n for n, each in enumerate(rates) if each > 2 * level) / 10
    assert 5 <= doubled_after_s <= 15


def test_the_lowest_rate() -> None:
    """One call in five seconds is always allowed, whatever was accepted."""
    curve = Curve.of(0.0, 0.0)
    assert (curve.level, curve.rate(0.0)) == (0.2, 0.2)
    assert Curve().unlimited
    assert math.isinf(Curve().rate(1000.0))


def test_waits_keep_the_rate() -> None:
    """Keeping the waits sends as many calls as the rate allows, without a burst."""
    rate = _fallen()
    sent_at = []
    now = 1.0
    while now < 3.0:
        if wait_s := rate.wait_s(now):
            now += wait_s
        else:
            rate.sent(now)
            sent_at.append(now)
    assert len(sent_at) == pytest.approx(2 * 95, rel=0.05)
    gaps = [later - earlier for earlier, later in itertools.pairwise(sent_at[2:])]
    assert min(gaps) == pytest.approx(1 / 95, rel=0.1)


def _use(rate: AdaptiveRate, start: float, seconds: float, per_s: float) -> None:
    """Asks and sends steadily."""
    for n in range(int(seconds * per_s)):
        now = start + n / per_s
        if rate.wait_s(now) == 0:
            rate.sent(now)


def test_forgotten() -> None:
    """A rate that has limited nothing for 10 s is dropped."""
    rate = _fallen()
    _use(rate, 1.0, 9.5, 20.0)
    assert math.isfinite(rate.rate(10.5))
    _use(rate, 10.5, 1.0, 20.0)
    assert math.isinf(rate.rate(11.5))


def test_a_share_that_grew_is_not_measured_by_its_past() -> None:
    """After little traffic a fall goes by the current refusals, not by the past accepted rate."""
    rate = _fallen()
    _use(rate, 1.0, 9.0, 1.0)
    calls = _send(rate, 200, 10.0, 100.0)
    for call in calls[::10]:
        rate.refused(call, 12.0, 0.0)
    assert 0.97 * 0.7 * 0.9 * 95 < rate.rate(12.0) < 105


def test_refusals_that_come_to_be_expected() -> None:
    """Refusals without a fall are expected as chance, up to three in a hundred."""
    chance = ChanceRefusals()
    for n in range(3000):
        chance.learn(n % 50 == 0)
    assert chance.expected == pytest.approx(0.02, abs=0.005)
    for _ in range(1000):
        chance.learn(True)
    assert chance.expected == 0.03
    assert not chance.assumed


def test_expected_refusals_that_do_not_come() -> None:
    """An expected share of refusals is unlearnt with calls that are not refused."""
    chance = ChanceRefusals()
    chance.assume(0.4)
    assert chance.assumed
    expected = []
    for _ in range(2000):
        chance.learn(False)
        expected.append(chance.expected)
    assert expected == sorted(expected, reverse=True)
    assert expected[0] == 0.4
    assert expected[-1] < 0.015


@pytest.mark.parametrize(("expected", "tolerated"), [(0.0, 2.0), (0.01, 6.4), (0.2, 51.9)])
def test_tolerated(expected: float, tolerated: float) -> None:
    """Two refusals in a hundred, or half more than expected and four deviations, are tolerated."""
    chance = ChanceRefusals()
    chance.assume(expected)
    assert chance.tolerated(100) == pytest.approx(tolerated, abs=0.05)
    chance.reject()
    assert chance.tolerated(100) == 2.0


def test_remembered_while_it_binds() -> None:
    """A rate that holds calls back now and then is remembered and goes on rising."""
    rate = _fallen()
    bound = 1.0
    for n in range(8 * 500):  # above the limit, for eight seconds
        now = 1.0 + n / 500
        if rate.wait_s(now) == 0:
            rate.sent(now)
        else:
            bound = now
    assert math.isfinite(rate.rate(9.0))
    _use(rate, 9.0, bound + 9.9 - 9.0, 20.0)
    assert math.isfinite(rate.rate(bound + 9.9))
    _use(rate, bound + 10.1, 1.0, 20.0)
    assert math.isinf(rate.rate(bound + 11.1))


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
    """After any refusals the rate is above 0, and the wait is not negative."""
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
    """A fast minute without a limit is no debt when the first limit is found."""
    rate = AdaptiveRate(0.0)
    _send(rate, 60_000, 0.0, 1000.0)
    calls = _send(rate, 500, 60.0, 50.0)
    rate.refused(calls[-1], 70.0, 1.0)
    assert rate.rate(70.0) == pytest.approx(0.97 * 50, rel=0.05)
    assert rate.wait_s(71.0) < 1


# The experiment: refusals that persist although the rate falls


def _refuse_always(
    rate: AdaptiveRate, start: float, seconds: float, share: float
) -> list[tuple[float, float]]:
    """Uses the whole limit up to 200/s with an even share refused; returns each fall and the rate.

    Only a fall or the experiment changes the rate at once.
    """
    now, refused, falls = start, 0.0, []
    while now < start + seconds:
        if wait_s := rate.wait_s(now):
            now += wait_s
            continue
        before = rate.rate(now)
        sample = rate.sent(now)
        refused += share
        if refused >= 1:
            refused -= 1
            rate.refused(sample, now, 0.0)
        if rate.rate(now) != before:
            falls.append((now, rate.rate(now)))
        now += 1 / 200
    return falls


def _futile(experiment: Experiment, times: int, now: float = 1.0) -> list[float]:
    """The levels of several falls to 50/s in a row, with a fifth refused."""
    return [experiment.fell(50.0, 100, 20, Curve.of(60.0, now), now)[0] for _ in range(times)]


def test_futile_falls() -> None:
    """After three futile falls the rate returns and the share of refusals is expected."""
    rate = AdaptiveRate(0.0)
    rates = [each for _, each in _refuse_always(rate, 0.0, 10.0, 0.2)]
    assert len(rates) == 4
    for earlier, later in itertools.pairwise(rates[:3]):
        assert later == pytest.approx(0.8 * earlier, rel=0.05)
    assert rates[3] == pytest.approx(4 * 0.8 * rates[2], rel=0.05)
    assert rate.expected_refusals == pytest.approx(0.2, abs=0.02)


def test_an_experiment_that_failed() -> None:
    """More refusals than expected end an experiment and prevent others for a minute."""
    rate = AdaptiveRate(0.0)
    _refuse_always(rate, 0.0, 10.0, 0.2)
    falls = _refuse_always(rate, 10.0, 60.0, 0.5)
    assert rate.expected_refusals == 0
    rates = [each for _, each in falls]
    assert len(rates) > 6
    assert rates == sorted(rates, reverse=True)


def test_fourth_futile_fall() -> None:
    """The fourth restores the rate, up to four times the accepted one; then counting restarts."""
    assert _futile(Experiment(0.0), 8) == [50, 50, 50, 200, 50, 50, 50, 200]
    experiment = Experiment(0.0)
    assert experiment.fell(70.0, 100, 7, Curve.of(120.0, 1.0), 1.0) == (70.0, None)
    resumed = Curve.of(120.0, 1.0).rate(1.0)
    assert _futile(experiment, 4) == [50, 50, 50, resumed]


@pytest.mark.parametrize(("refused", "share"), [(20, 0.2), (90, 0.4)])
def test_the_share_to_assume(refused: int, share: float) -> None:
    """The expected share is that of all falls, but no more than two in five."""
    experiment = Experiment(0.0)
    fell = [experiment.fell(50.0, 100, refused, Curve.of(60.0, 1.0), 1.0) for _ in range(4)]
    assert fell == [(50.0, None)] * 3 + [(200.0, share)]


def test_a_fall_that_helped() -> None:
    """A fall that reduced refusals shows that the rate caused them; earlier falls do not count."""
    experiment = Experiment(0.0)
    _futile(experiment, 3)
    curve = Curve.of(60.0, 1.0)
    assert experiment.fell(50.0, 100, 7, curve, 1.0) == (50.0, None)
    assert _futile(experiment, 4) == [50, 50, 50, curve.rate(1.0)]


def test_a_rate_that_had_risen() -> None:
    """Refusals of a rate far above the accepted one start no experiment."""
    experiment = Experiment(0.0)
    _futile(experiment, 3)
    curve = Curve.of(60.0, 1.0)
    later = next(1.0 + s / 10 for s in range(200) if curve.rate(1.0 + s / 10) > 1.6 * 60)
    assert experiment.fell(50.0, 1000, 300, curve, later) == (50.0, None)
    assert _futile(experiment, 4) == [50, 50, 50, curve.rate(later)]


def test_a_forgotten_limit() -> None:
    """Falls before a dropped limit do not count."""
    experiment = Experiment(0.0)
    _futile(experiment, 3)
    experiment.forget()
    assert _futile(experiment, 4) == [50, 50, 50, 200]


def test_no_experiment_in_doubt() -> None:
    """A failed experiment delays the next one by a minute, and by twice as long each time."""
    experiment, now = Experiment(0.0), 0.0
    for doubt_s in (60.0, 120.0, 240.0):
        experiment.failed(now)
        assert _futile(experiment, 10, now + doubt_s - 0.1) == [50] * 10
        assert _futile(experiment, 1, now + doubt_s) == [200]
        now += 1000.0


def test_retry_after_starts_no_experiment() -> None:
    """A Retry-After speaks of the rate, which falls each time without an experiment."""
    rate, now, rates = AdaptiveRate(0.0), 0.0, []
    for _ in range(8):
        samples = []
        while len(samples) < 30:
            if wait_s := rate.wait_s(now):
                now += wait_s
                continue
            samples.append(rate.sent(now))
            now += 1 / 200
        now += 0.5
        for sample in samples[::5]:
            rate.refused(sample, now, 0.001)
        rates.append(rate.rate(now))
    assert rates == sorted(rates, reverse=True)
    assert rate.expected_refusals <= 0.03


# Against a backend that answers 429

RETRY_AFTER = pytest.mark.parametrize("retry_after_s", [None, 1.0])


@RETRY_AFTER
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(("quota", "seconds"), [(50.0, 100), (500.0, 50)])
def test_quota_is_found(quota: float, seconds: int, seed: int, retry_after_s: float | None) -> None:
    """The quota is used to the full, for a few refusals."""
    run = simulate(Server(quota=quota, retry_after_s=retry_after_s, seed=seed), seconds)
    assert run.goodput(20) >= 0.95 * quota
    assert run.limited(20) <= 0.035
    assert run.paces[0].in_flight == 0


def _windows(run: Outcome, first: int, last: int) -> list[float]:
    """The goodput over the five seconds that begin with each of these seconds."""
    return [run.goodput(second, second + 5) for second in range(first, last)]


@RETRY_AFTER
@pytest.mark.parametrize("quota", [50.0, 500.0])
def test_quota_halves_and_returns(quota: float, retry_after_s: float | None) -> None:
    """Within 15 s of a change in the quota, the goodput is at the new level."""
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
    """Two paces share a quota fully, and neither starves."""
    run = simulate(Server(quota=500.0, retry_after_s=retry_after_s, seed=seed), 60, paces=2)
    assert run.goodput(20) >= 0.9 * 500
    served = run.served(20)
    assert min(served) >= 0.3 * sum(served)
    assert [pace.in_flight for pace in run.paces] == [0, 0]


@pytest.mark.parametrize("quota", [50.0, 200.0])
def test_two_paces_share_a_small_quota(quota: float) -> None:
    """Each of two paces gets its part of a small quota, in the mean of four runs."""
    runs = [simulate(Server(quota=quota, seed=seed), 150, paces=2) for seed in range(1, 5)]
    shares = [min(run.served(30)) / sum(run.served(30)) for run in runs]
    assert sum(shares) / 4 >= 0.3
    assert min(run.goodput(0) for run in runs) >= 0.95 * quota


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("quota", [50.0, 200.0])
@pytest.mark.parametrize("paces", [4, 8])
def test_many_paces_share_a_quota(paces: int, quota: float, seed: int) -> None:
    """Many paces do not teach each other that refusals are normal."""
    run = simulate(Server(quota=quota, seed=seed), 150, paces=paces)
    assert run.goodput(0) >= 0.95 * quota
    assert run.limited(0) <= 0.25
    assert min(run.served(30)) > 0


@pytest.mark.parametrize(("limited", "busy"), [(0.05, 0.4), (0.2, 0.7)])
def test_random_refusals_do_not_collapse(limited: float, busy: float) -> None:
    """Refusals at random do not lower the rate to nothing, in the mean of four runs."""
    runs = [simulate(Server(slots=256, limited=limited, seed=seed), 150) for seed in range(1, 5)]
    assert sum(run.busy(40) for run in runs) / 4 >= busy * 256
