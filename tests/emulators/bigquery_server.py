"""Runs bqemulator 1.4.0 with the shim of ``bigquery_shim``, which lists its limits.

Run by the servers' interpreter: ``python -m tests.emulators.bigquery_server FOLDER --objects
OBJECTS --storage-url URL``. The data lives in memory and ends with the process, unless ``--keep``
names a folder for it: a server restarted there on the same ports continues where the last one was
killed.
"""

import argparse
import asyncio
from pathlib import Path
from typing import Any

from tests.emulators.bigquery_shim.extensions import use_bundled_extensions
from tests.emulators.owner_link import OwnerLink


async def serve(settings: Any, link: OwnerLink) -> None:
    """Starts the server, announces it and serves until the process is killed."""
    from bqemulator.server import EmulatorServer

    server = EmulatorServer(settings)
    await server.start()
    link.announce(rest=f"127.0.0.1:{server.rest_port}", grpc=server.grpc_endpoint)
    await asyncio.Event().wait()


def main() -> None:
    """Serves until the owner ends."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="the server's own files")
    parser.add_argument("--project", required=True)
    parser.add_argument("--objects", type=Path, required=True, help="where gs:// objects lie")
    parser.add_argument("--storage-url", required=True, help="the storage emulator")
    parser.add_argument("--keep", type=Path, help="where the data outlives the process")
    parser.add_argument("--rest-port", type=int, default=0)
    parser.add_argument("--grpc-port", type=int, default=0)
    arguments = parser.parse_args()
    link = OwnerLink()
    link.end_with_owner()
    use_bundled_extensions(arguments.folder)
    from bqemulator.config import LogFormat, LogLevel, PersistenceMode, Settings

    from tests.emulators.bigquery_shim.install import install

    install(arguments.storage_url)
    settings = Settings(
        rest_port=arguments.rest_port,
        grpc_port=arguments.grpc_port,
        persistence_mode=(
            PersistenceMode.PERSISTENT if arguments.keep else PersistenceMode.EPHEMERAL
        ),
        data_dir=arguments.keep,
        default_project_id=arguments.project,
        gcs_local_root=arguments.objects,
        upload_staging_dir=arguments.folder / "uploads",
        log_level=LogLevel.WARNING,
        log_format=LogFormat.CONSOLE,
    )
    asyncio.run(serve(settings, link))


if __name__ == "__main__":
    main()
