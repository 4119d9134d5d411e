"""The failures of one record and its clock; `transforms.dispatch.retry` maintains them."""

from transforms.records.errors import RecordError


class DeadlineClock:
    """A record's time since its first call; paused while the backend is down or holds the record.

    Args:
      started_at: When the record was first sent.
      outage_s: How long the backend had been down in total by then, in seconds.
    """

    __slots__ = ("_outage_before_s", "_paused_at", "_paused_s", "started_at")

    def __init__(self, started_at: float, outage_s: float) -> None:
        self.started_at = started_at
        self._outage_before_s = outage_s
        self._paused_s = 0.0
        self._paused_at: float | None = None

    def pause(self, now: float) -> None:
        """Pauses the clock from now on."""
        if self._paused_at is None:
            self._paused_at = now

    def resume(self, now: float) -> None:
        """Resumes the clock."""
        if self._paused_at is not None:
            self._paused_s += now - self._paused_at
            self._paused_at = None

    def elapsed_s(self, now: float, outage_s: float) -> float:
        """The record's time without pauses and outages, which have lasted `outage_s` in total."""
        return now - self.started_at - self._paused_s - (outage_s - self._outage_before_s)


class History:
    """The failures of one record.

    Attributes:
      clock: The record's time.
      error: The last failure.
      counted: Failures that counted as an attempt, against ``max_attempts``.
      failures: All failures except refusals that say nothing about the record.
      throttled_s: Time between such refusals and the next calls, in seconds.
    """

    __slots__ = (
        "clock",
        "counted",
        "error",
        "failed_at",
        "failures",
        "refusals",
        "refused_at",
        "throttled_s",
    )

    def __init__(self, clock: DeadlineClock, error: RecordError) -> None:
        self.clock = clock
        self.error = error
        self.counted = self.failures = self.refusals = 0
        self.failed_at = clock.started_at
        self.refused_at: float | None = None
        self.throttled_s = 0.0
