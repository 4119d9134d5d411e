"""A process's share of a machine's server: as long as a process holds a lease, the server lives.

There is one `ServerLease` per server and process, however many clients it has. Its thread reads the
keeper's messages, and starts another keeper when that one was killed.
"""

import asyncio
import atexit
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
from typing import Any

from transforms.backends.vllm.child import STARTUP_CODE
from transforms.backends.vllm.keeper import Settings
from transforms.backends.vllm.wire import Lines, ServerState, line
from transforms.records.errors import BackendUnusable

_CONNECT_S = 120.0
_CHECK_S = 60.0
_END_S = 12.0
_KEEPERS_LOST = 5
"""Give up after this many lost keepers in a row without a ready server: something kills them."""
_LEVEL = re.compile(r"\b(DEBUG|INFO|WARNING|ERROR|CRITICAL)\b")

_log = logging.getLogger(__name__)
_server_log = logging.getLogger("transforms.backends.vllm.log")


class ServerLease:
    """This process's use of one server; made by `acquire`, returned by `release`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._changed = threading.Condition()
        self._state = ServerState("starting")
        self._connection: socket.socket | None = None
        self._keeper: subprocess.Popen[bytes] | None = None
        self._closed = self._worked = False
        self._checks: list[tuple[int, concurrent.futures.Future[None]]] = []
        self._solo: int | None = None
        self.users = 0
        self.retired = False
        """Set when it is not handed out any more; the next lease of its group waits for its end."""
        self._thread = threading.Thread(target=self._run, name="vllm-lease", daemon=True)
        self._thread.start()

    @property
    def identity(self) -> str:
        """Differs between servers with different settings."""
        return self._settings.identity

    @property
    def state(self) -> ServerState:
        """The last known state of the server."""
        return self._state

    def wait_ready(self) -> ServerState:
        """Blocks until the server is ready.

        Raises:
          BackendUnusable: The server failed for good; the message has the end of its log.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._state.status in ("ready", "failed"))
        return self.checked()

    def checked(self) -> ServerState:
        """The state of the server.

        Raises:
          BackendUnusable: The server failed for good.
        """
        state = self._state
        if state.status == "failed":
            raise BackendUnusable(f"vLLM cannot serve {self._settings.description}: {state.error}")
        return state

    async def still_serves(self, generation: int) -> bool:
        """Whether that generation of the server is healthy; the keeper checks it first."""
        answered: concurrent.futures.Future[None] = concurrent.futures.Future()
        with self._changed:
            if not self._serves(generation) or self._connection is None:
                return False
            self._checks.append((generation, answered))
            with contextlib.suppress(OSError):
                self._connection.sendall(line({"check": generation}))
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.wrap_future(answered), _CHECK_S)
        return self._serves(generation)

    def acquire_solo(self) -> bool:
        """Tries to get the machine-wide right to run the only suspect; never waits."""
        if self._solo is not None:
            return False
        file = os.open(
            os.path.join(self._settings.folder, "solo.lock"), os.O_RDWR | os.O_CREAT, 0o600
        )
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(file)
            return False
        self._solo = file
        return True

    def release_solo(self) -> None:
        """Releases that right."""
        solo, self._solo = self._solo, None
        if solo is not None:
            # unlock it first: a process that is being forked right now has the file open too
            fcntl.flock(solo, fcntl.LOCK_UN)
            os.close(solo)

    def end(self) -> None:
        """Says goodbye to the keeper and waits for its reply; the last user waits for its end."""
        with self._changed:
            self._closed = True
            if self._connection is not None:
                with contextlib.suppress(OSError):
                    self._connection.sendall(line({"bye": True}))
        self._thread.join(_END_S)
        if self._keeper is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._keeper.wait(_END_S if self._state.status == "stopping" else 0.0)

    def _serves(self, generation: int) -> bool:
        return self._state.status == "ready" and self._state.generation == generation

    def _set(self, state: ServerState) -> None:
        with self._changed:
            self._state = state
            self._changed.notify_all()

    # The thread

    def _run(self) -> None:
        lost = 0
        while not self._closed:
            try:
                connection = self._connect()
                lost = 0 if self._follow(connection) else lost + 1
            except (BackendUnusable, OSError) as error:
                self._fail(str(error))
                return
            if self._closed or self._state.status == "failed":
                return
            if lost >= _KEEPERS_LOST:
                self._fail(f"its keeper was lost {lost} times in a row: something kills it")
                return
            if self._state.status != "stopping":
                _log.warning("the keeper of the vLLM server was lost; starting another one")
            self._set(dataclasses.replace(self._state, status="lost"))

    def _fail(self, why: str) -> None:
        self._answer_checks()
        self._set(dataclasses.replace(self._state, status="failed", error=why))

    def _follow(self, connection: socket.socket) -> bool:
        """Reads the keeper's messages until they end; returns whether the server was ready."""
        with self._changed:
            self._connection = connection
        self._worked, lines = False, Lines()
        try:
            with contextlib.suppress(OSError):
                connection.sendall(line({"hello": self._settings.identity}))
                if self._closed:  # closed meanwhile: `end` had no connection to say goodbye on
                    connection.sendall(line({"bye": True}))
                while received := connection.recv(65536):
                    for message in lines.feed(received):
                        self._hear(message)
        finally:
            with self._changed:
                self._connection = None
                connection.close()
        self._answer_checks()
        if self._keeper is not None and self._state.status == "stopping":
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._keeper.wait(_END_S)
        return self._worked

    def _hear(self, message: dict[str, Any]) -> None:
        if "refused" in message:
            raise BackendUnusable(
                f"these accelerators already serve {message['refused']}: start both with the same "
                "model and the same `args`, or run one after the other"
            )
        if "state" in message:
            self._set(ServerState.of(message["state"]))
            self._worked = self._worked or self._state.status == "ready"
        elif "log" in message:
            _forward(str(message["log"]))
        elif "checked" in message:
            self._answer_checks(message["checked"])

    def _answer_checks(self, generation: int | None = None) -> None:
        with self._changed:
            answered = [c for c in self._checks if generation in (None, c[0])]
            self._checks = [c for c in self._checks if c not in answered]
        for _, future in answered:
            if not future.done():
                future.set_result(None)

    def _connect(self) -> socket.socket:
        """A connection to the keeper; starts one if there is none."""
        until = time.monotonic() + _CONNECT_S
        while True:
            if (connection := self._try_connect()) is not None:
                return connection
            with open(os.path.join(self._settings.folder, "start.lock"), "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if (connection := self._try_connect()) is not None:
                    return connection
                self._start_keeper()
                while time.monotonic() < until and self._keeper_lives():
                    if (connection := self._try_connect()) is not None:
                        return connection
                    time.sleep(0.02)
            if time.monotonic() > until or self._closed:
                raise BackendUnusable(f"the keeper did not start: {self._keeper_log()}")
            time.sleep(0.2)

    def _try_connect(self) -> socket.socket | None:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(os.path.join(self._settings.folder, "keeper.sock"))
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            return None
        return connection

    def _start_keeper(self) -> None:
        if self._keeper is not None:
            self._keeper.poll()
        settings = self._settings
        code = STARTUP_CODE.format(module="keeper")
        with open(os.path.join(settings.folder, "keeper.log"), "wb") as log:
            self._keeper = subprocess.Popen(  # noqa: S603 - this interpreter
                [sys.executable, "-I", "-c", code, settings.package, settings.folder],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
            )
        assert self._keeper.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._keeper.stdin.write(json.dumps(dataclasses.asdict(settings)).encode())
            self._keeper.stdin.close()

    def _keeper_lives(self) -> bool:
        return self._keeper is not None and self._keeper.poll() is None

    def _keeper_log(self) -> str:
        path = os.path.join(self._settings.folder, "keeper.log")
        with open(path, encoding="utf-8", errors="replace") as log:
            return log.read()[-2000:].strip() or f"see {path}"


def _forward(text: str) -> None:
    """Logs a line of the server's log at the level that it names."""
    found = _LEVEL.search(text[:80])
    _server_log.log(getattr(logging, found[1]) if found else logging.INFO, "%s", text)


_leases: dict[str, ServerLease] = {}
_leasing = threading.Lock()


def acquire(settings: Settings) -> ServerLease:
    """This process's lease of a server; returns immediately, the server may not be ready yet.

    Raises:
      BackendUnusable: This process uses another server on the same accelerators.
    """
    while True:
        with _leasing:
            lease = _leases.get(settings.folder)
            if lease is None:
                lease = _leases[settings.folder] = ServerLease(settings)
            another = lease.identity != settings.identity
            over = lease.state.status == "failed" or (another and not lease.users)
            lease.retired = lease.retired or over
            if not lease.retired:
                if another:
                    raise BackendUnusable(
                        "these accelerators already serve another model, not "
                        f"{settings.description}: there is one server per accelerator group; run "
                        "one after the other"
                    )
                lease.users += 1
                return lease
        _end_retired(lease, settings.folder)


def release(lease: ServerLease, settings: Settings) -> None:
    """Returns a lease: it ends a while after the last user of this process."""
    with _leasing:
        lease.users -= 1
        if lease.users:
            return
    timer = threading.Timer(settings.linger_s, _end_unused, (lease, settings.folder))
    timer.daemon = True
    timer.start()


def _end_unused(lease: ServerLease, folder: str) -> None:
    with _leasing:
        if lease.users or lease.retired or _leases.get(folder) is not lease:
            return
        lease.retired = True
    _end_retired(lease, folder)


def _end_retired(lease: ServerLease, folder: str) -> None:
    """Waits for the end without holding the lock: `release` takes it on the event loop."""
    lease.end()
    with _leasing:
        if _leases.get(folder) is lease:
            del _leases[folder]


@atexit.register
def end_all() -> None:
    """Ends all leases of this process, whoever uses them; called at the end of the process."""
    with _leasing:
        leases = list(_leases.values())
        _leases.clear()
    for lease in leases:
        lease.end()
