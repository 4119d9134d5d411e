"""Checks which server processes are left when the command ends or is killed."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks.vllm.clients import flags_of, ran, server_figures, write_records
from benchmarks.vllm.prompts import requests_of
from benchmarks.vllm.table import Line, Table
from transforms.backends.vllm import processes
from transforms.backends.vllm.backend import VLLMBackend

GONE_WITHIN_S = 10.0
_WATCHED_S = 30.0
_PROMPTS = 200


class _Command:
    """``python -m pipeline`` in its own process, with all its descendants."""

    def __init__(self, backend: VLLMBackend, folder: str) -> None:
        write_records(folder, requests_of("e", _PROMPTS, "natural"))
        self._folder = folder
        self._seen: set[tuple[int, int]] = set()
        with pathlib.Path(folder, "log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipeline", *flags_of(backend, folder)],
                env={**os.environ, "VLLM_SERVER_FOLDER": folder},
                stdout=log,
                stderr=log,
            )

    def serves(self) -> bool:
        """Whether its server works on a request; records the processes that exist."""
        try:
            state = json.loads(pathlib.Path(self._folder, "cpu/state.json").read_text())
        except (OSError, ValueError):
            return False
        root = processes.process(state["keeper_pid"])
        for one in [*processes.descendants(state["keeper_pid"]), *([root] if root else [])]:
            self._seen.add((one.pid, one.started))
        return bool(server_figures(state["url"]).get("running"))

    def await_work(self) -> None:
        """Waits until its server works on a request, or the command has ended without one."""
        while self.process.poll() is None and not self.serves():
            time.sleep(0.05)

    def left(self) -> list[int]:
        """The processes of its server that are still alive; at least three were seen before."""
        alive: list[Any] = [processes.process(pid) for pid, _ in self._seen]
        found = [one.pid for one in alive if one and (one.pid, one.started) in self._seen]
        return found if len(self._seen) >= 3 else [-1]


def ended(table: Table, backend: VLLMBackend) -> None:
    """Runs to its end, with its own server."""
    with tempfile.TemporaryDirectory(prefix="vb") as folder:
        began = time.perf_counter()
        command = _Command(backend, folder)
        command.await_work()
        status = command.process.wait()
        left = len(command.left())
        seconds = time.perf_counter() - began
        table.add(Line(f"the command with its own server, {_PROMPTS} prompts", seconds, 0, 0))
        wrong = ran(folder, status).wrong(_PROMPTS, set())
        table.expect(not wrong, wrong or "every record ended once")
        table.expect(not left, f"{left} processes left after its end")


def killed(table: Table, backend: VLLMBackend) -> None:
    """Sends SIGKILL to the process that runs the pipeline, in the middle of its work."""
    with tempfile.TemporaryDirectory(prefix="vb") as folder:
        command = _Command(backend, folder)
        command.await_work()
        command.process.kill()
        began = time.perf_counter()
        while (left := command.left()) and time.perf_counter() - began < _WATCHED_S:
            time.sleep(0.05)
        seconds = time.perf_counter() - began
        command.process.wait()
        table.add(Line("SIGKILL to the worker, until nothing is left", seconds, 0, 0))
        table.expect(
            not left and seconds <= GONE_WITHIN_S,
            f"{len(left)} processes of the server left after {GONE_WITHIN_S:g} s"
            if seconds > GONE_WITHIN_S
            else f"{len(left)} processes of the server left",
        )
