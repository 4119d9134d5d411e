"""A deterministic discrete-event simulation of paces against one backend: minutes in a second.

`Server` is the backend: slots that calls queue for, a quota that answers 429, refusals at random, a
hard limit that answers 503. `simulate` lets one or more paces send to it whenever they may, as a
dispatcher with an endless supply of requests does, and returns the numbers of each second.
"""

import collections
import dataclasses
import heapq
import itertools
import math
import random
from collections.abc import Callable, Sequence

from transforms.dispatch.pace import Pace, Permit
from transforms.records.causes import Verdict

_Z99 = 2.326
"""The 99th percentile of the standard normal distribution."""
_REFUSED_AFTER_S = 0.01


class Server:
    """A backend whose service times are log-normal.

    Args:
      slots: Calls that it serves at once, while others queue; 0 for no limit.
      quota: Calls per second; above it, 429; 0 for no limit.
      retry_after_s: The ``Retry-After`` of its 429s.
      limited: The share of calls that get a 429 at random, whatever their rate.
      overloaded: The share of calls that get a 503 at random.
      hard_limit: Calls in service beyond which a further one gets a 503; 0 for none.
      median_s: The median of the service times.
      p99_s: The 99th percentile of the service times.
      seed: The seed of all random numbers.
    """

    def __init__(
        self,
        *,
        slots: int = 0,
        quota: float = 0.0,
        retry_after_s: float | None = None,
        limited: float = 0.0,
        overloaded: float = 0.0,
        hard_limit: int = 0,
        median_s: float = 1.0,
        p99_s: float = 8.0,
        seed: int = 1,
    ) -> None:
        self.slots = slots or math.inf
        self.retry_after_s = retry_after_s
        self.busy = 0
        self.queue: collections.deque[tuple[int, Permit]] = collections.deque()
        self._quota = self._left = quota
        self._filled_at = 0.0
        self._limited = limited
        self._overloaded = overloaded
        self._hard_limit = hard_limit or math.inf
        self._mu = math.log(median_s)
        self._sigma = (math.log(p99_s) - self._mu) / _Z99
        self._random = random.Random(seed)

    def set_quota(self, quota: float) -> None:
        """Sets the quota from now on; nothing is saved up."""
        self._quota, self._left = quota, min(self._left, quota)

    def refuses(self, now: float) -> Verdict | None:
        """The refusal of a call that arrives now; None when it is admitted."""
        if self._quota:
            filled = self._left + (now - self._filled_at) * self._quota
            self._left, self._filled_at = min(self._quota, filled), now
            if self._left < 1:
                return Verdict.LIMITED
            self._left -= 1
        chance = self._random.random()
        if chance < self._limited:
            return Verdict.LIMITED
        if chance < self._limited + self._overloaded or self.busy >= self._hard_limit:
            return Verdict.OVERLOADED
        return None

    def service_s(self) -> float:
        """The service time of the next call."""
        return math.exp(self._random.gauss(self._mu, self._sigma))


