"""The shared client: one table from status to error, and messages without secrets."""

import asyncio
import datetime as dt
import email.utils
import json
import socket
from typing import Any

import orjson
import pytest
from aiohttp import web

from tests.transforms.backends import serving
from transforms.clients.http import (
    KEEPALIVE_S,
    JsonClient,
    Reply,
    error_of,
    place,
    retry_after_s,
    shaped,
)
from transforms.records.causes import Cause
from transforms.records.errors import (
    Blocked,
    Forbidden,
    InvalidRequest,
    RateLimited,
    RecordError,
    RequestTimeout,
    TooLarge,
    Unavailable,
)

URL = "https://host/v1/chat?key=secret"


def _post(url: str, body: Any = None, **more: Any) -> Reply:
    async def post() -> Reply:
        client = JsonClient()
        try:
            return await client.post(url, body, **more)
        finally:
            await client.close()

    return asyncio.run(post())


@pytest.mark.parametrize(
    ("status", "error", "cause"),
    [
        (301, InvalidRequest, Cause.NOT_SERVED),
        (400, InvalidRequest, Cause.REQUEST),
        (401, Forbidden, Cause.CREDENTIALS),
        (403, Forbidden, Cause.CREDENTIALS),
        (404, InvalidRequest, Cause.NOT_SERVED),
        (405, InvalidRequest, Cause.NOT_SERVED),
        (408, RequestTimeout, Cause.TIMEOUT),
        (409, InvalidRequest, Cause.REQUEST),
        (413, TooLarge, Cause.REQUEST),
        (422, InvalidRequest, Cause.REQUEST),
        (429, RateLimited, Cause.RATE_LIMIT),
        (500, Unavailable, Cause.SERVER_ERROR),
        (501, Unavailable, Cause.SERVER_ERROR),
        (502, Unavailable, Cause.SERVER_ERROR),
        (503, Unavailable, Cause.OVERLOADED),
        (504, RequestTimeout, Cause.TIMEOUT),
        (529, Unavailable, Cause.SERVER_ERROR),
        (600, Unavailable, Cause.SERVER_ERROR),
    ],
)
def test_status(status: int, error: type[RecordError], cause: Cause) -> None:
    """Each status becomes exactly its error."""
    made = error_of(status, {}, b'{"error": {"message": "No.", "code": 7}}', URL)
    assert type(made) is error
    assert made.cause is cause
    assert str(made) == f"HTTP {status} from host/v1/chat: No."


@pytest.mark.parametrize(
    ("parameter", "error"),
    [("input_tokens", TooLarge), ("input_text", TooLarge), ("temperature", InvalidRequest)],
)
def test_the_parameter_counts_where_the_code_repeats_the_status(
    parameter: str, error: type[RecordError]
) -> None:
    """A code that repeats the status, as vLLM's does, leaves the decision to the parameter."""
    body = orjson.dumps({"error": {"message": "No.", "param": parameter, "code": 400}})
    assert type(error_of(400, {}, body, URL)) is error


@pytest.mark.parametrize(
    ("status", "code", "error", "cause"),
    [
        (400, "context_length_exceeded", TooLarge, Cause.REQUEST),
        (400, "content_filter", Blocked, Cause.REQUEST),
        (429, "insufficient_quota", Forbidden, Cause.ACCOUNT),
        (429, "rate_limit_exceeded", RateLimited, Cause.RATE_LIMIT),
        (500, "context_length_exceeded", Unavailable, Cause.SERVER_ERROR),
    ],
)
def test_code(status: int, code: str, error: type[RecordError], cause: Cause) -> None:
    """A code is more specific than its status, and ignored with any other status."""
    body = orjson.dumps({"error": {"message": "No.", "type": "t", "param": None, "code": code}})
    made = error_of(status, {}, body, URL)
    assert type(made) is error
    assert made.cause is cause


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": {"code": 429, "message": "Exhausted.", "status": "S"}}', "Exhausted."),
        (b'[{"error": {"code": 429, "message": "In a list."}}]', "In a list."),
        (b'{"error": "text"}', "text"),
        (b'{"message": "plain"}', "plain"),
        (b'{"detail": "Not Found"}', "Not Found"),
        (b'{"detail": [{"loc": ["a"], "msg": "too long", "input": "the prompt"}]}', "too long"),
        (b"<html>Bad gateway</html>", "<html>Bad gateway</html>"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"", "Bad Gateway"),
        (b"7", "Bad Gateway"),
        (b'{"error": {"message": 7}}', "Bad Gateway"),
        (b'{"detail": {"input": "the prompt"}}', "Bad Gateway"),
        (orjson.dumps({"message": "x" * 900}), "x" * 500),
    ],
)
def test_message(body: bytes, message: str) -> None:
    """The message is the server's own, cut at 500 characters, without the input that it repeats."""
    assert str(error_of(502, {}, body, URL)) == f"HTTP 502 from host/v1/chat: {message}"


