"""``make stream``, the README's first command, for a few seconds."""

import subprocess
import sys

from tests.emulators.environment import REPOSITORY
from tests.emulators.google_cloud import LoopbackCloud
from tests.emulators.pubsub import PubSubEmulator


def test_the_example_streams_and_is_stopped(
    loopback_cloud: LoopbackCloud, pubsub_emulator: PubSubEmulator
) -> None:
    """The example starts its own servers, streams, and ends when it is interrupted."""
    done = subprocess.run(
        [sys.executable, "examples/stream.py", "--seconds=15"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "reconciled" in said
    assert "NOT RECONCILED" not in said
    assert '"difference": 0' in said
