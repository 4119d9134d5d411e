"""Requests that wait to be sent: the oldest first, and none before its back-off is over.

Nor while its client holds it (`transforms.backends.base.HoldingClient`).
"""

import asyncio
import heapq
from collections.abc import Callable

from transforms.dispatch.job import Job


class JobQueue:
    """Jobs that may be sent, and jobs between a failure and their next call.

    Used on the event loop; `backing_off` may be read by any thread.
    """

    def __init__(self) -> None:
        self._ready: list[tuple[int, Job]] = []
        self._timers: dict[Job, asyncio.TimerHandle] = {}
        self._held: dict[asyncio.Future[None], list[Job]] = {}

    @property
    def ready(self) -> bool:
        """Whether a job may be sent."""
        return bool(self._ready)

    @property
    def backing_off(self) -> int:
        """How many jobs are between a failure and their next call."""
        return len(self._timers)

    @property
    def holds(self) -> bool:
        """Whether the client holds any."""
        return bool(self._held)

    def put(self, *jobs: Job) -> None:
        """They may be sent from now on, each in its place."""
        for job in jobs:
            heapq.heappush(self._ready, (job.place, job))

    def put_later(self, job: Job, wait_s: float, then: Callable[[], None]) -> None:
        """It may be sent when its back-off is over; `then` is called at that time."""

        def over() -> None:
            del self._timers[job]
            self.put(job)
            then()

        self._timers[job] = asyncio.get_running_loop().call_later(wait_s, over)

    def put_when(self, until: asyncio.Future[None], job: Job, then: Callable[[], None]) -> None:
        """It may be tried again when that is done; `then` is called once for all that wait for it."""

        def over(_: object) -> None:
            if (jobs := self._held.pop(until, None)) is not None:
                self.put(*jobs)
                then()

        if until not in self._held:
            self._held[until] = []
            until.add_done_callback(over)
        self._held[until].append(job)

    def pop(self) -> Job:
        """The oldest that may be sent."""
        return heapq.heappop(self._ready)[1]

    def end_back_offs(self) -> None:
        """Nobody waits any longer: all may be sent."""
        for timer in self._timers.values():
            timer.cancel()
        self.put(*self._timers)
        self._timers.clear()
        for jobs in self._held.values():
            self.put(*jobs)
        self._held.clear()

    def clear(self) -> None:
        """Drops all."""
        self.end_back_offs()
        self._ready.clear()
