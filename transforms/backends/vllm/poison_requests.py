"""Which request crashes the server, when one does: found in a handful of crashes, at its own cost.

A crash may be nobody's doing (a killed process, a full machine), so the first costs nothing: all
that was in flight is asked again. Who was in flight at several crashes is a suspect and gets fewer
companions each time, until it is alone:

.. code-block:: text

    crashes it was in flight at    it is asked
    0, 1                           like any other
    2                              with at most half of the suspects
    3                              with at most 15 other suspects
    4, 5                           as the only suspect of the machine
    6                              no more: it is the one

Half of up to 32 are so few already: then the third row is left out. So a request that kills the
server costs five crashes, six where many are in flight, and of two crashes that nobody has caused
little is left: half of the suspects keep the server busy, with all the requests that are none. An
answer, or a failure that is no crash, clears a suspect.

Pure; nobody waits here: who may not go asks again.
"""

from collections.abc import Callable

_HALF = 2
_FEW = 3
_ALONE = 4
_GUILTY = 6
"""Two crashes as the only suspect: in one, another may have been to blame."""
_A_FEW = 16


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
        self._most = 0
        """The most suspects that there have been at once, since there were none."""
        self._asked: dict[str, int] = {}
        """Suspects that are being asked, and the largest group that each may be in."""

    def may_go(self, request: str) -> bool:
        """Whether a request may be asked now; a suspect then has its place until `back`."""
        crashes = self._crashes.get(request, 0)
        if crashes < _HALF:
            return True
        group = self._group(crashes)
        if len(self._asked) >= min([group, *self._asked.values()]):
            return False
        if crashes >= _ALONE and not self._take_solo():
            return False
        self._asked[request] = group
        return True

    def back(self, request: str) -> None:
        """It is not being asked any more."""
        if self._asked.pop(request, None) == 1:
            self._give_solo()

    def crashed(self, request: str) -> bool:
        """Notes a crash while the server had the request; says whether it is the one to blame."""
        crashes = self._crashes.get(request, 0) + 1
        if crashes == _FEW and self._group(_HALF) == _A_FEW:
            crashes = _ALONE
        self._crashes[request] = crashes
        suspects = sum(one >= _HALF for one in self._crashes.values())
        self._most = max(self._most, suspects)
        if crashes < _GUILTY:
            return False
        self.cleared(request)
        return True

    def cleared(self, request: str) -> None:
        """The server has survived it, or it is asked no more."""
        self._crashes.pop(request, None)
        if not self._crashes:
            self._most = 0

    def _group(self, crashes: int) -> int:
        """How many suspects may be asked at once, a request with so many crashes among them."""
        if crashes >= _ALONE:
            return 1
        return _A_FEW if crashes == _FEW else max(_A_FEW, (self._most + 1) // 2)
