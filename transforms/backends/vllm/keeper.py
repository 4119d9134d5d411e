"""The process that owns a machine's vLLM server: starts, watches, restarts and ends it.

There is one keeper per accelerator group, in its own session, so that it outlives the process that
started it while another one uses the server. Each connection is a user; the kernel closes it
however its process ends, and without any user the keeper ends the server and itself.

.. code-block:: text

    starting ──/health 200──► ready ──crash──► restarting ──gone, after a while──► starting
        └── ended, or not ready in time: again after a while, a few times ──► failed

The keeper and the server's guard hold a lock file: while any process of a server is left, no other
server starts on its accelerators, and the log names the processes still alive. Single-threaded: one
loop over sockets.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import selectors
import signal
import socket
import sys
import time
from typing import Any

from transforms.backends.vllm import processes
from transforms.backends.vllm.child import Child
from transforms.backends.vllm.wire import Lines, ServerState, Status, line

_HEALTH_EVERY_S = 5.0
_HEALTH_WHILE_STARTING_S = 0.25
_SILENT_S = 120.0
"""A server that accepts connections but answers no /health for this long hangs: it is restarted."""
_CALM_S = 300.0
"""After this long in state ready, earlier crashes no longer count."""
_LONGEST_BACKOFF_S = 10.0
"""Short, because the time to load a model already slows a loop of crashes."""
_MOST_BACKLOG = 1 << 20
_LOCK_WAIT_S = 90.0
_FIRST_USER_S = 15.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """A keeper's settings, as JSON on its standard input.

    Attributes:
      package: The folder of the package ``transforms``.
      folder: The folder of this accelerator group: lock, socket, state.
      identity: Differs between servers with different settings.
      description: The server's description in messages.
      command: The server's command; ``{port}`` in it is replaced by a free port.
      environment: The server's whole environment.
      start_timeout_s: From the start of the process to the first successful /health, in seconds.
      linger_s: How long a server outlives its last user in seconds, unless that user said goodbye.
      stop_timeout_s: How long a server may take to end before it is killed, in seconds.
      most_starts: Failed starts in a row before giving up, once the server has worked; before, two.
      most_crashes: Crashes in a row before giving up; `_CALM_S` of work resets them.
      backoff_s: The wait before the second restart in a row, in seconds; it doubles each time.
    """

    package: str
    folder: str
    identity: str
    description: str
    command: list[str]
    environment: dict[str, str]
    start_timeout_s: float = 1800.0
    linger_s: float = 2.0
    stop_timeout_s: float = 5.0
    most_starts: int = 5
    most_crashes: int = 100
    backoff_s: float = 1.0


class _User:
    """One connected process."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.lines = Lines()
        self.accepted = False
        self.outgoing = b""