def test_retry_after() -> None:
    """A Retry-After is in seconds or a date; any other value is ignored."""
    now = dt.datetime(2026, 11, 21, 8, 0, tzinfo=dt.timezone.utc)
    later = email.utils.format_datetime(now + dt.timedelta(seconds=90), usegmt=True)
    earlier = email.utils.format_datetime(now - dt.timedelta(seconds=90), usegmt=True)
    given = ["7", "0.5", "-3", later, earlier, "soon", "nan", "inf", "", None]
    assert [retry_after_s(value, now) for value in given] == [
        7.0, 0.5, 0.0, 90.0, 0.0, None, None, None, None, None,
    ]  # fmt: skip
    assert error_of(429, {"Retry-After": "7"}, b"", URL).retry_after_s == 7.0


def test_place_keeps_no_secret() -> None:
    """Messages never show a user or a query of a URL, or any text that is not a URL."""
    assert place("http://me:word@127.0.0.1:80/a/b?key=secret#c") == "127.0.0.1:80/a/b"
    assert place("http://[::1") == "the given address"


def test_post_sends_json_and_reads_it() -> None:
    """Body, headers and reply are sent unchanged; integers of any size and NaN are read."""

    async def handler(request: web.Request) -> web.Response:
        seen = {
            "method": request.method,
            "type": request.content_type,
            "agent": request.headers["User-Agent"],
            "authorization": request.headers["Authorization"],
            "body": await request.json(),
        }
        return web.Response(body=json.dumps([seen, float("nan"), 2**70]), headers={"X-A": "b"})

    async def exchange() -> Reply:
        async with serving(handler) as url:
            client = JsonClient()
            reply = await client.post(url, {"n": 2**70}, {"Authorization": "Bearer t"})
            await client.close()
            return reply

    reply = asyncio.run(exchange())
    assert (reply.status, reply.headers["x-a"]) == (200, "b")
    assert reply.data == [
        {
            "method": "POST",
            "type": "application/json",
            "agent": "dataflow-batch-inference",
            "authorization": "Bearer t",
            "body": {"n": 2**70},
        },
        "NaN",
        2**70,
    ]


def test_unreadable_success_is_retryable() -> None:
    """A 200 without JSON or of another shape is a retryable failure of the server."""

    async def handler(request: web.Request) -> web.Response:
        return web.Response(text="<html>")

    async def exchange() -> None:
        async with serving(handler) as url:
            client = JsonClient()
            try:
                await client.post(url, {})
            finally:
                await client.close()

    with pytest.raises(Unavailable, match=r"^HTTP 200 from .* a body of 6 bytes") as caught:
        asyncio.run(exchange())
    assert caught.value.cause is Cause.SERVER_ERROR
    with pytest.raises(Unavailable, match=r"^the reply of m does not have the expected .*KeyError"):
        shaped(lambda data: data["a"], {}, what="m")


def test_redirects_are_not_followed() -> None:
    """A redirect is not followed, because the POST would arrive as a GET."""

    async def handler(request: web.Request) -> web.Response:
        raise web.HTTPFound("/elsewhere")

    async def exchange() -> None:
        async with serving(handler) as url:
            client = JsonClient()
            try:
                await client.post(url, {})
            finally:
                await client.close()

    with pytest.raises(InvalidRequest, match=r"^HTTP 302 from"):
        asyncio.run(exchange())


def _unused_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def test_no_connection() -> None:
    """The message names the host but no header or query."""
    port = _unused_port()
    with pytest.raises(Unavailable) as caught:
        _post(f"http://127.0.0.1:{port}/v1?key=secret", {}, headers={"Authorization": "secret"})
    assert caught.value.cause is Cause.CONNECTION_REFUSED
    assert str(caught.value).startswith(f"no connection to 127.0.0.1:{port}/v1: ")
    assert "secret" not in str(caught.value)


def test_no_url() -> None:
    """A value that is not a URL is an error of every record."""
    with pytest.raises(InvalidRequest, match=r"is not a URL$") as caught:
        _post("127.0.0.1", {})
    assert caught.value.cause is Cause.NOT_SERVED


async def _answer_once(reply: bytes) -> tuple[asyncio.Server, str]:
    """A server that reads a little, writes `reply` and disconnects."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(reply)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    return server, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize(
    ("reply", "cause"),
    [
        (b"", Cause.LOST_BEFORE_ANSWER),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", Cause.SERVER_ERROR),
        (b"no http at all\r\n\r\n", Cause.SERVER_ERROR),
    ],
)
def test_disconnected(reply: bytes, cause: Cause) -> None:
    """A connection lost before the answer is unanswered; one lost in the middle is broken."""

    async def exchange() -> None:
        server, url = await _answer_once(reply)
        client = JsonClient()
        try:
            await client.post(url, {})
        finally:
            await client.close()
            server.close()

    with pytest.raises(Unavailable) as caught:
        asyncio.run(exchange())
    assert caught.value.cause is cause


def test_keepalive_is_below_vllm() -> None:
    """Idle connections close before vLLM closes them, which it does after 5 s."""

    async def keepalive() -> Any:
        client = JsonClient()
        try:
            return client._session.connector._keepalive_timeout  # type: ignore[union-attr]
        finally:
            await client.close()

    assert asyncio.run(keepalive()) == KEEPALIVE_S < 5
