"""vLLM on the workers' own GPUs: one server per machine, which is restarted after a crash.

The other modules here start the server, share it among the machine's processes and restart it;
this one is the backend that sends it requests. A crash is ``unavailable`` and does not count as an
attempt: its requests wait for the next generation of the server, so that it is full from its first
moment. A request that crashes the server again and again becomes a dead letter
(`transforms.backends.vllm.poison_requests`).
"""

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Literal

from transforms.backends.base import ACCEPT_TRUNCATED, CallLimits, Capabilities
from transforms.backends.vllm.keeper import Settings
from transforms.backends.vllm.launch import ServerSpec, interpreter, plan, server_environment
from transforms.backends.vllm.lease import ServerLease, acquire, release
from transforms.backends.vllm.poison_requests import PoisonRequests
from transforms.backends.vllm.weights import local_model
from transforms.clients import server_metrics
from transforms.clients.embeddings import EmbedOutcome, SharedCalls
from transforms.clients.http import JsonClient, Reply, shaped
from transforms.clients.openai_dialect import (
    PATHS,
    answer_of,
    chat_body,
    embed_body,
    embed_many_body,
    embeddings_of,
    plain_text,
)
from transforms.records.causes import Cause
from transforms.records.errors import InvalidRequest, RecordError, Unavailable
from transforms.records.records import Completion, Json, Request

_POLL_S = 0.05
_TURN_S = 0.1
"""How often a suspect that has to wait for its turn tries again."""
_IGNORED = "guided_"
_TEXTS_PER_CALL = 32
"""vLLM has no limit of its own: enough that a call's cost hardly counts, and few enough that a call
that fails with its server costs little."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VLLMBackend:
    """A model that vLLM serves on the worker machine itself.

    Attributes:
      model: A name on the Hugging Face hub, a local folder, or a ``gs://`` folder, which is copied
        once per machine.
      task: ``generate`` or ``embed``.
      api: ``chat`` applies the model's chat template; ``completions``, for base models, sends the
        messages' text unchanged.
      python: The interpreter that has vLLM; by default ``VLLM_PYTHON`` in the workers' environment,
        else the interpreter that runs Beam.
      args: Arguments for vLLM's server, such as ``("--max-model-len=8192",)``; they override ours.
      environment: Additional environment variables for the server.
      folder: Holds locks, state and copied weights, for all processes of a machine. By default it
        is below the temporary folder.
      start_timeout_s: How long loading the model may take, in seconds.
      accept_truncated: Accept an answer that was cut at its token limit as a result.
      max_texts_per_call: The most texts to embed in one request; None for 32.
    """

    model: str
    task: Literal["generate", "embed"] = "generate"
    api: Literal["chat", "completions"] = "chat"
    python: str | None = None
    args: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    folder: str | None = None
    start_timeout_s: float = 1800.0
    accept_truncated: bool = ACCEPT_TRUNCATED
    max_texts_per_call: int | None = None

    @property
    def family(self) -> str:
        """The registered name; part of every fingerprint."""
        return "vllm"

    @property
    def capabilities(self) -> Capabilities:
        """Media from the web."""
        return Capabilities(media_schemes=("https",))

    async def open(self) -> "VLLMClient":
        """Waits until the machine's server is ready; starts it if none runs.

        Raises:
          BackendUnusable: vLLM, the model or the arguments cannot be used; the message ends with
            the last lines of the server's log.
        """
        servers = await asyncio.to_thread(self._servers)
        client = VLLMClient if self.task == "generate" else VLLMEmbeddingClient
        return client(self, servers)

    def interpreter(self, environment: Mapping[str, str]) -> tuple[str, dict[str, str]]:
        """The Python that runs vLLM in a given environment, and the environment it runs with."""
        spec = ServerSpec(
            model=self.model,
            served_name=self.model,
            python=self.python,
            environment=self.environment,
        )
        python = interpreter(spec, environment)
        return python, server_environment(spec, python, environment)

    def _servers(self) -> "list[_Server]":
        spec = ServerSpec(
            model=local_model(self.model, self.folder),
            served_name=self.model,
            pooling=self.task == "embed",
            python=self.python,
            args=self.args,
            environment=self.environment,
            folder=self.folder,
            start_timeout_s=self.start_timeout_s,
        )
        servers: list[_Server] = []
        try:
            servers.extend(_Server(acquire(settings), settings) for settings in plan(spec))
            for server in servers:
                server.lease.wait_ready()
        except BaseException:
            for server in servers:
                server.close()
            raise
        return servers


class _Server:
    """One accelerator group's server, as a client sees it."""

    def __init__(self, lease: ServerLease, settings: Settings) -> None:
        self.lease = lease
        self.settings = settings
        self.in_flight = 0

    def close(self) -> None:
        release(self.lease, self.settings)