class _Keeper:
    def __init__(self, settings: Settings, lock: int) -> None:
        self._settings = settings
        self._lock = lock
        self._record = os.path.join(settings.folder, "server.json")
        self._state_file = os.path.join(settings.folder, "state.json")
        self._socket_file = os.path.join(settings.folder, "keeper.sock")
        self._users: dict[socket.socket, _User] = {}
        self._end_leftovers()
        earlier = self._earlier()
        self._state = ServerState("starting", earlier.generation, keeper_pid=os.getpid())
        killed = earlier.status not in ("stopping", "failed")
        self._restarts = earlier.restarts if killed else -1
        self._selector = selectors.DefaultSelector()
        self._child: Child | None = None
        self._worked = False
        self._failed_starts = self._crashes = 0
        self._started_at = self._ready_at = self._health_at = self._answered_at = 0.0
        self._start_at = 0.0
        self._alone_since = time.monotonic() + _FIRST_USER_S
        self._asked_to_stop = self._silent = False
        self._why_killed = ""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._socket_file)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self._socket_file)
        self._listener.listen(128)
        self._selector.register(self._listener, selectors.EVENT_READ)

    def run(self) -> None:
        """Runs until the last user has left; leaves no process behind."""
        try:
            while not self._over():
                self._step(time.monotonic())
                busy = self._state.status in ("starting", "restarting")
                for key, events in self._selector.select(0.1 if busy else 0.5):
                    self._handle(key.fileobj, events)
        finally:
            self._listener.close()  # the next process starts a keeper, which awaits the lock
            self._set("stopping")
            if self._child is not None:
                self._child.end(self._settings.stop_timeout_s)
            processes.kill_descendants(self._report)
            for user in self._users.values():
                user.connection.close()

    def stop(self, *_: Any) -> None:
        """Ends the loop in its next round."""
        self._asked_to_stop = True

    def _over(self) -> bool:
        lonely = not self._users and time.monotonic() - self._alone_since > self._settings.linger_s
        return self._asked_to_stop or lonely

    # Users

    def _handle(self, source: Any, events: int) -> None:
        if source is self._listener:
            connection, _ = self._listener.accept()
            connection.setblocking(False)
            self._users[connection] = _User(connection)
            self._selector.register(connection, selectors.EVENT_READ)
            return
        user = self._users.get(source)
        if user is None:
            if self._child is not None and not self._child.read_log():
                self._selector.unregister(source)
            return
        if events & selectors.EVENT_WRITE:
            self._flush(user)
        if events & selectors.EVENT_READ:
            try:
                received = user.connection.recv(65536)
            except BlockingIOError:
                return
            except OSError:
                received = b""
            if not received:
                self._drop(user)
                return
            for message in user.lines.feed(received):
                self._understand(user, message)

    def _understand(self, user: _User, message: dict[str, Any]) -> None:
        if "hello" in message:
            if message["hello"] != self._settings.identity:
                self._send(user, {"refused": self._settings.description})
                return
            user.accepted = True
            self._send(user, {"state": dataclasses.asdict(self._state)})
        elif "check" in message:
            current = message["check"] == self._state.generation and self._state.status == "ready"
            if current and self._child is not None:
                ended = self._child.status()
                if ended is not None:
                    self._ended(self._child, ended, time.monotonic())
                elif not (self._silent and time.monotonic() < self._health_at):
                    self._look(self._child)  # every check would wait for a silent server
            self._send(user, {"checked": message["check"]})
        elif "bye" in message:
            if len(self._users) > 1:
                self._drop(user)
            else:  # the user waits for its connection to close, when everything is gone
                self._asked_to_stop = True

    def _drop(self, user: _User) -> None:
        if self._users.pop(user.connection, None) is None:
            return
        self._selector.unregister(user.connection)
        user.connection.close()
        self._alone_since = time.monotonic()

    def _send(self, user: _User, message: dict[str, Any]) -> None:
        if "log" in message and len(user.outgoing) > _MOST_BACKLOG:
            return
        user.outgoing += line(message)
        self._flush(user)

    def _flush(self, user: _User) -> None:
        try:
            while user.outgoing:
                user.outgoing = user.outgoing[user.connection.send(user.outgoing) :]
        except BlockingIOError:
            pass
        except OSError:
            self._drop(user)
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if user.outgoing else 0)
        if self._users.get(user.connection) is user:
            self._selector.modify(user.connection, wanted)

    def _set(self, status: Status, **values: Any) -> None:
        self._state = dataclasses.replace(self._state, status=status, **values)
        state = dataclasses.asdict(self._state)
        with open(f"{self._state_file}.new", "w", encoding="utf-8") as file:
            json.dump(state, file)
        os.replace(f"{self._state_file}.new", self._state_file)
        for user in list(self._users.values()):
            if user.accepted:
                self._send(user, {"state": state})

    # The server

    def _step(self, now: float) -> None:
        status, child = self._state.status, self._child
        if child is None:
            if status in ("starting", "restarting") and now >= self._start_at:
                self._start(now)
        elif (ended := child.status()) is not None:
            self._ended(child, ended, now)
        elif status == "starting" and now >= self._health_at:
            self._health_at = now + _HEALTH_WHILE_STARTING_S
            if child.health() == 200:
                self._worked, self._failed_starts = True, 0
                self._ready_at = self._answered_at = now
                self._silent = False
                self._health_at = now + _HEALTH_EVERY_S
                self._set("ready", load_s=round(now - self._started_at, 3), pid=self._pid())
            elif now - self._started_at > self._settings.start_timeout_s:
                self._kill(child, f"not ready within {self._settings.start_timeout_s:g} s")
        elif status == "ready" and now >= self._health_at:
            self._look(child)

    def _start(self, now: float) -> None:
        self._why_killed = ""
        self._child = Child(
            self._settings.command,
            self._settings.environment,
            package=self._settings.package,
            record=self._record,
            lock=self._lock,
            tell=self._tell,
        )
        self._selector.register(self._child.output, selectors.EVENT_READ)
        self._started_at = self._health_at = now
        self._restarts += 1
        self._set(
            "starting",
            generation=self._state.generation + 1,
            url=self._child.url,
            pid=0,
            restarts=self._restarts,
            load_s=0.0,
        )

    def _look(self, child: Child) -> None:
        """Checks the health of a ready server; kills an unhealthy one."""
        status = child.health()
        now = time.monotonic()
        self._health_at = now + _HEALTH_EVERY_S
        self._silent = status is None
        if status == 200:
            self._answered_at = now
        elif status is not None:
            self._kill(child, f"/health answered {status or 'nothing: no connection'}")
        elif now - self._answered_at > _SILENT_S:
            self._kill(child, f"/health has not answered for {_SILENT_S:g} s")

    def _kill(self, child: Child, why: str) -> None:
        """Kills the server: no more requests; `_ended` follows when its processes are gone."""
        self._why_killed = why
        self._count_end(time.monotonic())
        self._set("restarting")
        child.kill()

    def _count_end(self, now: float) -> None:
        """Counts a crash or a failed start; once, as the state is ``restarting`` afterwards."""
        if self._state.status == "ready":
            calm = now - self._ready_at > _CALM_S
            self._crashes = 1 if calm else self._crashes + 1
        elif self._state.status == "starting":
            self._failed_starts += 1

    def _ended(self, child: Child, status: int, now: float) -> None:
        """All processes of the server are gone: schedules a restart, or gives up."""
        if child.read_log() or child.output.fileno() in self._selector.get_map():
            self._selector.unregister(child.output)
        child.close()
        self._child = None
        processes.kill_descendants(self._report)
        said = f"ended with status {status}" + (f": {self._why_killed}" if self._why_killed else "")
        self._count_end(now)
        most_starts = self._settings.most_starts if self._worked else 2
        if self._failed_starts >= most_starts or self._crashes >= self._settings.most_crashes:
            times = f"{self._failed_starts or self._crashes} times in a row"
            log = "\n".join(child.log)
            self._set("failed", error=f"the server {said}, {times}; the end of its log:\n{log}")
            return
        again = max(self._crashes, self._failed_starts + 1) - 1
        wait_s = min(_LONGEST_BACKOFF_S, self._settings.backoff_s * 2.0 ** (again - 1))
        wait_s = wait_s if again else 0.0
        self._start_at = now + wait_s
        self._tell(f"WARNING the vLLM server {said}; restarting it in {wait_s:g} s")
        self._set("restarting")

    def _end_leftovers(self) -> None:
        """Kills the processes of an earlier server whose keeper and guard were killed together."""
        if (known := _known(self._record)) is not None:
            processes.kill_session(*known, report=self._report)

    def _earlier(self) -> ServerState:
        """The last state of an earlier keeper; a killed keeper's count of restarts goes on."""
        try:
            with open(self._state_file, encoding="utf-8") as file:
                return ServerState.of(json.load(file))
        except (OSError, ValueError, TypeError):
            return ServerState("stopping")

    def _pid(self) -> int:
        known = _known(self._record)
        return known[0] if known else 0

    def _report(self, text: str) -> None:
        """Writes a line to the keeper's log as well: there may be no user."""
        sys.stderr.write(f"{text}\n")
        self._tell(text)

    def _tell(self, text: str) -> None:
        """Sends a line of the log to the first user."""
        for user in self._users.values():
            if user.accepted:
                self._send(user, {"log": text})
                return


def _known(record: str) -> tuple[int, int] | None:
    """The server's process number and start time, as its guard wrote them."""
    try:
        with open(record, encoding="utf-8") as file:
            known = json.load(file)
        return int(known["pid"]), int(known["started"])
    except (OSError, ValueError, KeyError):
        return None


def lock_of(folder: str, within_s: float) -> int | None:
    """The open lock of an accelerator group; None if another process holds it for too long."""
    lock = os.open(os.path.join(folder, "server.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    until = time.monotonic() + within_s
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except OSError:
            if time.monotonic() > until:
                os.close(lock)
                return None
            time.sleep(0.05)


def run() -> None:
    """The entry point of the keeper's process."""
    settings = Settings(**json.load(sys.stdin))
    processes.adopt_orphans()
    lock = lock_of(settings.folder, _LOCK_WAIT_S)
    if lock is None:
        known = _known(os.path.join(settings.folder, "server.json"))
        left = processes.in_session(known[0]) if known else []
        said = processes.waiting_for(one.pid for one in left)
        sys.exit(f"{settings.folder} is locked by processes of an earlier server: {said}")
    keeper = _Keeper(settings, lock)
    signal.signal(signal.SIGTERM, keeper.stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keeper.run()
