"""Stopping everything at once: Ctrl-C in a local run."""

import threading
import weakref
from typing import Protocol

from transforms.dispatch import loop
from transforms.records.errors import Interrupted


class Stoppable(Protocol):
    """What can be interrupted."""

    def interrupt(self) -> None:
        """Stops at once; called on the event loop."""


_open: "weakref.WeakSet[Stoppable]" = weakref.WeakSet()
_asked = threading.Event()


def register(stoppable: Stoppable) -> None:
    """Lets `stop_all` find it, for as long as it lives."""
    reference = weakref.ref(stoppable)

    def add() -> None:
        if (alive := reference()) is not None:
            _open.add(alive)

    loop.call(add)  # the loop owns the set


def asked() -> bool:
    """Whether `stop_all` was called in this process."""
    return _asked.is_set()


def error() -> Interrupted:
    """What every waiting thread gets."""
    return Interrupted("the run was asked to stop")


async def _stop_all() -> None:
    for stoppable in list(_open):
        stoppable.interrupt()


def stop_all() -> None:
    """Cancels every call of this process, for good: the run was asked to stop."""
    _asked.set()
    loop.run(_stop_all())
