"""Metrics of a running job: Beam metrics, and the same counts live in this process.

Beam's counters reach the runner during a bundle and at its end, and retried bundles inflate them:
use them for watching, never for the reconciliation (`transforms.accounting.reconcile` counts
elements and rows). Update them only from Beam's own threads; from the event loop's thread they
vanish silently.

A progress bar in the same process reads `LIVE`; in a worker nothing does.

.. code-block:: text

    counters       completed_records  attempts  retries  throttled_ms  input_tokens
                   cached_input_tokens  output_tokens  reasoning_tokens  failed_calls_<error_type>
                   cumulativeThrottlingSeconds: read by Dataflow's autoscaler, which then does not
                   add workers against a quota
    distributions  latency_ms: of each successful call
    gauges         in_flight_requests  in_flight_calls  concurrency_limit  rate_limit_per_minute
                   waiting_requests, of which backing_off_requests are between two attempts
                   outage_s: how long the backend has been unavailable, 0 while it is available
                   and those of the backend's client, if any:
                   vllm    vllm_load_s  vllm_restarts  vllm_running_requests
                           vllm_waiting_requests  vllm_output_tokens_per_s
                           vllm_prefix_cache_hit_percent
                   openai  if a vLLM or SGLang server exposes them: all but the first two;
                           with several servers: endpoints_down
"""

import collections
import threading
import time
from typing import Any, Protocol

from apache_beam.metrics import Metrics

from transforms.records.records import Completion, Usage

NAMESPACE = "batch_inference"
REPORT_EVERY_S = 1.0


class LiveCounts:
    """Counts to which threads of one process add and which a progress bar reads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: collections.Counter[str] = collections.Counter()

    def add(self, name: str, amount: int) -> None:
        """Adds to one count."""
        with self._lock:
            self._counts[name] += amount

    def set(self, values: dict[str, int]) -> None:
        """Sets some counts to their current value."""
        with self._lock:
            for name, value in values.items():
                self._counts[name] = value

    def snapshot(self) -> dict[str, int]:
        """All counts at one moment."""
        with self._lock:
            return dict(self._counts)

    def reset(self) -> None:
        """Clears all counts, for a new run in this process."""
        with self._lock:
            self._counts.clear()


LIVE = LiveCounts()


class FailedCalls:
    """Failed calls by error type: counted on the event loop, taken by Beam's threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: collections.Counter[str] = collections.Counter()

    def add(self, error_type: str) -> None:
        """Counts one failed call."""
        with self._lock:
            self._counts[error_type] += 1

    def take(self) -> dict[str, int]:
        """Returns the counts since the last take."""
        with self._lock:
            taken, self._counts = self._counts, collections.Counter()
        return taken


def beam_counter(name: str) -> Any:
    """A Beam counter in this package's namespace."""
    return Metrics.counter(NAMESPACE, name)


def count(name: str, amount: int) -> None:
    """Adds to a Beam counter and to `LIVE`; call it from Beam's threads, once per batch."""
    beam_counter(name).inc(amount)
    LIVE.add(name, amount)


class Calls(Protocol):
    """The dispatcher's counts that `CallMetrics` reports."""

    def gauges(self) -> dict[str, int]: ...

    def throttled_s(self) -> float: ...

    def take_failed_calls(self) -> dict[str, int]: ...


class CallMetrics:
    """Metrics of one Beam thread that waits for a dispatcher; use it only in that thread.

    Throttled time is this thread's share: how long it waited while the process was throttled,
    because the runner compares it with the thread's own time.
    """

    _latency_ms = Metrics.distribution(NAMESPACE, "latency_ms")
    _throttling = Metrics.counter(NAMESPACE, "cumulativeThrottlingSeconds")

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._throttled_s = calls.throttled_s()
        self._signalled_s = self._throttled_s
        self._counts: collections.Counter[str] = collections.Counter()
        self._due_at = time.monotonic() + REPORT_EVERY_S

    def count(self, outcome: Any) -> None:
        """Counts one record's outcome."""
        counts = self._counts
        counts["completed_records"] += 1
        counts["attempts"] += outcome.attempts
        counts["retries"] += max(0, outcome.attempts - 1)
        usage: Usage | None
        if isinstance(outcome, Completion):
            self._latency_ms.update(outcome.latency_ms or 0)
            usage = outcome.usage
        else:
            usage = getattr(outcome.error, "usage", None)  # a failure can be billed
        if usage is None:
            return
        counts["input_tokens"] += usage.input_tokens or 0
        counts["cached_input_tokens"] += usage.cached_input_tokens or 0
        counts["output_tokens"] += usage.output_tokens or 0
        counts["reasoning_tokens"] += usage.reasoning_tokens or 0

    def report_when_due(self) -> None:
        """Reports if the last report was a second ago; cheap enough to call for every record."""
        if time.monotonic() >= self._due_at:
            self.report()

    def report(self) -> None:
        """Reports the counts since the last report to Beam; about once a second and at the end."""
        self._due_at = time.monotonic() + REPORT_EVERY_S
        for name, amount in self._counts.items():
            if amount:
                beam_counter(name).inc(amount)
        LIVE.add("completed", self._counts["completed_records"])
        self._counts.clear()
        for error_type, failed in self._calls.take_failed_calls().items():
            beam_counter(f"failed_calls_{error_type}").inc(failed)
        throttled_s = max(self._throttled_s, self._calls.throttled_s())
        beam_counter("throttled_ms").inc(round(1000 * (throttled_s - self._throttled_s)))
        self._throttled_s = throttled_s
        if whole_s := int(throttled_s - self._signalled_s):
            self._throttling.inc(whole_s)
            self._signalled_s += whole_s
        gauges = self._calls.gauges()
        for name, value in gauges.items():
            Metrics.gauge(NAMESPACE, name).set(value)
        LIVE.set(gauges)
