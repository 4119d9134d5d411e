"""Which request crashes the server, when one does: found in a handful of crashes, at its own cost.

A crash may be nobody's doing (a killed process, a full machine), so the first costs nothing: all
that was in flight is asked again. Who was in flight at several crashes is a suspect and gets fewer
companions each time, until it is alone:

.. code-block:: text

    crashes it was in flight at    it is asked
    0, 1                           like any other
    2                              with at most 15 other suspects
    3                              as the only suspect of the machine
    two of those                   no more: it is the one

So a request that kills the server costs five crashes, whatever else is in flight. An answer, or a
failure that is no crash, clears a suspect.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

_FREE = 2
_FEW = 16
_POLL_S = 0.1
GUILTY_ALONE = 2
"""Crashes as the only suspect that make a request guilty: in one, another may have been to blame."""


class Suspects:
    """The suspects of one process; used on one event loop.

    Args:
      take_solo: Asks for the machine-wide right to be the only suspect; does not wait.
      give_solo: Gives it back.
    """

    def __init__(self, take_solo: Callable[[], bool], give_solo: Callable[[], None]) -> None:
        self._take_solo = take_solo
        self._give_solo = give_solo
        self._crashes: dict[str, int] = {}
        self._few = asyncio.Semaphore(_FEW)
        self._alone = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def turn(self, request: str) -> AsyncIterator[None]:
        """Waits until a request may be asked, and holds its place meanwhile."""
        crashes = self._crashes.get(request, 0)
        async with contextlib.AsyncExitStack() as stack:
            if crashes == _FREE:
                await stack.enter_async_context(self._few)
            elif crashes > _FREE:
                await stack.enter_async_context(self._alone)
                for _ in range(_FEW):  # nobody of the few beside it
                    await stack.enter_async_context(self._few)
                while not self._take_solo():  # noqa: ASYNC110 - another process gives it back
                    await asyncio.sleep(_POLL_S)
                stack.callback(self._give_solo)
            yield

    def crashed(self, request: str) -> bool:
        """Notes a crash while the request was in flight; says whether it is the one to blame."""
        crashes = self._crashes[request] = self._crashes.get(request, 0) + 1
        if crashes < _FREE + 1 + GUILTY_ALONE:
            return False
        self.cleared(request)
        return True

    def cleared(self, request: str) -> None:
        """The server has survived it, or it is asked no more."""
        self._crashes.pop(request, None)
