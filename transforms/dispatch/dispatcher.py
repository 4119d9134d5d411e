"""Sends requests to a client at the pace that it bears: one outcome per request, always.

One dispatcher drives one client for all threads and bundles of a process. Their requests meet in
one queue, the oldest first, so that the backend stays full while the slowest calls of a batch end.

.. code-block:: text

    threads                           event loop
    ───────                           ──────────
    submit ─────────► Intake ───────► Scheduler ──call of 1..n requests──► ask
                                       ▲     ▲                              │
                                       │     └─ RetryPolicy ◄─ retryable ───┤
                                       └─────── halves ◄─ refused as a whole┤
    CompletionQueue ◄─ Intake ◄─ completion, or failure of the record ──────┘

A failure that says something of the record (400, a blocked prompt) costs that record at once; one
that may pass is retried. When a call of several requests is refused as a whole, its halves are asked,
until the request that spoils it stands alone. `transforms.dispatch.start_guard` and
`transforms.dispatch.stop_policy` say what ends the run, `transforms.dispatch.pace` how fast it goes.
"""

import asyncio
import collections
import dataclasses
import logging
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from transforms.accounting.metrics import LIVE, FailedCalls
from transforms.backends.base import (
    BatchClient,
    CallLimits,
    Client,
    HoldingClient,
    MeasuredClient,
)
from transforms.dispatch import interrupt, loop
from transforms.dispatch.attempt import ask
from transforms.dispatch.call import Call, Response
from transforms.dispatch.completion_queue import CompletionQueue, Failure, Outcome, gather
from transforms.dispatch.intake import Intake
from transforms.dispatch.job import Job
from transforms.dispatch.job_queue import Entry
from transforms.dispatch.limits import DispatchLimits
from transforms.dispatch.pace import Pace
from transforms.dispatch.retry import RetryPolicy
from transforms.dispatch.scheduler import Scheduler
from transforms.dispatch.start_guard import StartGuard
from transforms.dispatch.stop_policy import StopPolicy
from transforms.records.errors import BackendUnusable, Internal, NotAttempted, RecordError
from transforms.records.records import Completion, Request

__all__ = ["DispatchLimits", "Dispatcher", "Failure", "Outcome"]

_LOOK_S = 0.25
"""How soon a client that tells how much its server can use is asked again, if no call ends."""
_CLEAR_WITHIN_S = 5.0
"""How long calls in flight may take to clear a backend of suspicion."""

_log = logging.getLogger(__name__)