@dataclasses.dataclass(slots=True)
class Second:
    """The numbers of one second.

    Attributes:
      calls: Calls sent.
      served: Calls answered, of each pace.
      limited: Calls that ended with a 429.
      overloaded: Calls that ended with a 503.
      busy: The mean number of calls in service.
    """

    served: list[int]
    calls: int = 0
    limited: int = 0
    overloaded: int = 0
    busy: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a simulation: the seconds, and the paces after the last call ended."""

    seconds: Sequence[Second]
    paces: Sequence[Pace]

    def busy(self, first: int, last: int | None = None) -> float:
        """The mean number of calls in service from one second to another."""
        seconds = self.seconds[first:last]
        return sum(second.busy for second in seconds) / len(seconds)

    def goodput(self, first: int, last: int | None = None) -> float:
        """Calls answered per second."""
        return sum(self.served(first, last)) / len(self.seconds[first:last])

    def served(self, first: int, last: int | None = None) -> list[int]:
        """Calls answered, of each pace."""
        return [
            sum(each) for each in zip(*(s.served for s in self.seconds[first:last]), strict=True)
        ]

    def limited(self, first: int, last: int | None = None) -> float:
        """The share of 429s in the calls."""
        seconds = self.seconds[first:last]
        return sum(second.limited for second in seconds) / sum(second.calls for second in seconds)

    def overloaded(self, first: int, last: int | None = None) -> float:
        """The share of 503s in the calls."""
        seconds = self.seconds[first:last]
        return sum(second.overloaded for second in seconds) / sum(s.calls for s in seconds)


def simulate(
    server: Server,
    seconds: int,
    *,
    paces: int = 1,
    max_concurrency: int = 2048,
    requests_per_minute: float | None = None,
    wanted: Callable[[], int] = lambda: 0,
    events: Sequence[tuple[float, Callable[[], None]]] = (),
) -> Outcome:
    """Lets paces send to a server for a number of seconds, then lets calls in flight end.

    Args:
      server: The backend that they share.
      seconds: The time for which they send.
      paces: The number of paces, each like a process of its own.
      max_concurrency: The ceiling of each pace.
      requests_per_minute: The known share of each pace; None for no quota.
      wanted: The concurrency that the server suggests to each pace; 0 for none.
      events: Other events and their times.
    """
    run = _Run(server, seconds, paces, max_concurrency, requests_per_minute, wanted)
    for at, event in events:
        run.at(at, event)
    return run.run()


class _Run:
    """One simulation: a heap of coming events."""

    def __init__(
        self,
        server: Server,
        seconds: int,
        paces: int,
        max_concurrency: int,
        requests_per_minute: float | None,
        wanted: Callable[[], int],
    ) -> None:
        self._server = server
        self._paces = [
            Pace(max_concurrency, 0.0, requests_per_minute=requests_per_minute, wanted=wanted)
            for _ in range(paces)
        ]
        self._until = float(seconds)
        self._seconds = [Second([0] * paces) for _ in range(seconds)]
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._now = self._counted_at = 0.0
        self._wake_at = [math.inf] * paces

    def at(self, time: float, event: Callable[[], None]) -> None:
        """Schedules an event; events of equal times happen in the order of scheduling."""
        heapq.heappush(self._heap, (time, next(self._order), event))

    def run(self) -> Outcome:
        for n in range(len(self._paces)):
            self._pump(n)
        while self._heap:
            self._now, _, event = heapq.heappop(self._heap)
            event()
        return Outcome(self._seconds, self._paces)

    def _second(self) -> Second | None:
        """The current second; None after the last."""
        return self._seconds[int(self._now)] if self._now < self._until else None

    def _count_busy(self) -> None:
        """Adds the calls in service since the last change to the seconds in which they ran."""
        at, end = self._counted_at, min(self._now, self._until)
        while at < end:
            upto = min(math.floor(at) + 1.0, end)
            self._seconds[int(at)].busy += self._server.busy * (upto - at)
            at = upto
        self._counted_at = self._now

    def _pump(self, n: int) -> None:
        """Sends the calls that one pace permits, and returns when it permits more."""
        if self._now >= self._until:
            return
        pace, now = self._paces[n], self._now
        while not (wait_s := pace.wait_s(now)):
            self._send(n, pace.sent(now, 0.0))
        pace.waiting(wait_s, now)
        if now + wait_s < self._wake_at[n]:
            self._wake_at[n] = now + wait_s
            self.at(now + wait_s, lambda: self._wake(n))

    def _wake(self, n: int) -> None:
        if self._wake_at[n] <= self._now:
            self._wake_at[n] = math.inf
        self._pump(n)

    def _send(self, n: int, permit: Permit) -> None:
        second = self._second()
        assert second is not None
        second.calls += 1
        server = self._server
        if (refusal := server.refuses(self._now)) is not None:
            self.at(self._now + _REFUSED_AFTER_S, lambda: self._ended(n, permit, refusal))
        elif server.busy >= server.slots:
            server.queue.append((n, permit))
        else:
            self._serve(n, permit)

    def _serve(self, n: int, permit: Permit) -> None:
        self._count_busy()
        self._server.busy += 1
        self.at(self._now + self._server.service_s(), lambda: self._served(n, permit))

    def _served(self, n: int, permit: Permit) -> None:
        self._count_busy()
        self._server.busy -= 1
        if self._server.queue:
            self._serve(*self._server.queue.popleft())
        self._ended(n, permit, Verdict.SERVED)

    def _ended(self, n: int, permit: Permit, reply: Verdict) -> None:
        if (second := self._second()) is not None:
            second.served[n] += reply is Verdict.SERVED
            second.limited += reply is Verdict.LIMITED
            second.overloaded += reply is Verdict.OVERLOADED
        retry_after_s = self._server.retry_after_s if reply is Verdict.LIMITED else None
        self._paces[n].ended(permit, self._now, reply, retry_after_s=retry_after_s)
        self._pump(n)
