"""An event loop whose clock moves only when there is nothing else to do: hours pass at once."""

import asyncio
import contextlib
import selectors
import threading
from collections.abc import Iterator
from typing import Any

START = 1000.0


class _Selector(selectors.DefaultSelector):
    """Moves the clock where another selector would wait for it."""

    clock: "Clock"

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        if timeout is None or self.clock.held:
            return super().select(None)
        self.clock.time += timeout
        return []


class Clock:
    """The time of one `VirtualLoop`; read it by `now`, in seconds since the start."""

    def __init__(self) -> None:
        self.time = START
        self.held = False
        selector = _Selector()
        selector.clock = self
        self.loop = VirtualLoop(selector)
        self.loop.clock = self
        self._thread = threading.Thread(
            target=self.loop.run_forever, name="virtual time", daemon=True
        )
        self._thread.start()

    @property
    def now(self) -> float:
        """Seconds since the start, without the noise of adding them up."""
        return round(self.time - START, 4)

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Stops the clock: what is handed to the loop meanwhile is handed over at one moment."""
        self.held = True
        self.loop.call_soon_threadsafe(lambda: None)
        yield
        self.held = False
        self.loop.call_soon_threadsafe(lambda: None)

    def sleep(self, seconds: float) -> None:
        """Lets time pass, and all that happens in it."""
        asyncio.run_coroutine_threadsafe(asyncio.sleep(seconds), self.loop).result()

    def close(self) -> None:
        """Cancels what is left, and ends the loop and its thread."""
        asyncio.run_coroutine_threadsafe(_cancel_all(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class VirtualLoop(asyncio.SelectorEventLoop):
    """An asyncio loop on a `Clock`."""

    clock: Clock

    def time(self) -> float:
        return self.clock.time


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
