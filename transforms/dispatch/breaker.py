"""The circuit breaker: after consecutive failures, single calls probe whether the backend is back.

Probes become rarer, and the first successful call closes it (Nygard, "Release It!", 2007).

Pure: every method takes the time, in seconds of any monotonic clock.
"""

import math

_FAILURES = 10
"""Consecutive failures that open it."""
_FIRST_PROBE_S = 0.5
_LONGEST_PROBE_S = 10.0


class Stopwatch:
    """Measures in seconds how long a condition has lasted in total; any thread may read it."""

    def __init__(self) -> None:
        self._state: tuple[float, float | None] = (0.0, None)  # replaced whole, for readers

    @property
    def running(self) -> bool:
        """Whether the condition holds now."""
        return self._state[1] is not None

    def run(self, running: bool, now: float) -> None:
        """Notes that the condition holds from now on, or no longer."""
        total_s, since = self._state
        if running and since is None:
            self._state = (total_s, now)
        elif not running and since is not None:
            self._state = (total_s + now - since, None)

    def total_s(self, now: float) -> float:
        """The total, including the current period."""
        total_s, since = self._state
        return total_s if since is None else total_s + now - since

    def present_s(self, now: float) -> float:
        """How long the current period has lasted; 0 outside one."""
        since = self._state[1]
        return 0.0 if since is None else now - since


class CircuitBreaker:
    """Open while the backend is down: then only one call at a time may be sent, at long intervals.

    Used by one thread; any thread may read `outage`.
    """

    def __init__(self) -> None:
        self.outage = Stopwatch()
        """How long the breaker has been open."""
        self._failures = 0
        self._probe: object = None
        self._probe_at = 0.0
        self._probe_wait_s = _FIRST_PROBE_S

    @property
    def open(self) -> bool:
        """Whether only probes may be sent."""
        return self.outage.running

    def wait_s(self, now: float) -> float:
        """Seconds until the next probe while it is open; infinite while a probe is in flight."""
        return math.inf if self._probe is not None else max(0.0, self._probe_at - now)

    def sent(self, call: object) -> None:
        """Notes a call sent while it is open: the probe."""
        self._probe = call

    def ignored(self, call: object) -> None:
        """Notes a call whose outcome says nothing about the backend."""
        if call is self._probe:
            self._probe = None

    def failed(self, call: object, now: float, *, counts: bool) -> None:
        """Notes a call that failed.

        Args:
          call: As in `sent`.
          now: The time.
          counts: False where the request itself is known to fail.
        """
        probe = call is self._probe
        self.ignored(call)
        self._failures += counts
        if not self.open:
            if self._failures >= _FAILURES:
                self.outage.run(True, now)
                self._probe_at = now + self._probe_wait_s
        elif probe:
            self._probe_wait_s = min(2 * self._probe_wait_s, _LONGEST_PROBE_S)
            self._probe_at = now + self._probe_wait_s

    def served(self, now: float) -> bool:
        """Notes that the backend works; returns whether that closed the breaker."""
        self._failures = 0
        if not self.open:
            return False
        self.outage.run(False, now)
        self._probe = None
        self._probe_wait_s = _FIRST_PROBE_S
        return True
