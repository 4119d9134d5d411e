"""What a run tells while it works: Beam counters, and the same figures live in this process.

Beam's counters reach the runner when a bundle ends, and are inflated by retried bundles: they are
for watching, never for the reconciliation (`transforms.reconcile` counts elements and rows).
Update them from Beam's own threads only; from the event loop's thread they vanish silently.

`LIVE` is what a progress bar in the same process reads; in a worker nobody looks at it.
"""

import collections
import threading
from typing import Any

from apache_beam.metrics import Metrics

NAMESPACE = "batch_inference"


class LiveCounts:
    """Counts that threads of one process add to and a progress bar reads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: collections.Counter[str] = collections.Counter()

    def add(self, name: str, amount: int) -> None:
        """Adds to one count."""
        with self._lock:
            self._counts[name] += amount

    def snapshot(self) -> dict[str, int]:
        """All counts at one moment."""
        with self._lock:
            return dict(self._counts)

    def reset(self) -> None:
        """Forgets everything: a new run begins in this process."""
        with self._lock:
            self._counts.clear()


LIVE = LiveCounts()


def beam_counter(name: str) -> Any:
    """A Beam counter in our namespace."""
    return Metrics.counter(NAMESPACE, name)


def count(name: str, amount: int) -> None:
    """Adds to a Beam counter and to `LIVE`; call it from Beam's threads, once a batch."""
    beam_counter(name).inc(amount)
    LIVE.add(name, amount)
