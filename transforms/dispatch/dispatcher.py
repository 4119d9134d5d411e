"""Sends requests to a client at the pace that it bears: one outcome per request, always.

One dispatcher drives one client for all threads and bundles of a process. Their requests meet in
one queue, the oldest first, so that the backend stays full while the slowest calls of a batch end.

.. code-block:: text

    submit ──► ready ──► in flight ──► inbox of the thread that asked
                 ▲           │
                 └─ waiting ◄┘   after a retryable failure; holds no slot

A failure that says something of the record (400, a blocked prompt) costs that record at once; what
may pass is retried (`transforms.dispatch.retry`). What stops the run is in
`transforms.dispatch.stop_policy`, the pace in `transforms.dispatch.pace`.
"""

import asyncio
import collections
import dataclasses
import itertools
import logging
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from transforms.accounting.metrics import LIVE, FailedCalls
from transforms.backends.base import BatchClient, Client, HoldingClient, MeasuredClient
from transforms.dispatch import interrupt, loop
from transforms.dispatch.batch_call import ask_at_once
from transforms.dispatch.completion_queue import Ended, Failure, Inbox, Outcome, gather
from transforms.dispatch.job import Job, TokenEstimate, verdict
from transforms.dispatch.job_queue import JobQueue
from transforms.dispatch.limits import DispatchLimits
from transforms.dispatch.pace import Pace, Permit
from transforms.dispatch.retry import RetryRules
from transforms.dispatch.stop_policy import StopRules
from transforms.records.errors import BackendUnusable, Internal, NotAttempted, RecordError, RunError
from transforms.records.records import Completion, Request

__all__ = ["DispatchLimits", "Dispatcher", "Failure", "Outcome"]

_BACKLOG = 2048
"""Requests that may wait, in flight not counted, before a further batch is let in; a `BatchClient`
may work on as many."""
_LOOK_S = 0.25
"""How soon a client that tells how much its server can use is asked again, if no call ends."""
_VERDICT_S = 5.0
"""How long calls in flight may take to prove that a backend works which failed two records."""

_log = logging.getLogger(__name__)


