"""The pace of one process: when the next call may be sent.

Combines everything that may delay a call:

* the calls in flight (a `ConcurrencyLimit`, never above ``max_concurrency``): as many as the
  backend reports it can use, if it does; otherwise as many as it turns into throughput,
* the rate that the backend accepts (a `RateLimit`), and this process's share of a known quota,
* ``Retry-After``: no call is sent before it is over,
* an outage: the `transforms.dispatch.breaker.CircuitBreaker` is open.

Pure: every method takes the time, in seconds of any monotonic clock. Not thread-safe: the event
loop owns it.
"""

import math
from collections.abc import Callable
from typing import Protocol

from transforms.dispatch.breaker import CircuitBreaker, Stopwatch
from transforms.dispatch.concurrency import AdaptiveConcurrency
from transforms.dispatch.rate import AdaptiveRate, Sample, TokenBucket
from transforms.records.causes import Verdict

LONGEST_GATE_S = 120.0
"""The longest ``Retry-After`` that is honoured: after it, the process sends again."""
_BURST_S = 1.0


class ConcurrencyLimit(Protocol):
    """How many calls may be in flight; `AdaptiveConcurrency` is the default."""

    @property
    def limit(self) -> int:
        """Calls that may be in flight; any thread may read it."""
        ...

    def follow(self, wanted: int) -> None:
        """Notes how many calls the backend says it can use; 0 for unknown."""
        ...

    def binds(self, binding: bool, now: float) -> None:
        """Notes whether requests wait only because of the limit."""
        ...

    def ended(self, sent_at: float, now: float, *, refused: bool) -> None:
        """Notes a call's end: served, or refused by an overloaded or slow backend.

        A call that was neither is not noted.
        """
        ...

    def restart(self, now: float) -> None:
        """Notes that an outage is over."""
        ...


class RateLimit(Protocol):
    """How many calls may be sent per second; `AdaptiveRate` is the default."""

    def rate(self, now: float) -> float:
        """Calls per second that may be sent; infinite for no limit. Any thread may read it."""
        ...

    def wait_s(self, now: float) -> float:
        """Seconds until a call may be sent; 0 for now."""
        ...

    def sent(self, now: float) -> Sample:
        """Notes a sent call."""
        ...

    def refused(self, sample: Sample, now: float, gate_s: float) -> None:
        """Notes that a call was refused, and the Retry-After that the server sent with it."""
        ...


class Permit:
    """One call in flight: pass it to `Pace.ended`."""

    __slots__ = ("sample", "sent_at", "tokens")

    def __init__(self, sent_at: float, sample: Sample, tokens: float) -> None:
        self.sent_at = sent_at
        self.sample = sample
        self.tokens = tokens