class Dispatcher:
    """Drives one client for all threads and bundles of a process.

    `answer` and `submit` may be called by any thread but the event loop's; everything private runs
    on the loop. Live: made in the worker, never pickled.
    """

    def __init__(self, client: Client, limits: DispatchLimits) -> None:
        self._client = client
        self._limits = limits
        self._in_process = isinstance(client, BatchClient) and client.call_limits.in_process
        self._pace = Pace(
            limits.max_concurrency,
            loop.now(),
            requests_per_minute=limits.requests_per_minute,
            tokens_per_minute=limits.tokens_per_minute,
            wanted=client.wanted_in_flight if isinstance(client, MeasuredClient) else lambda: 0,
        )
        self._look_s = _LOOK_S if isinstance(client, MeasuredClient) else math.inf
        self._retries = RetryPolicy(limits, self._pace, paced=not self._in_process)
        self._intake = Intake()
        self._scheduler = Scheduler(
            (lambda: client.call_limits) if isinstance(client, BatchClient) else CallLimits,
            self._pace,
            paced=not self._in_process,
            held=client.held if isinstance(client, HoldingClient) else lambda _: None,
            dropped=self._intake.drop,
            kept=self._retries.held,
        )
        self._guard = StartGuard(limits)
        self._stops = StopPolicy(limits)
        self._failed_calls = FailedCalls()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.Handle | None = None
        self._soon = False
        self._broken: BaseException | None = None
        """Why the run has ended at once."""
        self._stopped: str | None = None
        """Why the run ends in good order."""
        interrupt.register(self)
        weakref.finalize(self, _close, client)

    # For the threads of a worker

    def submit(
        self, requests: Sequence[Request], completions: CompletionQueue, batch: Any = None
    ) -> None:
        """Hands over a batch: each request's outcome arrives in the queue, with ``batch``.

        So does one None, when the batch is admitted: wait for it before you submit the next.
        """
        completions.outstanding += len(requests)
        loop.call(lambda: self._step(self._enqueue, requests, completions, batch))

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
        """The state of the moment: requests in flight, the limit of calls, waiting ones, and more."""
        gauges = self._pace.gauges(loop.now())
        gauges["in_flight_requests"] = self._scheduler.in_flight
        gauges["backing_off_requests"] = self._scheduler.backing_off
        gauges["waiting_requests"] = self._intake.unfinished - self._scheduler.in_flight
        return gauges | (self._client.gauges() if isinstance(self._client, MeasuredClient) else {})

    def throttled_s(self) -> float:
        """Seconds in all in which requests waited for a quota, a Retry-After or an outage."""
        return self._pace.throttled_s(loop.now())

    def take_failed_calls(self) -> dict[str, int]:
        """Calls that failed, by error type, since this was asked last; retried ones included."""
        return self._failed_calls.take()

    # On the event loop: sending

    def interrupt(self) -> None:
        """Stops at once."""
        self._break(interrupt.error())

    def _enqueue(
        self, requests: Sequence[Request], completions: CompletionQueue, batch: Any
    ) -> None:
        if interrupt.asked():
            self.interrupt()
        if self._broken is not None:
            completions.put(self._broken)
            return
        jobs = self._intake.accept(requests, completions, batch)
        if self._in_process and self._stopped is None and self._guard.suspicion is None:
            for call in self._scheduler.calls_of(jobs, loop.now()):
                self._send(call)
            self._admit()
        else:
            self._put([Entry([job], fixed="request" in job.request.body) for job in jobs])
            self._pump_soon()

    def _put(self, entries: Sequence[Entry], wait_s: float = 0.0) -> None:
        self._scheduler.put(entries, wait_s, self._pump_soon)

    def _pump_soon(self) -> None:
        """Sends what may be sent once all has happened that happens now: it may share a call."""
        if not self._soon:
            self._soon = True
            asyncio.get_running_loop().call_soon(self._step, self._pump)

    def _pump(self) -> None:
        """Sends what may be sent; everything that changes the state leads here."""
        self._soon = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._broken is not None:
            return
        now = loop.now()
        if self._stopped is not None:
            self._give_up_waiting(self._stopped)
        paused = self._guard.suspicion is not None
        while call := self._scheduler.next_call(now, paused=paused, wake=self._pump_soon):
            self._send(call)
        self._scheduler.waiting(now)
        wait_s = self._scheduler.wait_s
        if wait_s is not None and (wait_s := min(wait_s, self._look_s)) < math.inf:
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._step, self._pump)
        if not self._intake.unfinished:
            self._stops.idle()
        self._admit()

    def _admit(self) -> None:
        in_flight = self._scheduler.in_flight
        waiting = self._intake.unfinished - in_flight
        self._intake.admit(max(waiting, in_flight) if self._in_process else waiting)

    def _send(self, call: Call) -> None:
        for job in call.jobs:
            job.attempts += 1
            if job.history is not None:
                self._retries.sent(job, call.sent_at)
        LIVE.add("sent", len(call.jobs))
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(self._ask(call))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    async def _ask(self, call: Call) -> None:
        """One call, and what follows from it."""
        responses = await ask(
            self._client,
            [job.request for job in call.jobs],
            None if self._in_process else self._limits.request_timeout_s,
            lambda: self._broken is not None,
        )
        now = loop.now()
        self._scheduler.ended(
            call, [responses] if isinstance(responses, Exception) else responses, now
        )
        if self._broken is not None:
            return
        if isinstance(responses, Exception):
            self._settle_failed_call(call, responses, now)
        else:
            self._settle(call, responses, now)
        if self._guard.suspicion and not self._scheduler.in_flight:
            self._confirm()
        self._pump()

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._break(error)

    def _step(self, step: Callable[..., None], *arguments: Any) -> None:
        """Runs a step that the loop calls: an error of our own must not leave threads waiting."""
        try:
            step(*arguments)
        except Exception as error:
            self._break(error)

    # On the event loop: what a response leads to

    def _settle(self, call: Call, responses: Sequence[Response], now: float) -> None:
        """Each request has an outcome, or is asked again."""
        failed = [
            (job, response)
            for job, response in zip(call.jobs, responses, strict=True)
            if not isinstance(response, Completion)
        ]
        self._watch(failed[0][1] if failed else None)
        if len(failed) < len(responses):
            self._succeeded()
            latency_ms = None if self._in_process else round((now - call.sent_at) * 1000)
            for job, response in zip(call.jobs, responses, strict=True):
                if isinstance(response, Completion):
                    self._deliver(job, _completed(job, response, latency_ms))
        for _, error in failed:
            self._failed_calls.add(getattr(error, "error_type", Internal.error_type))
        if failed:
            self._settle_failures(call, failed, now)

    def _settle_failed_call(self, call: Call, error: Exception, now: float) -> None:
        """The call of several requests failed as a whole."""
        self._watch(error)
        self._failed_calls.add(getattr(error, "error_type", Internal.error_type))
        if isinstance(error, RecordError) and error.consequence.retry:
            self._settle_failures(call, [(job, error) for job in call.jobs], now, own=False)
            return
        if isinstance(error, RecordError):
            self._stops.served()
            self._suspect(call.jobs[0], error, now)
        for job in call.jobs:
            job.attempts -= 1
        half = (len(call.jobs) + 1) // 2
        self._put([Entry(jobs, fixed=True) for jobs in (call.jobs[:half], call.jobs[half:])])

    def _settle_failures(
        self,
        call: Call,
        failed: Sequence[tuple[Job, Exception]],
        now: float,
        *,
        own: bool = True,
    ) -> None:
        """Each request of these is given up, or asked again.

        Args:
          call: Their call.
          failed: The requests, and how each failed.
          now: The time.
          own: Whether each failed for itself, and not the call as a whole.
        """
        spread = self._retries.spread()
        again: dict[float, list[Job]] = collections.defaultdict(list)
        for job, error in failed:
            if self._broken is not None:
                return
            wait_s = self._settle_failure(call, job, error, now, own=own, spread=spread)
            if wait_s is not None:
                again[wait_s].append(job)
        for wait_s, jobs in again.items():
            LIVE.add("retried", len(jobs))
            self._put(self._retries.entries(jobs, call, now, own=own), wait_s)

    def _settle_failure(
        self, call: Call, job: Job, error: Exception, now: float, *, own: bool, spread: float
    ) -> float | None:
        """Seconds until the request is asked again; None when it has its outcome."""
        if not isinstance(error, RecordError):
            self._deliver(job, job.failure(error))
            return None
        self._suspect(job, error, now)
        if not error.consequence.retry:
            self._stops.served()
            if self._guard.suspicion is not None:
                self._guard.hold_back(job, error)
            else:
                self._deliver(job, job.failure(error))
            return None
        if reason := self._stops.failing(error, now):
            if not self._guard.proven:
                self._break(BackendUnusable(reason))
                return None
            self._stop(reason)
        wait_s = self._retries.wait_s(job, error, call, now, own=own, spread=spread)
        if self._pace.in_outage:  # the breaker waits for all; another record asks next
            self._intake.move_back(job)
        if wait_s is None or self._stopped is not None:
            self._deliver(job, job.failure(error))
            return None
        return wait_s

    def _succeeded(self) -> None:
        """A call has succeeded: failures that every record might share were those records' own."""
        self._stops.served()
        for job, error in self._guard.clear():
            self._deliver(job, job.failure(error))

    def _suspect(self, job: Job, error: RecordError, now: float) -> None:
        if self._guard.failed(job.number, error, now):
            asyncio.get_running_loop().call_later(_CLEAR_WITHIN_S, self._step, self._confirm)

    def _confirm(self) -> None:
        if self._guard.suspicion is not None:
            self._break(BackendUnusable(str(self._guard.suspicion)))

    def _watch(self, error: Exception | None) -> None:
        if not self._guard.may_end_the_run(error):  # the run's end has the same message
            self._stops.watch(self._pace.in_outage, error)

    def _deliver(self, job: Job, outcome: Outcome) -> None:
        self._intake.deliver(job, outcome)
        if self._stopped is None:
            error = outcome.error if isinstance(outcome, Failure) else None
            if reason := self._stops.ended(error):
                self._stop(reason)

    # On the event loop: the end of a run

    def _stop(self, reason: str) -> None:
        """Stops in good order: answers are kept, what was not sent is not attempted."""
        if self._stopped is not None:
            return
        self._stopped = f"the run stopped: {reason}"
        _log.error("%s", self._stopped)
        self._pump_soon()

    def _give_up_waiting(self, reason: str) -> None:
        for job in self._scheduler.drain():
            if job.completions.abandoned:
                self._intake.drop(job)
            else:
                error = job.history.error if job.history is not None else NotAttempted(reason)
                self._deliver(job, job.failure(error))

    def _break(self, error: BaseException) -> None:
        """Stops at once: every thread that waits gets the error, every call is cancelled."""
        if self._broken is not None:
            return
        self._broken = error
        self._scheduler.drain()
        self._intake.end(error)
        for task in list(self._tasks):
            task.cancel()


def _completed(job: Job, response: Completion, latency_ms: int | None) -> Completion:
    return dataclasses.replace(
        response,
        attempts=job.attempts,
        throttled_ms=job.throttled_ms,
        latency_ms=response.latency_ms if latency_ms is None else latency_ms,
    )


def _close(client: Client) -> None:
    loop.submit(client.close())
