"""Sends requests to a client at the pace it can sustain: always one outcome per request.

One dispatcher drives one client for all threads and bundles of a process. Their requests share one
queue, the oldest first, so that the backend stays busy while the slowest calls of a batch finish.

.. code-block:: text

    threads                           event loop
    ───────                           ──────────
    submit ─────────► Intake ───────► Scheduler ──call of 1..n requests──► ask
                                          ▲                                 │
                                          └──── retried ◄──── Settlement ◄──┘
    CompletionQueue ◄─ Intake ◄─ completion or failure ◄──────────┘

A failure caused by the record itself (400, a blocked prompt) fails that record immediately; a
transient one is retried. When a call of several requests is refused as a whole, its halves are
sent, until the bad request is alone. `transforms.dispatch.retry` decides when a record is retried,
`transforms.dispatch.start_guard` and `transforms.dispatch.stop_policy` when the run ends, and
`transforms.dispatch.pace` how fast calls are sent.
"""

import asyncio
import logging
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from transforms.accounting.metrics import LIVE
from transforms.backends.base import (
    BatchClient,
    CallLimits,
    Client,
    HoldingClient,
    MeasuredClient,
)
from transforms.dispatch import interrupt, loop
from transforms.dispatch.attempt import ask
from transforms.dispatch.call import Call
from transforms.dispatch.completion_queue import CompletionQueue, Failure, Outcome, gather
from transforms.dispatch.intake import Intake
from transforms.dispatch.job_queue import Entry
from transforms.dispatch.limits import DispatchLimits
from transforms.dispatch.pace import Pace
from transforms.dispatch.retry import RetryPolicy
from transforms.dispatch.scheduler import Scheduler
from transforms.dispatch.settlement import Settlement
from transforms.records.errors import BackendUnusable
from transforms.records.records import Request

__all__ = ["DispatchLimits", "Dispatcher", "Failure", "Outcome"]

_LOOK_S = 0.25
"""How often a `MeasuredClient` is read for its server's capacity while no call ends."""
_CLEAR_WITHIN_S = 5.0
"""How long calls in flight may take to clear a backend of suspicion."""

_log = logging.getLogger(__name__)


class Dispatcher:
    """Drives one client for all threads and bundles of a process.

    Any thread but the event loop's may call `answer` and `submit`; everything private runs on the
    loop. A live object: created in the worker, never pickled.
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
        self._settlement = Settlement(limits, self._pace, self._retries, self._intake)
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.Handle | None = None
        self._soon = self._suspicious = False
        self._broken: BaseException | None = None
        """Why the run was aborted."""
        interrupt.register(self)
        weakref.finalize(self, _close, client)

    # For the threads of a worker

    def submit(
        self, requests: Sequence[Request], completions: CompletionQueue, batch: Any = None
    ) -> None:
        """Submits a batch: each request's outcome arrives in the queue, with ``batch``.

        One None arrives when the batch is admitted: wait for it before submitting the next.
        """
        completions.outstanding += len(requests)
        loop.call(lambda: self._step(self._enqueue, requests, completions, batch))

    def answer(
        self, requests: Sequence[Request], on_wait: Callable[[], None] = lambda: None
    ) -> list[Outcome]:
        """One outcome per request, in order; blocks the calling thread.

        Args:
          requests: The batch.
          on_wait: Called after each outcome, and at least once a second while waiting.

        Raises:
          BackendUnusable: No call has ever succeeded, and two records failed alike or
            ``give_up_after_s`` has passed; or the client raised it, or returned the wrong number
            of outcomes.
          Interrupted: `stop_all` was called.
        """
        return gather(self.submit, requests, on_wait)

    def gauges(self) -> dict[str, int]:
        """The current state: requests in flight, the limit of calls, waiting requests, and more."""
        gauges = self._pace.gauges(loop.now())
        gauges["in_flight_requests"] = self._scheduler.in_flight
        gauges["backing_off_requests"] = self._scheduler.backing_off
        gauges["waiting_requests"] = self._intake.unfinished - self._scheduler.in_flight
        return gauges | (self._client.gauges() if isinstance(self._client, MeasuredClient) else {})

    def throttled_s(self) -> float:
        """Total seconds in which requests waited for a quota, a Retry-After or an outage."""
        return self._pace.throttled_s(loop.now())

    def take_failed_calls(self) -> dict[str, int]:
        """Failed calls by error type since the last time this was called, retried ones included."""
        return self._settlement.failed_calls.take()

    # On the event loop: sending

    def interrupt(self) -> None:
        """Aborts the run."""
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
        if self._in_process and not (self._settlement.stopped or self._paused):
            for call in self._scheduler.calls_of(jobs, loop.now()):
                self._send(call)
            self._admit()
        else:
            self._put([Entry([job], fixed="request" in job.request.body) for job in jobs])
            self._pump_soon()

    def _put(self, entries: Sequence[Entry], wait_s: float = 0.0) -> None:
        self._scheduler.put(entries, wait_s, self._pump_soon)

    def _pump_soon(self) -> None:
        """Calls `_pump` after the loop's pending callbacks: their requests may share a call."""
        if not self._soon:
            self._soon = True
            asyncio.get_running_loop().call_soon(self._step, self._pump)

    def _pump(self) -> None:
        """Sends every call that may be sent; called after every change of state."""
        self._soon = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._broken is not None:
            return
        now = loop.now()
        if (stopped := self._settlement.stopped) is not None:
            self._settlement.give_up(self._scheduler.drain(), stopped)
        while call := self._scheduler.next_call(now, paused=self._paused, wake=self._pump_soon):
            self._send(call)
        self._scheduler.waiting(now)
        wait_s = self._scheduler.wait_s
        if wait_s is not None and (wait_s := min(wait_s, self._look_s)) < math.inf:
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._step, self._pump)
        if not self._intake.unfinished:
            self._settlement.idle()
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
        """Makes one call and settles it."""
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
            again = self._settlement.settle_failed_call(call, responses, now)
        else:
            again = self._settlement.settle(call, responses, now)
        for entries, wait_s in again:
            self._put(entries, wait_s)
        if self._settlement.unusable is not None:
            self._break(self._settlement.unusable)
        if self._paused:
            self._await_confirmation()
        self._pump()

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._break(error)

    def _step(self, step: Callable[..., None], *arguments: Any) -> None:
        """Runs a callback of the loop: a bug of ours must not leave threads waiting."""
        try:
            step(*arguments)
        except Exception as error:
            self._break(error)

    # On the event loop: the end of a run

    @property
    def _paused(self) -> bool:
        """Whether the backend is suspect, so that nothing is sent."""
        return self._settlement.guard.suspicion is not None

    def _await_confirmation(self) -> None:
        """Waits some time for calls in flight to clear the backend."""
        if not self._scheduler.in_flight:
            self._confirm()
        elif not self._suspicious:
            self._suspicious = True
            asyncio.get_running_loop().call_later(_CLEAR_WITHIN_S, self._step, self._confirm)

    def _confirm(self) -> None:
        if self._settlement.guard.suspicion is not None:
            self._break(BackendUnusable(str(self._settlement.guard.suspicion)))

    def _break(self, error: BaseException) -> None:
        """Aborts the run: every waiting thread gets the error, every call is cancelled."""
        if self._broken is not None:
            return
        self._broken = error
        self._scheduler.drain()
        self._intake.end(error)
        for task in list(self._tasks):
            task.cancel()


def _close(client: Client) -> None:
    loop.submit(client.close())
