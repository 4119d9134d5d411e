"""The pace of one process: when the next call may be sent.

Puts together what may hold a call back:

* the calls in flight (`AdaptiveConcurrency`, never above ``max_concurrency``),
* the rate that the backend accepts (`AdaptiveRate`), and this process's share of a known quota,
* ``Retry-After``: nobody sends before it is over,
* an outage: after several failures in a row and no success the breaker opens, and one call at a
  time asks whether the backend is back, less and less often (Nygard, "Release It!", 2007).

Pure: every method takes the time, in seconds of any monotonic clock. Not thread-safe: the event
loop owns it.
"""

import enum
import math

from transforms.dispatch.concurrency import AdaptiveConcurrency
from transforms.dispatch.rate import AdaptiveRate, Call, TokenBucket

LONGEST_GATE_S = 120.0
"""A ``Retry-After`` beyond this is not believed: the process asks again."""
_STRIKES = 10
_FIRST_PROBE_S = 0.5
_LONGEST_PROBE_S = 10.0
_BURST_S = 1.0


class Reply(enum.Enum):
    """What a call's end says about the backend."""

    SERVED = "served"
    """It works: an answer, or a refusal of this request alone."""
    LIMITED = "limited"
    """It works, but a quota is used up (429)."""
    OVERLOADED = "overloaded"
    """It is full or slow (503, no answer in time)."""
    BROKEN = "broken"
    """It cannot be reached, or fails (other 5xx, lost connections)."""


class Permit:
    """One call in flight: give it to `Pace.ended`."""

    __slots__ = ("call", "probe", "sent_at", "tokens")

    def __init__(self, sent_at: float, call: Call, tokens: float, *, probe: bool) -> None:
        self.sent_at = sent_at
        self.call = call
        self.tokens = tokens
        self.probe = probe


class Pace:
    """When the next call may be sent.

    Args:
      max_concurrency: The most calls in flight.
      now: The time at the start.
      requests_per_minute: This process's share of the quota; None for no limit.
      tokens_per_minute: Likewise, of input and output tokens.
    """

    def __init__(
        self,
        max_concurrency: int,
        now: float,
        *,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
    ) -> None:
        self._concurrency = AdaptiveConcurrency(max_concurrency, now)
        self._rate = AdaptiveRate(now)
        self._buckets = tuple(
            TokenBucket(per_minute / 60, _BURST_S, now) if per_minute else None
            for per_minute in (requests_per_minute, tokens_per_minute)
        )
        self.in_flight = 0
        self._gate_until = -math.inf
        self._throttled_s = 0.0
        self._throttled_since: float | None = None
        self._strikes = 0
        self._outage_s = 0.0
        self._outage_since: float | None = None
        self._probe_at = 0.0
        self._probing = False
        self._probe_wait_s = _FIRST_PROBE_S

    @property
    def limit(self) -> int:
        """Calls that may be in flight."""
        return self._concurrency.limit

    @property
    def in_outage(self) -> bool:
        """Whether the breaker is open: only single calls are sent."""
        return self._outage_since is not None

    def rate(self, now: float) -> float:
        """Calls per second that may be sent, as far as refusals have taught it."""
        return self._rate.rate(now)

    def throttled_s(self, now: float) -> float:
        """Seconds in all in which requests waited for a quota, a Retry-After or an outage."""
        since = self._throttled_since  # other threads read, too
        return self._throttled_s + (0.0 if since is None else now - since)

    def down_s(self, now: float) -> float:
        """Seconds for which the breaker has been open; 0 while it is closed."""
        return 0.0 if self._outage_since is None else now - self._outage_since

    def outage_s(self, now: float) -> float:
        """Seconds in all in which the breaker was open."""
        since = self._outage_since
        return self._outage_s + (0.0 if since is None else now - since)

    def gauges(self, now: float) -> dict[str, int]:
        """Calls in flight, their limit, the rate that refusals have taught, and how long down."""
        gauges = {
            "in_flight_requests": self.in_flight,
            "concurrency_limit": self.limit,
            "outage_s": round(self.down_s(now)),
        }
        if math.isfinite(rate := self.rate(now)):
            gauges["rate_limit_per_minute"] = round(60 * rate)
        return gauges

    def wait_s(self, now: float) -> float:
        """Until the next call may be sent: 0 for now, infinite until a call ends."""
        if self._outage_since is not None:
            if self._probing:
                return math.inf
            return max(0.0, self._probe_at - now, self._gate_until - now)
        if self.in_flight >= self._concurrency.limit:
            return math.inf
        wait_s = max(self._gate_until - now, self._rate.wait_s(now))
        for bucket in self._buckets:
            if bucket is not None:
                wait_s = max(wait_s, bucket.wait_s(now))
        return wait_s if wait_s > 0 else 0.0

    def gate(self, until: float) -> None:
        """Nobody sends before that time."""
        self._gate_until = max(self._gate_until, until)

    def waiting(self, wait_s: float | None, now: float) -> None:
        """Notes why requests wait from now on: by `wait_s`; None when none does."""
        full = wait_s is not None and math.isinf(wait_s) and self._outage_since is None
        self._concurrency.binds(full, now)
        throttled = wait_s is not None and not full
        if throttled and self._throttled_since is None:
            self._throttled_since = now
        elif not throttled and self._throttled_since is not None:
            self._throttled_s += now - self._throttled_since
            self._throttled_since = None

    def sent(self, now: float, tokens: float) -> Permit:
        """Notes a call that is sent, with the tokens that it is expected to take."""
        self.in_flight += 1
        for bucket, amount in zip(self._buckets, (1.0, tokens), strict=True):
            if bucket is not None:
                bucket.spend(amount, now)
        self._probing = self.in_outage
        return Permit(now, self._rate.sent(now), tokens, probe=self._probing)

    def ended(
        self,
        permit: Permit,
        now: float,
        reply: Reply,
        *,
        retry_after_s: float | None = None,
        tokens: float | None = None,
    ) -> None:
        """Notes a call's end.

        Args:
          permit: From `sent`.
          now: The time.
          reply: What it says about the backend.
          retry_after_s: What the server asked for.
          tokens: What it really took; None for what was expected.
        """
        self.in_flight -= 1
        if permit.probe:
            self._probing = False
        bucket = self._buckets[1]
        if bucket is not None and tokens is not None:
            bucket.spend(tokens - permit.tokens, now)
        gate_s = min(retry_after_s or 0.0, LONGEST_GATE_S)
        if gate_s and reply in (Reply.LIMITED, Reply.OVERLOADED):
            self._gate_until = max(self._gate_until, now + gate_s)
        if reply is Reply.LIMITED:
            self._rate.refused(permit.call, now, gate_s)
        else:
            self._concurrency.ended(permit.sent_at, now, refused=reply is Reply.OVERLOADED)
        self._watch(permit, now, reply)

    def _watch(self, permit: Permit, now: float, reply: Reply) -> None:
        """Opens and closes the breaker."""
        if reply in (Reply.SERVED, Reply.LIMITED):
            self._strikes = 0
            if self._outage_since is not None:
                self._outage_s += now - self._outage_since
                self._outage_since = None
                self._probing = False
                self._probe_wait_s = _FIRST_PROBE_S
                self._concurrency.restart(now)
            return
        self._strikes += 1
        if self._outage_since is None:
            if self._strikes >= _STRIKES:
                self._outage_since = now
                self._probe_at = now + self._probe_wait_s
        elif permit.probe:
            self._probe_wait_s = min(2 * self._probe_wait_s, _LONGEST_PROBE_S)
            self._probe_at = now + self._probe_wait_s
