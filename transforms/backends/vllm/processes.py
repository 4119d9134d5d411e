"""Ends every process of a server, whatever has become of it; for the keeper and the guard.

A vLLM server is a tree of processes. When its root is killed, the engine below survives and holds
the GPU (measured with 0.32), so ending the root is not enough. On Linux the keeper and the guard
adopt the orphans of the processes they start (``PR_SET_CHILD_SUBREAPER``) and kill everything below
them.
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
"""How often the log names the processes still alive."""
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LINUX = sys.platform.startswith("linux")


class Process(NamedTuple):
    """A line of ``/proc``.

    Attributes:
      pid: The process number.
      parent: Its parent's number.
      session: Its session's number: that of the process that started the session.
      started: Clock ticks from the start of the machine; distinguishes reused numbers.
      zombie: It has ended, and nothing has read its status yet.
    """

    pid: int
    parent: int
    session: int
    started: int
    zombie: bool


def process(pid: int) -> Process | None:
    """A process of this machine; None if it does not exist, or without ``/proc``."""
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
    """The descendants of a process, without those that have ended."""
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
    """Makes this process, instead of init, adopt the orphans of its descendants (Linux)."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_with_parent() -> None:
    """Has the kernel kill this process when its parent ends (Linux); survives ``exec``."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    if _LINUX:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def kill(pids: Iterable[int]) -> None:
    """Sends SIGKILL to those of the processes that exist."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def kill_descendants(report: Callable[[str], None]) -> None:
    """Kills all descendants of this process; returns when they are gone, however long that takes.

    A process in uninterruptible sleep (a hung driver) ends only when the kernel allows it.

    Args:
      report: Called at intervals with a line that names the processes still alive.
    """
    _kill_until_gone(lambda: descendants(os.getpid()), report)


def kill_session(session: int, started: int, report: Callable[[str], None]) -> None:
    """Kills the rest of a session, unless its number belongs to a newer session by now.

    Returns when all its processes are gone, however long that takes.

    Args:
      session: The session's number.
      started: The start time of the process that started the session.
      report: Called at intervals with a line that names the processes still alive.
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
    """The line to report about killed processes that are still alive."""
    numbers = ", ".join(map(str, pids))
    return (
        f"WARNING waiting for process {numbers}: killed, but still alive; no server starts on its "
        "accelerators until it is gone"
    )


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
