"""The interface between a worker's threads and the event loop: batches in, outcomes out.

Bounded: a thread that has submitted a batch waits until the queue has room for another.
"""

import collections
import itertools
import weakref
from collections.abc import Sequence
from typing import Any

from transforms.dispatch.completion_queue import CompletionQueue, Ended, Outcome
from transforms.dispatch.job import Job
from transforms.records.records import Request

BACKLOG = 2048
"""How many requests may wait, besides those in flight, before another batch is admitted; also the
most requests in flight to a model in this process."""


class Intake:
    """The requests without an outcome yet, and the threads that wait for them.

    Used on the event loop; any thread may read `unfinished`.
    """

    def __init__(self) -> None:
        self.unfinished = 0
        self._numbers = itertools.count()
        self._queues: weakref.WeakSet[CompletionQueue] = weakref.WeakSet()
        self._not_admitted: collections.deque[CompletionQueue] = collections.deque()

    def accept(
        self, requests: Sequence[Request], completions: CompletionQueue, batch: Any
    ) -> list[Job]:
        """Turns a batch into jobs; it is not admitted yet."""
        self._queues.add(completions)
        self._not_admitted.append(completions)
        self.unfinished += len(requests)
        return [
            Job(next(self._numbers), request, index, batch, completions)
            for index, request in enumerate(requests)
        ]

    def move_back(self, job: Job) -> None:
        """Moves a request to the end of the queue."""
        job.place = next(self._numbers)

    def admit(self, waiting: int) -> None:
        """Admits batches, the oldest first, while no more than `BACKLOG` requests wait."""
        while self._not_admitted and waiting <= BACKLOG:
            self._not_admitted.popleft().put(None)

    def deliver(self, job: Job, outcome: Outcome) -> None:
        """Delivers a request's outcome to its thread."""
        self.unfinished -= 1
        job.completions.put(Ended(job.index, job.batch, job.request, outcome))

    def drop(self, job: Job) -> None:
        """Forgets a request whose thread will not come back."""
        del job
        self.unfinished -= 1

    def end(self, error: BaseException) -> None:
        """Delivers the error to every waiting thread."""
        self._not_admitted.clear()
        for completions in list(self._queues):
            completions.put(error)
