"""Finds the request that crashes the server, if there is one, within a handful of crashes.

A crash may have another cause (a killed process, a full machine), so the first one counts against
nobody: all requests in flight are sent again. A request in flight at several crashes is a suspect
and runs with fewer other suspects each time, until it is alone:

.. code-block:: text

    crashes while in flight    the request is sent
    0, 1                       like any other
    2                          with at most half of the suspects
    3                          with at most 15 other suspects
    4, 5                       as the only suspect of the machine
    6                          no more: it is a poison request

If half of the suspects are at most 16, the third row is skipped. So a request that kills the server
costs five crashes, or six if many requests are in flight, and two crashes without a poison request
cost little: half of the suspects keep the server busy, together with all other requests. An answer,
or a failure without a crash, clears a suspect.

Pure; nothing waits here: a request that is not admitted tries again.
"""

from collections.abc import Callable

_HALF = 2
_FEW = 3
_ALONE = 4
_CONFIRMED = 6
"""Crashes that confirm a suspect, two of them alone: one may have had another cause."""
_A_FEW = 16


class PoisonRequests:
    """The suspects of one process; for use on one event loop.

    Args:
      acquire_solo: Tries to get the machine-wide right to run the only suspect; does not wait.
      release_solo: Releases that right.
    """

    def __init__(self, acquire_solo: Callable[[], bool], release_solo: Callable[[], None]) -> None:
        self._acquire_solo = acquire_solo
        self._release_solo = release_solo
        self._crashes: dict[str, int] = {}
        self._most = 0
        """The largest number of suspects since there were none."""
        self._in_flight: dict[str, int] = {}
        """Suspects in flight, and the largest group that each may be in."""

    def admit(self, request: str) -> bool:
        """Whether a request may be sent now; a suspect then counts as in flight until `done`."""
        crashes = self._crashes.get(request, 0)
        if crashes < _HALF:
            return True
        group = self._group(crashes)
        if len(self._in_flight) >= min([group, *self._in_flight.values()]):
            return False
        if crashes >= _ALONE and not self._acquire_solo():
            return False
        self._in_flight[request] = group
        return True

    def done(self, request: str) -> None:
        """The request is no longer in flight."""
        if self._in_flight.pop(request, None) == 1:
            self._release_solo()

    def crashed(self, request: str) -> bool:
        """Counts a crash with the request in flight; returns whether it is a poison request."""
        crashes = self._crashes.get(request, 0) + 1
        if crashes == _FEW and self._group(_HALF) == _A_FEW:
            crashes = _ALONE
        self._crashes[request] = crashes
        suspects = sum(one >= _HALF for one in self._crashes.values())
        self._most = max(self._most, suspects)
        if crashes < _CONFIRMED:
            return False
        self.clear(request)
        return True

    def clear(self, request: str) -> None:
        """The request did not crash the server, or is not sent again."""
        self._crashes.pop(request, None)
        if not self._crashes:
            self._most = 0

    def _group(self, crashes: int) -> int:
        """How many suspects may be in flight together with a request after this many crashes."""
        if crashes >= _ALONE:
            return 1
        return _A_FEW if crashes == _FEW else max(_A_FEW, (self._most + 1) // 2)
