"""Between a worker's threads and the event loop: batches come in, outcomes go out.

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
"""Requests that may wait, in flight not counted, before a further batch is admitted; as many may be
in flight to a model in this process."""


class Intake:
    """The requests that have no outcome yet, and the threads that wait for them.

    Used on the event loop; `unfinished` may be read by any thread.
    """

    def __init__(self) -> None:
        self.unfinished = 0
        self._numbers = itertools.count()
        self._queues: weakref.WeakSet[CompletionQueue] = weakref.WeakSet()
        self._not_admitted: collections.deque[CompletionQueue] = collections.deque()

    def accept(
        self, requests: Sequence[Request], completions: CompletionQueue, batch: Any
    ) -> list[Job]:
        """A batch as jobs; it is not admitted yet."""
        self._queues.add(completions)
        self._not_admitted.append(completions)
        self.unfinished += len(requests)
        return [
            Job(next(self._numbers), request, index, batch, completions)
            for index, request in enumerate(requests)
        ]

    def move_back(self, job: Job) -> None:
        """Puts a request behind all others."""
        job.place = next(self._numbers)

    def admit(self, waiting: int) -> None:
        """Admits batches, the oldest first, while no more than `BACKLOG` requests wait."""
        while self._not_admitted and waiting <= BACKLOG:
            self._not_admitted.popleft().put(None)

    def deliver(self, job: Job, outcome: Outcome) -> None:
        """Gives a request's outcome to its thread."""
        self.unfinished -= 1
        job.completions.put(Ended(job.index, job.batch, job.request, outcome))

    def drop(self, job: Job) -> None:
        """Forgets a request whose thread will not come back."""
        del job
        self.unfinished -= 1

    def end(self, error: BaseException) -> None:
        """Gives the error to every thread that waits."""
        self._not_admitted.clear()
        for completions in list(self._queues):
            completions.put(error)
