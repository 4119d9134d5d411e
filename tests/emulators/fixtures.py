"""Pytest fixtures for a loopback Google Cloud and Google's Pub/Sub emulator.

``tests/conftest.py`` has ``pytest_plugins = ["tests.emulators.fixtures"]``. Nothing starts until a
test requests it. If the servers' environment is unavailable, tests that need it are skipped with a
line that says how to get it; with ``CI=true`` they fail.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.emulators.environment import EnvironmentUnavailableError, emulator_python
from tests.emulators.google_cloud import LoopbackCloud
from tests.emulators.pubsub import PubSubEmulator
from tests.emulators.pubsub_environment import emulator_jar, java
from tests.emulators.restartable_bigquery import RestartableBigQuery, restartable_bigquery


@pytest.fixture(scope="session")
def loopback_cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackCloud]:
    """A loopback Google Cloud for the whole run; this process's clients stay as they are."""
    python = _available(emulator_python)
    with LoopbackCloud.running(python, tmp_path_factory.mktemp("loopback-cloud")) as cloud:
        yield cloud


@pytest.fixture
def redirected_clients(loopback_cloud: LoopbackCloud) -> Iterator[LoopbackCloud]:
    """The cloud, with Google's and Beam's clients in this process pointed at it."""
    with loopback_cloud.clients_redirected():
        yield loopback_cloud


@pytest.fixture
def bigquery_dataset(redirected_clients: LoopbackCloud) -> str:
    """The name of a new, empty dataset, ``project.dataset``; clients are redirected."""
    return redirected_clients.new_dataset()


@pytest.fixture
def mortal_bigquery(
    loopback_cloud: LoopbackCloud, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RestartableBigQuery]:
    """A BigQuery of this test alone, to be killed and restarted; clients are redirected."""
    folder = tmp_path_factory.mktemp("mortal-bigquery")
    with restartable_bigquery(folder, loopback_cloud, emulator_python()) as server:
        yield server


@pytest.fixture
def bucket(redirected_clients: LoopbackCloud) -> str:
    """The name of a new, empty bucket, without ``gs://``; clients are redirected."""
    return redirected_clients.new_bucket()


@pytest.fixture(scope="session")
def pubsub_emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PubSubEmulator]:
    """Google's Pub/Sub emulator for the whole run; this process's clients stay as they are."""
    _available(emulator_jar)
    _available(java)
    with PubSubEmulator.running(tmp_path_factory.mktemp("pubsub")) as emulator:
        yield emulator


@pytest.fixture
def pubsub(pubsub_emulator: PubSubEmulator) -> Iterator[PubSubEmulator]:
    """The emulator, with Pub/Sub clients that are made in this process pointed at it."""
    with pubsub_emulator.clients_redirected():
        yield pubsub_emulator


def _available(find: Callable[[], Path]) -> Path:
    """The result of ``find``; if it is unavailable, skips the test, or in CI fails it."""
    try:
        return find()
    except EnvironmentUnavailableError as error:
        missing = str(error)
    if os.environ.get("CI") == "true":
        pytest.fail(missing, pytrace=False)
    pytest.skip(missing)
