"""Pace and server metrics together fill a server with vLLM's queue."""

import pytest

from tests.transforms.dispatch.simulation import Outcome, Server, simulate
from transforms.clients.server_metrics import ServerMetrics

_SLOTS = 256
_TICK_S = 0.25


def _run(seconds: int, *, median_s: float, p99_s: float, seed: int) -> tuple[Outcome, list[int]]:
    """The outcome, and the number of our requests on the server at each tick."""
    server = Server(slots=_SLOTS, median_s=median_s, p99_s=p99_s, seed=seed)
    figures, in_flight, due = ServerMetrics(), [], [1.0]

    def tick(now: float) -> None:
        in_flight.append(server.busy + len(server.queue))
        if now >= due[0]:
            page = {"running": float(server.busy), "waiting": float(len(server.queue))}
            figures.read({"a": page}, in_flight[-1], now)
            due[0] = now + figures.again_s

    times = [_TICK_S * n for n in range(1, int(seconds / _TICK_S))]
    run = simulate(
        server,
        seconds,
        wanted=lambda: figures.wanted,
        events=[(time, lambda time=time: tick(time)) for time in times],  # type: ignore[misc]
    )
    return run, in_flight


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_slots_are_filled_and_stay_busy(seed: int) -> None:
    """About 3,000 answers of half a second to three fill the slots in four seconds, for good."""
    run, in_flight = _run(20, median_s=1.3, p99_s=3.0, seed=seed)
    assert sum(run.served(0)) > 3000
    assert max(in_flight[:16]) >= 1.25 * _SLOTS
    assert run.busy(4) >= 0.97 * _SLOTS
    assert set(in_flight[32:]) == {320}
