"""Helpers of the supervisor's tests: the stand-in's spec, and its remaining processes."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from transforms.backends.vllm.launch import ServerSpec
from transforms.backends.vllm.processes import all_processes

FAKE_VLLM = str(Path(__file__).parent / "fake_vllm")
ROOT = str(Path(__file__).parents[4])
T = TypeVar("T")


def fake_spec(folder: Path, **fields: Any) -> ServerSpec:
    """The stand-in's spec; its locks, record of starts and switches are files in the folder."""
    environment = {
        "PYTHONPATH": FAKE_VLLM,
        "CUDA_VISIBLE_DEVICES": "",
        "FAKE_STARTS": str(folder / "starts"),
        "FAKE_BROKEN": str(folder / "broken"),
        "FAKE_RELEASE": str(folder / "release"),
        **fields.pop("environment", {}),
    }
    return ServerSpec(
        model="tiny",
        served_name="tiny",
        python=sys.executable,
        folder=str(folder),
        environment=tuple(environment.items()),
        **fields,
    )


def eventually(condition: Callable[[], T], within_s: float = 30.0) -> T:
    """The first true value of a condition; fails after a timeout."""
    until = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < until, f"not within {within_s:g} s"
        time.sleep(0.02)
    return value


def starts(folder: Path) -> int:
    """The number of servers started."""
    return len((folder / "starts").read_text().splitlines())


def processes_of(folder: Path) -> list[str]:
    """Command lines of all processes of servers in this folder."""
    found = []
    for one in all_processes():
        try:
            environment = Path(f"/proc/{one.pid}/environ").read_bytes()
            command = Path(f"/proc/{one.pid}/cmdline").read_bytes()
        except OSError:
            continue
        if one.zombie or one.pid == os.getpid():
            continue
        if f"FAKE_STARTS={folder}/".encode() in environment or f"{folder}".encode() in command:
            found.append(command.replace(b"\0", b" ").decode())
    return found
