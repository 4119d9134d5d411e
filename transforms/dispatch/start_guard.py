"""Ends a run at its start if every record would fail alike.

A failure that no single record causes (401, 403, 404, no connection) makes the backend *suspect* as
soon as a second record has failed in the same way while no call has ever succeeded: two calls that
share no request, or one call that the server never got. Then nothing more is sent. If a call in
flight succeeds, it *clears* the backend, and the failures were those records' own; otherwise the
suspicion is *confirmed* when none is left in flight, or after a few seconds.
"""

from collections.abc import Iterable

from transforms.dispatch.job import Job
from transforms.dispatch.limits import DispatchLimits
from transforms.records.errors import RecordError


class StartGuard:
    """Whether the backend has ever worked, and why it may be unusable; used on the event loop.

    Args:
      limits: How long a server may take to start, and whether the run waits for one.
    """

    def __init__(self, limits: DispatchLimits) -> None:
        self._limits = limits
        self.proven = False
        """Whether a call has ever succeeded."""
        self.suspicion: RecordError | None = None
        """Why the backend may be unusable: nothing is sent until that is cleared or confirmed."""
        self._alike: dict[str, tuple[float, frozenset[int]]] = {}
        """By error type: when the first such call failed, and the records of which any one alone may
        have failed every such call."""
        self._held_back: list[tuple[Job, RecordError]] = []

    def may_end_the_run(self, error: object) -> bool:
        """Whether a failure would end the run if others failed alike."""
        if self.proven or not isinstance(error, RecordError):
            return False
        return error.consequence.fatal_at_start and not self._limits.hold

    def failed(self, records: Iterable[int], error: RecordError, now: float) -> bool:
        """Notes a failed call; returns whether it made the backend suspect.

        Args:
          records: Identify the records of the call; any one of them may have failed it.
          error: How it failed. A server that cannot be reached may be starting: it gets as long
            as a first retry takes, and in a streaming run as long as it needs.
          now: The time.
        """
        consequence = error.consequence
        if self.proven or not consequence.fatal_at_start:
            return False
        if consequence.retry and self._limits.hold:
            return False
        culprits = frozenset(records)
        if not consequence.attempt and len(culprits) > 1:
            culprits = frozenset()  # no record's own fault
        since, before = self._alike.get(error.error_type, (now, culprits))
        culprits &= before
        self._alike[error.error_type] = since, culprits
        patience_s = self._limits.first_backoff_s if consequence.retry else 0.0
        if self._limits.max_attempts == 1:
            patience_s = 0.0
        if self.suspicion or culprits or now - since < patience_s:
            return False
        self.suspicion = error
        return True

    def hold_back(self, job: Job, error: RecordError) -> None:
        """Keeps a record's failure until it is known whether it is the record's own."""
        self._held_back.append((job, error))

    def clear(self) -> list[tuple[Job, RecordError]]:
        """Notes a success; returns the failures held back, which are the records' own."""
        self.proven = True
        self.suspicion = None
        held_back, self._held_back = self._held_back, []
        return held_back