class Dispatcher:
    """Drives one client for all threads and bundles of a process.

    `answer` and `submit` may be called by any thread but the event loop's; everything private runs
    on the loop. Live: made in the worker, never pickled.
    """

    def __init__(self, client: Client, limits: DispatchLimits) -> None:
        self._client = client
        self._limits = limits
        self._pace = Pace(
            limits.max_concurrency,
            loop.now(),
            requests_per_minute=limits.requests_per_minute,
            tokens_per_minute=limits.tokens_per_minute,
            wanted=client.wanted_in_flight if isinstance(client, MeasuredClient) else lambda: 0,
        )
        self._held = client.held if isinstance(client, HoldingClient) else lambda _: None
        self._look_s = _LOOK_S if isinstance(client, MeasuredClient) else math.inf
        self._rules = StopRules(limits)
        self._retries = RetryRules(limits, self._pace)
        self._tokens = TokenEstimate()
        self._numbers = itertools.count()
        self._queue = JobQueue()
        self._unfinished = 0
        self._at_once = 0
        """Requests that a `BatchClient` works on."""
        self._not_let_in: collections.deque[Inbox] = collections.deque()
        self._inboxes: weakref.WeakSet[Inbox] = weakref.WeakSet()
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake: asyncio.TimerHandle | None = None
        self._broken: BaseException | None = None
        self._stopped: str | None = None
        self._accused: RecordError | None = None
        self._held_back: list[Job] = []
        self._failed_calls = FailedCalls()
        interrupt.register(self)
        weakref.finalize(self, _close, client)

    # For the threads of a worker

    def submit(self, requests: Sequence[Request], inbox: Inbox, batch: Any = None) -> None:
        """Hands over a batch: each request's outcome arrives in the inbox, with ``batch``.

        So does one None, when the queue has room for another batch: wait for it before the next.
        """
        inbox.outstanding += len(requests)
        loop.call(lambda: self._guard(self._enqueue, requests, inbox, batch))

    def answer(
        self, requests: Sequence[Request], on_wait: Callable[[], None] = lambda: None
    ) -> list[Outcome]:
        """One outcome per request, in order; blocks the calling thread.

        Args:
          requests: The batch.
          on_wait: Called after each outcome, and at least once a second while it waits.

        Raises:
          BackendUnusable: Nothing has ever succeeded, and two records failed alike or
            ``give_up_after_s`` is over; or the client says so, or gives another number of outcomes.
          Interrupted: `stop_all` was called.
        """
        return gather(self.submit, requests, on_wait)

    def gauges(self) -> dict[str, int]:
        """The state of the moment: calls in flight, their limit, requests that wait, and more."""
        gauges = self._pace.gauges(loop.now())
        gauges["in_flight_requests"] += self._at_once
        gauges["backing_off_requests"] = self._queue.backing_off
        gauges["waiting_requests"] = self._backlog()
        return gauges | (self._client.gauges() if isinstance(self._client, MeasuredClient) else {})

    def throttled_s(self) -> float:
        """Seconds in all in which requests waited for a quota, a Retry-After or an outage."""
        return self._pace.throttled_s(loop.now())

    def take_failed_calls(self) -> dict[str, int]:
        """Calls that failed, by error type, since this was asked last; retried ones included."""
        return self._failed_calls.take()

    # On the event loop

    def interrupt(self) -> None:
        """Stops at once."""
        self._break(interrupt.error())

    def _enqueue(self, requests: Sequence[Request], inbox: Inbox, batch: Any) -> None:
        if interrupt.asked():
            self.interrupt()
        if self._broken is not None:
            inbox.put(self._broken)
            return
        self._inboxes.add(inbox)
        self._unfinished += len(requests)
        jobs = [
            Job(next(self._numbers), request, index, batch, inbox)
            for index, request in enumerate(requests)
        ]
        may_send = self._stopped is None and self._accused is None
        if isinstance(self._client, BatchClient) and jobs and may_send:
            self._at_once += len(jobs)
            self._start(self._ask_at_once(self._client, jobs))
        else:
            self._queue.put(*jobs)
        self._not_let_in.append(inbox)
        self._pump()

    def _pump(self) -> None:
        """Sends what may be sent; everything that changes the state ends with it."""
        now = loop.now()
        wait_s: float | None = None
        while self._queue.ready:
            if self._stopped is None:
                wait_s = math.inf if self._accused else self._pace.wait_s(now)
                if wait_s > 0:
                    break
            wait_s = None
            job = self._queue.pop()
            if job.inbox.abandoned:
                self._unfinished -= 1
            elif self._stopped is not None:
                self._deliver(job, job.failure(job.error or NotAttempted(self._stopped)))
            elif (until := self._held(job.request)) is not None:
                job.held_at = now if job.held_at is None else job.held_at
                self._queue.put_when(until, job, lambda: self._guard(self._pump))
            else:
                self._send(job, now)
        self._pace.waiting(0.0 if wait_s is None and self._queue.holds else wait_s, now)
        if wait_s is not None and (wait_s := min(wait_s, self._look_s)) < math.inf:
            if self._wake is not None:
                self._wake.cancel()
            self._wake = asyncio.get_running_loop().call_later(wait_s, self._guard, self._pump)
        if not self._unfinished:
            self._rules.idle()
        while self._not_let_in and max(self._backlog(), self._at_once) <= _BACKLOG:
            self._not_let_in.popleft().put(None)

    def _backlog(self) -> int:
        return self._unfinished - self._pace.in_flight - self._at_once

    def _start(self, coroutine: Any) -> "asyncio.Task[None]":
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._break(error)

    def _guard(self, step: Callable[..., None], *given: Any) -> None:
        """A step that the loop takes: an error of our own must not leave threads waiting."""
        try:
            step(*given)
        except Exception as error:
            self._break(error)

    def _send(self, job: Job, now: float) -> None:
        if job.refused_at is not None:
            job.throttled_s += now - job.refused_at
            job.refused_at = None
        if job.held_at is not None:  # no more its own time than an outage's is
            job.outage_before_s -= now - job.held_at
            job.held_at = None
        if not job.attempts:
            job.first_sent_at = now
            job.outage_before_s = self._pace.outage_s(now)
        job.attempts += 1
        permit = self._pace.sent(now, self._tokens.of_request(job.request))
        LIVE.add("sent", 1)
        task = self._start(self._ask(job, permit))

        def time_out() -> None:
            job.timed_out = True
            task.cancel()

        timer = asyncio.get_running_loop().call_later(self._limits.request_timeout_s, time_out)
        task.add_done_callback(lambda _: timer.cancel())

    async def _ask(self, job: Job, permit: Permit) -> None:
        """One call, and what follows from it."""
        reply: Completion | Exception
        try:
            reply = await self._client.generate(job.request)
            if not isinstance(reply, Completion):
                raise TypeError(f"generate gave a {type(reply).__name__}")
        except asyncio.CancelledError:
            if self._broken is not None:
                raise
            reply = job.cancelled(self._limits.request_timeout_s)
        except RunError as error:
            self._break(error)
            return
        except Exception as error:  # what nobody foresaw costs its record alone
            reply = error
        now = loop.now()
        self._pace.ended(
            permit,
            now,
            verdict(reply),
            retry_after_s=reply.retry_after_s if isinstance(reply, RecordError) else None,
            tokens=self._tokens.of_reply(reply),
            blamed=job.blamed,
        )
        self._rules.watch(self._pace.in_outage, reply)
        if isinstance(reply, Completion):
            latency_ms = round((now - permit.sent_at) * 1000)
            reply = dataclasses.replace(reply, latency_ms=latency_ms)
        self._settle(job, reply, now)
        self._after_call()

    def _after_call(self) -> None:
        if self._accused and not self._pace.in_flight + self._at_once:
            self._condemn()
        if self._broken is None:
            self._pump()

    async def _ask_at_once(self, client: BatchClient, jobs: list[Job]) -> None:
        """A batch in one call; each record alone, when the call fails as a whole."""
        LIVE.add("sent", len(jobs))
        for job in jobs:
            job.first_sent_at = loop.now()
            job.outage_before_s = self._pace.outage_s(job.first_sent_at)
        replies: Sequence[Completion | Exception] | None = None
        try:
            replies = await ask_at_once(client, [job.request for job in jobs])
        except asyncio.CancelledError:
            if self._broken is not None:
                raise
        finally:
            self._at_once -= len(jobs)
        if replies is None:
            self._queue.put(*jobs)
        else:
            self._settle_all(jobs, replies)
        self._after_call()

    def _settle_all(self, jobs: list[Job], replies: Sequence[Completion | Exception]) -> None:
        now = loop.now()
        if any(isinstance(reply, Completion) for reply in replies):
            self._pace.works(now)
            self._acquit()
        for job, reply in zip(jobs, replies, strict=True):
            job.attempts = 1
            self._settle(job, reply, now)

    def _settle(self, job: Job, reply: Completion | Exception, now: float) -> None:
        """A call has ended: its record has an outcome, or is asked again."""
        if self._broken is not None:
            return
        if isinstance(reply, Completion):
            self._rules.served()
            self._acquit()
            throttled_ms = round(job.throttled_s * 1000)
            self._deliver(
                job,
                dataclasses.replace(reply, attempts=job.attempts, throttled_ms=throttled_ms),
            )
            return
        job.error = reply
        self._failed_calls.add(getattr(reply, "error_type", Internal.error_type))
        if not isinstance(reply, RecordError):
            self._deliver(job, job.failure(reply))
            return
        if self._rules.fatal_at_start(job.number, reply, now):
            self._accuse(reply)
        if not reply.consequence.retry:
            self._rules.served()
            if self._accused:
                self._held_back.append(job)
            else:
                self._deliver(job, job.failure(reply))
            return
        if reason := self._rules.failing(reply, now):
            if not self._rules.succeeded:
                self._break(BackendUnusable(reason))
                return
            self._stop(reason)
        wait_s = self._retries.wait_s(job, reply, now)
        if self._pace.in_outage:  # the breaker waits for all; another record asks next
            job.place = next(self._numbers)
        if wait_s is None or self._stopped is not None:
            self._deliver(job, job.failure(reply))
            return
        LIVE.add("retried", 1)
        if wait_s > 0:
            self._queue.put_later(job, wait_s, lambda: self._guard(self._pump))
        else:
            self._queue.put(job)

    def _deliver(self, job: Job, outcome: Outcome) -> None:
        self._unfinished -= 1
        job.inbox.put(Ended(job.index, job.batch, job.request, outcome))
        if self._stopped is None:
            error = outcome.error if isinstance(outcome, Failure) else None
            self._stop(self._rules.ended(error))

    # The end of a run

    def _accuse(self, error: RecordError) -> None:
        """Two records failed alike: what is in flight may still prove that others succeed."""
        if self._accused is None:
            self._accused = error
            asyncio.get_running_loop().call_later(_VERDICT_S, self._guard, self._condemn)

    def _acquit(self) -> None:
        """A call has succeeded: what failed before were those records' own failures."""
        self._rules.succeeded = True
        self._accused = None
        held_back, self._held_back = self._held_back, []
        for job in held_back:
            assert job.error is not None
            self._deliver(job, job.failure(job.error))

    def _condemn(self) -> None:
        if self._accused is not None:
            self._break(BackendUnusable(str(self._accused)))

    def _stop(self, reason: str | None) -> None:
        """Stops in good order: what was paid for is kept, the rest is not attempted."""
        if reason is None or self._stopped is not None:
            return
        self._stopped = f"the run stopped: {reason}"
        _log.error("%s", self._stopped)
        self._queue.end_back_offs()
        asyncio.get_running_loop().call_soon(self._guard, self._pump)

    def _break(self, error: BaseException) -> None:
        """Stops at once: every thread that waits gets the error, every call is cancelled."""
        if self._broken is not None:
            return
        self._broken = error
        self._queue.clear()
        self._not_let_in.clear()
        for inbox in list(self._inboxes):
            inbox.put(error)
        for task in list(self._tasks):
            task.cancel()


def _close(client: Client) -> None:
    loop.submit(client.close())
