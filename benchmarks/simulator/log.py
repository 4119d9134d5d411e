"""The simulator's log of calls: writes, reads and analyses it.

All times are seconds since the first call that reached the server, on a monotonic clock. The
functions are pure; a span includes its start and excludes its end.
"""

import collections
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import orjson


class Call(NamedTuple):
    """One call.

    Attributes:
        id: The record that it is about; of several texts to embed, that of the first.
        client: The caller: see ``server.client_of``.
        attempt: 1 for the first call of the record, 0 if the request could not be read.
        arrival_s: The time at which the request was complete.
        start_s: The time at which it got a slot; None if it never did.
        end_s: The time at which it was answered or the client left; None if it was still open.
        status: HTTP status, ``reset``, ``abandoned`` (the client left), ``hang`` (never answered,
            the client still waits) or ``open`` (still queued or served).
        cause: The cause of its failure: ``quota``, ``overflow``, ``outage``, ``request`` (refused
            for its content) or the fault of ``luck.fault_of``; None if it did not fail.
        texts: The number of its texts to embed; 1 for any other call.
    """

    id: str
    client: str
    attempt: int
    arrival_s: float
    start_s: float | None
    end_s: float | None
    status: int | str
    cause: str | None = None
    texts: int = 1

    @property
    def succeeded(self) -> bool:
        """Whether it returned a usable answer."""
        return self.status == 200 and self.cause is None


Log: TypeAlias = Sequence[Call]


class Step(NamedTuple):
    """One step of a series.

    Attributes:
        at_s: Its start.
        in_service: Mean number of calls that had a slot.
        queued: Mean number of calls that waited for one.
        arrivals: Calls that arrived.
        successes: Calls that ended as a success.
        refused: Calls that ended with status 429.
    """

    at_s: float
    in_service: float
    queued: float
    arrivals: int
    successes: int
    refused: int


def dump(log: Iterable[Call]) -> bytes:
    """The log as JSON lines."""
    return b"".join(orjson.dumps(call._asdict()) + b"\n" for call in log)


def parse(lines: bytes) -> list[Call]:
    """The calls of JSON lines.

    Examples:
        >>> call = Call("7", "", 1, 0.0, 0.0, 0.5, 200)
        >>> parse(dump([call])) == [call]
        True
    """
    return [Call(**orjson.loads(line)) for line in lines.splitlines() if line]


def read(path: str) -> list[Call]:
    """The calls of a file that ``--log`` wrote."""
    with open(path, "rb") as file:
        return parse(file.read())


def end_s(log: Log) -> float:
    """The last time in the log; 0 for an empty one."""
    return max((call.end_s or call.start_s or call.arrival_s for call in log), default=0.0)


def busy_slots(log: Log, from_s: float, to_s: float) -> float:
    """Mean number of calls in service.

    Examples:
        >>> busy_slots([Call("1", "", 1, 0.0, 0.0, 2.0, 200), Call("2", "", 1, 0, 1, 9, 200)], 0, 4)
        1.25
    """
    return sum(_within(span, from_s, to_s) for span in _served(log)) / (to_s - from_s)


def peak_busy_slots(log: Log) -> int:
    """The most calls that were in service at one time; one that ends frees its slot first."""
    moments = sorted(m for start, end in _served(log) for m in ((start, 1), (end, -1)))
    busy = peak = 0
    for _, change in moments:
        busy += change
        peak = max(peak, busy)
    return peak


def last_first_send_s(log: Log) -> float:
    """The time of the last record's first call, from which a run only drains.

    Examples:
        >>> last_first_send_s([Call("1", "", 1, 0.5, 0, 2, 503), Call("1", "", 2, 3, 3, 4, 200)])
        0.5
    """
    return max((call.arrival_s for call in log if call.attempt == 1), default=0.0)


def goodput(log: Log, from_s: float, to_s: float) -> float:
    """Successes per second, by the time of their end."""
    ended = (call.end_s for call in log if call.succeeded and call.end_s is not None)
    return sum(from_s <= end < to_s for end in ended) / (to_s - from_s)


def calls_per_record(log: Log) -> float:
    """Mean number of calls per record; 0 for an empty log."""
    records = {call.id for call in log}
    return len(log) / len(records) if records else 0.0


def wasted_calls(log: Log) -> int:
    """Calls other than the one that was each record's first success."""
    return len(log) - len({call.id for call in log if call.succeeded})


def counts_by_status(log: Log) -> dict[str, int]:
    """Number of calls by status, all as text."""
    return dict(collections.Counter(str(call.status) for call in log))


def counts_by_cause(log: Log) -> dict[str, int]:
    """Number of calls by their cause of failure."""
    return dict(collections.Counter(call.cause for call in log if call.cause is not None))


def share_of_status(log: Log, status: int | str) -> float:
    """The share of all calls that ended with this status; 0 for an empty log."""
    return sum(call.status == status for call in log) / len(log) if log else 0.0


def shares_of_success(log: Log, from_s: float = 0.0, to_s: float = math.inf) -> dict[str, float]:
    """Each client's share of the successes, by the time of their end; all clients are named.

    Examples:
        >>> shares_of_success([Call("1", "a", 1, 0, 0, 1, 200), Call("2", "b", 1, 0, 0, 1, 503)])
        {'a': 1.0, 'b': 0.0}
    """
    shares = dict.fromkeys((call.client for call in log), 0.0)
    good = [c for c in log if c.succeeded and c.end_s is not None and from_s <= c.end_s < to_s]
    for call in good:
        shares[call.client] += 1 / len(good)
    return shares


def series(log: Log, step_s: float) -> list[Step]:
    """The run in steps of equal length, from the first call to the end of the last.

    An open call counts up to the end of the log.
    """
    count = math.floor(end_s(log) / step_s) + 1 if log else 0
    busy, queued = [0.0] * count, [0.0] * count
    arrivals, successes, refused = [0] * count, [0] * count, [0] * count
    for spans, sums in ((_served(log), busy), (_queued(log), queued)):
        for span in spans:
            for number in range(int(span[0] / step_s), min(int(span[1] / step_s) + 1, count)):
                sums[number] += _within(span, number * step_s, (number + 1) * step_s)
    for call in log:
        arrivals[int(call.arrival_s / step_s)] += 1
        if call.end_s is not None:
            successes[int(call.end_s / step_s)] += call.succeeded
            refused[int(call.end_s / step_s)] += call.status == 429
    return [
        Step(
            n * step_s, busy[n] / step_s, queued[n] / step_s, arrivals[n], successes[n], refused[n]
        )
        for n in range(count)
    ]


def _served(log: Log) -> Iterator[tuple[float, float]]:
    last = end_s(log)
    for call in log:
        if call.start_s is not None:
            yield call.start_s, last if call.end_s is None else call.end_s


def _queued(log: Log) -> Iterator[tuple[float, float]]:
    """The spans in which calls waited for a slot, without waits for refusals or for nothing."""
    last = end_s(log)
    for call in log:
        if call.start_s is not None:
            yield call.arrival_s, call.start_s
        elif call.cause is None and call.status in ("abandoned", "open"):
            yield call.arrival_s, last if call.end_s is None else call.end_s


def _within(span: tuple[float, float], from_s: float, to_s: float) -> float:
    return max(0.0, min(span[1], to_s) - max(span[0], from_s))
