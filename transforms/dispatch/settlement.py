"""Settles ended calls: outcomes, further calls, or the end of the run."""

import collections
import dataclasses
import logging
from collections.abc import Sequence

from transforms.accounting.metrics import LIVE, FailedCalls
from transforms.dispatch.call import Call, Response
from transforms.dispatch.completion_queue import Failure, Outcome
from transforms.dispatch.intake import Intake
from transforms.dispatch.job import Job
from transforms.dispatch.job_queue import Entry
from transforms.dispatch.limits import DispatchLimits
from transforms.dispatch.pace import Pace
from transforms.dispatch.retry import RetryPolicy
from transforms.dispatch.start_guard import StartGuard
from transforms.dispatch.stop_policy import StopPolicy
from transforms.records.errors import BackendUnusable, Internal, NotAttempted, RecordError
from transforms.records.records import Completion

Again = list[tuple[Sequence[Entry], float]]
"""Requests to retry, and in how many seconds."""

_log = logging.getLogger(__name__)


class Settlement:
    """Settles calls; used on the event loop.

    Args:
      limits: When a record or the run is given up.
      pace: Knows whether the backend is down.
      retries: When a record is retried.
      intake: Takes the outcomes.
    """

    def __init__(
        self, limits: DispatchLimits, pace: Pace, retries: RetryPolicy, intake: Intake
    ) -> None:
        self._pace = pace
        self._retries = retries
        self._intake = intake
        self._stops = StopPolicy(limits)
        self.guard = StartGuard(limits)
        self.failed_calls = FailedCalls()
        self.stopped: str | None = None
        """Why the run winds down: nothing more is sent."""
        self.unusable: BackendUnusable | None = None
        """Why the run is aborted."""

    def idle(self) -> None:
        """Notes that no request is left."""
        self._stops.idle()

    def settle(self, call: Call, responses: Sequence[Response], now: float) -> Again:
        """Settles each request of a call: it has an outcome, or is retried."""
        failed = [
            (job, response)
            for job, response in zip(call.jobs, responses, strict=True)
            if not isinstance(response, Completion)
        ]
        self._watch(failed[0][1] if failed else None)
        if len(failed) < len(responses):
            self._succeeded()
            latency_ms = round((now - call.sent_at) * 1000) if call.permit is not None else None
            for job, response in zip(call.jobs, responses, strict=True):
                if isinstance(response, Completion):
                    self._deliver(job, _completed(job, response, latency_ms))
        for _, error in failed:
            self._count_failed_call(error)
        return self._settle_failures(call, failed, now, own=True) if failed else []

    def settle_failed_call(self, call: Call, error: Exception, now: float) -> Again:
        """Settles a failed call of several requests: it is retried whole or in halves."""
        self._watch(error)
        self._count_failed_call(error)
        if isinstance(error, RecordError):
            self.guard.failed((job.number for job in call.jobs), error, now)
            if error.consequence.retry:
                failed = [(job, error) for job in call.jobs]
                return self._settle_failures(call, failed, now, own=False)
            self._stops.served()
        for job in call.jobs:
            job.attempts -= 1
        half = (len(call.jobs) + 1) // 2
        return [([Entry(jobs, fixed=True) for jobs in (call.jobs[:half], call.jobs[half:])], 0.0)]

    def give_up(self, jobs: Sequence[Job], reason: str) -> None:
        """Ends waiting requests with their last failure, or as not attempted."""
        for job in jobs:
            if job.completions.abandoned:
                self._intake.drop(job)
            else:
                error = job.history.error if job.history is not None else NotAttempted(reason)
                self._deliver(job, job.failure(error))

    def _settle_failures(
        self, call: Call, failed: Sequence[tuple[Job, Exception]], now: float, *, own: bool
    ) -> Again:
        """Gives up or retries each of these requests.

        Args:
          call: Their call.
          failed: The requests, each with its failure.
          now: The time.
          own: Whether each failed individually, not the call as a whole.
        """
        spread = self._retries.spread()
        waits: dict[float, list[Job]] = collections.defaultdict(list)
        for job, error in failed:
            wait_s = self._settle_failure(call, job, error, now, own=own, spread=spread)
            if self.unusable is not None:
                return []
            if wait_s is not None:
                waits[wait_s].append(job)
        LIVE.add("retried", sum(map(len, waits.values())))
        return [
            (self._retries.entries(jobs, call, now, own=own), wait_s)
            for wait_s, jobs in waits.items()
        ]

    def _settle_failure(
        self, call: Call, job: Job, error: Exception, now: float, *, own: bool, spread: float
    ) -> float | None:
        """Seconds until the request is retried; None when it is not."""
        if not isinstance(error, RecordError):
            self._deliver(job, job.failure(error))
            return None
        if own:
            self.guard.failed((job.number,), error, now)
        if not error.consequence.retry:
            self._stops.served()
            if self.guard.suspicion is not None:
                self.guard.hold_back(job, error)
            else:
                self._deliver(job, job.failure(error))
            return None
        if reason := self._stops.failing(error, now):
            if not self.guard.proven:
                self.unusable = BackendUnusable(reason)
                return None
            self._stop(reason)
        wait_s = self._retries.wait_s(job, error, call, now, own=own, spread=spread)
        if self._pace.in_outage:  # the breaker waits for all; another record is the next probe
            self._intake.move_back(job)
        if wait_s is None or self.stopped is not None:
            self._deliver(job, job.failure(error))
            return None
        return wait_s

    def _succeeded(self) -> None:
        """Notes a success: failures that every record might share were those records' own."""
        self._stops.served()
        for job, error in self.guard.clear():
            self._deliver(job, job.failure(error))

    def _watch(self, error: Exception | None) -> None:
        if not self.guard.may_end_the_run(error):  # the run's final error has the same message
            self._stops.watch(self._pace.in_outage, error)

    def _count_failed_call(self, error: Exception) -> None:
        self.failed_calls.add(getattr(error, "error_type", Internal.error_type))

    def _deliver(self, job: Job, outcome: Outcome) -> None:
        self._intake.deliver(job, outcome)
        if self.stopped is None:
            error = outcome.error if isinstance(outcome, Failure) else None
            if reason := self._stops.ended(error):
                self._stop(reason)

    def _stop(self, reason: str) -> None:
        """Winds the run down: answers are kept, unsent requests are not attempted."""
        if self.stopped is None:
            self.stopped = f"the run stopped: {reason}"
            _log.error("%s", self.stopped)


def _completed(job: Job, response: Completion, latency_ms: int | None) -> Completion:
    return dataclasses.replace(
        response,
        attempts=job.attempts,
        throttled_ms=job.throttled_ms,
        latency_ms=response.latency_ms if latency_ms is None else latency_ms,
    )
