"""The circuit breaker: after several failures in a row single calls probe whether the backend is back.

Less and less often, and it closes with the first call that was served (Nygard, "Release It!", 2007).

Pure: every method takes the time, in seconds of any monotonic clock.
"""

import math

_FAILURES = 10
"""Failures in a row that open it."""
_FIRST_PROBE_S = 0.5
_LONGEST_PROBE_S = 10.0


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


class CircuitBreaker:
    """Open while the backend is down: then one call at a time may be sent, and seldom.

    Used by one thread; `outage` may be read by any.
    """

    def __init__(self) -> None:
        self.outage = Stopwatch()
        """How long it was open."""
        self._failures = 0
        self._probe: object = None
        self._probe_at = 0.0
        self._probe_wait_s = _FIRST_PROBE_S

    @property
    def open(self) -> bool:
        """Whether only probes may be sent."""
        return self.outage.running

    def wait_s(self, now: float) -> float:
        """While it is open: seconds until the next probe; infinite while one is in flight."""
        return math.inf if self._probe is not None else max(0.0, self._probe_at - now)

    def sent(self, call: object) -> None:
        """Notes a call that is sent while it is open: the probe."""
        self._probe = call

    def ignored(self, call: object) -> None:
        """Notes a call whose end says nothing about the backend."""
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
        """Notes that the backend works; whether that has closed the breaker."""
        self._failures = 0
        if not self.open:
            return False
        self.outage.run(False, now)
        self._probe = None
        self._probe_wait_s = _FIRST_PROBE_S
        return True
