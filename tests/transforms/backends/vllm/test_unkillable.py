"""The next server waits for a process that cannot be killed, such as one blocked by a driver.

Keeper and guard run a copy of the package that kills no engine until a file exists.
"""

import dataclasses
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.transforms.backends.vllm.servers import ROOT, eventually, fake_spec, processes_of, starts
from transforms.backends.vllm import launch, lease, processes
from transforms.backends.vllm.keeper import lock_of
from transforms.backends.vllm.lease import ServerLease

PATCH = """
REPORT_EVERY_S = 0.2
_plain_kill = kill


def kill(pids):
    for pid in pids:
        with open(f"/proc/{{pid}}/cmdline", "rb") as command:
            held = b"time.sleep(1e6)" in command.read()
        if not held or os.path.exists({killable!r}):
            _plain_kill([pid])
"""


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of one server, all of whose processes can be killed at the end."""
    folder = tmp_path_factory.mktemp("s")
    yield folder
    (folder / "killable").touch()
    lease.end_all()
    eventually(lambda: not processes_of(folder))


@pytest.fixture
def using(folder: Path) -> ServerLease:
    """A server whose engine survives signals."""
    package = folder / "transforms"
    vllm = package / "backends" / "vllm"
    shutil.copytree(Path(ROOT, "transforms/backends/vllm"), vllm)
    shutil.copy(Path(ROOT, "transforms/backends/__init__.py"), vllm.parent)
    with (vllm / "processes.py").open("a") as module:
        module.write(PATCH.format(killable=str(folder / "killable")))
    with (vllm / "keeper.py").open("a") as module:
        module.write("\n_LOCK_WAIT_S = 0.2\n")
    (settings,) = launch.plan(fake_spec(folder))
    return lease.acquire(dataclasses.replace(settings, package=str(package)))


def _engine(using: ServerLease) -> int:
    (engine,) = processes.descendants(using.wait_ready().pid)
    return engine.pid


def _gone(pid: int) -> bool:
    found = processes.process(pid)
    return found is None or found.zombie


def _lock_is_held(folder: Path) -> bool:
    return lock_of(str(folder / "cpu"), 0.0) is None


def test_the_next_server_waits_for_the_last_process(
    using: ServerLease, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """While the dead server's engine lives, no second server starts, and the log says why."""
    engine = _engine(using)
    os.kill(using.state.pid, signal.SIGKILL)
    eventually(lambda: f"waiting for process {engine}: killed" in caplog.text)
    eventually(lambda: using.state.status == "restarting")
    assert starts(folder) == 1
    assert _lock_is_held(folder)
    (folder / "killable").touch()
    after = eventually(lambda: using.state.generation == 2 and using.wait_ready())
    assert (after.restarts, starts(folder)) == (1, 2)
    assert _gone(engine)


@pytest.mark.parametrize("victims", [["keeper"], ["keeper", "guard"]])
def test_a_new_keeper_waits_as_well(using: ServerLease, folder: Path, victims: list[str]) -> None:
    """A new keeper waits for the guard that holds the lock, and for the old server's session."""
    engine = _engine(using)
    before = using.state
    guard = processes.process(before.pid).parent
    for victim in victims:
        os.kill(before.keeper_pid if victim == "keeper" else guard, signal.SIGKILL)
    log = folder / "cpu" / "keeper.log"
    eventually(lambda: f"waiting for process {engine}: killed" in log.read_text())
    eventually(lambda: using.state.status == "lost")
    assert starts(folder) == 1
    assert _lock_is_held(folder)
    (folder / "killable").touch()
    after = eventually(lambda: using.state.generation == 2 and using.wait_ready())
    assert (after.restarts, starts(folder)) == (1, 2)
    assert _gone(engine)