class VLLMClient:
    """A connection to the machine's servers; each request goes to the least loaded one."""

    def __init__(self, backend: VLLMBackend, servers: list[_Server]) -> None:
        self._backend = backend
        self._servers = servers
        self._http = JsonClient()
        self._suspects = PoisonRequests(
            servers[0].lease.acquire_solo, servers[0].lease.release_solo
        )
        self._server_metrics = server_metrics.ServerMetrics()
        self._waits: dict[str, asyncio.Task[None]] = {}
        self._watch = asyncio.get_running_loop().create_task(self._watch_metrics())

    async def generate(self, request: Request) -> Completion:
        """Answers one request; raises the errors of `transforms.backends.base.Client`."""
        try:
            path, reply = await self._ask([request], lambda: body_of(request, self._backend))
        except _Crash as crash:
            raise crash.outcome(request) from None
        return shaped(
            lambda data: answer_of(data, path, accept_truncated=self._backend.accept_truncated),
            reply.data,
            what=self._backend.model,
        )

    def held(self, request: Request) -> asyncio.Future[None] | None:
        """Holds a request until a server is ready and, if it is a suspect, until its turn.

        Raises:
          BackendUnusable: All servers have failed for good.
        """
        if not any(map(_ready, self._servers)):
            if all(map(_failed, self._servers)):
                self._servers[0].lease.checked()
            return self._wait("ready", self._until_ready)
        if not self._suspects.admit(_name(request)):
            return self._wait("turn", lambda: asyncio.sleep(_TURN_S))
        return None

    async def close(self) -> None:
        """Releases the servers; they end a little later, unless other users hold them."""
        for task in (self._watch, *self._waits.values()):
            task.cancel()
        await self._http.close()
        for server in self._servers:
            server.close()

    def gauges(self) -> dict[str, int]:
        """Current gauges: load time, restarts, the servers' queues, tokens and cache."""
        states = [server.lease.state for server in self._servers]
        return {
            "vllm_load_s": round(max(state.load_s for state in states)),
            "vllm_restarts": sum(state.restarts for state in states),
            **self._server_metrics.gauges,
        }

    def wanted_in_flight(self) -> int:
        """How many requests the servers can process at once, by their queues; 0 while unknown."""
        return self._server_metrics.wanted

    async def _ask(
        self, requests: Sequence[Request], body: Callable[[], tuple[str, Json]]
    ) -> tuple[str, Reply]:
        """Makes one call for these requests, to the least loaded server.

        Raises:
          _Crash: The server crashed, and a request of the call is confirmed as poison.
          RecordError: Any other failure of the call.
        """
        names = list(map(_name, requests))
        server = min(self._servers, key=lambda one: (not _ready(one), one.in_flight))
        server.in_flight += len(names)
        try:
            path, content = body()
            reply = await self._post(server, path, content, names)
        finally:
            server.in_flight -= len(names)
            for name in names:
                self._suspects.done(name)
        for name in names:
            self._suspects.clear(name)
        return path, reply

    async def _post(self, server: _Server, path: str, body: Json, names: Sequence[str]) -> Reply:
        state = server.lease.state
        if state.status != "ready":
            raise _restarting(f"the vLLM server is {state.status}")
        try:
            return await self._http.post(f"{state.url}/v1/{path}", body)
        except Unavailable as error:
            if await server.lease.still_serves(state.generation):
                cause = error.consequence.still_served or error.cause
                raise error.replaced(cause=cause) from error
            restarting = _restarting(
                f"the vLLM server crashed (start {state.generation}) and is being restarted"
            )
            if error.consequence.attempt:  # the server had received the requests
                poison = {name for name in names if self._suspects.crashed(name)}
                if poison:
                    raise _Crash(poison, restarting) from None
            raise restarting from error
        except RecordError:
            for name in names:
                self._suspects.clear(name)
            raise

    def _wait(
        self, what: str, wait: Callable[[], Coroutine[Any, Any, None]]
    ) -> asyncio.Future[None]:
        """One task for all requests that wait for the same thing."""
        task = self._waits.get(what)
        if task is None or task.done():
            task = self._waits[what] = asyncio.get_running_loop().create_task(wait())
        return task

    async def _until_ready(self) -> None:
        """Returns when a server is ready, or when all have failed for good."""
        while not (any(map(_ready, self._servers)) or all(map(_failed, self._servers))):  # noqa: ASYNC110
            await asyncio.sleep(_POLL_S)  # the lease's thread changes the state

    async def _watch_metrics(self) -> None:
        """Reads the servers' metrics at intervals."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._server_metrics.again_s)
            pages: dict[str, server_metrics.Page] = {}
            in_flight = 0
            for server in filter(_ready, self._servers):
                with contextlib.suppress(RecordError):
                    url = server.lease.state.url
                    read = server_metrics.read_page
                    pages[url] = (await self._http.get(f"{url}/metrics", parse=read)).data
                    in_flight += server.in_flight
            self._server_metrics.read(pages, in_flight, loop.time())


class VLLMEmbeddingClient(VLLMClient):
    """A connection to the machine's servers of an embedding model; one call carries many texts."""

    def __init__(self, backend: VLLMBackend, servers: list[_Server]) -> None:
        super().__init__(backend, servers)
        self._shared = SharedCalls(backend.max_texts_per_call or _TEXTS_PER_CALL)

    @property
    def call_limits(self) -> CallLimits:
        """A number of texts; vLLM has no limit of its own."""
        return CallLimits(max_requests=self._shared.texts)

    async def generate_many(self, requests: Sequence[Request]) -> Sequence[EmbedOutcome]:
        """Embeds many texts in one request; see `transforms.backends.base.BatchClient`."""
        return await self._shared.outcomes(requests, self.generate, self._embed)

    async def _embed(self, requests: Sequence[Request]) -> Sequence[EmbedOutcome]:
        model = self._backend.model
        try:
            _, reply = await self._ask(
                requests, lambda: (PATHS["embed"], _checked(embed_many_body(requests, model)))
            )
        except _Crash as crash:
            return [crash.outcome(request) for request in requests]
        return shaped(lambda data: embeddings_of(data, requests), reply.data, what=model)

    def wanted_in_flight(self) -> int:
        """How many calls the servers can process at once; 0 while unknown. Queues count texts."""
        return self._shared.calls(super().wanted_in_flight())