class Pace:
    """When the next call may be sent.

    Args:
      max_concurrency: The most calls in flight.
      now: The time at the start.
      requests_per_minute: This process's share of the quota, in calls; None for no limit.
      tokens_per_minute: The same share in input and output tokens.
      wanted: How many calls the backend says it can use; 0 for unknown.
      concurrency: The limit of calls in flight; None for `AdaptiveConcurrency`.
      rate: The limit of calls per second; None for `AdaptiveRate`.
    """

    def __init__(
        self,
        max_concurrency: int,
        now: float,
        *,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        wanted: Callable[[], int] = lambda: 0,
        concurrency: ConcurrencyLimit | None = None,
        rate: RateLimit | None = None,
    ) -> None:
        self._concurrency = concurrency or AdaptiveConcurrency(max_concurrency, now)
        self._wanted = wanted
        self._rate = rate or AdaptiveRate(now)
        self._buckets = tuple(
            TokenBucket(per_minute / 60, _BURST_S, now) if per_minute else None
            for per_minute in (requests_per_minute, tokens_per_minute)
        )
        self._breaker = CircuitBreaker()
        self._throttled = Stopwatch()
        self._most = max_concurrency
        self._gate_until = -math.inf
        self.in_flight = 0
        """Calls in flight."""
        self.served_at = -math.inf
        """When the backend last showed that it works."""

    @property
    def limit(self) -> int:
        """Calls that may be in flight."""
        return self._concurrency.limit

    @property
    def in_outage(self) -> bool:
        """Whether the breaker is open, so that only single calls are sent."""
        return self._breaker.open

    def rate(self, now: float) -> float:
        """Calls per second that may be sent, as learned from refusals."""
        return self._rate.rate(now)

    def throttled_s(self, now: float) -> float:
        """Total seconds in which requests waited for a quota, a Retry-After or an outage."""
        return self._throttled.total_s(now)

    def outage_s(self, now: float) -> float:
        """Total seconds for which the breaker was open."""
        return self._breaker.outage.total_s(now)

    def gauges(self, now: float) -> dict[str, int]:
        """Calls in flight, their limit, the current outage; the learned rate, 0 for none."""
        rate = self.rate(now)
        return {
            "in_flight_calls": self.in_flight,
            "concurrency_limit": self.limit,
            "rate_limit_per_minute": round(60 * rate) if math.isfinite(rate) else 0,
            "outage_s": round(self._breaker.outage.present_s(now)),
        }

    def wait_s(self, now: float) -> float:
        """Seconds until the next call may be sent: 0 for now, infinite until a call ends."""
        self._concurrency.follow(self._wanted())
        if self._breaker.open:
            if self.in_flight >= self._most:
                return math.inf
            return max(self._breaker.wait_s(now), self._gate_until - now)
        if self.in_flight >= self._concurrency.limit:
            return math.inf
        buckets_s = (bucket.wait_s(now) for bucket in self._buckets if bucket is not None)
        return max(0.0, self._gate_until - now, self._rate.wait_s(now), *buckets_s)

    def gate(self, until: float) -> None:
        """Blocks every call until that time."""
        self._gate_until = max(self._gate_until, until)

    def waiting(self, wait_s: float | None, now: float) -> None:
        """Notes how long ready requests have to wait from now on; None when none is ready."""
        full = wait_s is not None and math.isinf(wait_s) and not self._breaker.open
        self._concurrency.binds(full, now)
        self._throttled.run(wait_s is not None and not full, now)

    def sent(self, now: float, tokens: float) -> Permit:
        """Notes a sent call and the tokens that it is expected to use."""
        self.in_flight += 1
        for bucket, amount in zip(self._buckets, (1.0, tokens), strict=True):
            if bucket is not None:
                bucket.spend(amount, now)
        permit = Permit(now, self._rate.sent(now), tokens)
        if self._breaker.open:
            self._breaker.sent(permit)
        return permit

    def ended(
        self,
        permit: Permit,
        now: float,
        verdict: Verdict,
        *,
        retry_after_s: float | None = None,
        tokens: float | None = None,
        blamed: bool = False,
    ) -> None:
        """Notes a call's end.

        Args:
          permit: From `sent`.
          now: The time.
          verdict: Its verdict on the backend.
          retry_after_s: How long the server asks callers to wait.
          tokens: How many it actually used; None for as many as expected.
          blamed: A record of the call has failed before while others succeeded: its failing again
            says nothing about the backend.
        """
        self.in_flight -= 1
        bucket = self._buckets[1]
        if bucket is not None and tokens is not None:
            bucket.spend(tokens - permit.tokens, now)
        if verdict is Verdict.RESTARTING:
            self._breaker.ignored(permit)
            return
        gate_s = min(retry_after_s or 0.0, LONGEST_GATE_S)
        if gate_s and verdict in (Verdict.LIMITED, Verdict.OVERLOADED):
            self.gate(now + gate_s)
        if verdict is Verdict.LIMITED:
            self._rate.refused(permit.sample, now, gate_s)
        elif not self._breaker.open:  # in an outage, ends say nothing about the limit
            refused = verdict is Verdict.OVERLOADED
            self._concurrency.ended(permit.sent_at, now, refused=refused)
        if verdict in (Verdict.SERVED, Verdict.LIMITED):
            self.works(now)
        else:
            self._breaker.failed(permit, now, counts=not blamed)

    def works(self, now: float) -> None:
        """Notes that the backend works: ends an outage."""
        self.served_at = now
        if self._breaker.served(now):
            self._concurrency.restart(now)
