"""The limit of calls in flight: it climbs, holds, probes, backs off, and recovers.

Exact limits belong to a backend without variance; simulations show the effect of chance.
"""

import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transforms.dispatch.simulation import Server, simulate
from transforms.dispatch.concurrency import AdaptiveConcurrency

Backend = Callable[[int], float]
"""The throughput at a number of calls in flight."""


def _slots(slots: int) -> Backend:
    """A backend that serves this many calls at once, each in a second."""
    return lambda in_flight: float(min(in_flight, slots))


def _drive(
    limit: AdaptiveConcurrency, backend: Backend, start: float, seconds: float
) -> tuple[float, list[int]]:
    """Keeps the limit filled for a time; returns the time after it and the limits seen."""
    now, limits = start, [limit.limit]
    while now < start + seconds:
        in_flight = limits[-1]
        throughput = backend(in_flight)
        now += 1 / throughput
        limit.ended(now - in_flight / throughput, now, refused=False)
        if limit.limit != in_flight:
            limits.append(limit.limit)
    return now, limits


def _filled(ceiling: int) -> AdaptiveConcurrency:
    """A limit that binds from the start."""
    limit = AdaptiveConcurrency(ceiling, 0.0)
    limit.binds(True, 0.0)
    return limit


@pytest.mark.parametrize(("ceiling", "first"), [(1, 1), (31, 31), (32, 32), (2048, 32)])
def test_start(ceiling: int, first: int) -> None:
    """The limit starts at 32, or at its ceiling if that is lower."""
    assert AdaptiveConcurrency(ceiling, 0.0).limit == first


def test_climb_to_the_ceiling() -> None:
    """The limit doubles each round while throughput follows, up to the ceiling, where it stays."""
    now, limits = _drive(_filled(1000), _slots(10_000), 0.0, 60)
    assert limits == [32, 64, 128, 256, 512, 1000]
    assert now == pytest.approx(60, abs=0.1)


def test_hold_and_probe() -> None:
    """The limit holds 30 % above the backend's slots; probes of another 50 % are undone.

    83 is 1.3 x 64, and 124 is 1.5 x 83.2.
    """
    _, limits = _drive(_filled(2048), _slots(64), 0.0, 100)
    assert limits[:8] == [32, 64, 128, 83, 124, 83, 124, 83]
    assert set(limits[8:]) <= {83, 124}


def test_no_probe_before_its_time() -> None:
    """A limit is held for at least 15 s and until the current round ends."""
    limit = _filled(2048)
    now = 0.0
    held_at = []
    while limit.limit != 124:
        now, _ = _drive(limit, _slots(64), now, 0.01)
        if limit.limit == 83:
            held_at.append(now)
    assert 15 <= held_at[-1] - held_at[0] < 19


def test_the_backend_grows() -> None:
    """A probe that raises throughput begins a new climb, without adding headroom again."""
    limit = _filled(2048)
    now, limits = _drive(limit, _slots(64), 0.0, 10)
    assert limits[-1] == 83
    _, limits = _drive(limit, _slots(500), now, 60)
    assert limits[:3] == [83, 124, 249]
    assert 500 <= limits[-1] <= 1000


def test_unbound_rounds_tell_nothing() -> None:
    """The limit stays while there are too few requests to fill it."""
    limit = AdaptiveConcurrency(2048, 0.0)
    assert _drive(limit, _slots(10_000), 0.0, 60)[1] == [32]


@pytest.mark.parametrize(("bound", "limits"), [(0.85, [32]), (0.95, [32, 64])])
def test_rounds_that_bound_for_a_while(bound: float, limits: list[int]) -> None:
    """A round counts if the limit binds for nine tenths of it."""
    limit = AdaptiveConcurrency(2048, 0.0)
    limit.binds(False, 0.0)
    limit.binds(True, 1.0 - bound)
    assert _drive(limit, _slots(32), 0.0, 1.0)[1] == limits


def test_binds_twice() -> None:
    """Reporting that the limit binds twice changes nothing."""
    limit = AdaptiveConcurrency(2048, 0.0)
    for n in range(10):
        limit.binds(True, n / 10)
    assert _drive(limit, _slots(32), 0.0, 1.0)[1] == [32, 64]


def _refuse(limit: AdaptiveConcurrency, calls: int, sent_at: float, now: float) -> list[int]:
    """The limit after each of several refused calls."""
    limits = []
    for _ in range(calls):
        limit.ended(sent_at, now, refused=True)
        limits.append(limit.limit)
    return limits


