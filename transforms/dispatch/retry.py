"""When a record is asked again, and when it is given up.

Backoff is exponential with full jitter (Brooker, "Exponential Backoff And Jitter", AWS Architecture
Blog, 2015). A connection that was lost before any byte of the answer, as a stale one is, gets its
next call at once.
"""

import random

from transforms.dispatch.job import Job
from transforms.dispatch.limits import DispatchLimits
from transforms.dispatch.pace import LONGEST_GATE_S, Pace
from transforms.errors import RecordError


class RetryRules:
    """What a retryable failure costs its record; used on the event loop."""

    def __init__(self, limits: DispatchLimits, pace: Pace) -> None:
        self._limits = limits
        self._pace = pace

    def wait_s(self, job: Job, error: RecordError, now: float, *, charge: bool) -> float | None:
        """Seconds until the record is asked again; None when it is given up.

        Args:
          job: The record.
          error: How its last call failed.
          now: The time.
          charge: Whether a failure may count against ``max_attempts``; 429s and 503s never do.
        """
        outage_s = self._pace.outage_s(now) - job.outage_before_s
        left_s = self._limits.record_deadline_s - (now - job.first_sent_at - outage_s)
        if error.congestion:
            job.refused_at = now
            job.congested += 1
            wait_s = self._asked_s(error) or self._backoff_s(job.congested)
        else:
            job.charged += charge
            if job.charged >= self._limits.max_attempts:
                return None
            wait_s = self._asked_s(error) or self._backoff_s(max(job.charged, 1))
            if error.unanswered and job.charged == 1:
                wait_s = 0.0
        if self._pace.in_outage:
            return 0.0 if left_s > 0 else None
        if wait_s > left_s:
            return None
        # The whole process waits out a Retry-After: this record is then the first to be sent.
        if error.congestion and error.retry_after_s:
            self._pace.gate(now + wait_s)
            return 0.0
        return wait_s

    @staticmethod
    def _asked_s(error: RecordError) -> float:
        return min(error.retry_after_s or 0.0, LONGEST_GATE_S)

    def _backoff_s(self, failures: int) -> float:
        limits = self._limits
        ceiling = min(limits.max_backoff_s, limits.first_backoff_s * 2.0 ** min(failures - 1, 30))
        return random.uniform(0, ceiling)
