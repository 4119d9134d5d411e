"""One start of a server, from its keeper's side: its guard, its health and its log."""

import collections
import contextlib
import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable

_HEALTH_TIMEOUT_S = 2.0
_KILL_WAIT_S = 35.0
_LOG_LINES = 40

STARTUP_CODE = (
    "import sys, types; p = types.ModuleType('transforms'); p.__path__ = [sys.argv.pop(1)]; "
    "sys.modules['transforms'] = p; from transforms.backends.vllm import {module}; {module}.run()"
)
"""Runs a module of this package without ``transforms/__init__``, which loads Beam."""


class Child:
    """A server on its own port, below a guard; for use by one thread.

    Args:
      command: The server's command; ``{port}`` in it is replaced by a free port.
      environment: The server's whole environment.
      package: The folder of the package ``transforms``.
      record: The file into which the guard writes the server's process number.
      lock: A file descriptor that the guard holds open until every process of the server is gone.
      tell: Called with each line of the server's log.
    """

    def __init__(
        self,
        command: list[str],
        environment: dict[str, str],
        *,
        package: str,
        record: str,
        lock: int,
        tell: Callable[[str], None],
    ) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._tell = tell
        self._rest = b""
        self.log: collections.deque[str] = collections.deque(maxlen=_LOG_LINES)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(record)
        server = [word.replace("{port}", str(self.port)) for word in command]
        code = STARTUP_CODE.format(module="guard")
        self._guard = subprocess.Popen(  # noqa: S603 - the user chose the interpreter
            [sys.executable, "-I", "-c", code, package, record, *server],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            pass_fds=(lock,),
        )
        assert self._guard.stdin is not None
        assert self._guard.stdout is not None
        self._life = self._guard.stdin
        self.output = self._guard.stdout
        os.set_blocking(self.output.fileno(), False)

    @property
    def url(self) -> str:
        """Where the server listens, or will listen."""
        return f"http://127.0.0.1:{self.port}"

    def status(self) -> int | None:
        """The exit status, 128 and more for a signal; None while any of its processes is left."""
        return self._guard.poll()

    def health(self) -> int | None:
        """The status of /health; 0 if nothing listens, None if there is no answer in time."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_HEALTH_TIMEOUT_S)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status
        except TimeoutError:
            return None
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            connection.close()

    def kill(self) -> None:
        """Makes the guard kill the server; `status` shows when its last process is gone."""
        with contextlib.suppress(OSError):
            self._life.close()

    def end(self, within_s: float) -> None:
        """Ends the server and waits until its last process is gone, except an unkillable one.

        Args:
          within_s: How long the server may take to end by itself, before it is killed.
        """
        with contextlib.suppress(OSError, ValueError):  # it may have been killed already
            self._life.write(b"t")
            self._life.flush()
            self._await(within_s)
        self.kill()
        self._await(_KILL_WAIT_S)

    def close(self) -> None:
        """Closes the guard's pipes; that kills the server if it has not been ended."""
        self.output.close()
        self.kill()

    def _await(self, within_s: float) -> None:
        """Waits for the end; reads the log, because a full pipe would block the server."""
        until = time.monotonic() + within_s
        while self._guard.poll() is None and time.monotonic() < until:
            self.read_log()
            time.sleep(0.02)

    def read_log(self) -> bool:
        """Passes on the lines available now; False when no more can come."""
        while not self.output.closed:
            try:
                received = os.read(self.output.fileno(), 65536)
            except OSError:  # nothing now
                return True
            if not received:
                break
            *lines, self._rest = (self._rest + received).replace(b"\r", b"\n").split(b"\n")
            for line in lines:
                if text := line.decode("utf-8", "replace").rstrip():
                    self.log.append(text)
                    self._tell(text)
        return False
