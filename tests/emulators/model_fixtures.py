"""The pytest fixture ``model_server``: a simulated model server in a process of its own.

Limits: the server's formats are written from captures and vendor documentation; no
real endpoint was called (see ``tests.emulators.model_server``).
"""

import contextlib
import json
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.emulators.processes import ServerProcess

_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class SimulatedModelServer:
    """A running server.

    Attributes:
        base_url: For the Vertex dialect, such as ``http://127.0.0.1:41234``.
    """

    base_url: str

    @property
    def openai_url(self) -> str:
        """The base URL of the OpenAI dialect; ends in ``/v1``."""
        return f"{self.base_url}/v1"

    def stats(self) -> dict[str, Any]:
        """Counts since the last reset: the fields of ``model_server.stats.Stats``."""
        return self._call("GET", "/_stats")

    def requests(self) -> list[dict[str, Any]]:
        """The last 1,000 model calls, oldest first: method, path, query, headers, body."""
        seen: list[dict[str, Any]] = self._call("GET", "/_requests")["requests"]
        return seen

    def reset(self) -> None:
        """Clears counts, requests, and the number of attempts of each prompt."""
        self._call("POST", "/_reset")

    def _call(self, method: str, path: str) -> dict[str, Any]:
        request = urllib.request.Request(self.base_url + path, method=method)
        with _OPENER.open(request, timeout=30) as response:
            body: dict[str, Any] = json.load(response)
        return body


_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@contextlib.contextmanager
def running_model_server(folder: Path, *flags: str) -> Iterator[SimulatedModelServer]:
    """Runs a separate server, for flags that the shared one lacks.

    Args:
        folder: Gets the server's log.
        flags: Flags of ``python -m tests.emulators.model_server``, such as ``--api_key=k``.
    """
    command = [sys.executable, "-m", "tests.emulators.model_server", "--owned", *flags]
    log = folder / "model-server.log"
    with ServerProcess("model", command, log=log, folder=_ROOT) as process:
        yield SimulatedModelServer(process.addresses["base"])


@pytest.fixture(scope="session")
def model_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedModelServer]:
    """One server for the whole run, on a free port; call ``reset()`` before reading counts."""
    with running_model_server(tmp_path_factory.mktemp("model-server")) as server:
        yield server
