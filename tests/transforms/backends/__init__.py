"""Mirrors `transforms.backends`, and holds helpers that its tests share."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

from transforms.records.records import Json, Record, Request

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def request_of(body: Mapping[str, Json], fingerprint: str = "0" * 64, **params: Json) -> Request:
    """A request with this body and these parameters."""
    return Request(Record("1", {}), body, params, fingerprint, estimated_tokens=7)


def prompt(text: str, **params: Json) -> Request:
    """A chat request of one user message."""
    return request_of({"messages": [{"role": "user", "content": text}]}, **params)


@contextlib.asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    """Serves every path with one handler and yields the base URL."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def opened(backend: Any) -> AsyncIterator[Any]:
    """A backend's client, closed at the end."""
    client = await backend.open()
    try:
        yield client
    finally:
        await client.close()
