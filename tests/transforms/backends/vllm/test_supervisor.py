"""One server for all processes lives while one uses it and ends with its last user.

The server is a stand-in: a process with a child, like vLLM and its engine; `tests/vllm` tests the
real one.
"""

import asyncio
import json
import os
import pickle
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.transforms.backends.vllm.servers import (
    ROOT,
    eventually,
    fake_spec,
    processes_of,
    starts,
)
from transforms.backends.vllm import launch, lease, processes
from transforms.backends.vllm.lease import ServerLease
from transforms.records.errors import BackendUnusable

USER = """
import pathlib, sys, types
plain = sys.modules["transforms"] = types.ModuleType("transforms")  # without loading Beam
plain.__path__ = ["transforms"]
sys.path.insert(0, "tests/transforms/backends/vllm")
from servers import fake_spec
from transforms.backends.vllm import launch, lease
(settings,) = launch.plan(fake_spec(pathlib.Path(sys.argv[1])))
state = lease.acquire(settings).wait_ready()
print(state.pid, state.keeper_pid, flush=True)
sys.stdin.readline()
"""


class User:
    """Another process that uses the server of a folder; it ends in order on request."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", USER, str(folder)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def server_and_keeper(self) -> tuple[int, int]:
        """Process numbers of both, once the server is ready."""
        server, keeper = self.process.stdout.readline().split()
        return int(server), int(keeper)

    def end(self) -> None:
        """Runs the script to its end."""
        self.process.communicate("\n", timeout=30)

    def kill(self) -> None:
        """Sends SIGKILL, after which the process runs no code of its own."""
        self.process.kill()
        self.process.communicate(timeout=30)


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A short path for the socket; fails if a test leaves a process running."""
    folder = tmp_path_factory.mktemp("s")
    yield folder
    lease.end_all()
    eventually(lambda: not processes_of(folder))


def _lease(folder: Path, **fields: object) -> ServerLease:
    (settings,) = launch.plan(fake_spec(folder, **fields))
    return lease.acquire(settings)


def _gone(pid: int) -> bool:
    found = processes.process(pid)
    return found is None or found.zombie


def test_many_processes_share_one_server(folder: Path) -> None:
    """Processes that start at the same time share one server, which the last one ends."""
    users = [User(folder) for _ in range(4)]
    seen = {user.server_and_keeper() for user in users}
    assert len(seen) == 1
    ((server, keeper),) = seen
    for user in users[:3]:
        user.end()
    assert processes.process(server) is not None
    users[3].end()
    assert _gone(server)
    eventually(lambda: _gone(keeper))  # it ends right after its last connection
    assert processes_of(folder) == []
    assert starts(folder) == 1


def test_the_server_outlives_the_process_that_started_it(folder: Path) -> None:
    """The server outlives the process that started it, and ends when all users are killed."""
    first = User(folder)
    server, keeper = first.server_and_keeper()
    second = User(folder)
    assert second.server_and_keeper() == (server, keeper)
    first.kill()
    third = User(folder)
    assert third.server_and_keeper() == (server, keeper)
    second.kill()
    third.kill()
    eventually(lambda: _gone(server) and _gone(keeper) and not processes_of(folder), 10.0)


def test_a_crashed_server_is_started_again_once(folder: Path) -> None:
    """After SIGKILL to the server its engine ends too, and one new server starts."""
    using = _lease(folder)
    before = using.wait_ready()
    engines = [one.pid for one in processes.descendants(before.pid)]
    assert len(engines) == 1
    os.kill(before.pid, signal.SIGKILL)
    after = eventually(lambda: using.state.generation == 2 and using.wait_ready())
    assert (after.restarts, starts(folder)) == (1, 2)
    assert after.url != before.url
    assert all(map(_gone, engines))
    assert after.keeper_pid == before.keeper_pid


@pytest.mark.parametrize("victims", [["keeper"], ["guard"], ["keeper", "guard"]])
def test_there_is_one_server_whichever_process_is_killed(folder: Path, victims: list[str]) -> None:
    """If the keeper, the guard or both are killed, the old server ends before a new one starts."""
    using = _lease(folder)
    before = using.wait_ready()
    engines = [one.pid for one in processes.descendants(before.pid)]
    guard = processes.process(before.pid).parent
    for victim in victims:
        os.kill(before.keeper_pid if victim == "keeper" else guard, signal.SIGKILL)
    after = eventually(lambda: using.state.generation == 2 and using.wait_ready())
    assert all(map(_gone, [before.pid, *engines]))
    assert starts(folder) == 2
    assert after.pid != before.pid
    assert len(processes_of(folder)) >= 3  # a guard, a server, an engine


