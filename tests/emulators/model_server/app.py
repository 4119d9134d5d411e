"""Routes, authorization, hard faults and statistics: everything between the socket and a dialect.

Model calls::

    POST /{v1,v1beta1}/projects/P/locations/L/publishers/PUB/models/M:METHOD     Vertex
    GET  /{v1,v1beta1}/projects/P/locations/L/endpoints/E                        Vertex
    POST /{v1,v1beta1}/projects/P/locations/L/endpoints/E:METHOD                 Vertex
    POST /{v1,v1beta1}/projects/P/locations/L/endpoints/E/chat/completions       OpenAI over Vertex
    POST /v1/chat/completions   POST /v1/embeddings   GET /v1/models             OpenAI

Its own: ``GET /health``, ``GET /_stats``, ``GET /_requests``, ``POST /_reset``.

Limits: see the package. It is written from captures and vendor documentation; no
real endpoint was called; HTTP/2, TLS and request size limits are not modelled.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace

from aiohttp import web

from tests.emulators.model_server import errors, openai, vertex, vertex_endpoint
from tests.emulators.model_server.faults import NO_PLAN, FaultBook, Plan, deciding
from tests.emulators.model_server.stats import Journal, Stats
from tests.emulators.model_server.wire import Call, Json, Operation, Refused, dump, load

STRICT_HEADER = "x-simulated-strict"
_PARENT = "/{version:v1|v1beta1}/projects/{project}/locations/{location}"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of the command line.

    Attributes:
        latency_s: Seconds to wait before each answer.
        answer_mode: ``canned`` or ``schema``.
        api_key: The key that the OpenAI dialect requires; None accepts any or none.
        strict: Leave out the fields that break the SDKs' strict types.
        max_texts: The most texts of an embedding request in the OpenAI dialect; None for OpenAI's
            own limits.
    """

    latency_s: float = 0.0
    answer_mode: str = "canned"
    api_key: str | None = None
    strict: bool = False
    max_texts: int | None = None


