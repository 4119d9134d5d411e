"""Requests that wait to be sent: the oldest first, and none before its back-off is over."""

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

    @property
    def ready(self) -> bool:
        """Whether a job may be sent."""
        return bool(self._ready)

    @property
    def backing_off(self) -> int:
        """How many jobs are between a failure and their next call."""
        return len(self._timers)

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

    def pop(self) -> Job:
        """The oldest that may be sent."""
        return heapq.heappop(self._ready)[1]

    def end_back_offs(self) -> None:
        """Nobody waits any longer: all may be sent."""
        for timer in self._timers.values():
            timer.cancel()
        self.put(*self._timers)
        self._timers.clear()

    def clear(self) -> None:
        """Drops all."""
        self.end_back_offs()
        self._ready.clear()
