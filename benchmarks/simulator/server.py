"""The server: the listening socket, the paths, and the control of a run.

Model calls use the paths of ``dialects``. Its own paths, which no quota and no outage except
``refuse`` affects::

    GET  /health      200, or 503 in an outage
    GET  /v1/models   the models, as vLLM lists them
    GET  /_stats      counts, calls in service and queued now
    GET  /_log        the log as JSON lines
    POST /_reset      a new run with the settings of the start; open calls end outside its log
    POST /_control    {"setting": value, …}: changes settings now; "outage": seconds, 0 ends it
"""

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncIterator, Mapping
from typing import Any

import orjson

from benchmarks.simulator import dialects
from benchmarks.simulator.http import Connection, Request
from benchmarks.simulator.log import Call, dump
from benchmarks.simulator.service import Service
from benchmarks.simulator.settings import Settings, parse_change

HOST = "127.0.0.1"
CLIENT_HEADER = "x-simulated-client"
_BACKLOG = 4096
_KEY = re.compile(r"^Bearer\s+", re.IGNORECASE)


def key_of(headers: Mapping[str, str]) -> str:
    """The key that a call carries: a bearer token or an API key, empty for none."""
    if "authorization" in headers:
        return _KEY.sub("", headers["authorization"])
    return headers.get("x-goog-api-key", "")


def client_of(headers: Mapping[str, str]) -> str:
    """Who calls: the value of ``x-simulated-client``, else the key."""
    return headers.get(CLIENT_HEADER) or key_of(headers)


class Server:
    """A simulated model server on one port of 127.0.0.1; ``running`` makes one.

    Attributes:
        url: Its base URL, without a slash at the end.
    """

    def __init__(self, settings: Settings, port: int) -> None:
        """Reserves the port; ``start`` listens on it."""
        self._settings = settings
        self._connections: set[Connection] = set()
        self._service = Service(settings, self._outage)
        self._listening: asyncio.Server | None = None
        self._task: asyncio.Task[None] | None = None
        # Keeps the port while nothing listens: else a client that connects from that very port
        # by chance would connect to itself.
        self._reserved = _bound(port)
        self._port = self._reserved.getsockname()[1]
        self.url = f"http://{HOST}:{self._port}"

    async def start(self) -> None:
        """Listens."""
        loop = asyncio.get_running_loop()
        self._listening = await loop.create_server(
            lambda: Connection(self._handle, self._connections),
            sock=_bound(self._port),
            backlog=_BACKLOG,
        )

    async def close(self) -> None:
        """Stops listening and ends all connections."""
        self._service.stop()
        if self._task is not None:
            await self._task
        if self._listening is not None:
            self._listening.close()
        for connection in list(self._connections):
            connection.close()
        self._reserved.close()
        await asyncio.sleep(0)  # the transports close in the loop's next round

    def change(self, given: Mapping[str, Any]) -> None:
        """Changes settings from now on, as ``POST /_control`` does.

        Raises:
            ValueError: See ``settings.parse_change``.
        """
        self._service.change(parse_change(given))

    def reset(self) -> None:
        """Begins a new run with the settings of the start."""
        self._service.stop()
        self._service = Service(self._settings, self._outage)

    @property
    def log(self) -> list[Call]:
        """All calls of this run."""
        return self._service.log()

    @property
    def stats(self) -> dict[str, Any]:
        """Counts of this run."""
        return self._service.stats()

    def _outage(self, begins: bool) -> None:
        kind = self._service.settings.outage_kind
        if begins and kind in ("refuse", "reset"):
            if kind == "refuse" and self._listening is not None:
                self._listening.close()
                self._listening = None
            self._service.drop_all()
            for connection in list(self._connections):
                connection.reset()
        elif not begins and self._listening is None:
            self._task = asyncio.get_running_loop().create_task(self.start())

    def _handle(self, connection: Connection, request: Request) -> None:
        route = dialects.route(request.target)
        if route is None or request.method != "POST":
            self._own(connection, request)
            return
        client = client_of(request.headers)
        try:
            asked = dialects.read(route, request.body)
        except dialects.Refused as error:
            self._service.refuse_unread(connection, route.form, client, error)
            return
        refusal = None
        settings = self._service.settings
        if settings.api_key is not None and key_of(request.headers) != settings.api_key:
            refusal = 401
        elif settings.models and asked.model not in settings.models:
            refusal = 404
        elif asked.forbidden:
            refusal = 403
        self._service.arrive(connection, asked, client, refusal)

    def _own(self, connection: Connection, request: Request) -> None:
        path, service = f"{request.method} {request.target.partition('?')[0]}", self._service
        if path == "GET /health":
            connection.respond(503 if service.outage else 200, b"{}")
        elif path == "GET /v1/models":
            names = service.settings.models or ("simulated",)
            models = [{"id": name, "object": "model", "owned_by": "simulated"} for name in names]
            connection.respond(200, orjson.dumps({"object": "list", "data": models}))
        elif path == "GET /_stats":
            connection.respond(200, orjson.dumps(service.stats()))
        elif path == "GET /_log":
            connection.respond(200, dump(service.log()), content_type="application/x-ndjson")
        elif path == "POST /_reset":
            self.reset()
            connection.respond(200, b"{}")
        elif path == "POST /_control":
            try:
                values = parse_change(orjson.loads(request.body))
            except (AttributeError, TypeError, ValueError) as error:
                connection.respond(400, orjson.dumps({"error": str(error)}))
                return
            connection.respond(200, b"{}")
            service.change(values)
        else:
            connection.respond(404, b'{"error":"no such path"}')


def _bound(port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((HOST, port))
    bound.setblocking(False)
    return bound


@contextlib.asynccontextmanager
async def running(settings: Settings, port: int = 0) -> AsyncIterator[Server]:
    """A server in this process's event loop; 0 takes a free port."""
    server = Server(settings, port)
    await server.start()
    try:
        yield server
    finally:
        await server.close()