class ModelServer:
    """The handlers over one set of settings, counts and remembered requests."""

    def __init__(self, settings: Settings) -> None:
        """Starts with nothing counted."""
        self._settings = settings
        self._stats = Stats()
        self._faults = FaultBook()
        self._journal = Journal()
        self._number = 0

    def application(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(client_max_size=64 << 20)
        publisher = self._model_call("model", vertex.PUBLISHER)
        endpoint = self._model_call("endpoint", vertex.ENDPOINT)
        over_vertex = replace(openai.CHAT, error=errors.google)
        app.add_routes(
            [
                web.post("/v1/chat/completions", self._openai_call(openai.CHAT)),
                web.post("/v1/embeddings", self._openai_call(openai.EMBEDDINGS)),
                web.get("/v1/models", self._models),
                web.post(_PARENT + "/publishers/{publisher}/models/{model}:{method}", publisher),
                web.post(_PARENT + "/endpoints/{endpoint}:{method}", endpoint),
                web.post(
                    _PARENT + "/endpoints/{endpoint}/chat/completions",
                    self._model_call("endpoint", {"": over_vertex}),
                ),
                web.get(_PARENT + "/endpoints/{endpoint}", self._endpoint),
                web.get("/health", self._health),
                web.get("/_stats", self._show_stats),
                web.get("/_requests", self._show_requests),
                web.post("/_reset", self._reset),
            ]
        )
        return app

    def _model_call(self, part: str, operations: dict[str, Operation]) -> Handler:
        """The handler of a Vertex resource whose id is the path's variable ``part``."""

        async def handle(request: web.Request) -> web.StreamResponse:
            path = request.match_info
            method = path.get("method", "")
            operation = operations.get(method)
            if operation is None:
                unknown = Refused(404, f"Method {method} is not served here.")
                return self._refuse(errors.google, unknown, NO_PLAN)
            model = path[part] if method else None
            return await self._count(request, operation, model, _vertex_identity)

        return handle

    def _openai_call(self, operation: Operation) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            return await self._count(request, operation, None, self._openai_identity)

        return handle

    async def _count(
        self,
        request: web.Request,
        operation: Operation,
        model: str | None,
        identify: Callable[[web.Request], None],
    ) -> web.StreamResponse:
        """Counts and remembers a call around ``_serve``, also of a client that disconnects."""
        stats = self._stats
        stats.began(request.path)
        try:
            raw = await request.read()
            self._journal.add(request, raw)
            response = await self._serve(request, raw, operation, model, identify)
        finally:
            stats.in_flight -= 1
        stats.answered(response.status)
        return response

    async def _serve(
        self,
        request: web.Request,
        raw: bytes,
        operation: Operation,
        model: str | None,
        identify: Callable[[web.Request], None],
    ) -> web.Response:
        settings, plan = self._settings, NO_PLAN
        try:
            identify(request)
            body = load(raw)
            if model is None:
                model = body.get("model")
                if not isinstance(model, str) or not model:
                    raise Refused(400, "You must provide a model parameter.")
            if model == "missing-model":
                raise Refused(404, f"The model `{model}` does not exist or you lack access to it.")
            strict = settings.strict or STRICT_HEADER in request.headers
            call = Call(
                body,
                model,
                request.match_info,
                request.headers,
                strict=strict,
                answer_mode=settings.answer_mode,
                max_texts=settings.max_texts,
            )
            texts = _texts(operation, call)
            self._stats.texts += len(texts)
            plans = tuple(map(self._faults.plan, texts))
            plan = deciding(plans)
            self._stats.played(plans)
            latency_s = max([settings.latency_s, *(each.latency_s for each in plans)])
            if latency_s > 0:
                await asyncio.sleep(latency_s)
            if plan.hard:
                return await self._fail(request, operation, plan)
            plan = plans[0] if plans else NO_PLAN
            answer = operation.answer(replace(call, plans=plans))
        except Refused as refused:
            return self._refuse(operation.error, refused, plan)
        return self._json(answer, headers=operation.headers)

    async def _fail(self, request: web.Request, operation: Operation, plan: Plan) -> web.Response:
        """Plays a hard fault."""
        if plan.fault == "http":
            message = errors.MESSAGES.get(plan.status, "Simulated error.")
            return self._refuse(operation.error, Refused(plan.status, message), plan)
        if plan.fault == "hang":
            await asyncio.Event().wait()  # cancelled when the client disconnects
        if plan.fault == "malformed":
            return web.Response(body=b"this is not JSON {", content_type="application/json")
        if plan.fault == "wrong-shape":
            return self._json({"unexpected": ["shape"]})
        if request.transport is not None:
            request.transport.close()
        return web.Response(status=499)

    def _refuse(
        self,
        error: Callable[[int, str, str | None, Plan], Json],
        refused: Refused,
        plan: Plan,
    ) -> web.Response:
        headers = {} if plan.retry_after is None else {"Retry-After": plan.retry_after}
        body = refused.body or error(refused.status, refused.message, refused.code, plan)
        return self._json(body, refused.status, headers)

    def _json(
        self, body: Json, status: int = 200, headers: dict[str, str] | None = None
    ) -> web.Response:
        self._number += 1
        named = {"x-request-id": f"req_{self._number}", **(headers or {})}
        return web.Response(
            body=dump(body), status=status, headers=named, content_type="application/json"
        )

    def _openai_identity(self, request: web.Request) -> None:
        key = self._settings.api_key
        if key is not None and request.headers.get("Authorization") != f"Bearer {key}":
            raise Refused(401, "Incorrect API key provided.", "invalid_api_key")

    async def _models(self, request: web.Request) -> web.StreamResponse:
        try:
            self._openai_identity(request)
        except Refused as refused:
            return self._refuse(errors.openai, refused, NO_PLAN)
        return self._json(openai.models())

    async def _endpoint(self, request: web.Request) -> web.StreamResponse:
        try:
            _vertex_identity(request)
            name = request.match_info["endpoint"]
            if name == "missing-model":
                raise Refused(404, f"The Endpoint `{request.path}` does not exist.")
        except Refused as refused:
            return self._refuse(errors.google, refused, NO_PLAN)
        call = Call({}, name, request.match_info, request.headers)
        return self._json(vertex_endpoint.endpoint(call))

    async def _health(self, request: web.Request) -> web.StreamResponse:
        return self._json({"status": "simulated"})

    async def _show_stats(self, request: web.Request) -> web.StreamResponse:
        return self._json(self._stats.as_json())

    async def _show_requests(self, request: web.Request) -> web.StreamResponse:
        return self._json(self._journal.as_json())

    async def _reset(self, request: web.Request) -> web.StreamResponse:
        self._stats = Stats()
        self._journal.clear()
        self._faults.clear()
        return self._json({})


def _texts(operation: Operation, call: Call) -> list[str]:
    """The texts of a call; a body of another shape is the client's error."""
    try:
        return operation.texts(call)
    except (AttributeError, KeyError, TypeError) as error:
        raise Refused(400, f"Invalid value: the body does not fit the method ({error}).") from None


def _vertex_identity(request: web.Request) -> None:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Refused(401, "Request is missing required authentication credential.")
    if token == "forbidden":
        raise Refused(403, "Permission 'aiplatform.endpoints.predict' denied on resource.")


@contextlib.asynccontextmanager
async def running(settings: Settings, port: int = 0) -> AsyncIterator[str]:
    """Serves on 127.0.0.1 inside the block and yields the base URL.

    Args:
        settings: The server's behaviour.
        port: TCP port; 0 takes a free one.
    """
    runner = web.AppRunner(
        ModelServer(settings).application(),
        access_log=None,
        handler_cancellation=True,
        shutdown_timeout=0.1,
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port, backlog=4096).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
