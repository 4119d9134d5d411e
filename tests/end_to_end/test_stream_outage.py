"""A stream with a model outage: it holds messages in bounded memory and recovers by itself."""

import contextlib
import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.local import lease
from tests.emulators.environment import REPOSITORY
from tests.emulators.processes import ServerProcess
from tests.emulators.pubsub import PubSubEmulator
from tests.end_to_end.runs import check_summary, in_files
from tests.end_to_end.streams import ended, run_until
from transforms.accounting import metrics

COUNT = 6000


@pytest.fixture
def model(tmp_path: Path) -> Iterator[ServerProcess]:
    """A model server that can be stopped and restarted on the same port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.emulators.model_server", "--owned", f"--port={port}"]
    log = tmp_path / "model.log"
    with ServerProcess("model", command, log=log, folder=REPOSITORY) as server:
        yield server


def test_messages_are_held_while_the_model_is_down(
    pubsub: PubSubEmulator, model: ServerProcess, tmp_path: Path
) -> None:
    """Messages over the limit stay in the subscription, and none becomes a dead letter."""
    topic = pubsub.new_topic()
    subscription = pubsub.new_subscription(topic, ack_deadline_s=60)
    ids = [f"k{n}" for n in range(COUNT)]
    pubsub.publish(topic, [(json.dumps({"id": key, "text": "x"}).encode(), {}) for key in ids])
    held: list[int] = []

    def story() -> Iterator[None]:
        while ended() < 300:
            yield
        model.stop()
        while not metrics.LIVE.snapshot().get("outage_s"):
            yield
        for _ in range(40):
            counts = metrics.LIVE.snapshot()
            held.append(counts["waiting_requests"] + counts["in_flight_requests"])
            yield
        assert ended() < COUNT
        model.start()
        while ended() < COUNT:
            yield

    steps = story()

    def is_told() -> bool:
        with contextlib.suppress(StopIteration):
            next(steps)
            return False
        return True

    code = run_until(
        is_told,
        f"--input_subscription={subscription}",
        "--prompt={{ text }}",
        "--backend=openai",
        "--model=m",
        f"--endpoint={model.addresses['base']}/v1",
        f"--output_path={tmp_path}/out",
    )

    assert code == 130
    found = in_files(tmp_path / "out")
    check_summary(found)
    assert {row["record_id"] for row in found.results} == set(ids)  # twice if a lease expires
    assert found.letters == []
    assert 0 < max(held) <= lease.MAX_BUNDLE
