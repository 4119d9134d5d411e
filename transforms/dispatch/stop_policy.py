"""Which failures stop a run, and which cost only a record.

* A failure that all records would share ends a run at its start: `transforms.dispatch.start_guard`
* After ``give_up_after_s`` without success, a batch run stops; a streaming one holds its messages.
* More than ``max_dead_letter_ratio`` of at least 1,000 records failed: the run stops.
* More than 1 % of the records failed with an unforeseen exception: the run stops (unless that
  ratio is 1: then no number of failures stops it).

The last three keep the answers already paid for: records that were not sent are dead letters
(``not_attempted``), results are written, and only then the run fails.
"""

import logging

from transforms.dispatch.limits import DispatchLimits
from transforms.records.errors import RecordError

RATIO_AFTER_RECORDS = 1000
INTERNAL_RATIO = 0.01
INTERNAL_AT_LEAST = 10
"""How many may fail in an unforeseen way, however few records there are."""

_log = logging.getLogger(__name__)


class StopPolicy:
    """Decides when failures stop a run, from how records end; used on the event loop."""

    def __init__(self, limits: DispatchLimits) -> None:
        self._limits = limits
        self._failing_since: float | None = None
        self._last_error = ""
        self._held = self._down = False
        self._ended = self._dead = self._internal = 0

    def served(self) -> None:
        """Notes that the backend works."""
        self._failing_since = None
        self._held = False

    def watch(self, in_outage: bool, error: object) -> None:
        """Logs once that the backend is unavailable and why, and once that it is back."""
        if in_outage and not self._down:
            _log.warning(
                "backend unavailable (%s); probing with single calls until it recovers", error
            )
        elif self._down and not in_outage:
            _log.warning("the backend is available again")
        self._down = in_outage

    def idle(self) -> None:
        """Notes that no request is left: being idle is not a failure."""
        self._failing_since = None

    def failing(self, error: RecordError, now: float) -> str | None:
        """Notes a call that failed retryably; returns the reason to stop, if there is one."""
        if self._failing_since is None:
            self._failing_since = now
        if now - self._failing_since <= self._limits.give_up_after_s:
            return None
        reason = f"nothing has succeeded for {self._limits.give_up_after_s:g} s: {error}"
        if not self._limits.hold:
            return reason
        if not self._held:
            self._held = True
            _log.error(
                "%s; messages are held, and requests are sent again until one succeeds", reason
            )
        return None

    def ended(self, error: Exception | None) -> str | None:
        """Notes a record's end; returns the reason to stop, if there is one."""
        self._ended += 1
        if error is None:
            return None
        self._dead += 1
        self._last_error = f"{type(error).__name__}: {error}"
        if not isinstance(error, RecordError):
            self._internal += 1
        if self._limits.hold or self._limits.max_dead_letter_ratio >= 1:
            return None
        return self._too_many()

    def _too_many(self) -> str | None:
        if self._internal > max(INTERNAL_AT_LEAST, INTERNAL_RATIO * self._ended):
            return (
                f"{self._internal:,} of {self._ended:,} records failed with an "
                f"unforeseen exception; the last: {self._last_error}"
            )
        most = self._limits.max_dead_letter_ratio
        if self._ended >= RATIO_AFTER_RECORDS and self._dead > most * self._ended:
            return (
                f"{self._dead:,} of {self._ended:,} records failed, more than "
                f"`max_dead_letter_ratio` ({most:g}); the last: {self._last_error}"
            )
        return None
