"""The pace of one process: when the next call may be sent.

Puts together what may hold a call back:

* the calls in flight (`AdaptiveConcurrency`, never above ``max_concurrency``): as many as the
  backend tells, where it does; else as many as it turns into throughput,
* the rate that the backend accepts (`AdaptiveRate`), and this process's share of a known quota,
* ``Retry-After``: nobody sends before it is over,
* an outage: after several failures in a row and no success the breaker opens, and one call at a
  time asks whether the backend is back, less and less often (Nygard, "Release It!", 2007).

Pure: every method takes the time, in seconds of any monotonic clock. Not thread-safe: the event
loop owns it.
"""

import math
from collections.abc import Callable

from transforms.dispatch.concurrency import AdaptiveConcurrency
from transforms.dispatch.rate import AdaptiveRate, Call, TokenBucket
from transforms.records.causes import Verdict

LONGEST_GATE_S = 120.0
"""A ``Retry-After`` beyond this is not believed: the process asks again."""
_STRIKES = 10
_FIRST_PROBE_S = 0.5
_LONGEST_PROBE_S = 10.0
_BURST_S = 1.0


class Stopwatch:
    """Seconds in all for which something lasted; may be read by any thread."""

    def __init__(self) -> None:
        self._state: tuple[float, float | None] = (0.0, None)  # replaced as a whole, for readers

    @property
    def running(self) -> bool:
        """Whether it lasts."""
        return self._state[1] is not None

    def run(self, running: bool, now: float) -> None:
        """It lasts from now on, or no longer."""
        total_s, since = self._state
        if running and since is None:
            self._state = (total_s, now)
        elif not running and since is not None:
            self._state = (total_s + now - since, None)

    def total_s(self, now: float) -> float:
        """All that there was, the present time included."""
        total_s, since = self._state
        return total_s if since is None else total_s + now - since

    def present_s(self, now: float) -> float:
        """For how long it has lasted now; 0 while it does not."""
        since = self._state[1]
        return 0.0 if since is None else now - since


class Permit:
    """One call in flight: give it to `Pace.ended`."""

    __slots__ = ("call", "sent_at", "tokens")

    def __init__(self, sent_at: float, call: Call, tokens: float) -> None:
        self.sent_at = sent_at
        self.call = call
        self.tokens = tokens


