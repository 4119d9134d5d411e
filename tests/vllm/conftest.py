"""Fixtures of the real vLLM: without its environment tests are skipped; CI=true creates it."""

import os
from pathlib import Path

import pytest

from tests.vllm import environment


@pytest.fixture(scope="session")
def vllm_python() -> str:
    """The interpreter that has vLLM."""
    if os.environ.get("CI") != "true" and not environment.is_there():
        pytest.skip(f"the real vLLM is not installed: {environment.HOW_TO_GET_IT}")
    try:
        return environment.vllm_python()
    except environment.EnvironmentUnavailableError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def tiny_model(vllm_python: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that loads in seconds and generates nonsense."""
    del vllm_python
    return environment.tiny_model(Path(tmp_path_factory.mktemp("model")) / "tiny")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One process runs all these tests, because a server needs every core."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("vllm"))
