"""A loopback BigQuery that can be killed and restarted with its data."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from tests.emulators.environment import REPOSITORY
from tests.emulators.google_cloud import PROJECT, LoopbackCloud
from tests.emulators.processes import ServerProcess


class RestartableBigQuery:
    """One server with one folder and constant addresses.

    Attributes:
        cloud: the loopback cloud, with this server as its BigQuery.
    """

    def __init__(self, python: Path, folder: Path, cloud: LoopbackCloud) -> None:
        """Starts the server for the first time."""
        (folder / "own").mkdir()
        (folder / "kept").mkdir()
        self._python, self._folder = python, folder
        self._storage_url = cloud.environment["STORAGE_EMULATOR_HOST"]
        self._server = self._make("0", "0")
        self._server.start()
        self._rest, self._grpc = (self._server.addresses[name] for name in ("rest", "grpc"))
        addresses = {
            "BIGQUERY_EMULATOR_HOST": f"http://{self._rest}",
            "BIGQUERY_STORAGE_EMULATOR_HOST": self._grpc,
        }
        self.cloud = dataclasses.replace(cloud, environment={**cloud.environment, **addresses})

    def kill(self) -> None:
        """Kills the server (``SIGKILL``) at any time."""
        self._server.stop()

    def restart(self) -> None:
        """Kills the server and starts it again; returns when it accepts requests."""
        self.kill()
        self._server = self._make(
            *(address.rpartition(":")[2] for address in (self._rest, self._grpc))
        )
        self._server.start()

    def _make(self, rest_port: str, grpc_port: str) -> ServerProcess:
        home = self._folder / "own" / f"{len(list((self._folder / 'own').iterdir()))}"
        home.mkdir()
        command = [str(self._python), "-m", "tests.emulators.bigquery_server", str(home)]
        command += [f"--project={PROJECT}", f"--objects={self._folder}"]
        command += [f"--storage-url={self._storage_url}", f"--keep={self._folder / 'kept'}"]
        command += [f"--rest-port={rest_port}", f"--grpc-port={grpc_port}"]
        log = home / "server.log"
        return ServerProcess("bigquery", command, log=log, folder=REPOSITORY)


@contextlib.contextmanager
def restartable_bigquery(
    folder: Path, cloud: LoopbackCloud, python: Path
) -> Iterator[RestartableBigQuery]:
    """A server of this kind, with this process's clients pointed at it."""
    server = RestartableBigQuery(python, folder, cloud)
    try:
        with server.cloud.clients_redirected():
            yield server
    finally:
        server.kill()
