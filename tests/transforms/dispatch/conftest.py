"""The dispatcher on virtual time."""

import gc
import types
from collections.abc import Iterator

import pytest

from tests.transforms.dispatch.virtual_time import Clock
from transforms.dispatch import loop, retry


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    """Replaces the process's event loop, and the dispatcher's dice by their highest throw."""
    loop.event_loop()  # the real one exists: what a test leaves behind may end on it
    clock = Clock()
    gc.freeze()  # what there was before the test need not be searched after it
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_loop", clock.loop)
        patch.setattr(retry, "random", types.SimpleNamespace(uniform=lambda low, high: high))
        yield clock
        gc.collect()  # dispatchers that are dropped close their clients while there is a loop
        gc.unfreeze()
        clock.close()
