"""An event loop whose clock moves only when nothing else is left to do: hours pass at once."""

import asyncio
import concurrent.futures
import contextlib
import math
import selectors
import threading
from collections.abc import Iterator
from typing import Any

START = 1000.0


class _Selector(selectors.DefaultSelector):
    """A selector that moves the clock instead of waiting."""

    clock: "Clock"

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0) or self.clock.moves(timeout):
            return ready
        return super().select(None)


class Clock:
    """The time of one `VirtualLoop`; read it by `now`, in seconds since the start.

    It runs ahead of the testing thread; only under `hold` do their steps alternate.
    """

    def __init__(self) -> None:
        self.time = START
        self._until = math.inf
        """The time at which the clock stops, in the loop's own time."""
        self._settling: list[concurrent.futures.Future[None]] = []
        self._held = False
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

    def moves(self, timeout: float | None) -> bool:
        """Moves the clock by the timeout, or as far as it may; returns whether it moved.

        On the loop.
        """
        left = self._until - self.time
        if left > 0 and (timeout is not None or math.isfinite(left)):
            self.time = self._until if timeout is None or timeout >= left else self.time + timeout
            return True
        settled, self._settling = self._settling, []
        for future in settled:
            future.set_result(None)
        return False

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Stops the clock: everything handed to the loop meanwhile arrives at the same moment.

        `sleep` then lets exactly that time pass and stops the clock again.
        """
        self._let_pass(0.0)
        self._held = True
        try:
            yield
        finally:
            self._held = False
            self._let_pass(math.inf)

    def sleep(self, seconds: float) -> None:
        """Lets time pass, with everything due in it."""
        if self._held:
            self._let_pass(seconds)
        else:
            asyncio.run_coroutine_threadsafe(asyncio.sleep(seconds), self.loop).result()

    def settle(self) -> None:
        """Under `hold`, waits until everything due now has happened."""
        self._let_pass(0.0)

    def _let_pass(self, seconds: float) -> None:
        """Moves the stopping time; waits until the clock has reached it, if it is finite."""
        settled: concurrent.futures.Future[None] = concurrent.futures.Future()

        def move() -> None:
            self._until = self.time + seconds
            self._settling.append(settled)

        self.loop.call_soon_threadsafe(move)
        if math.isfinite(seconds):
            settled.result(60.0)

    def close(self) -> None:
        """Cancels the remaining tasks and ends the loop and its thread."""
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
    """Cancels tasks until none is left, since one that ends may start another."""
    while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
