"""Runs Google's Pub/Sub emulator as a child that ends with its owner.

``python -m tests.emulators.pubsub_server JAVA JAR``. The data lives in memory. Limits: unlike the
service, the emulator accepts attributes of any length, ignores a subscription's filter, and has no
permissions.
"""

import argparse
import os
import socket
import subprocess
import sys
import threading
from typing import TextIO

from tests.emulators.owner_link import OwnerLink

READY = "Server started, listening on"
ATTEMPTS = 3
"""The emulator cannot pick a port itself: another process may take the free one."""


def free_port() -> int:
    """Returns a port of the loopback interface on which no process listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(command: list[str]) -> subprocess.Popen[str] | None:
    """Starts the emulator and waits until it listens; None if it ended before."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        sys.stderr.write(line)
        sys.stderr.flush()
        if READY in line:
            threading.Thread(target=_copy, args=(process.stdout,), daemon=True).start()
            return process
    process.wait()
    return None


def _copy(output: TextIO) -> None:
    """Copies output to the log, since a full pipe without a reader would block the emulator."""
    for line in output:
        sys.stderr.write(line)


def main() -> None:
    """Serves until the owner ends."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("java")
    parser.add_argument("jar")
    arguments = parser.parse_args()
    link = OwnerLink()
    for _ in range(ATTEMPTS):
        port = free_port()
        process = start(
            [
                arguments.java,
                "-Xmx512m",
                "-jar",
                arguments.jar,
                "--host=127.0.0.1",
                f"--port={port}",
            ]
        )
        if process is not None:
            break
    else:
        sys.exit("the emulator ended before it listened")
    link.announce(grpc=f"127.0.0.1:{port}")
    while os.read(0, 4096):  # ends with the owner
        pass
    process.kill()


if __name__ == "__main__":
    main()
