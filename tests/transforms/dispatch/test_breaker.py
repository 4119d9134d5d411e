"""The circuit breaker on its own; `test_pace` tests it in a pace."""

import math

from transforms.dispatch.breaker import CircuitBreaker


def _open() -> CircuitBreaker:
    """A breaker that has opened at 0."""
    breaker = CircuitBreaker()
    for _ in range(10):
        assert not breaker.open
        breaker.failed(object(), 0.0, counts=True)
    assert breaker.open
    return breaker


def test_failures_that_do_not_count() -> None:
    """A failure of a request that is known to fail does not count."""
    breaker = CircuitBreaker()
    for _ in range(100):
        breaker.failed(object(), 0.0, counts=False)
    assert not breaker.open


def test_a_success_between() -> None:
    """Only failures in a row open the breaker."""
    breaker = CircuitBreaker()
    for _ in range(3):
        for _ in range(9):
            breaker.failed(object(), 0.0, counts=True)
        assert not breaker.served(0.0), "there was nothing to close"
    assert not breaker.open


def test_probes() -> None:
    """Probes are sent one at a time, at intervals that double up to ten seconds."""
    breaker, now, waits = _open(), 0.0, []
    for _ in range(7):
        waits.append(breaker.wait_s(now))
        now += breaker.wait_s(now)
        assert breaker.wait_s(now) == 0
        probe = object()
        breaker.sent(probe)
        assert math.isinf(breaker.wait_s(now))
        breaker.failed(object(), now, counts=True)
        assert math.isinf(breaker.wait_s(now)), "a call of before the outage is no probe"
        breaker.failed(probe, now, counts=True)
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_an_inconclusive_probe() -> None:
    """After an inconclusive probe another one may be sent immediately."""
    breaker, probe = _open(), object()
    breaker.sent(probe)
    breaker.ignored(object())
    assert math.isinf(breaker.wait_s(1.0))
    breaker.ignored(probe)
    assert breaker.wait_s(1.0) == 0


def test_it_closes() -> None:
    """The first served call closes the breaker; the time until then is an outage."""
    breaker = _open()
    assert breaker.outage.present_s(7.0) == 7.0
    assert breaker.served(8.0)
    assert not breaker.open
    assert (breaker.outage.total_s(9.0), breaker.outage.present_s(9.0)) == (8.0, 0.0)
    for _ in range(10):
        breaker.failed(object(), 9.0, counts=True)
    assert breaker.wait_s(9.0) == 0.5
