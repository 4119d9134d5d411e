"""The process between the keeper and a server: when the keeper goes, the server goes too.

Its standard input is the keeper's end of a pipe. A byte asks the server to end (SIGTERM); the end
of the pipe, for whatever reason the keeper ended, kills it. The guard ends with the server's status
when the server's last process has ended; until then it holds the lock that it inherited, however
long a process takes to go.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys

from transforms.backends.vllm import processes


def main(argv: list[str]) -> int:
    """Runs a server and outlives it.

    Args:
      argv: The file to write the server's process number to, then the server's command.

    Returns:
      The server's status; negative for the signal that ended it.
    """
    record, *command = argv
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the guard ends with the keeper, not a terminal
    processes.adopt_orphans()
    asleep, awake = os.pipe()
    os.set_blocking(awake, False)
    signal.set_wakeup_fd(awake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    server = subprocess.Popen(  # noqa: S603 - the user chose the interpreter
        command,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=_as_child,  # noqa: PLW1509 - there is one thread
    )
    known = processes.process(server.pid)
    with open(record, "w", encoding="utf-8") as file:
        json.dump({"pid": server.pid, "started": known.started if known else 0}, file)
    while server.poll() is None:
        readable = select.select([0, asleep], [], [], 1.0)[0]
        if asleep in readable:
            os.read(asleep, 4096)
        if 0 in readable:
            if not os.read(0, 4096):
                break
            with contextlib.suppress(ProcessLookupError):
                server.terminate()
    status = _killed(server)
    processes.kill_descendants(_report)
    return status


def _killed(server: subprocess.Popen[bytes]) -> int:
    """The server's status; kills the server and its descendants if they still run."""
    while True:
        processes.kill(one.pid for one in processes.descendants(os.getpid()))
        try:
            return server.wait(processes.REPORT_EVERY_S)
        except subprocess.TimeoutExpired:
            _report(processes.waiting_for([server.pid]))


def _report(text: str) -> None:
    """Writes a line to the server's log, as long as the keeper reads it."""
    with contextlib.suppress(OSError):
        os.write(1, text.encode() + b"\n")


def _as_child() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    processes.end_with_parent()


def run() -> None:
    """The entry point of the guard's process."""
    status = main(sys.argv[1:])
    sys.exit(status if status >= 0 else 128 - status)
