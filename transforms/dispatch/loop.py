"""One event loop per worker process, in a thread of its own.

All bundles and all backends of a process share it for the life of the process: clients of several
SDKs break when they are used from a second loop.
"""

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def event_loop() -> asyncio.AbstractEventLoop:
    """The process's loop, started on first use; its thread is a daemon."""
    global _loop
    if _loop is not None:  # a finalizer may interrupt the thread that holds the lock
        return _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="dispatch", daemon=True).start()
        return _loop


def submit(coroutine: Coroutine[Any, Any, T]) -> "concurrent.futures.Future[T]":
    """Schedules a coroutine on the loop, from any other thread."""
    return asyncio.run_coroutine_threadsafe(coroutine, event_loop())


def now() -> float:
    """The loop's clock, in seconds."""
    return event_loop().time()


def call(function: Callable[[], None]) -> None:
    """Schedules a function on the loop, from any other thread."""
    event_loop().call_soon_threadsafe(function)


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine on the loop and waits for it; never call it from the loop itself."""
    return submit(coroutine).result()