def test_a_server_with_a_failed_engine_is_restarted(folder: Path) -> None:
    """``still_serves`` checks the server's health, and an unhealthy server is replaced."""
    using = _lease(folder)
    state = using.wait_ready()
    assert asyncio.run(using.still_serves(state.generation))
    with pytest.raises(OSError, match="500"):
        urllib.request.urlopen(f"{state.url}/v1/x", data=b'{"prompt": "HANG-ENGINE"}')
    assert not asyncio.run(using.still_serves(state.generation))
    assert eventually(lambda: using.state.generation == 2 and using.wait_ready()).restarts == 1


def test_a_server_that_cannot_start_gives_its_reason(folder: Path) -> None:
    """A server that fails to start twice ends with its log; opening it again starts it again."""
    (folder / "broken").touch()
    with pytest.raises(BackendUnusable, match="there is no such model") as raised:
        _lease(folder).wait_ready()
    assert "model 'tiny'" in str(raised.value)
    assert starts(folder) == 2
    (folder / "broken").unlink()
    assert _lease(folder).wait_ready().status == "ready"


def test_another_model_on_the_same_accelerators_is_refused(folder: Path) -> None:
    """Another model on the same accelerators is rejected in any process."""
    _lease(folder).wait_ready()
    with pytest.raises(BackendUnusable, match="one server per accelerator group"):
        _lease(folder, args=("--max-model-len=8",))
    script = USER.replace("sys.argv[1]))", "sys.argv[1]), args=('--seed=1',))")
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "already serve model 'tiny' with no arguments" in done.stderr
    assert starts(folder) == 1


def test_a_lease_ends_without_the_lock(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease ends outside the lock, which `release` takes on the event loop."""
    settings = [launch.plan(fake_spec(folder, args=(f"--seed={n}",)))[0] for n in range(2)]
    first = lease.acquire(settings[0])
    first.wait_ready()
    lease.release(first, settings[0])
    locked = []
    end = ServerLease.end

    def watched(self: ServerLease) -> None:
        locked.append(lease._leasing.locked())
        end(self)

    monkeypatch.setattr(ServerLease, "end", watched)
    second = lease.acquire(settings[1])
    assert second.wait_ready().status == "ready"
    assert second is not first
    assert locked == [False]
    assert starts(folder) == 2


def test_restarts_are_counted_across_keepers(folder: Path) -> None:
    """A killed keeper's successor continues the count of restarts; an orderly end resets it."""
    using = _lease(folder)
    before = using.wait_ready()
    os.kill(before.pid, signal.SIGKILL)
    eventually(lambda: using.state.generation == 2 and using.wait_ready())
    os.kill(before.keeper_pid, signal.SIGKILL)
    after = eventually(lambda: using.state.generation == 3 and using.wait_ready())
    assert after.restarts == 2
    lease.end_all()
    assert _lease(folder).wait_ready().restarts == 0


def test_a_released_server_lingers(folder: Path) -> None:
    """A released server lingers for reuse, then ends although the process lives."""
    (settings,) = launch.plan(fake_spec(folder, linger_s=0.5))
    first = lease.acquire(settings)
    state = first.wait_ready()
    lease.release(first, settings)
    again = lease.acquire(settings)
    assert again is first
    lease.release(again, settings)
    eventually(lambda: _gone(state.pid) and _gone(state.keeper_pid))


def test_the_servers_log_reaches_ours(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each line of the server's log has the level that it names."""
    _lease(folder).wait_ready()
    eventually(lambda: [r for r in caplog.records if r.name == "transforms.backends.vllm.log"])
    (record,) = [r for r in caplog.records if r.name == "transforms.backends.vllm.log"]
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith("WARNING engine ")


def test_the_port_is_published_by_file(folder: Path) -> None:
    """The port is in a file that people and scripts can read."""
    state = _lease(folder).wait_ready()
    published = json.loads((folder / "cpu" / "state.json").read_text())
    assert published["url"] == state.url
    assert published["status"] == "ready"


def test_only_one_suspect_runs_alone_per_machine(folder: Path) -> None:
    """The right to run the only suspect is machine-wide."""
    using = _lease(folder)
    assert using.acquire_solo()
    assert not using.acquire_solo()
    using.release_solo()
    assert using.acquire_solo()
    using.release_solo()


def test_a_spec_can_be_pickled() -> None:
    """A spec can be pickled as part of a backend."""
    spec = launch.ServerSpec(model="m", served_name="m")
    assert pickle.loads(pickle.dumps(spec)) == spec
