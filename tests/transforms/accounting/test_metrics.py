"""Metrics of a running job: Beam's, and the same counts in this process."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import apache_beam as beam
import pytest

from tests.transforms import pipeline
from transforms.accounting import metrics
from transforms.accounting.metrics import CallMetrics, FailedCalls, LiveCounts
from transforms.dispatch.dispatcher import Failure
from transforms.records.errors import Blocked, Truncated
from transforms.records.records import Completion, Usage


@pytest.fixture(autouse=True)
def live(monkeypatch: pytest.MonkeyPatch) -> LiveCounts:
    """Live counts of this test alone."""
    live = LiveCounts()
    monkeypatch.setattr(metrics, "LIVE", live)
    return live


class Calls:
    """A dispatcher whose numbers the test sets."""

    def __init__(self, throttled_s: float = 0.0) -> None:
        self.throttled = throttled_s
        self.state: dict[str, int] = {}
        self.failed: dict[str, int] = {}

    def gauges(self) -> dict[str, int]:
        return self.state

    def throttled_s(self) -> float:
        return self.throttled

    def take_failed_calls(self) -> dict[str, int]:
        failed, self.failed = self.failed, {}
        return failed


class _Script(beam.DoFn):
    """Runs a test's function within a bundle."""

    def process(self, script: Any) -> Iterable[None]:
        script()
        return ()


def _told(script: Any) -> dict[str, dict[str, Any]]:
    """Beam's metrics by kind and name, after a bundle in which the function ran."""
    with pipeline() as p:
        _ = p | beam.Create([script]) | beam.ParDo(_Script())
    found = p.result.metrics().query(beam.metrics.MetricsFilter().with_namespace("batch_inference"))
    return {
        kind: {each.key.metric.name: each.committed for each in found[kind]}
        for kind in ("counters", "distributions", "gauges")
    }


# In this process


def test_live_counts(live: LiveCounts) -> None:
    """Live counts can be added, set, copied and cleared."""
    live.add("read", 2)
    live.add("read", 3)
    live.set({"waiting": 7, "read_files": 1})
    live.set({"waiting": 4})
    snapshot = live.snapshot()
    live.add("read", 1)
    assert snapshot == {"read": 5, "waiting": 4, "read_files": 1}
    live.reset()
    assert live.snapshot() == {}


def test_live_counts_of_many_threads(live: LiveCounts) -> None:
    """Concurrent additions are all counted."""
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: live.add("read", 1), range(4000)))
    assert live.snapshot() == {"read": 4000}


# Of the calls


def test_failed_calls_are_taken_once() -> None:
    """Failed calls are taken by type, and each take returns only newer ones."""
    failed = FailedCalls()
    for error_type in ("timeout", "internal", "timeout"):
        failed.add(error_type)
    assert failed.take() == {"timeout": 2, "internal": 1}
    assert failed.take() == {}
    failed.add("timeout")
    assert failed.take() == {"timeout": 1}


def test_failed_calls_of_many_threads() -> None:
    """Concurrent failures are all counted, and each once."""
    failed = FailedCalls()

    def use(n: int) -> int:
        failed.add("timeout")
        return failed.take().get("timeout", 0) if n % 3 == 0 else 0

    with ThreadPoolExecutor(8) as threads:
        taken = sum(threads.map(use, range(4000)))
    assert taken + failed.take().get("timeout", 0) == 4000


def _every_kind() -> None:
    calls = Calls()
    told = CallMetrics(calls)
    usage = Usage(input_tokens=10, cached_input_tokens=4, output_tokens=3, reasoning_tokens=2)
    told.count(Completion(output="a", usage=usage, latency_ms=120, attempts=3))
    told.count(Completion(output="b", latency_ms=80))
    told.count(Completion(output="c", from_ledger=True, attempts=0))
    told.count(Failure(Blocked("unsafe"), 2))
    told.count(Failure(Truncated("too long", usage=Usage(100, 40, 30, 20)), 1))
    told.count(Failure(ZeroDivisionError("boom"), 1))
    calls.failed = {"rate_limited": 2, "blocked": 1, "internal": 1}
    calls.state = {"in_flight_requests": 5, "concurrency_limit": 32}
    told.report()
    told.count(Completion(output="d", usage=Usage(input_tokens=1), latency_ms=100))
    calls.failed = {"rate_limited": 1}
    calls.state = {"in_flight_requests": 4, "concurrency_limit": 64}
    told.report()
    told.report()


def test_counts(live: LiveCounts) -> None:
    """Several reports add up records, calls, tokens (also of billed failures) and failed calls."""
    told = _told(_every_kind)
    assert told["counters"] == {
        "completed_records": 7,
        "attempts": 9,
        "retries": 3,
        "input_tokens": 111,
        "cached_input_tokens": 44,
        "output_tokens": 33,
        "reasoning_tokens": 22,
        "failed_calls_rate_limited": 3,
        "failed_calls_blocked": 1,
        "failed_calls_internal": 1,
        "throttled_ms": 0,
    }
    assert told["gauges"].keys() == {"in_flight_requests", "concurrency_limit"}
    assert {name: gauge.value for name, gauge in told["gauges"].items()} == {
        "in_flight_requests": 4,
        "concurrency_limit": 64,
    }
    latency_ms = told["distributions"]["latency_ms"]
    assert (latency_ms.count, latency_ms.sum, latency_ms.max) == (4, 300, 120)
    assert live.snapshot() == {"completed": 7, "in_flight_requests": 4, "concurrency_limit": 64}


def _throttled() -> None:
    calls = Calls(throttled_s=100.0)
    told = CallMetrics(calls)
    for seconds in (100.0, 100.75, 101.5, 101.9, 104.25, 104.25):
        calls.throttled = seconds
        told.report()


def test_throttled_time() -> None:
    """Throttled time counts since this thread began to wait, in whole seconds for Dataflow."""
    counters = _told(_throttled)["counters"]
    assert counters == {"throttled_ms": 4250, "cumulativeThrottlingSeconds": 4}


def _throttled_backwards() -> None:
    calls = Calls()
    told = CallMetrics(calls)
    for seconds in (2.0, 1.5, 3.0, 2.5):
        calls.throttled = seconds
        told.report()


def test_throttled_time_never_falls() -> None:
    """An older reading of another thread subtracts nothing, and no time counts twice."""
    counters = _told(_throttled_backwards)["counters"]
    assert counters == {"throttled_ms": 3000, "cumulativeThrottlingSeconds": 3}


def _nothing() -> None:
    CallMetrics(Calls()).report()


def test_nothing_to_report(live: LiveCounts) -> None:
    """An empty report changes nothing."""
    assert _told(_nothing) == {
        "counters": {"throttled_ms": 0},
        "distributions": {},
        "gauges": {},
    }
    assert live.snapshot() == {"completed": 0}


def _two_threads() -> None:
    calls = Calls()
    first = CallMetrics(calls)
    calls.throttled = 2.0
    second = CallMetrics(calls)
    calls.throttled = 5.0
    first.report()
    second.report()


def test_each_thread_reports_its_own_time() -> None:
    """Each thread reports its own wait: five seconds, and three for a later thread."""
    counters = _told(_two_threads)["counters"]
    assert counters == {"throttled_ms": 8000, "cumulativeThrottlingSeconds": 8}


def _count() -> None:
    metrics.count("records_read", 3)
    metrics.count("records_read", 4)


def test_count(live: LiveCounts) -> None:
    """Beam and `LIVE` get the same amount."""
    assert _told(_count)["counters"] == {"records_read": 7}
    assert live.snapshot() == {"records_read": 7}
