"""When a record is asked again, and when it is given up.

Backoff is exponential with full jitter (Brooker, "Exponential Backoff And Jitter", AWS Architecture
Blog, 2015). A connection that was lost before any byte of the answer, as a stale one is, gets its
next call at once.

A failure costs an attempt only where it is the record's own: other calls have succeeded since the
one before, or none ever has. A record that has failed so once is blamed for what follows, too. Of
others, when nothing succeeds any more, the backend may as well be the cause: the last few records,
with which nothing can be compared, are given up when that has lasted for ``patience_s``; a
streaming run keeps them until it knows.
"""

import math
import random

from transforms.dispatch.job import Job
from transforms.dispatch.limits import DispatchLimits
from transforms.dispatch.pace import LONGEST_GATE_S, Pace
from transforms.records.causes import NextCall
from transforms.records.errors import RecordError


class RetryRules:
    """What a retryable failure costs its record; used on the event loop."""

    def __init__(self, limits: DispatchLimits, pace: Pace) -> None:
        self._limits = limits
        self._pace = pace

    def wait_s(self, job: Job, error: RecordError, now: float) -> float | None:
        """Seconds until the record is asked again; None when it is given up.

        Args:
          job: The record.
          error: How its last call failed.
          now: The time.
        """
        outage_s = self._pace.outage_s(now) - job.outage_before_s
        left_s = self._limits.record_deadline_s - (now - job.first_sent_at - outage_s)
        consequence = error.consequence
        if consequence.next_call is NextCall.AT_ONCE:
            job.refused_at = now
            wait_s = 0.0
        elif not consequence.attempt:
            job.refused_at = now
            job.congested += 1
            wait_s = self._asked_s(error) or self._backoff_s(job.congested)
        else:
            job.failures += 1
            job.charged += self._is_its_own(job)
            job.failed_at = now
            if self._has_no_attempt_left(job, now):
                return None
            wait_s = self._asked_s(error) or self._backoff_s(job.failures)
            if consequence.next_call is NextCall.FIRST_AT_ONCE and job.failures == 1:
                wait_s = 0.0
        if self._pace.in_outage:
            return 0.0 if left_s > 0 else None
        if wait_s > left_s:
            return None
        # The whole process waits out a Retry-After: this record is then the first to be sent.
        if error.retry_after_s and not consequence.attempt:
            self._pace.gate(now + wait_s)
            return 0.0
        return wait_s

    def _is_its_own(self, job: Job) -> bool:
        """Whether a failure is the record's, as far as one can know."""
        if self._pace.served_at == -math.inf:
            return not self._limits.hold
        last = job.first_sent_at if math.isnan(job.failed_at) else job.failed_at
        return self._pace.served_at > last or (job.blamed and not self._pace.in_outage)

    def _has_no_attempt_left(self, job: Job, now: float) -> bool:
        most = self._limits.max_attempts
        if job.charged >= most or (most == 1 and not self._limits.hold):
            return True
        silent_s = now - max(self._pace.served_at, job.first_sent_at)
        given_up = silent_s > self._limits.patience_s and not self._limits.hold
        return job.failures >= most and given_up

    @staticmethod
    def _asked_s(error: RecordError) -> float:
        return min(error.retry_after_s or 0.0, LONGEST_GATE_S)

    def _backoff_s(self, failures: int) -> float:
        limits = self._limits
        ceiling = min(limits.max_backoff_s, limits.first_backoff_s * 2.0 ** min(failures - 1, 30))
        return random.uniform(0, ceiling)
