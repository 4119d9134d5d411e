"""Carries outcomes from the event loop to the thread that waits for them."""

import copy
import dataclasses
import queue
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from transforms.records.errors import RunError
from transforms.records.records import Completion, Request


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """A request without a completion: the last error, calls made, time throttled."""

    error: Exception
    attempts: int
    throttled_ms: int = 0


Outcome = Completion | Failure

TICK_S = 1.0
"""How often a waiting thread wakes to report its metrics."""


@dataclasses.dataclass(frozen=True, slots=True)
class Ended:
    """One request's outcome.

    Attributes:
      index: The request's index in its batch.
      batch: The `batch` passed to `Dispatcher.submit`.
    """

    index: int
    batch: Any
    request: Request
    outcome: Outcome


class CompletionQueue:
    """The outcomes of one thread's requests, in the order in which they end.

    The event loop puts, the thread gets.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Ended | BaseException | None] = queue.SimpleQueue()
        self.outstanding = 0
        """Requests whose outcome the thread has not received yet; counted by the thread itself."""
        self.abandoned = False
        """Set by a thread that will not come back; its waiting requests are dropped."""

    def put(self, item: Ended | BaseException | None) -> None:
        """Puts an outcome; an error that stops the run; or None once the last batch is admitted."""
        self._queue.put(item)

    def get(self, timeout_s: float) -> Ended | None:
        """The next outcome, or None when a batch was admitted.

        Raises:
          queue.Empty: None arrived in time.
          RunError: The run cannot go on.
        """
        item = self._queue.get(timeout=timeout_s)
        if isinstance(item, RunError):
            self.abandoned = True
            own = copy.copy(item)  # one per thread: raising adds to an error's traceback
            raise own from item.__cause__
        if isinstance(item, BaseException):
            self.abandoned = True
            raise item
        if item is not None:
            self.outstanding -= 1
        return item

    def until(self, enough: Callable[[bool], bool], on_wait: Callable[[], None]) -> Iterator[Ended]:
        """Yields outcomes until there are enough; a thread that leaves early abandons the queue.

        Args:
          enough: Called with whether a batch has been admitted in the meantime.
          on_wait: Called after each outcome, and at least once a second while waiting.

        Raises:
          RunError: The run cannot go on.
        """
        admitted = False
        try:
            while not enough(admitted):
                on_wait()
                try:
                    ended = self.get(TICK_S)
                except queue.Empty:
                    continue
                if ended is None:
                    admitted = True
                else:
                    yield ended
        except BaseException:  # the thread will not return: do not pay for waiting requests
            self.abandoned = True
            raise


def gather(
    submit: Callable[[Sequence[Request], CompletionQueue], None],
    requests: Sequence[Request],
    on_wait: Callable[[], None],
) -> list[Outcome]:
    """Submits a batch and waits for all of it; see `Dispatcher.answer`."""
    completions = CompletionQueue()
    outcomes: list[Any] = [None] * len(requests)
    submit(requests, completions)
    for ended in completions.until(
        lambda admitted: admitted and not completions.outstanding, on_wait
    ):
        outcomes[ended.index] = ended.outcome
    return outcomes
