"""Ending every process of a server, whatever it has become: what the keeper and the guard share.

A vLLM server is a tree. When its root is killed, the engine below lives on and holds the GPU
(measured with 0.32), so ending the root is not enough. On Linux the keeper and the guard adopt the
orphans of what they start (``PR_SET_CHILD_SUBREAPER``), and what is below them is theirs to kill.
"""

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

REPORT_EVERY_S = 30.0
"""So often it is told who is waited for."""
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LINUX = sys.platform.startswith("linux")


class Process(NamedTuple):
    """A line of ``/proc``.

    Attributes:
      pid: Its number.
      parent: Its parent's.
      session: Its session's: the number of the process that began it.
      started: Clock ticks since the machine started; tells a reused number.
      zombie: It has ended, and nobody has asked how.
    """

    pid: int
    parent: int
    session: int
    started: int
    zombie: bool


def process(pid: int) -> Process | None:
    """A process of this machine; None when there is none, or no ``/proc``."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            fields = stat.read().rpartition(b")")[2].split()  # the name may hold anything
    except OSError:
        return None
    zombie = fields[0] in (b"Z", b"X")
    return Process(pid, int(fields[1]), int(fields[3]), int(fields[19]), zombie)


def all_processes() -> list[Process]:
    """Every process of this machine, as far as ``/proc`` shows it."""
    try:
        names = os.listdir("/proc")
    except OSError:
        return []
    found = (process(int(name)) for name in names if name.isdigit())
    return [one for one in found if one is not None]


def descendants(root: int) -> list[Process]:
    """What a process has started, and what that has, without those that have ended."""
    children: dict[int, list[Process]] = {}
    for one in all_processes():
        children.setdefault(one.parent, []).append(one)
    found, waiting = [], [root]
    while waiting:
        for child in children.get(waiting.pop(), ()):
            waiting.append(child.pid)
            if not child.zombie:
                found.append(child)
    return found


def in_session(session: int) -> list[Process]:
    """The processes of a session, without those that have ended."""
    return [one for one in all_processes() if one.session == session and not one.zombie]


def adopt_orphans() -> None:
    """From now on orphans below this process become its children instead of init's (Linux)."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_with_parent() -> None:
    """The kernel kills this process as soon as its parent is gone (Linux); survives ``exec``."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    if _LINUX:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def kill(pids: Iterable[int]) -> None:
    """SIGKILL to each of them, as far as they exist."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def kill_descendants(report: Callable[[str], None]) -> None:
    """Kills everything below this process; returns when it is gone, however long that takes.

    A process in uninterruptible sleep (a hung driver) ends when the kernel lets it.

    Args:
      report: Is told now and then for whom it waits.
    """
    _kill_until_gone(lambda: descendants(os.getpid()), report)


def kill_session(session: int, started: int, report: Callable[[str], None]) -> None:
    """Kills what is left of a session, unless its number belongs to another one by now.

    Returns when it is gone, however long that takes.

    Args:
      session: Its number.
      started: When the process began that gave it the number.
      report: Is told now and then for whom it waits.
    """
    leader = process(session)
    if leader is not None and leader.started != started:
        return
    _kill_until_gone(lambda: in_session(session), report)


def _kill_until_gone(find: Callable[[], list[Process]], report: Callable[[str], None]) -> None:
    report_at = time.monotonic() + REPORT_EVERY_S
    while left := find():
        kill(one.pid for one in left)
        _reap()
        if time.monotonic() >= report_at:
            report_at = time.monotonic() + REPORT_EVERY_S
            report(waiting_for(one.pid for one in left))
        time.sleep(0.02)
    _reap()


def waiting_for(pids: Iterable[int]) -> str:
    """What to tell of processes that were killed and are still there."""
    numbers = ", ".join(map(str, pids))
    return (
        f"WARNING waiting for process {numbers}: killed, but not gone; until then nothing is "
        "started on its accelerators"
    )


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
