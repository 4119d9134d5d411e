"""Several servers as one: which is called, which is left out, and what their queues show."""

import asyncio
import contextlib
import pickle
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
from aiohttp import web

from tests.transforms.backends import opened, prompt, request_of, serving
from transforms.backends.base import MeasuredClient
from transforms.backends.openai import OpenAIBackend
from transforms.clients import endpoints
from transforms.clients import server_metrics as gauges
from transforms.clients.endpoints import Endpoints
from transforms.dispatch import loop
from transforms.dispatch.dispatcher import Dispatcher, DispatchLimits
from transforms.records.causes import Cause
from transforms.records.errors import InvalidRequest, RateLimited, RecordError, Unavailable
from transforms.records.records import Completion

NOBODY = "http://127.0.0.1:9/v1"
"""The discard port, on which no process listens."""
ANSWER = {"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}], "model": "m"}


class Server:
    """A model server whose behaviour the test sets."""

    def __init__(self) -> None:
        self.posts = 0
        self.probes = 0
        self.looks = 0
        self.status = 200
        self.alive = True
        self.headers: dict[str, str] = {}
        self.metrics: str | None = None
        self.gate: asyncio.Event | None = None
        self.url = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answers as the test has set."""
        if request.path == "/metrics":
            self.looks += 1
            return web.Response(text=self.metrics or "", status=200 if self.metrics else 404)
        if request.method == "GET":
            self.probes += 1
            return web.json_response({}, status=200 if self.alive else 500)
        self.posts += 1
        if self.gate is not None:
            await self.gate.wait()
        return web.json_response(ANSWER, status=self.status, headers=self.headers)


@contextlib.asynccontextmanager
async def servers(count: int) -> AsyncIterator[list[Server]]:
    """This many servers, on their own ports."""
    async with contextlib.AsyncExitStack() as stack:
        made = [Server() for _ in range(count)]
        for server in made:
            server.url = await stack.enter_async_context(serving(server.answer)) + "/v1"
        yield made


@contextlib.asynccontextmanager
async def group(*urls: str, measured: bool = False) -> AsyncIterator[Endpoints]:
    """Their endpoints, closed at the end."""
    made = Endpoints(urls, {}, measured=measured)
    try:
        yield made
    finally:
        await made.close()


def _run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def within() -> None:
        await asyncio.wait_for(work(), 20)

    asyncio.run(within())


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - what is waited for happens in a server
        await asyncio.sleep(0.001)


async def _error(made: Endpoints) -> RecordError:
    with pytest.raises(RecordError) as raised:
        await made.post("chat/completions", {})
    return raised.value


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shortens all waits."""
    monkeypatch.setattr(endpoints, "_FIRST_PROBE_S", 0.001)
    monkeypatch.setattr(gauges, "READ_EVERY_S", 0.001)


def test_the_least_loaded_server_is_called() -> None:
    """The least loaded server is called, equal ones in turn; a slow one gets fewer calls."""

    async def work() -> None:
        async with servers(2) as (one, two), group(one.url, two.url + "/") as made:
            for _ in range(4):
                await made.post("chat/completions", {})
            assert (one.posts, two.posts) == (2, 2)
            one.gate = asyncio.Event()
            held = [asyncio.ensure_future(made.post("x", {})) for _ in range(2)]
            await _until(lambda: one.posts == 3)
            for _ in range(3):
                await made.post("chat/completions", {})
            assert one.posts == 3
            one.gate.set()
            await asyncio.gather(*held)

    _run(work)


def test_a_dead_server_fails_no_request() -> None:
    """A request to a dead server is sent to another one, and so are the next requests."""

    async def work() -> None:
        async with servers(1) as (live,), group(NOBODY, live.url) as made:
            for _ in range(3):
                assert (await made.post("chat/completions", {})).status == 200
            assert live.posts == 3
            assert made.all[0].down
            assert made.all[0].asked == 1
            assert made.gauges() == {"endpoints_down": 1}

    _run(work)


def test_a_server_that_fails_is_left_out_and_comes_back() -> None:
    """After three failures in a row a server is left out and probed until it recovers."""

    async def work() -> None:
        async with servers(2) as (ill, well), group(ill.url, well.url) as made:
            ill.status, ill.alive = 500, False
            failed = 0
            while not made.all[0].down:
                outcome = await asyncio.gather(made.post("x", {}), return_exceptions=True)
                if isinstance(outcome[0], Unavailable):
                    assert outcome[0].cause is Cause.SERVER_ERROR
                    failed += 1
            assert failed == 3
            for _ in range(5):
                await made.post("chat/completions", {})
            assert ill.posts == 3
            ill.status, ill.alive = 200, True
            await _until(lambda: not made.all[0].down)
            assert ill.probes >= 1
            await made.post("chat/completions", {})
            assert ill.posts == 4

    _run(work)


def test_failures_with_answers_between_leave_no_server_out() -> None:
    """Failures with answers between them leave no server out: each may be its record's own."""

    async def work() -> None:
        async with servers(2) as (one, two), group(one.url, two.url) as made:
            for _ in range(4):
                one.status = two.status = 500
                for _ in range(4):
                    await _error(made)
                one.status = two.status = 400
                await _error(made)
                await _error(made)
            assert not made.gauges()["endpoints_down"]

    _run(work)


def test_closing_ends_a_probe_that_fails_in_the_same_moment() -> None:
    """Before Python 3.12 `asyncio.wait_for` swallows the cancellation in this case."""

    async def asked(*_: object, **__: object) -> None:
        asking.set()
        await answers.wait()
        raise Unavailable("no connection")

    async def work() -> None:
        async with group(NOBODY, NOBODY + "/2") as made:
            made._http.get = asked  # type: ignore[method-assign, assignment]
            await _error(made)
            await asking.wait()
            answers.set()
            await asyncio.sleep(0)

    asking, answers = asyncio.Event(), asyncio.Event()
    _run(work)


def test_all_are_down() -> None:
    """If all servers are down, they are called like a single one until one answers."""

    async def work() -> None:
        async with servers(1) as (server,), group(NOBODY, server.url) as made:
            server.status, server.alive = 500, False
            for _ in range(4):
                await _error(made)
            assert made.gauges() == {"endpoints_down": 2}
            before = server.posts
            server.status = 200
            while server.posts == before:
                with contextlib.suppress(RecordError):
                    await made.post("chat/completions", {})
            assert not made.all[1].down
        async with group(NOBODY) as alone:
            assert (await _error(alone)).cause is Cause.CONNECTION_REFUSED
            assert not alone.all[0].down
            assert alone.gauges() == {}

    _run(work)


def test_a_full_server_rests() -> None:
    """A full server's Retry-After delays no other server and does not count as a failure."""

    async def work() -> None:
        async with servers(2) as (full, free), group(full.url, free.url) as made:
            full.status, full.headers = 429, {"Retry-After": "50"}
            error = await _error(made)
            assert isinstance(error, RateLimited)
            assert error.retry_after_s is None
            for _ in range(4):
                await made.post("chat/completions", {})
            assert (full.posts, free.posts) == (1, 4)
            assert not made.all[0].down
            free.status, free.headers = 503, {"Retry-After": "40"}
            assert (await _error(made)).retry_after_s == 40

    _run(work)


def test_a_server_with_another_model() -> None:
    """A request that one server serves is the other's fault; one that all refuse is its own."""

    async def work() -> None:
        async with servers(2) as (wrong, right), group(wrong.url, right.url) as made:
            wrong.status = 404
            wrong.alive = False
            assert (await made.post("chat/completions", {})).status == 200
            assert made.all[0].down
            assert right.posts == 1
        async with servers(2) as (one, two), group(one.url, two.url) as made:
            one.status = two.status = 404
            error = await _error(made)
            assert isinstance(error, InvalidRequest)
            assert error.cause is Cause.NOT_SERVED
            assert (one.posts, two.posts) == (1, 1)
            assert made.gauges() == {"endpoints_down": 0}

    _run(work)


def test_a_server_that_hangs_is_left_out() -> None:
    """A server that hangs is left out once the dispatcher cancels its calls."""

    async def work() -> None:
        async with servers(2) as (hangs, other), group(hangs.url, other.url) as made:
            hangs.alive = False
            hangs.gate = asyncio.Event()
            other.gate = asyncio.Event()
            calls = [asyncio.ensure_future(made.post("x", {})) for _ in range(6)]
            await _until(lambda: hangs.posts == 3)
            for call in calls[::2]:
                call.cancel()
            other.gate.set()
            await asyncio.gather(*calls, return_exceptions=True)
            assert made.all[0].down
            assert not made.all[1].down
            hangs.gate.set()

    _run(work)


@pytest.mark.parametrize("family", ["vllm:num_requests_{}", "sglang:num_{}_reqs"])
def test_the_pace_follows_the_servers_queue(family: str) -> None:
    """Metrics of several servers add up, our share counts, and pages without them are read once."""
    running = family.format("running") + "{} 100\n"
    waiting = family.format("waiting" if "vllm" in family else "queue") + "{} 60\n"

    async def work() -> None:
        async with (
            servers(3) as (one, two, other),
            group(one.url, two.url, other.url, measured=True) as made,
        ):
            one.metrics = two.metrics = running + waiting
            one.gate = two.gate = other.gate = asyncio.Event()
            held = [asyncio.ensure_future(made.post("x", {})) for _ in range(240)]
            await _until(lambda: made.wanted_in_flight() == 1.25 * 200 * 160 / 320)
            assert made.gauges()["vllm_running_requests"] == 200
            assert made.gauges()["vllm_waiting_requests"] == 120
            looked = one.looks
            await _until(lambda: one.looks > looked + 2)
            assert other.looks == 1
            one.gate.set()
            await asyncio.gather(*held)

    _run(work)


def test_a_server_that_stops_reporting() -> None:
    """Once a server stops reporting, its last queue and gauges are dropped."""

    async def work() -> None:
        async with servers(1) as (server,), group(server.url, measured=True) as made:
            server.metrics = "vllm:num_requests_running 100\nvllm:num_requests_waiting 1\n"
            await _until(lambda: made.wanted_in_flight() == 32)
            assert made.gauges()["vllm_running_requests"] == 100
            server.metrics = None
            await _until(lambda: not made.wanted_in_flight())
            assert made.gauges() == {}

    _run(work)


def test_servers_without_metrics() -> None:
    """Without known metrics the queue is unknown, and nothing is logged."""

    async def work() -> None:
        async with (
            servers(2) as (none, another),
            group(none.url, another.url, NOBODY, measured=True) as made,
        ):
            another.metrics = "http_requests_total 3\n"
            await _until(lambda: bool(none.looks and another.looks))
            for _ in range(3):
                await made.post("chat/completions", {})
            assert (none.looks, another.looks) == (1, 1)
            assert made.wanted_in_flight() == 0
            assert made.gauges() == {"endpoints_down": 1}

    _run(work)


def test_the_backend_takes_several() -> None:
    """A backend of several endpoints has metrics, can be pickled, and avoids a dead server."""

    async def work() -> None:
        async with servers(1) as (live,):
            backend = OpenAIBackend(model="m", endpoint=(NOBODY, live.url))
            assert pickle.loads(pickle.dumps(backend)) == backend
            async with opened(backend) as client:
                assert isinstance(client, MeasuredClient)
                assert (await client.generate(prompt("a"))).output == "yes"

    _run(work)


def test_through_the_dispatcher() -> None:
    """With a dead server and one that answers 500, every record is still answered."""
    started: list[Any] = []

    async def start() -> Any:
        stack = contextlib.AsyncExitStack()
        made = await stack.enter_async_context(servers(3))
        made[0].status, made[0].alive = 500, False
        backend = OpenAIBackend(model="m", endpoint=(NOBODY, *(one.url for one in made)))
        started.extend([stack, made])
        return await backend.open()

    shared = Dispatcher(loop.run(start()), DispatchLimits(first_backoff_s=0.01))
    try:
        outcomes = shared.answer([prompt(f"{number}") for number in range(200)])
        assert all(isinstance(outcome, Completion) for outcome in outcomes)
        assert shared.gauges()["endpoints_down"] == 2
    finally:
        loop.run(started[0].aclose())


def test_completions_of_a_base_model() -> None:
    """The completions API is used if the flag is set or the whole request has a prompt."""
    seen: list[tuple[str, Any]] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        seen.append((request.path, await request.json()))
        choice = {"text": "on it goes", "finish_reason": "stop", "logprobs": {"tokens": ["on"]}}
        return web.json_response({"choices": [choice], "model": "m"})

    async def work() -> None:
        async with serving(answer) as url:
            base = OpenAIBackend(model="m", endpoint=f"{url}/v1", api="completions")
            async with opened(base) as client:
                said = await client.generate(
                    prompt("Once", generation_config={"max_output_tokens": 5})
                )
            async with opened(OpenAIBackend(model="m", endpoint=f"{url}/v1")) as client:
                await client.generate(request_of({"request": {"model": "x", "prompt": "p"}}))
            assert said.output == "on it goes"
            assert said.output_json == '{"logprobs":{"tokens":["on"]}}'

    _run(work)
    assert seen == [
        ("/v1/completions", {"model": "m", "prompt": "Once", "max_tokens": 5}),
        ("/v1/completions", {"model": "x", "prompt": "p"}),
    ]
