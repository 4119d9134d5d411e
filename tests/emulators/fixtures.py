"""Pytest fixtures for a loopback Google Cloud.

``tests/conftest.py`` has ``pytest_plugins = ["tests.emulators.fixtures"]``. Nothing starts
until a test asks for it. Where the servers' environment cannot be had, tests that need it are
skipped with a line that says how to get it, except that with ``CI=true`` they fail.
"""

import os
from collections.abc import Iterator

import pytest

from tests.emulators.environment import EnvironmentUnavailableError, emulator_python
from tests.emulators.google_cloud import LoopbackCloud


@pytest.fixture(scope="session")
def loopback_cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackCloud]:
    """A loopback Google Cloud for the whole run; this process's clients stay as they are."""
    missing = ""
    try:
        python = emulator_python()
    except EnvironmentUnavailableError as error:
        missing = str(error)
    if missing and os.environ.get("CI") == "true":
        pytest.fail(missing, pytrace=False)
    if missing:
        pytest.skip(missing)
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
def bucket(redirected_clients: LoopbackCloud) -> str:
    """The name of a new, empty bucket, without ``gs://``; clients are redirected."""
    return redirected_clients.new_bucket()