class Pace:
    """When the next call may be sent.

    Args:
      max_concurrency: The most calls in flight.
      now: The time at the start.
      requests_per_minute: This process's share of the quota; None for no limit.
      tokens_per_minute: Likewise, of input and output tokens.
      wanted: How many calls the backend says that it can use; 0 for unknown.
    """

    def __init__(
        self,
        max_concurrency: int,
        now: float,
        *,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        wanted: Callable[[], int] = lambda: 0,
    ) -> None:
        self._concurrency = AdaptiveConcurrency(max_concurrency, now)
        self._wanted = wanted
        self._rate = AdaptiveRate(now)
        self._buckets = tuple(
            TokenBucket(per_minute / 60, _BURST_S, now) if per_minute else None
            for per_minute in (requests_per_minute, tokens_per_minute)
        )
        self.in_flight = 0
        self.served_at = -math.inf
        """When the backend showed last that it works."""
        self._most = max_concurrency
        self._gate_until = -math.inf
        self._throttled = Stopwatch()
        self._outage = Stopwatch()
        self._strikes = 0
        self._probe_at = 0.0
        self._probe: Permit | None = None
        self._probe_wait_s = _FIRST_PROBE_S

    @property
    def limit(self) -> int:
        """Calls that may be in flight."""
        return self._concurrency.limit

    @property
    def in_outage(self) -> bool:
        """Whether the breaker is open: only single calls are sent."""
        return self._outage.running

    def rate(self, now: float) -> float:
        """Calls per second that may be sent, as far as refusals have taught it."""
        return self._rate.rate(now)

    def throttled_s(self, now: float) -> float:
        """Seconds in all in which requests waited for a quota, a Retry-After or an outage."""
        return self._throttled.total_s(now)

    def outage_s(self, now: float) -> float:
        """Seconds in all in which the breaker was open."""
        return self._outage.total_s(now)

    def gauges(self, now: float) -> dict[str, int]:
        """Calls in flight, their limit, how long down; the rate learnt, 0 for no limit."""
        rate = self.rate(now)
        return {
            "in_flight_calls": self.in_flight,
            "concurrency_limit": self.limit,
            "rate_limit_per_minute": round(60 * rate) if math.isfinite(rate) else 0,
            "outage_s": round(self._outage.present_s(now)),
        }

    def wait_s(self, now: float) -> float:
        """Until the next call may be sent: 0 for now, infinite until a call ends."""
        self._concurrency.follow(self._wanted())
        if self.in_outage:
            if self._probe is not None or self.in_flight >= self._most:
                return math.inf
            return max(0.0, self._probe_at - now, self._gate_until - now)
        if self.in_flight >= self.limit:
            return math.inf
        buckets_s = (bucket.wait_s(now) for bucket in self._buckets if bucket is not None)
        return max(0.0, self._gate_until - now, self._rate.wait_s(now), *buckets_s)

    def gate(self, until: float) -> None:
        """Nobody sends before that time."""
        self._gate_until = max(self._gate_until, until)

    def waiting(self, wait_s: float | None, now: float) -> None:
        """Notes why requests wait from now on: by `wait_s`; None when none does."""
        full = wait_s is not None and math.isinf(wait_s) and not self.in_outage
        self._concurrency.binds(full, now)
        self._throttled.run(wait_s is not None and not full, now)

    def sent(self, now: float, tokens: float) -> Permit:
        """Notes a call that is sent, with the tokens that it is expected to take."""
        self.in_flight += 1
        for bucket, amount in zip(self._buckets, (1.0, tokens), strict=True):
            if bucket is not None:
                bucket.spend(amount, now)
        permit = Permit(now, self._rate.sent(now), tokens)
        if self.in_outage:
            self._probe = permit
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
          verdict: What it says about the backend.
          retry_after_s: What the server asked for.
          tokens: What it really took; None for what was expected.
          blamed: Its record has failed before while others succeeded: that it fails again says
            nothing of the backend.
        """
        self.in_flight -= 1
        bucket = self._buckets[1]
        if bucket is not None and tokens is not None:
            bucket.spend(tokens - permit.tokens, now)
        if verdict is Verdict.RESTARTING:
            self._probe = None if permit is self._probe else self._probe
            return
        gate_s = min(retry_after_s or 0.0, LONGEST_GATE_S)
        if gate_s and verdict in (Verdict.LIMITED, Verdict.OVERLOADED):
            self.gate(now + gate_s)
        if verdict is Verdict.LIMITED:
            self._rate.refused(permit.call, now, gate_s)
        elif not self.in_outage:  # what ends in an outage says nothing about the limit
            self._concurrency.ended(permit.sent_at, now, refused=verdict is Verdict.OVERLOADED)
        self._watch(permit, now, verdict, blamed)

    def works(self, now: float) -> None:
        """Notes that the backend works: an outage is over."""
        self.served_at = now
        self._strikes = 0
        if self.in_outage:
            self._outage.run(False, now)
            self._probe = None
            self._probe_wait_s = _FIRST_PROBE_S
            self._concurrency.restart(now)

    def _watch(self, permit: Permit, now: float, verdict: Verdict, blamed: bool) -> None:
        """Opens and closes the breaker."""
        probe = permit is self._probe
        if probe:
            self._probe = None
        if verdict in (Verdict.SERVED, Verdict.LIMITED):
            self.works(now)
            return
        self._strikes += not blamed
        if not self.in_outage:
            if self._strikes >= _STRIKES:
                self._outage.run(True, now)
                self._probe_at = now + self._probe_wait_s
        elif probe:
            self._probe_wait_s = min(2 * self._probe_wait_s, _LONGEST_PROBE_S)
            self._probe_at = now + self._probe_wait_s
