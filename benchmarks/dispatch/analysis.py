"""Pure functions that compute a scenario's figures from a simulator's log."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from benchmarks.simulator import luck
from benchmarks.simulator.log import Call, Log, Step, last_first_send_s
from benchmarks.simulator.settings import Settings

WINDOW_S = 3.0
"""A level is reached when the mean over this many seconds is near it…"""
STAYS_S = 5
"""…and stays near it as the window moves on, second by second, for this long."""


def reached_s(log: Log, change_s: float, until_s: float, level: float, near: float) -> float:
    """Seconds from a change until both successes and calls keep to a new level.

    Args:
        log: The run's log.
        change_s: The time of the change.
        until_s: The time of the next change, or of the run's end.
        level: Calls per second that the server accepts after the change.
        near: The largest distance of the mean of `WINDOW_S` from it, as a share. There may be fewer
            calls, but not fewer successes.

    Returns:
        The first second from which the means stay near it for `STAYS_S`; infinite if there is none.

    Examples:
        >>> calls = [Call(str(n), "", 1, n / 10, 0, n / 10, 200) for n in range(100)]
        >>> reached_s(calls, 2.0, 10.0, level=10.0, near=0.1)
        0.0
        >>> reached_s(calls, 2.0, 10.0, level=20.0, near=0.1)
        inf
    """
    ended = [call.end_s for call in log if call.succeeded and call.end_s is not None]
    kept = 0
    for second in range(max(0, math.floor(until_s - change_s - WINDOW_S) + 1)):
        start = change_s + second
        good = sum(start <= end < start + WINDOW_S for end in ended) / WINDOW_S
        sent = sum(start <= call.arrival_s < start + WINDOW_S for call in log) / WINDOW_S
        there = abs(good - level) <= near * level and sent <= (1 + near) * level
        kept = kept + 1 if there else 0
        if kept == STAYS_S:
            return float(second + 1 - STAYS_S)
    return math.inf


def between(log: Log, from_s: float, to_s: float) -> list[Call]:
    """The calls that arrived in a span."""
    return [call for call in log if from_s <= call.arrival_s < to_s]


def of_client(log: Log, client: str) -> list[Call]:
    """The calls of one client."""
    return [call for call in log if call.client == client]


def both_work(log: Log, clients: Sequence[str]) -> tuple[float, float]:
    """The span in which every client still has records to send.

    Examples:
        >>> calls = [Call("1", "a", 1, 0.0, 0, 1, 200), Call("2", "b", 1, 2.0, 2, 3, 200)]
        >>> both_work([*calls, Call("3", "a", 1, 5.0, 5, 6, 200)], "ab")
        (2.0, 2.0)
    """
    parts = [of_client(log, client) for client in clients]
    return (
        max(min(call.arrival_s for call in part) for part in parts),
        min(last_first_send_s(part) for part in parts),
    )


def unavoidable_calls(settings: Settings, ids: Iterable[str]) -> int:
    """The number of calls if each record is sent until it has ended, and never again.

    Examples:
        >>> unavoidable_calls(Settings.parse({"faults": "503:0.5"}), map(str, range(1000))) / 1000
        2.014
    """
    calls = 0
    for record_id in ids:
        attempt = 1
        while luck.fault_of(settings, record_id, attempt) not in (None, "poison"):
            attempt += 1
        calls += attempt
    return calls


def expected_calls(settings: Settings) -> float:
    """Calls per record that faults with these probabilities make unavoidable: 1 / (1 - p).

    Examples:
        >>> expected_calls(Settings.parse({"faults": "503:0.5,poison:0.5"}))
        1.5
    """
    poison = dict(settings.faults).get("poison", 0.0)
    retryable = sum(rate for name, rate in settings.faults if name != "poison")
    return (1 - poison) / (1 - retryable) + poison


def not_once(inputs: Iterable[str], ends: Iterable[str]) -> list[str]:
    """The ids that did not end exactly as often as the input holds them.

    Examples:
        >>> not_once(["1", "2", "3"], ["1", "3", "3"])
        ['2', '3']
    """
    put_in, ended = Counter(inputs), Counter(ends)
    return sorted(one for one in put_in.keys() | ended.keys() if put_in[one] != ended[one])


def shown(steps: Sequence[Step], every: int) -> str:
    """A run as lines of text, for a look at a missed goal."""
    lines = ["   s  in service  queued  calls/s  good/s  429/s"]
    for start in range(0, len(steps), every):
        some = steps[start : start + every]
        means = [
            sum(values) / len(some) for values in zip(*(step[1:] for step in some), strict=True)
        ]
        busy, queued, calls, good, refused = means
        lines.append(
            f"{some[0].at_s:4.0f}  {busy:10.1f}  {queued:6.1f}  {calls:7.1f}  {good:6.1f}  "
            f"{refused:5.1f}"
        )
    return "\n".join(lines)
