"""Starts and stops a server process that a test run owns."""

import atexit
import contextlib
import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

LOG_TAIL_LINES = 25


class ServerStartError(RuntimeError):
    """A server ended, or stayed silent, before it announced its addresses."""


class ServerProcess:
    """One server in a process group of its own, killed when its owner ends.

    The command must be one that uses ``owner_link.OwnerLink``: it announces its addresses
    as a line of JSON on standard output once it accepts requests. Everything else that it
    prints goes to the log file.

    Example:
        with ServerProcess("storage", [python, "-m", "…"], log=folder / "storage.log") as server:
            print(server.addresses["rest"])

    Attributes:
        addresses: what the server announced, by name; empty before ``start``.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: Path,
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
        ready_timeout_s: float = 60.0,
    ) -> None:
        """Describes the server; ``start`` starts it.

        Args:
            name: its name in error messages.
            command: program and arguments.
            log: the file for its standard error; overwritten.
            folder: its working folder; default: the owner's.
            environment: its whole environment; default: the owner's.
            ready_timeout_s: how long it may take to announce itself.
        """
        self.addresses: dict[str, str] = {}
        self._name = name
        self._command = list(command)
        self._log = log
        self._folder = folder
        self._environment = dict(os.environ if environment is None else environment)
        self._ready_timeout_s = ready_timeout_s
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Starts the server."""
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stops the server."""
        self.stop()

    def start(self) -> None:
        """Starts the server and waits until it accepts requests.

        Raises:
            ServerStartError: it did not; the message ends with the tail of its log.
        """
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=self._folder,
                env=self._environment,
                start_new_session=True,
            )
        atexit.register(self.stop)
        announcement = self._first_line()
        if announcement is None:
            status = self._process.poll()
            self.stop()
            happened = (
                f"was silent for {self._ready_timeout_s:g} s"
                if status is None
                else f"ended with status {status} before it was ready"
            )
            raise ServerStartError(
                f"the {self._name} server {happened}; the end of {self._log}:\n{self.log_tail()}"
            )
        self.addresses = json.loads(announcement)

    def stop(self) -> None:
        """Kills the server's process group, which holds nothing worth a clean end."""
        atexit.unregister(self.stop)
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process = None

    def log_tail(self) -> str:
        """Returns the last lines of the server's log."""
        lines = self._log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-LOG_TAIL_LINES:])

    def _first_line(self) -> bytes | None:
        """Returns the announcement; None if the server ended or took too long."""
        assert self._process is not None
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        deadline = time.monotonic() + self._ready_timeout_s
        received = b""
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while not received.endswith(b"\n"):
                if not selector.select(timeout=max(0.0, deadline - time.monotonic())):
                    return None
                chunk = os.read(pipe, 4096)
                if not chunk:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        self._process.wait(timeout=5.0)
                    return None
                received += chunk
        return received
