"""The queue of what waits: in whose turn, and from when on."""

import asyncio

import pytest

from tests.transforms.dispatch.clients import make_requests, virtual_now
from transforms.dispatch import loop
from transforms.dispatch.completion_queue import CompletionQueue
from transforms.dispatch.job import Job
from transforms.dispatch.job_queue import Entry, JobQueue

pytestmark = pytest.mark.usefixtures("clock")


def entries(*places: int) -> list[Entry]:
    """One for each place."""
    completions = CompletionQueue()
    return [Entry([Job(place, make_requests(1)[0], 0, None, completions)]) for place in places]


def popped(queue: JobQueue) -> list[int]:
    """The places of all that may be sent, in turn."""
    places = []
    while queue.ready:
        places.append(queue.pop().jobs[0].place)
    return places


def test_the_oldest_first() -> None:
    """In whatever order they were put."""
    queue = JobQueue()
    assert not queue.ready
    queue.put(entries(5, 2))
    queue.put(entries(3))
    queue.put([])
    assert queue.ready
    assert popped(queue) == [2, 3, 5]


def test_a_back_off() -> None:
    """A job holds no turn while it lasts; then it has its old one, and the queue's owner is told."""

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
    """They have the turn of their first one, and each of them counts as backing off."""

    async def steps(queue: JobQueue) -> None:
        together = Entry([entry.jobs[0] for entry in entries(2, 9)], fixed=True)
        queue.put_later([together, *entries(5)], 7.0, lambda: None)
        assert queue.backing_off == 3
        queue.put(entries(3))
        await asyncio.sleep(7.1)
        assert queue.first() is together
        assert popped(queue) == [2, 3, 5]

    loop.run(steps(JobQueue()))


def test_what_is_held() -> None:
    """All that wait for the same are back at once, in their places, and it is told once."""

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


def test_what_is_held_when_all_back_offs_end() -> None:
    """It may be sent like the others, once."""

    async def steps(queue: JobQueue) -> None:
        until = asyncio.get_running_loop().create_future()
        queue.put_when(until, *entries(1), lambda: pytest.fail("it is told of what is over"))
        queue.end_back_offs()
        until.set_result(None)
        await asyncio.sleep(0)
        assert popped(queue) == [1]

    loop.run(steps(JobQueue()))


def test_back_offs_that_are_ended() -> None:
    """All may be sent at once, and nobody is told of it again."""

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
    """Nothing comes back."""

    async def steps(queue: JobQueue) -> None:
        first, second = entries(1, 2)
        told: list[float] = []
        queue.put([first])
        queue.put_later([second], 7.0, lambda: told.append(virtual_now()))
        queue.clear()
        await asyncio.sleep(10)
        assert (queue.ready, queue.backing_off, told) == (False, 0, [])

    loop.run(steps(JobQueue()))
