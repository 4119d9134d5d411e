"""The queue of waiting jobs: in which order, and from when on."""

import asyncio

import pytest

from tests.transforms.dispatch.clients import make_requests, virtual_now
from transforms.dispatch import loop
from transforms.dispatch.completion_queue import CompletionQueue
from transforms.dispatch.job import Job
from transforms.dispatch.job_queue import Entry, JobQueue

pytestmark = pytest.mark.usefixtures("clock")


def entries(*places: int) -> list[Entry]:
    """One entry for each place."""
    completions = CompletionQueue()
    return [Entry([Job(place, make_requests(1)[0], 0, None, completions)]) for place in places]


def popped(queue: JobQueue) -> list[int]:
    """The places of all jobs that may be sent, in order."""
    places = []
    while queue.ready:
        places.append(queue.pop().jobs[0].place)
    return places


def test_the_oldest_first() -> None:
    """The oldest job comes first, in whatever order jobs were added."""
    queue = JobQueue()
    assert not queue.ready
    queue.put(entries(5, 2))
    queue.put(entries(3))
    queue.put([])
    assert queue.ready
    assert popped(queue) == [2, 3, 5]


def test_a_back_off() -> None:
    """A job has no turn in a back-off and its former turn after it; the queue notifies its user."""

    async def steps(queue: JobQueue) -> None:
        first, second = entries(1, 2)
        told: list[float] = []
        queue.put([second])
        queue.put_later([first], 7.0, lambda: told.append(virtual_now()))
        assert queue.backing_off == 1
        await asyncio.sleep(6.9)
        assert (queue.ready, queue.backing_off, told) == (True, 1, [])
        await asyncio.sleep(0.2)
        assert (queue.backing_off, told) == (0, [7.0])
        assert popped(queue) == [1, 2]

    loop.run(steps(JobQueue()))


def test_requests_that_wait_together() -> None:
    """Jobs that wait together have the turn of the first, and each counts as backing off."""

    async def steps(queue: JobQueue) -> None:
        together = Entry([entry.jobs[0] for entry in entries(2, 9)], fixed=True)
        queue.put_later([together, *entries(5)], 7.0, lambda: None)
        assert queue.backing_off == 3
        queue.put(entries(3))
        await asyncio.sleep(7.1)
        assert queue.first() is together
        assert popped(queue) == [2, 3, 5]

    loop.run(steps(JobQueue()))


def test_held_jobs() -> None:
    """Jobs held for the same event return to their places at once, with one notification."""

    async def steps(queue: JobQueue) -> None:
        until = asyncio.get_running_loop().create_future()
        told: list[int] = []
        for number, entry in enumerate(entries(3, 1, 2)):
            queue.put_when(until, entry, lambda number=number: told.append(number))  # type: ignore[misc]
        assert (queue.ready, queue.holds) == (False, True)
        until.set_result(None)
        await asyncio.sleep(0)
        assert (queue.holds, told) == (False, [0])
        assert popped(queue) == [1, 2, 3]

    loop.run(steps(JobQueue()))


def test_held_jobs_when_all_back_offs_end() -> None:
    """A held job may be sent like the others, once, when all back-offs end."""

    async def steps(queue: JobQueue) -> None:
        until = asyncio.get_running_loop().create_future()
        queue.put_when(until, *entries(1), lambda: pytest.fail("it is told of what is over"))
        queue.end_back_offs()
        until.set_result(None)
        await asyncio.sleep(0)
        assert popped(queue) == [1]

    loop.run(steps(JobQueue()))


def test_back_offs_that_are_ended() -> None:
    """Back-offs that are ended early are not reported again."""

    async def steps(queue: JobQueue) -> None:
        told: list[float] = []
        for entry in entries(4, 3):
            queue.put_later([entry], 7.0, lambda: told.append(virtual_now()))
        queue.end_back_offs()
        assert queue.backing_off == 0
        assert popped(queue) == [3, 4]
        await asyncio.sleep(10)
        assert (queue.ready, told) == (False, [])

    loop.run(steps(JobQueue()))


def test_a_queue_that_is_cleared() -> None:
    """A cleared queue returns nothing."""

    async def steps(queue: JobQueue) -> None:
        first, second = entries(1, 2)
        told: list[float] = []
        queue.put([first])
        queue.put_later([second], 7.0, lambda: told.append(virtual_now()))
        queue.clear()
        await asyncio.sleep(10)
        assert (queue.ready, queue.backing_off, told) == (False, 0, [])

    loop.run(steps(JobQueue()))