class _Crash(Exception):
    """The server crashed, and the call has at least one poison request.

    Args:
      poison: The names of the poison requests.
      error: The failure of the call's other requests.
    """

    def __init__(self, poison: set[str], error: RecordError) -> None:
        super().__init__(str(error))
        self._poison = poison
        self._error = error

    def outcome(self, request: Request) -> RecordError:
        if _name(request) not in self._poison:
            return self._error
        return InvalidRequest(
            "the vLLM server crashed each time it processed this request, in the end as the only "
            "suspect; its log says why"
        )


def _ready(server: _Server) -> bool:
    return server.lease.state.status == "ready"


def _failed(server: _Server) -> bool:
    return server.lease.state.status == "failed"


def _name(request: Request) -> str:
    return f"{request.fingerprint} {request.record.record_id}"


def _restarting(message: str) -> Unavailable:
    return Unavailable(message, cause=Cause.RESTARTING)


def body_of(request: Request, backend: VLLMBackend) -> tuple[str, dict[str, Json]]:
    """A request's path below ``/v1/`` and its body.

    The content of a whole request (``{"request": …}``), with which each record has parameters of
    its own, decides the path; the model is filled in. Parameters that OpenAI does not have pass
    through: ``top_k``, ``min_tokens``, ``ignore_eos``, ``structured_outputs``.

    Raises:
      InvalidRequest: The request does not fit the task, or has parameters that vLLM silently
        ignores.
    """
    whole = request.body.get("request")
    if whole is not None:
        if not isinstance(whole, Mapping):
            raise InvalidRequest(f"a request must be a JSON object, not a {type(whole).__name__}")
        kinds = {"messages": "chat", "prompt": "completions", "input": "embed"}
        kind = next((kind for name, kind in kinds.items() if name in whole), None)
        if kind is None or (kind == "embed") != (backend.task == "embed"):
            raise InvalidRequest(
                f"a request with {sorted(whole)} does not fit the task {backend.task!r}: it needs "
                + ("an input" if backend.task == "embed" else "messages or a prompt")
            )
        body = {"model": backend.model, **whole}
    elif backend.task == "embed":
        kind, body = "embed", embed_body(request, backend.model)
    else:
        kind, body = backend.api, chat_body(request, backend.model, limit_name="max_tokens")
        if kind == "completions":
            body["prompt"] = plain_text(body.pop("messages"))
    return PATHS[kind], _checked(body)


def _checked(body: dict[str, Json]) -> dict[str, Json]:
    ignored = sorted(name for name in body if name.startswith(_IGNORED))
    if ignored:
        raise InvalidRequest(
            f"vLLM silently ignores {', '.join(ignored)}: use an output schema, response_format or "
            "structured_outputs"
        )
    return body
