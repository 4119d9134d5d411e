"""When a record is retried, and when it is given up.

Backoff is exponential with full jitter (Brooker, "Exponential Backoff And Jitter", AWS Architecture
Blog, 2015). If a connection is lost before any byte of the answer, as a stale one is, the next call
follows immediately. Requests that failed in one call wait equally long and are retried together.

A failure counts as an attempt only where it is the record's own: other calls have succeeded since
its previous failure, or none ever has. Once a record has failed that way, its later failures count,
too. If nothing succeeds any more, the backend may just as well be the cause: the last few records,
which have no others to be compared with, are given up after ``patience_s`` without a success; a
streaming run keeps them until it knows.

One of several requests may be the reason why their call fails: if they fail again outside an
outage, they are sent in smaller calls, and none is given up before a call of its own has failed.
"""

import math
import random
from collections.abc import Sequence

from transforms.dispatch.call import Call
from transforms.dispatch.history import DeadlineClock, History
from transforms.dispatch.job import Job
from transforms.dispatch.job_queue import Entry
from transforms.dispatch.limits import DispatchLimits
from transforms.dispatch.pace import LONGEST_GATE_S, Pace
from transforms.records.causes import NextCall
from transforms.records.errors import RecordError

_SMALLER = 4
"""The factor by which calls shrink whose requests fail again."""


class RetryPolicy:
    """What a retryable failure costs its record; used on the event loop.

    Args:
      limits: How often and for how long a record is tried.
      pace: Knows about outages and the last success.
      paced: Whether the pace delays calls, so that it also waits out a Retry-After.
    """

    def __init__(self, limits: DispatchLimits, pace: Pace, *, paced: bool = True) -> None:
        self._limits = limits
        self._pace = pace
        self._paced = paced

    def held(self, job: Job, now: float) -> None:
        """Notes that the client holds a request."""
        if job.history is not None:
            job.history.clock.pause(now)

    def sent(self, job: Job, now: float) -> None:
        """Notes that a request is sent."""
        history = job.history
        if history is None:
            return
        history.clock.resume(now)
        if history.refused_at is not None:
            history.throttled_s += now - history.refused_at
            history.refused_at = None

    @staticmethod
    def spread() -> float:
        """A random number from 0 to 1, shared by all requests that failed in one call."""
        return random.uniform(0, 1)

    def wait_s(
        self, job: Job, error: RecordError, call: Call, now: float, *, own: bool, spread: float
    ) -> float | None:
        """Seconds until the record is retried; None when it is given up.

        Args:
          job: The record.
          error: How its last call failed.
          call: That call.
          now: The time.
          own: Whether the failure is this request's own, not that of a shared call.
          spread: From `spread`.
        """
        history = job.history
        if history is None:
            clock = DeadlineClock(call.sent_at, call.outage_s)
            history = job.history = History(clock, error)
        history.error = error
        left_s = self._limits.record_deadline_s - history.clock.elapsed_s(
            now, self._pace.outage_s(now)
        )
        consequence = error.consequence
        if consequence.next_call is NextCall.AT_ONCE:
            history.refused_at = now
            wait_s = 0.0
        elif not consequence.attempt:
            history.refused_at = now
            history.refusals += 1
            wait_s = self._asked_s(error) or self._backoff_s(history.refusals, spread)
        else:
            history.failures += 1
            history.counted += self._is_its_own(history)
            history.failed_at = now
            if own and self._has_no_attempt_left(history, now):
                return None
            wait_s = self._asked_s(error) or self._backoff_s(history.failures, spread)
            if consequence.next_call is NextCall.FIRST_AT_ONCE and history.failures == 1:
                wait_s = 0.0
        if self._pace.in_outage:
            return 0.0 if left_s > 0 else None
        if wait_s > left_s:
            return None
        # The whole process waits out a Retry-After: this record is then the first to be sent.
        if self._paced and error.retry_after_s and not consequence.attempt:
            self._pace.gate(now + wait_s)
            return 0.0
        return wait_s

    def entries(self, jobs: Sequence[Job], call: Call, now: float, *, own: bool) -> list[Entry]:
        """How failed requests are retried: together, or in smaller calls.

        Args:
          jobs: Requests of the call that wait equally long; `wait_s` has noted their failure.
          call: The call.
          now: The time.
          own: Whether each failed individually, not the call as a whole.
        """
        if own:
            # A request that has failed alone may make a shared call fail.
            return [Entry([job], fixed=not call.shared and _failures(job) > 0) for job in jobs]
        size = min(self._together(job, len(call.jobs), now) for job in jobs)
        return [
            Entry(jobs[first : first + size], fixed=True) for first in range(0, len(jobs), size)
        ]

    def _together(self, job: Job, requests: int, now: float) -> int:
        """The size of call that a request may share after failing in one of `requests` requests."""
        history = job.history
        if history is None or history.refused_at is not None:
            return requests
        last = history.counted >= max(1, self._limits.max_attempts - 1)
        if last or self._has_no_attempt_left(history, now):
            return 1
        if history.failures > 1 and not self._pace.in_outage:
            return max(1, requests // _SMALLER)
        return requests

    def _is_its_own(self, history: History) -> bool:
        """Whether a failure is the record's own, as far as can be known."""
        if self._pace.served_at == -math.inf:
            return not self._limits.hold
        if self._pace.served_at > history.failed_at:
            return True
        return history.counted > 0 and not self._pace.in_outage

    def _has_no_attempt_left(self, history: History, now: float) -> bool:
        most = self._limits.max_attempts
        if history.counted >= most or (most == 1 and not self._limits.hold):
            return True
        silent_s = now - max(self._pace.served_at, history.clock.started_at)
        given_up = silent_s > self._limits.patience_s and not self._limits.hold
        return history.failures >= most and given_up

    @staticmethod
    def _asked_s(error: RecordError) -> float:
        return min(error.retry_after_s or 0.0, LONGEST_GATE_S)

    def _backoff_s(self, failures: int, spread: float) -> float:
        limits = self._limits
        ceiling = min(limits.max_backoff_s, limits.first_backoff_s * 2.0 ** min(failures - 1, 30))
        return spread * ceiling


def _failures(job: Job) -> int:
    return job.history.failures if job.history is not None else 0
