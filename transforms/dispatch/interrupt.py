"""Stops everything immediately: Ctrl-C in a local run."""

import threading
import weakref
from typing import Protocol

from transforms.dispatch import loop
from transforms.records.errors import Interrupted


class Stoppable(Protocol):
    """An object that can be interrupted."""

    def interrupt(self) -> None:
        """Stops immediately; called on the event loop."""


_open: "weakref.WeakSet[Stoppable]" = weakref.WeakSet()
_asked = threading.Event()


def register(stoppable: Stoppable) -> None:
    """Makes `stop_all` interrupt this object, for as long as it lives."""
    reference = weakref.ref(stoppable)

    def add() -> None:
        if (alive := reference()) is not None:
            _open.add(alive)

    loop.call(add)  # the loop owns the set


def asked() -> bool:
    """Whether `stop_all` was called in this process."""
    return _asked.is_set()


def error() -> Interrupted:
    """The error that every waiting thread gets."""
    return Interrupted("the run was asked to stop")


async def _stop_all() -> None:
    for stoppable in list(_open):
        stoppable.interrupt()


def stop_all() -> None:
    """Cancels every call of this process permanently: the run was asked to stop."""
    _asked.set()
    loop.run(_stop_all())
