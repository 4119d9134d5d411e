"""The dispatcher on virtual time."""

import gc
import types
from collections.abc import Iterator

import pytest

from tests.transforms.dispatch.virtual_time import Clock
from transforms.dispatch import loop, retry


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    """Replaces the process's event loop, and the dispatcher's random numbers by their maximum."""
    loop.event_loop()  # the real loop exists: leftovers of a test may end on it
    clock = Clock()
    gc.freeze()  # objects from before the test need not be collected after it
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_loop", clock.loop)
        patch.setattr(retry, "random", types.SimpleNamespace(uniform=lambda low, high: high))
        yield clock
        gc.collect()  # dropped dispatchers close their clients while a loop exists
        gc.unfreeze()
        clock.close()
