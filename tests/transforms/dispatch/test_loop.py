"""The event loop of a process: one loop in its own thread, for all callers."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.transforms.dispatch.virtual_time import Clock
from transforms.dispatch import loop


async def _where() -> tuple[str, asyncio.AbstractEventLoop]:
    return threading.current_thread().name, asyncio.get_running_loop()


def test_one_loop_for_all_threads() -> None:
    """All threads' work runs on the same loop, in its daemon thread."""
    with ThreadPoolExecutor(4) as threads:
        places = list(threads.map(lambda _: loop.run(_where()), range(20)))
    assert set(places) == {("dispatch", loop.event_loop())}
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "dispatch"]
    assert thread.daemon


def test_errors_reach_the_caller() -> None:
    """`run` raises the coroutine's exception."""

    async def fail() -> None:
        raise ValueError("as it is")

    with pytest.raises(ValueError, match=r"^as it is$"):
        loop.run(fail())


def test_submit_does_not_wait() -> None:
    """Two submitted coroutines that need each other both run."""

    async def make() -> asyncio.Event:
        return asyncio.Event()

    async def wait(event: asyncio.Event) -> str:
        await event.wait()
        return "woken"

    async def wake(event: asyncio.Event) -> None:
        event.set()

    event = loop.run(make())
    waiting = loop.submit(wait(event))
    assert not waiting.done()
    loop.run(wake(event))
    assert waiting.result() == "woken"


def test_call_runs_on_the_loop() -> None:
    """`call` runs functions on the loop, from any thread, in order, without waiting."""
    places = []
    done = threading.Event()
    loop.call(lambda: places.append(("first", threading.current_thread().name)))
    loop.call(lambda: places.append(("second", threading.current_thread().name)))
    loop.call(done.set)
    assert done.wait(60)
    assert places == [("first", "dispatch"), ("second", "dispatch")]


def test_now_is_the_clock_of_the_loop(clock: Clock) -> None:
    """`now` is the clock by which the loop measures its waits."""

    async def wait() -> float:
        await asyncio.sleep(3600)
        return loop.now()

    began = loop.now()
    assert loop.run(wait()) - began == 3600
    assert clock.now == 3600
