"""What a run tells while it works: Beam metrics, and the same figures live in this process.

Beam's counters reach the runner while a bundle works and when it ends, and are inflated by retried
bundles: they are for watching, never for the reconciliation (`transforms.accounting.reconcile` counts elements
and rows). Update them from Beam's own threads only; from the event loop's thread they vanish
silently.

`LIVE` is what a progress bar in the same process reads; in a worker nobody looks at it.

.. code-block:: text

    counters       asked_records  attempts  retries  throttled_ms  input_tokens  cached_input_tokens
                   output_tokens  reasoning_tokens  failed_calls_<error_type>
                   cumulativeThrottlingSeconds: read by Dataflow's autoscaler, which then does not
                   add workers against a quota
    distributions  latency_ms: of each call that succeeded
    gauges         in_flight_requests  in_flight_calls  concurrency_limit  rate_limit_per_minute
                   waiting_requests, of which backing_off_requests are between two attempts
                   outage_s: how long the backend has been down, 0 while it is not
                   and those of the backend's client, where it has any:
                   vllm    vllm_load_s  vllm_restarts  vllm_running_requests
                           vllm_waiting_requests  vllm_output_tokens_per_s
                           vllm_prefix_cache_hit_percent
                   openai  of a vLLM or SGLang that tells: all of those but the first two;
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
    """Counts that threads of one process add to and a progress bar reads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: collections.Counter[str] = collections.Counter()

    def add(self, name: str, amount: int) -> None:
        """Adds to one count."""
        with self._lock:
            self._counts[name] += amount

    def set(self, values: dict[str, int]) -> None:
        """Replaces some counts: the state of the moment."""
        with self._lock:
            for name, value in values.items():
                self._counts[name] = value

    def snapshot(self) -> dict[str, int]:
        """All counts at one moment."""
        with self._lock:
            return dict(self._counts)

    def reset(self) -> None:
        """Forgets everything: a new run begins in this process."""
        with self._lock:
            self._counts.clear()


LIVE = LiveCounts()


class FailedCalls:
    """Calls that failed, by error type: counted on the event loop, taken by Beam's threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: collections.Counter[str] = collections.Counter()

    def add(self, error_type: str) -> None:
        """Counts one."""
        with self._lock:
            self._counts[error_type] += 1

    def take(self) -> dict[str, int]:
        """All since they were taken last."""
        with self._lock:
            taken, self._counts = self._counts, collections.Counter()
        return taken


def beam_counter(name: str) -> Any:
    """A Beam counter in our namespace."""
    return Metrics.counter(NAMESPACE, name)


def count(name: str, amount: int) -> None:
    """Adds to a Beam counter and to `LIVE`; call it from Beam's threads, once a batch."""
    beam_counter(name).inc(amount)
    LIVE.add(name, amount)


class Calls(Protocol):
    """What `CallMetrics` asks a dispatcher."""

    def gauges(self) -> dict[str, int]: ...

    def throttled_s(self) -> float: ...

    def take_failed_calls(self) -> dict[str, int]: ...


class CallMetrics:
    """Metrics of one Beam thread that waits for a dispatcher; use it in that thread only.

    Throttled time is this thread's share: the time for which it waited while the process was
    throttled, as the runner compares it with the thread's own time.
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
        """Notes one record's outcome."""
        counts = self._counts
        counts["asked_records"] += 1
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
        """`report`, if the last time was a second ago; cheap enough for every record."""
        if time.monotonic() >= self._due_at:
            self.report()

    def report(self) -> None:
        """Gives everything since the last time to Beam; about once a second, and at the end."""
        self._due_at = time.monotonic() + REPORT_EVERY_S
        for name, amount in self._counts.items():
            if amount:
                beam_counter(name).inc(amount)
        LIVE.add("asked", self._counts["asked_records"])
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