def test_back_off_once_per_event() -> None:
    """Calls sent before a cut do not cut the limit again, however many are refused."""
    limit = _filled(2048)
    limits = _refuse(limit, 500, 0.0, 1.0)
    assert limits == sorted(limits, reverse=True)
    assert set(limits) == {32, 22}
    assert limits.index(22) > 32, "a few refusals are no event"
    assert set(_refuse(limit, 500, 0.9, 2.0)) == {22}
    assert set(_refuse(limit, 100, 1.0, 3.0)) == {22, 15}


def test_never_below_one() -> None:
    """The limit never falls below one, however often it is cut."""
    limit = _filled(2048)
    for second in range(30):
        _refuse(limit, 100, float(second), second + 0.5)
    assert limit.limit == 1


def test_back_after_a_cut() -> None:
    """After a cut the limit rises by quarters to its earlier value and waits there for a while."""
    limit = _filled(2048)
    _refuse(limit, 100, 0.0, 0.0)
    assert _drive(limit, _slots(10_000), 0.0, 4)[1] == [22, 28, 32]


def test_restart() -> None:
    """After an outage the limit starts at half and rises to its earlier value."""
    limit = _filled(2048)
    now, limits = _drive(limit, _slots(64), 0.0, 10)
    assert limits[-1] == 83
    limit.restart(now)
    assert _drive(limit, _slots(64), now, 8)[1][:5] == [41, 52, 65, 81, 83]


def test_two_outages() -> None:
    """A second outage does not lower the limit to which the first one recovers."""
    limit = _filled(2048)
    for _ in range(3):
        limit.restart(0.0)
    assert limit.limit == 4
    limits = _drive(limit, _slots(10_000), 0.0, 20)[1]
    assert limits[:11] == [4, 5, 6, 7, 9, 12, 15, 19, 23, 29, 32]


def test_some_refusals_are_not_congestion() -> None:
    """One refusal in twenty calls at any load does not lower the limit."""
    limit = AdaptiveConcurrency(2048, 0.0)
    for n in range(10_000):
        limit.ended(n / 100, n / 100 + 1, refused=n % 20 == 0)
        assert limit.limit == 32


@settings(deadline=None)
@given(
    st.integers(1, 3000),
    st.lists(
        st.tuples(
            st.sampled_from(["end", "refuse", "bind", "free", "restart"]),
            st.integers(1, 200),
            st.floats(0, 20),
        ),
        max_size=40,
    ),
)
def test_always_between_one_and_the_ceiling(
    ceiling: int, steps: list[tuple[str, int, float]]
) -> None:
    """The limit stays between one and the ceiling, whatever happens in whatever order."""
    limit, now = AdaptiveConcurrency(ceiling, 0.0), 0.0
    for what, times, seconds in steps:
        for _ in range(times if what in ("end", "refuse") else 1):
            sent_at, now = now, now + seconds / times
            if what in ("end", "refuse"):
                limit.ended(sent_at, now, refused=what == "refuse")
            elif what == "restart":
                limit.restart(now)
            else:
                limit.binds(what == "bind", now)
            assert 1 <= limit.limit <= ceiling


# Against a backend whose latencies have a heavy tail: median 1 s, 99th percentile 8 s


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(("slots", "seconds"), [(64, 100), (256, 60), (1024, 40)])
def test_slots_stay_busy(slots: int, seconds: int, seed: int) -> None:
    """Slots stay busy from the twentieth second on, with at most three calls in flight per slot."""
    run = simulate(Server(slots=slots, seed=seed), seconds)
    assert run.busy(20) >= 0.97 * slots
    assert run.paces[0].limit <= 3 * slots
    assert run.paces[0].in_flight == 0
    assert math.isinf(run.paces[0].rate(seconds)), "nothing was refused"


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_overload_keeps_slots_busy(seed: int) -> None:
    """Slots stay busy although one call in twenty gets a 503 at any load."""
    run = simulate(Server(slots=64, overloaded=0.05, seed=seed), 200)
    assert run.busy(20) >= 0.95 * 64


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_hard_limit(seed: int) -> None:
    """A backend that answers 503 above 100 calls is used well and refuses little."""
    run = simulate(Server(hard_limit=100, seed=seed), 120)
    assert run.busy(20) >= 0.7 * 100
    assert run.overloaded(0) < 0.1
    assert run.paces[0].in_flight == 0
