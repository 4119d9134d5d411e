"""Requests waiting to be sent: the oldest first, and none before its back-off is over.

A request held by its client waits as well (`transforms.backends.base.HoldingClient`).
"""

import asyncio
import heapq
from collections.abc import Callable, Iterable, Sequence

from transforms.dispatch.job import Job


class Entry:
    """Requests that wait for their turn as a group.

    Attributes:
      jobs: The requests.
      fixed: They form a call that takes no others: they failed together, or the request may make
        a shared call fail, or has a body of its own. An entry that is not fixed holds one
        request.
    """

    __slots__ = ("fixed", "jobs")

    def __init__(self, jobs: Sequence[Job], *, fixed: bool = False) -> None:
        self.jobs = jobs
        self.fixed = fixed


class JobQueue:
    """Entries that may be sent, and entries between a failure and their next call.

    Used on the event loop; any thread may read `backing_off`.
    """

    def __init__(self) -> None:
        self._ready: list[tuple[int, int, Entry]] = []
        self._timers: dict[asyncio.TimerHandle, Sequence[Entry]] = {}
        self._held: dict[asyncio.Future[None], list[Entry]] = {}
        self.backing_off = 0
        """How many requests wait between a failure and their next call."""
        self.tokens = 0
        """Estimated input tokens of the entries that may be sent."""

    @property
    def ready(self) -> bool:
        """Whether an entry may be sent."""
        return bool(self._ready)

    @property
    def entries(self) -> int:
        """How many entries may be sent."""
        return len(self._ready)

    @property
    def holds(self) -> bool:
        """Whether the client holds any."""
        return bool(self._held)

    def put(self, entries: Iterable[Entry]) -> None:
        """Queues entries that may be sent now, each at the position of its first request."""
        for entry in entries:
            first = entry.jobs[0]
            self.tokens += _tokens(entry)
            heapq.heappush(self._ready, (first.place, first.number, entry))

    def put_later(self, entries: Sequence[Entry], wait_s: float, then: Callable[[], None]) -> None:
        """Queues entries once their back-off is over, then calls `then`."""

        def over() -> None:
            del self._timers[timer]
            self.backing_off -= requests
            self.put(entries)
            then()

        requests = sum(len(entry.jobs) for entry in entries)
        self.backing_off += requests
        timer = asyncio.get_running_loop().call_later(wait_s, over)
        self._timers[timer] = entries

    def put_when(self, until: asyncio.Future[None], entry: Entry, then: Callable[[], None]) -> None:
        """Queues an entry when the future is done; `then` is called once per future."""

        def over(_: object) -> None:
            if (entries := self._held.pop(until, None)) is not None:
                self.put(entries)
                then()

        if until not in self._held:
            self._held[until] = []
            until.add_done_callback(over)
        self._held[until].append(entry)

    def first(self) -> Entry:
        """The oldest entry that may be sent; it stays in the queue."""
        return self._ready[0][2]

    def pop(self) -> Entry:
        """Removes and returns the oldest entry that may be sent."""
        entry = heapq.heappop(self._ready)[2]
        self.tokens -= _tokens(entry)
        return entry

    def end_back_offs(self) -> None:
        """Ends every back-off: all entries may be sent."""
        for timer, entries in self._timers.items():
            timer.cancel()
            self.put(entries)
        self._timers.clear()
        self.backing_off = 0
        for entries in self._held.values():
            self.put(entries)
        self._held.clear()

    def clear(self) -> None:
        """Drops all entries."""
        self.end_back_offs()
        self._ready.clear()
        self.tokens = 0


def _tokens(entry: Entry) -> int:
    return sum(job.request.estimated_tokens for job in entry.jobs)
