"""Which requests make up the next call, and when it may be sent.

The oldest request goes first. A client that takes several in one call is sent as many as are ready,
from whichever bundle, up to its limits. A call that is not full waits for more requests while they
keep coming, as Kafka's producer does (``linger.ms``): providers count and bill overhead by call. A
call takes one permit of the pace, whatever it carries; a model in this process needs none.
"""

import asyncio
import math
from collections.abc import Callable, Sequence

from transforms.backends.base import CallLimits
from transforms.dispatch import loop
from transforms.dispatch.call import Call, CallSize, Response, TokenEstimate, grouped, verdict
from transforms.dispatch.job import Job
from transforms.dispatch.job_queue import Entry, JobQueue
from transforms.dispatch.pace import Pace
from transforms.records.errors import RecordError
from transforms.records.records import Completion, Request

_FILL_S = 0.1
"""A call that is not full waits until no request has arrived for this long."""
_FILL_AT_MOST_S = 1.0


class Scheduler:
    """The queue of requests that the pace releases; used on the event loop.

    Args:
      limits: Returns how much one call may carry; a client may learn that its server takes less.
      pace: When a call may be sent.
      held: Returns the future that a request must wait for, whatever the pace; None for none.
      dropped: Called with a request whose thread no longer waits for it.
      kept: Called with a request that has to wait, and the time.
    """

    def __init__(
        self,
        limits: Callable[[], CallLimits],
        pace: Pace,
        *,
        paced: bool,
        held: Callable[[Request], asyncio.Future[None] | None],
        dropped: Callable[[Job], None],
        kept: Callable[[Job, float], None],
    ) -> None:
        self._limits = limits
        self._paced = paced
        self._pace = pace
        self._held = held
        self._dropped = dropped
        self._kept = kept
        self._tokens = TokenEstimate()
        self._queue = JobQueue()
        self.in_flight = 0
        """Requests in flight: at least one for each call."""
        self.wait_s: float | None = None
        """How long ready requests wait for the next call; None when none is ready."""
        self._fills = False
        """Whether they wait only for others to share their call."""
        self._filling_since = self._came_at = -math.inf

    @property
    def backing_off(self) -> int:
        """How many requests wait between a failure and their next call."""
        return self._queue.backing_off

    def put(self, entries: Sequence[Entry], wait_s: float, wake: Callable[[], None]) -> None:
        """Queues requests; after a back-off, if there is one, `wake` is called."""
        if wait_s > 0:
            self._queue.put_later(entries, wait_s, wake)
            return
        self._came_at = loop.now()
        if not self._queue.ready:
            self._filling_since = self._came_at
        self._queue.put(entries)

    def calls_of(self, jobs: Sequence[Job], now: float) -> list[Call]:
        """The calls of a batch for a model in this process, which never waits."""
        return [self._call(part, now) for part in grouped(jobs, self._limits())] if jobs else []

    def next_call(self, now: float, *, paused: bool, wake: Callable[[], None]) -> Call | None:
        """The next call, to be sent now; None while none may be sent: see `wait_s`.

        `wake` is called when the client releases requests that it holds.
        """
        self.wait_s = None
        self._fills = False
        while self._queue.ready:
            wait_s = math.inf if paused else self._pace.wait_s(now) if self._paced else 0.0
            if wait_s > 0:
                self.wait_s = wait_s
                return None
            if (fill_s := self._fill_s(now)) > 0:
                self.wait_s, self._fills = fill_s, True
                return None
            if jobs := self._take(now, wake):
                return self._call(jobs, now)
        return None

    def waiting(self, now: float) -> None:
        """Reports to the pace why requests wait from now on."""
        held = self.wait_s is None and self._queue.holds
        self._pace.waiting(0.0 if held else None if self._fills else self.wait_s, now)

    def ended(
        self,
        call: Call,
        responses: Sequence[Response],
        now: float,
    ) -> None:
        """Notes a call's end, with a response for each request or one for all."""
        self.in_flight -= len(call.jobs)
        if call.permit is None:
            if any(isinstance(response, Completion) for response in responses):
                self._pace.works(now)
            return
        errors = [response for response in responses if isinstance(response, RecordError)]
        self._pace.ended(
            call.permit,
            now,
            verdict(responses),
            retry_after_s=max((error.retry_after_s or 0.0 for error in errors), default=None),
            tokens=self._tokens.of_responses(responses),
            blamed=call.blamed,
        )

    def drain(self) -> list[Job]:
        """Removes all waiting requests, whatever they wait for."""
        self._queue.end_back_offs()
        jobs: list[Job] = []
        while self._queue.ready:
            jobs += self._queue.pop().jobs
        return jobs

    def _take(self, now: float, wake: Callable[[], None]) -> list[Job]:
        """The requests of the next call; none if all candidates are gone or held."""
        limits = self._limits()
        entry = self._queue.pop()
        jobs = [job for job in entry.jobs if self._may_go(job, entry.fixed, now, wake)]
        if entry.fixed or limits.max_requests == 1:
            return jobs
        size = CallSize(limits)
        for job in jobs:
            size.take(job.request)
        while self._queue.ready and not (entry := self._queue.first()).fixed:
            (job,) = entry.jobs
            if self._may_go(job, False, now, wake):
                if not size.take(job.request):
                    break
                jobs.append(job)
            self._queue.pop()
        return jobs

    def _fill_s(self, now: float) -> float:
        """How long the next call still waits for more requests; 0 if it is sent as it is."""
        limits = self._limits()
        most, tokens = limits.max_requests, limits.max_tokens
        if not self._paced or most == 1 or self._queue.first().fixed:
            return 0.0
        if most is not None and self._queue.entries >= most:
            return 0.0
        if tokens is not None and self._queue.tokens >= tokens:
            return 0.0
        until = min(self._came_at + _FILL_S, self._filling_since + _FILL_AT_MOST_S)
        return max(0.0, until - now)

    def _may_go(self, job: Job, fixed: bool, now: float, wake: Callable[[], None]) -> bool:
        if job.completions.abandoned:
            self._dropped(job)
        elif (until := self._held(job.request)) is not None:
            self._kept(job, now)
            self._queue.put_when(until, Entry([job], fixed=fixed), wake)
        else:
            return True
        return False

    def _call(self, jobs: Sequence[Job], now: float) -> Call:
        permit = self._pace.sent(now, self._tokens.of_requests(jobs)) if self._paced else None
        self.in_flight += len(jobs)
        self._filling_since = now
        return Call(jobs, now, self._pace.outage_s(now), permit)
