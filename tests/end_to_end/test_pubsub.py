"""A stream from a subscription to every sink, until Ctrl-C: each id is accounted for."""

import collections
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.emulators.environment import REPOSITORY
from tests.emulators.pubsub import PubSubEmulator
from tests.end_to_end.runs import check_summary, in_files, run
from tests.end_to_end.streams import DEADLINE_S, ended, run_until

Message = tuple[bytes, dict[str, str]]


def drained(pubsub: PubSubEmulator, subscription: str, count: int) -> list[Message]:
    """The next ``count`` messages of a subscription."""
    found: list[Message] = []
    while len(found) < count:
        received = pubsub.pull(subscription, timeout_s=30)
        assert received, f"{len(found)} of {count} messages came"
        found += [(m.message.data, dict(m.message.attributes)) for m in received]
    return found


MALFORMED = (
    b"",
    b"\xff\xfe{}",
    b'{"text": "cut',
    b"[1, 2]",
    b"null",
    b"plain text",
    b'{"a":' * 300 + b"1" + b"}" * 300,
    b'{"text": "\x00"}',
    b"{'text': 'quotes'}",
    b"x" * 6_000_000,
)
"""Bodies that are not JSON objects in UTF-8; the last exceeds the usual limit of a pull."""


def hostile(count: int) -> Iterator[tuple[str | None, Message]]:
    """Messages with the id of their row; None stands for the message id."""
    for n in range(count):
        key = f"k{n}"
        attributes = {"key": key, "timeout": "soon", "topic": "sport", "data": "{}"}
        if n % 100 == 0:
            yield key, (MALFORMED[n // 100 % len(MALFORMED)], attributes)
        elif n % 100 == 1:  # the required id is missing
            yield None, (b'{"text": "nameless"}', {"tenant": "x"})
        elif n % 100 == 2:  # a field takes precedence over an attribute
            yield (
                f"field {n}",
                (json.dumps({"text": "x", "key": f"field {n}"}).encode(), attributes),
            )
        elif n % 100 == 3:
            yield key, (b'{"text": NaN, "more": [Infinity]}', attributes)
        elif n % 100 == 4:
            yield key, (b'{"text": "\\ud83d and \\u0000"}', attributes)
        elif n % 100 == 5:  # published twice
            yield "twice", (b'{"text": "twice"}', {"key": "twice"})
        elif n == 6:
            yield key, (json.dumps({"text": 1_000_000 * "ü "}).encode(), attributes)
        elif n % 100 == 7:
            yield key, (b'{"other": "a field that the prompt does not name"}', attributes)
        else:
            yield key, (json.dumps({"text": f"hello {n}"}).encode(), attributes)


def test_every_message_of_a_hostile_stream_ends_once(
    pubsub: PubSubEmulator, tmp_path: Path
) -> None:
    """Each of 2,000 messages, 1 % malformed, ends as one result or one dead letter."""
    topic, dead = pubsub.new_topic(), pubsub.new_topic()
    subscription, letters_of = pubsub.new_subscription(topic), pubsub.new_subscription(dead)
    messages = list(hostile(2000))
    poison = [(f"poison {n}", (b"{", {"key": f"poison {n}"})) for n in range(5)]
    for _, message in poison:
        pubsub.publish(topic, [message])
    for _ in range(3):  # a reader that fails on them receives them again, for ever
        again = {m.message.attributes["key"] for m in pubsub.pull(subscription, acknowledge=False)}
        assert again == {key for key, _ in poison}
    ids = pubsub.publish(topic, [message for _, message in messages])
    expected = collections.Counter(
        key or message_id for (key, _), message_id in zip(messages, ids, strict=True)
    ) + collections.Counter(key for key, _ in poison)

    code = run_until(
        lambda: ended() >= 2005,
        f"--input_subscription={subscription}",
        "--id_field=key",
        "--prompt={{ text }}",
        "--backend=fake",
        f"--output_path={tmp_path}/out",
        f"--dead_letter_topic={dead}",
    )

    assert code == 130
    held = in_files(tmp_path / "out")
    check_summary(held)
    by_type = collections.Counter(row["error_type"] for row in held.letters)
    assert by_type == {"parse_error": 25, "missing_field": 40}
    rows = [*held.results, *held.letters]
    assert collections.Counter(row["record_id"] for row in rows) == expected
    published = drained(pubsub, letters_of, 65)
    assert collections.Counter(attributes["record_id"] for _, attributes in published) == (
        collections.Counter(row["record_id"] for row in held.letters)
    )
    by_id = dict(messages)
    for data, attributes in published:
        if attributes["error_type"] == "parse_error" and attributes["record_id"] in by_id:
            sent, original = by_id[attributes["record_id"]]
            assert data == sent
            assert set(original.items()) <= set(attributes.items())
            assert (attributes["stage"], attributes["run_id"]) == ("read", held.summary["run_id"])
    assert pubsub.unacknowledged(subscription) == []
    assert pubsub.unacknowledged(letters_of) == []


def test_a_stream_without_messages(pubsub: PubSubEmulator, tmp_path: Path) -> None:
    """A stream without messages ends at Ctrl-C with an empty summary."""
    subscription = pubsub.new_subscription(pubsub.new_topic())
    running: list[bool] = []

    def runs() -> bool:
        running.append(any(thread.name == "pipeline" for thread in threading.enumerate()))
        return sum(running) > 10

    code = run_until(
        runs,
        f"--input_subscription={subscription}",
        "--prompt={{ text }}",
        "--backend=fake",
        f"--output_path={tmp_path}/out",
    )
    assert code == 130
    held = in_files(tmp_path / "out")
    check_summary(held)
    assert held.summary["records"] == 0


@pytest.fixture
def command(pubsub: PubSubEmulator, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Starts ``python -m pipeline`` with arguments; kills it at the end of the test."""
    started = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline", *arguments],
            env=pubsub.subprocess_environment(),
            cwd=REPOSITORY,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_an_orderly_stop(
    pubsub: PubSubEmulator, tmp_path: Path, command: Callable[..., Any], stop: signal.Signals
) -> None:
    """An interrupted stream finishes the messages it has pulled, reports, and returns 130."""
    topic, dead = pubsub.new_topic(), pubsub.new_topic()
    subscription, letters_of = pubsub.new_subscription(topic), pubsub.new_subscription(dead)
    process = command(
        f"--input_subscription={subscription}",
        "--prompt={{ text }}",
        "--backend=fake",
        f"--output_path={tmp_path}/out",
        f"--dead_letter_topic={dead}",
    )
    good = [(json.dumps({"id": n, "text": "hello"}).encode(), {}) for n in range(20)]
    pubsub.publish(topic, [*good, (b"bad", {})])
    drained(pubsub, letters_of, 1)
    process.send_signal(stop)
    _, said = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130, said
    assert "stopping: taking no more messages and finishing those taken" in said
    assert "reconciled" in said
    held = in_files(tmp_path / "out")
    check_summary(held)
    taken = held.summary["records"]
    assert re.search(rf"records +{taken}\b", said)
    ids = {row["record_id"] for row in held.results}
    left = 20 - len(ids)
    again = [json.loads(data)["id"] for data, _ in drained(pubsub, subscription, left)]
    assert sorted([*map(int, ids), *again]) == list(range(20))
    assert pubsub.unacknowledged(subscription) == []


# Usage errors that are found before anything is read


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message of a command line that returns 2."""
    assert run("--prompt=x", "--backend=fake", *arguments) == 2
    return capsys.readouterr().err


def test_missing_resources(
    pubsub: PubSubEmulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names a missing subscription or topic and the command that creates it."""
    topic = pubsub.new_topic()
    subscription = pubsub.new_subscription(topic)
    out = f"--output_path={tmp_path}/out"
    missing = f"{subscription}-not"
    assert refused(capsys, f"--input_subscription={missing}", out) == (
        f"error: --input_subscription {missing} does not exist: check the name, or make it with "
        f"`gcloud pubsub subscriptions create {missing}`\n"
    )
    missing = f"{topic}-not"
    assert refused(
        capsys, f"--input_subscription={subscription}", f"--dead_letter_topic={missing}", out
    ) == (
        f"error: --dead_letter_topic {missing} does not exist: check the name, or make it with "
        f"`gcloud pubsub topics create {missing}`\n"
    )


def test_dead_letters_that_would_be_read_again(
    pubsub: PubSubEmulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A topic that the input subscribes to is rejected for dead letters."""
    topic = pubsub.new_topic()
    subscription = pubsub.new_subscription(topic)
    assert refused(
        capsys,
        f"--input_subscription={subscription}",
        f"--dead_letter_topic={topic}",
        f"--output_path={tmp_path}/out",
    ) == (
        f"error: --dead_letter_topic {topic} feeds --input_subscription {subscription}: a dead "
        "letter would be read, fail and be published again forever; set another topic\n"
    )


def test_a_batch_run_publishes_its_dead_letters(pubsub: PubSubEmulator, tmp_path: Path) -> None:
    """A batch run also publishes its dead letters; the summary counts them the same way."""
    topic = pubsub.new_topic()
    subscription = pubsub.new_subscription(topic)
    (tmp_path / "in.jsonl").write_text('{"id": 1, "text": "x"}\nbad\n')
    arguments = ("--prompt={{ text }}", "--backend=fake", f"--output_path={tmp_path}/out")
    code = run(f"--input_files={tmp_path}/in.jsonl", f"--dead_letter_topic={topic}", *arguments)
    assert code == 0
    held = in_files(tmp_path / "out")
    check_summary(held)
    ((data, attributes),) = drained(pubsub, subscription, 1)
    assert data == b"bad"
    assert attributes == {
        "error_type": "parse_error",
        "stage": "read",
        "run_id": held.summary["run_id"],
        "retryable": "false",
        "error_message": held.letters[0]["error_message"],
    }
