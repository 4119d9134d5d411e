"""One request on its way through the dispatcher."""

from typing import Any

from transforms.dispatch.completion_queue import CompletionQueue, Failure
from transforms.dispatch.history import History
from transforms.records.records import Request


class Job:
    """One request in the dispatcher.

    Attributes:
      number: Identifies the request; increases in the order of submission.
      place: Its position in the queue: its number, or a later one after a failed probe.
      request: The request.
      index: Its index in its batch.
      batch: The `batch` passed to `Dispatcher.submit`.
      completions: Where its outcome goes.
      attempts: Calls so far that carried it, not counting splits of a refused call.
      history: Its failures; None before the first. `transforms.dispatch.retry` maintains it.
    """

    __slots__ = (
        "attempts",
        "batch",
        "completions",
        "history",
        "index",
        "number",
        "place",
        "request",
    )

    def __init__(
        self, number: int, request: Request, index: int, batch: Any, completions: CompletionQueue
    ) -> None:
        self.number = self.place = number
        self.request = request
        self.index = index
        self.batch = batch
        self.completions = completions
        self.attempts = 0
        self.history: History | None = None

    @property
    def blamed(self) -> bool:
        """Whether it has failed while others succeeded."""
        return self.history is not None and self.history.counted > 0

    @property
    def throttled_ms(self) -> int:
        """How long it has waited because the backend had no capacity, in milliseconds."""
        return round(self.history.throttled_s * 1000) if self.history is not None else 0

    def failure(self, error: Exception) -> Failure:
        """Its outcome when it is given up."""
        return Failure(error, self.attempts, self.throttled_ms)
