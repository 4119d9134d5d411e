"""A local stream that crashes: its files hold acknowledged messages; others are redelivered."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from google.pubsub_v1 import PublisherClient

from tests.emulators.environment import REPOSITORY
from tests.emulators.model_fixtures import SimulatedModelServer
from tests.emulators.pubsub import PubSubEmulator
from tests.end_to_end.runs import rows_of
from tests.end_to_end.streams import DEADLINE_S, wait_until

FIRST = {f"k{n}": "hello" for n in range(30)} | {"bad 1": "", "bad 2": ""}
"""Texts by id; a message without a text is malformed."""


class Watched:
    """A subscription, and a second one that shows which messages the first has not acknowledged."""

    def __init__(self, pubsub: PubSubEmulator) -> None:
        self._pubsub, self._topic = pubsub, pubsub.new_topic()
        self.name, self._mirror = (pubsub.new_subscription(self._topic) for _ in range(2))

    def publish(self, texts: dict[str, str]) -> None:
        """Publishes messages with these texts by id."""
        bodies = {key: json.dumps({"text": text}) if text else "{" for key, text in texts.items()}
        self._pubsub.publish(
            self._topic, [(body.encode(), {"id": key}) for key, body in bodies.items()]
        )

    def is_acknowledged(self) -> bool:
        """Whether all messages are acknowledged."""
        return self._pubsub.is_acknowledged(self.name, self._mirror)

    def delivers(self, ids: Iterable[str]) -> bool:
        """Whether all of these are redelivered, once nothing else reads the subscription."""
        missing = set(ids)
        while missing:
            received = self._pubsub.unacknowledged(self.name)
            if not received:
                return False
            missing -= {message.message.attributes["id"] for message in received}
        return True


@contextlib.contextmanager
def streaming(
    pubsub: PubSubEmulator, subscription: Watched, *arguments: str
) -> Iterator[subprocess.Popen[str]]:
    """Runs ``python -m pipeline`` on the subscription; kills it at the end of the block."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "pipeline", f"--input_subscription={subscription.name}"),
            *("--prompt={{ text }}", "--id_field=id", *arguments),
        ],
        env=pubsub.subprocess_environment(),
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ids_in(folder: Path) -> set[str]:
    """The ids with a row, as a result or as a dead letter."""
    patterns = [f"{folder}/{name}/*" for name in ("results", "dead_letters")]
    return {row["record_id"] for pattern in patterns for row in rows_of(pattern)}


def test_a_killed_stream_loses_no_message(
    pubsub: PubSubEmulator, model_server: SimulatedModelServer, tmp_path: Path
) -> None:
    """Rows exist before their messages are acknowledged; the current bundle is redelivered."""
    subscription = Watched(pubsub)
    subscription.publish(FIRST)
    model_server.reset()
    with streaming(
        pubsub,
        subscription,
        "--backend=openai",
        "--model=m",
        f"--endpoint={model_server.openai_url}",
        f"--output_path={tmp_path}",
    ) as process:
        wait_until(lambda: subscription.is_acknowledged() and ids_in(tmp_path) == set(FIRST))
        second = {"slow": "[[hang]]"} | {f"later {n}": "hello" for n in range(9)} | {"bad 3": ""}
        subscription.publish(second)
        wait_until(lambda: model_server.stats()["in_flight"] > 0)
        process.kill()
        process.wait(DEADLINE_S)
    held = ids_in(tmp_path)
    assert set(FIRST) <= held
    assert "slow" not in held
    assert subscription.delivers(second.keys() - held)


def test_a_failed_stream_loses_no_message(pubsub: PubSubEmulator, tmp_path: Path) -> None:
    """A failed stream keeps its files, also in Parquet; only the hidden folders are deleted."""
    subscription, dead = Watched(pubsub), pubsub.new_topic()
    subscription.publish(FIRST)
    with streaming(
        pubsub,
        subscription,
        "--backend=fake",
        f"--output_path={tmp_path}",
        "--output_format=parquet",
        f"--dead_letter_topic={dead}",
    ) as process:
        wait_until(lambda: subscription.is_acknowledged() and ids_in(tmp_path) == set(FIRST))
        PublisherClient().delete_topic(topic=dead)
        second = {f"later {n}": "hello" for n in range(9)} | {"bad 3": ""}
        subscription.publish(second)
        _, said = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1, said
    assert "1 dead letters were not published" in said
    held = ids_in(tmp_path)
    assert set(FIRST) <= held
    assert subscription.delivers(second.keys() - held)
    assert list(tmp_path.glob("*/.*")) == []
