"""Stopping everything at once.

Tests run on virtual time: times are exact.
"""

import subprocess
import sys
import textwrap
import threading
import weakref

import pytest

from tests.transforms.dispatch.clients import HANG, Client, drain, make_requests
from tests.transforms.dispatch.virtual_time import Clock
from transforms.dispatch import interrupt
from transforms.dispatch.completion_queue import CompletionQueue
from transforms.dispatch.dispatcher import Dispatcher, DispatchLimits
from transforms.records.errors import Interrupted

pytestmark = pytest.mark.usefixtures("clock")


def test_stop_while_a_batch_comes(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """A batch that arrives between the interrupt and the stop does not keep others waiting."""
    monkeypatch.setattr(interrupt, "_open", weakref.WeakSet())
    monkeypatch.setattr(interrupt, "_asked", threading.Event())
    client = Client(lambda n, _: HANG)
    shared = Dispatcher(client, DispatchLimits())
    waiting, late = CompletionQueue(), CompletionQueue()
    with clock.hold():
        shared.submit(make_requests(3), waiting)
        clock.settle()
        assert drain(waiting) == [None]
        interrupt._asked.set()
        shared.submit(make_requests(3), late)
        interrupt.stop_all()
        clock.settle()
    for completions in (late, waiting):
        with pytest.raises(Interrupted, match=r"^the run was asked to stop$"):
            completions.get(0.0)
    assert sorted(client.cancelled) == [0, 1, 2]


def test_stop() -> None:
    """`stop_all` interrupts every call and rejects further ones for good."""
    script = """
        import asyncio, threading
        from transforms.backends.base import CallLimits
        from transforms.dispatch.dispatcher import Dispatcher, DispatchLimits
        from transforms.dispatch.interrupt import stop_all
        from transforms.records.errors import Interrupted
        from transforms.records.records import Completion, Record, Request

        started = threading.Semaphore(0)
        ended = []

        class Hanging:
            async def generate(self, request):
                started.release()
                await asyncio.Future()
            async def close(self):
                pass

        class Many(Hanging):
            call_limits = CallLimits(max_requests=None, in_process=True)

            async def generate_many(self, requests):
                return [Completion() for _ in requests]

        def answer(dispatcher):
            try:
                dispatcher.answer([Request(Record("1", {}), {}, {}, "f", 1)] * 3)
            except Interrupted as error:
                ended.append(str(error))

        dispatcher = Dispatcher(Hanging(), DispatchLimits())
        threads = [threading.Thread(target=answer, args=[dispatcher]) for _ in range(2)]
        for thread in threads:
            thread.start()
        for _ in range(6):
            started.acquire()
        stop_all()
        for thread in threads:
            thread.join()
        answer(dispatcher)
        answer(Dispatcher(Many(), DispatchLimits()))
        print(ended == ["the run was asked to stop"] * 4)
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")
