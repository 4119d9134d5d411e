"""One start of a server, seen from its keeper: its guard, its health and its log."""

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
    """A server on a port of its own, below a guard; used by one thread.

    Args:
      command: ``{port}`` in it becomes a free port.
      environment: The server's whole environment.
      package: The folder of the package ``transforms``.
      record: The file that shall say which process the server is.
      lock: A file descriptor that the guard holds open until nothing of the server is left.
      tell: Gets each line of the server's log.
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
        """Where it listens, or will."""
        return f"http://127.0.0.1:{self.port}"

    def status(self) -> int | None:
        """How it ended, 128 and more for a signal; None while anything of it is left."""
        return self._guard.poll()

    def health(self) -> int | None:
        """The status of /health; 0 when nobody listens, None when nobody answers in time."""
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
        """Has its guard kill it; `status` says when its last process is gone."""
        with contextlib.suppress(OSError):
            self._life.close()

    def end(self, within_s: float) -> None:
        """Ends it and waits until its last process is gone, but for one that cannot be killed.

        Args:
          within_s: How long it may take to end by itself; it is killed then.
        """
        with contextlib.suppress(OSError, ValueError):  # it may be killed already
            self._life.write(b"t")
            self._life.flush()
            self._await(within_s)
        self.kill()
        self._await(_KILL_WAIT_S)

    def close(self) -> None:
        """Lets go of the guard's pipes; without an end before, that kills the server."""
        self.output.close()
        self.kill()

    def _await(self, within_s: float) -> None:
        """Waits for the end; a log that nobody reads must not hold it up."""
        until = time.monotonic() + within_s
        while self._guard.poll() is None and time.monotonic() < until:
            self.read_log()
            time.sleep(0.02)

    def read_log(self) -> bool:
        """Tells the lines that there are now; False when no more can come."""
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
