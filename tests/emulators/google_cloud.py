"""Starts the loopback Google Cloud and points this process, or a sub-process, at it.

Three servers: Cloud Storage and BigQuery (each a process in the servers' environment) and a
metadata server for credentials (a thread). The docstrings of ``storage_server``, ``bigquery_shim``
and ``metadata_server`` list their limits.
"""

import contextlib
import importlib
import os
import socket
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from tests.emulators.environment import REPOSITORY
from tests.emulators.metadata_server import serve_metadata
from tests.emulators.processes import ServerProcess
from tests.emulators.subprocess_site.emulated_clients import POINT_CLIENT

PROJECT = "emu-proj"
SUBPROCESS_SITE = Path(__file__).with_name("subprocess_site")

# A developer's own settings that would lead the clients elsewhere.
REMOVED_VARIABLES = (
    "GOOGLE_APPLICATION_CREDENTIALS",
    "GCE_METADATA_ROOT",
    "NO_GCE_CHECK",
    "GCLOUD_PROJECT",
    "CLOUDSDK_CORE_PROJECT",
)


@dataclass(frozen=True, slots=True)
class LoopbackCloud:
    """A running loopback Google Cloud; ``running`` starts and ends one.

    Attributes:
        environment: the variables that lead Google's clients to the servers.
        project: the project that the clients find, and the datasets belong to.
    """

    environment: Mapping[str, str] = field(repr=False)
    project: str = PROJECT

    @classmethod
    @contextlib.contextmanager
    def running(cls, python: Path, folder: Path) -> Iterator["LoopbackCloud"]:
        """Starts the servers, one to two seconds, and kills them when the block ends.

        Args:
            python: the interpreter of the servers' environment.
            folder: an existing folder for logs and objects, for this cloud alone.

        Raises:
            ServerStartError: a server did not start; the message ends with its log.
        """
        with contextlib.ExitStack() as stack:
            metadata = stack.enter_context(serve_metadata(PROJECT))
            storage = stack.enter_context(
                _server("storage", python, folder, [str(_made(folder / "storage"))])
            )
            storage_url = f"http://{storage.addresses['rest']}"
            arguments = [
                str(_made(folder / "bigquery")),
                f"--project={PROJECT}",
                f"--objects={folder / 'storage' / 'objects'}",
                f"--storage-url={storage_url}",
            ]
            bigquery = stack.enter_context(_server("bigquery", python, folder, arguments))
            yield cls(
                {
                    "BIGQUERY_EMULATOR_HOST": f"http://{bigquery.addresses['rest']}",
                    "BIGQUERY_STORAGE_EMULATOR_HOST": bigquery.addresses["grpc"],
                    "STORAGE_EMULATOR_HOST": storage_url,
                    "GCE_METADATA_HOST": metadata,
                    "GCE_METADATA_IP": metadata,
                    "GOOGLE_CLOUD_PROJECT": PROJECT,
                    "CLOUDSDK_CONFIG": str(_made(folder / "gcloud")),
                    "NO_PROXY": "127.0.0.1,localhost",
                    "no_proxy": "127.0.0.1,localhost",
                }
            )

    def subprocess_environment(self, **more: str) -> dict[str, str]:
        """Returns a whole environment for a sub-process that uses this cloud.

        This process's own variables, the cloud's, and ``PYTHONPATH`` with the folder whose
        ``sitecustomize`` redirects the clients that follow no variable.

        Args:
            more: further variables, which take precedence.
        """
        own = {name: value for name, value in os.environ.items() if name not in REMOVED_VARIABLES}
        paths = [str(SUBPROCESS_SITE), own.get("PYTHONPATH", "")]
        python_path = os.pathsep.join(path for path in paths if path)
        return own | dict(self.environment) | {"PYTHONPATH": python_path} | more

    @contextlib.contextmanager
    def clients_redirected(self) -> Iterator[None]:
        """Points Google's and Beam's clients in this process at the cloud, until the end.

        Clients made inside the block keep using the cloud afterwards; those made before it
        are not touched.
        """
        from apache_beam.internal.gcp.auth import _Credentials
        from google.auth.compute_engine import _metadata

        metadata_host = self.environment["GCE_METADATA_HOST"]
        timeout_s = socket.getdefaulttimeout()  # Beam sets one for the whole process.
        with contextlib.ExitStack() as stack:
            stack.callback(socket.setdefaulttimeout, timeout_s)
            stack.enter_context(mock.patch.dict(os.environ, self.environment))
            for name in REMOVED_VARIABLES:
                os.environ.pop(name, None)
            # google-auth reads the variable when it is imported, and Beam keeps the credentials it
            # found.
            stack.enter_context(mock.patch.object(_metadata, "_GCE_METADATA_HOST", metadata_host))
            stack.enter_context(mock.patch.object(_Credentials, "_credentials", None))
            stack.enter_context(mock.patch.object(_Credentials, "_credentials_init", False))
            for module, point_client in POINT_CLIENT.items():
                stack.callback(point_client(importlib.import_module(module)))
            yield

    def new_dataset(self) -> str:
        """Creates an empty dataset and returns its unique name, ``project.dataset``."""
        from google.auth.credentials import AnonymousCredentials
        from google.cloud import bigquery

        name = f"{self.project}.test_{uuid.uuid4().hex[:12]}"
        with contextlib.closing(
            bigquery.Client(
                self.project,
                AnonymousCredentials(),  # type: ignore[no-untyped-call]
                client_options={"api_endpoint": self.environment["BIGQUERY_EMULATOR_HOST"]},
            )
        ) as client:
            client.create_dataset(name)
        return name

    def new_bucket(self) -> str:
        """Creates an empty bucket and returns its unique name, without ``gs://``."""
        from google.auth.credentials import AnonymousCredentials
        from google.cloud.storage import Client

        name = f"test-{uuid.uuid4().hex[:12]}"
        client = Client(
            self.project,
            AnonymousCredentials(),  # type: ignore[no-untyped-call]
            client_options={"api_endpoint": self.environment["STORAGE_EMULATOR_HOST"]},
        )
        client.create_bucket(name)
        client.close()
        return name


def _server(name: str, python: Path, folder: Path, arguments: list[str]) -> ServerProcess:
    return ServerProcess(
        name,
        [str(python), "-m", f"tests.emulators.{name}_server", *arguments],
        log=folder / f"{name}.log",
        folder=REPOSITORY,
    )


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
