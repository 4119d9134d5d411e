"""Quotas as token buckets, with the time passed in.

This does not prove that a provider counts in this way. Gemini's shared pool publishes no algorithm,
and quotas that reset by the minute let other bursts through.
"""

_SLACK = 1e-9
"""Forgives the rounding of refills: a bucket that is this close to a whole unit has it."""


class Bucket:
    """A token bucket that begins full.

    Guaranteed: over any span of t seconds it grants at most ``capacity + rate_per_s * t``, except
    that a full bucket grants an amount above its capacity and is then in debt: otherwise it would
    never be granted.

    Examples:
        >>> bucket = Bucket(rate_per_s=2.0, capacity=2.0, now=0.0)
        >>> [bucket.take(1.0, now) for now in (0.0, 0.0, 0.0, 0.5, 0.5)]
        [True, True, False, True, False]
        >>> bucket.wait_s(1.0, now=0.75)
        0.25
    """

    def __init__(self, rate_per_s: float, capacity: float, now: float) -> None:
        """Fills it.

        Args:
            rate_per_s: Units that come back per second; above 0.
            capacity: Units that it holds at most; above 0.
            now: Seconds on any monotonic clock.
        """
        self._rate, self._capacity = rate_per_s, capacity
        self._level, self._at = capacity, now

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until the amount could be taken if nobody else took any; 0 if it is available."""
        self._refill(now)
        missing = min(amount, self._capacity) - self._level
        return missing / self._rate if missing > _SLACK else 0.0

    def take(self, amount: float, now: float) -> bool:
        """Takes the amount if it is there."""
        if self.wait_s(amount, now) > 0:
            return False
        self._level -= amount
        return True

    def change(self, rate_per_s: float, capacity: float, now: float) -> None:
        """Continues at another rate with the current level, cut to the new capacity."""
        self._refill(now)
        self._rate, self._capacity = rate_per_s, capacity
        self._level = min(self._level, capacity)

    def _refill(self, now: float) -> None:
        self._level = min(self._capacity, self._level + (now - self._at) * self._rate)
        self._at = now


class Quota:
    """Requests per second and tokens per minute, both taken or neither.

    Examples:
        >>> quota = Quota()
        >>> quota.change(requests_per_s=1.0, tokens_per_minute=0.0, burst_s=1.0, now=0.0)
        >>> [quota.take(100, now) for now in (0.0, 0.25, 1.0)]
        [0.0, 0.75, 0.0]
    """

    def __init__(self) -> None:
        """Without a limit."""
        self._requests: Bucket | None = None
        self._tokens: Bucket | None = None

    def change(
        self, requests_per_s: float, tokens_per_minute: float, burst_s: float, now: float
    ) -> None:
        """Sets both limits; 0 is none. A new one begins full, a changed one keeps its level."""
        self._requests = _changed(self._requests, requests_per_s, burst_s, now)
        self._tokens = _changed(self._tokens, tokens_per_minute / 60, burst_s, now)

    def take(self, tokens: int, now: float) -> float:
        """Takes one request and its tokens.

        Returns:
            0 when they were taken, else the seconds until they could be.
        """
        wait_s = self._requests.wait_s(1, now) if self._requests else 0.0
        if self._tokens:
            wait_s = max(wait_s, self._tokens.wait_s(tokens, now))
        if wait_s == 0:
            if self._requests:
                self._requests.take(1, now)
            if self._tokens:
                self._tokens.take(tokens, now)
        return wait_s


def _changed(bucket: Bucket | None, rate_per_s: float, burst_s: float, now: float) -> Bucket | None:
    if rate_per_s <= 0:
        return None
    capacity = max(1.0, rate_per_s * burst_s)
    if bucket is None:
        return Bucket(rate_per_s, capacity, now)
    bucket.change(rate_per_s, capacity, now)
    return bucket
