"""OpenAI and every server that speaks its dialect: vLLM, SGLang, TGI, Ollama, gateways.

No SDK: it costs several times the CPU per request and adds retries of its own. The bodies are in
`transforms.clients.openai_dialect`.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Literal

from yarl import URL

from transforms.backends.base import ACCEPT_TRUNCATED, CallLimits, Capabilities
from transforms.clients.embeddings import ESTIMATE_MARGIN, EmbedOutcome, SharedCalls
from transforms.clients.endpoints import Endpoints
from transforms.clients.http import shaped
from transforms.clients.openai_dialect import (
    PATHS,
    answer_of,
    chat_body,
    embed_body,
    embed_many_body,
    embeddings_of,
    plain_text,
)
from transforms.clients.secrets import read_secret
from transforms.records.errors import BackendUnusable
from transforms.records.records import Completion, Request

OPENAI_URL = "https://api.openai.com/v1"
_OPENAI_HOST = "api.openai.com"
_OPENAI_LIMITS = CallLimits(max_requests=2048, max_tokens=round(300_000 * ESTIMATE_MARGIN))
_CALL_LIMITS: Mapping[str, CallLimits] = {
    _OPENAI_HOST: _OPENAI_LIMITS,
    "openai.azure.com": _OPENAI_LIMITS,
    "api.mistral.ai": CallLimits(max_requests=256, max_tokens=round(16_000 * ESTIMATE_MARGIN)),
}
"""How much one call of ``embeddings`` may carry, by the end of the host's name.

OpenAI: 2,048 inputs and 300,000 tokens a request, no empty string
(https://platform.openai.com/docs/api-reference/embeddings/create); Azure has the same limits
(https://learn.microsoft.com/azure/ai-services/openai/how-to/embeddings). Mistral publishes none;
the values are those of two clients: 256 inputs,
https://docs.rs/crate/rig-core/0.42.0/source/src/providers/mistral/embedding.rs, and 16,000 tokens,
https://reference.langchain.com/v0.3/python/_modules/langchain_mistralai/embeddings.html.
"""
_COMPATIBLE_LIMITS = CallLimits(max_requests=32, max_bytes=2_000_000)
"""The same for any other server: the defaults of Text Embeddings Inference, stricter than most
(https://huggingface.co/docs/text-embeddings-inference/cli_arguments: ``--max-client-batch-size``,
``--payload-limit``). A server that takes less refuses the call, and `SharedCalls` adapts."""
_REFUSE_EMPTY = (_OPENAI_HOST, "openai.azure.com")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OpenAIBackend:
    """A model behind an OpenAI-compatible API.

    Attributes:
      model: The server's name for the model.
      endpoint: The base URL, ending in ``/v1``; or several URLs of equivalent servers: calls go to
        the least loaded one, dead ones are left out (`transforms.clients.endpoints`).
      task: ``generate`` or ``embed``.
      api: How texts are generated: ``chat``, or ``completions`` for base models, which continue the
        messages' text unchanged.
      api_key: The key; by default the value of ``api_key_secret``, else ``OPENAI_API_KEY`` in the
        worker's environment. Only OpenAI itself requires one.
      api_key_secret: The name of a Secret Manager version; the worker reads its value.
      accept_truncated: Whether an answer cut at its token limit is a result, not a failure.
      max_texts_per_call: The most texts to embed in one request; None for the provider's limit, and
        32 if that is unknown.
      max_tokens_per_call: The most tokens in one such request, as estimated; None for the
        provider's limit, if it has one.
      max_bytes_per_call: The most bytes of text in one such request; None for the provider's limit,
        if it has one.
    """

    model: str
    endpoint: str | tuple[str, ...] = OPENAI_URL
    task: Literal["generate", "embed"] = "generate"
    api: Literal["chat", "completions"] = "chat"
    api_key: str | None = dataclasses.field(default=None, repr=False)
    accept_truncated: bool = ACCEPT_TRUNCATED
    api_key_secret: str | None = None
    max_texts_per_call: int | None = None
    max_tokens_per_call: int | None = None
    max_bytes_per_call: int | None = None

    @property
    def family(self) -> str:
        """The registered name; part of every fingerprint."""
        return "openai"

    @property
    def capabilities(self) -> Capabilities:
        """Media from the web; list prices at OpenAI itself."""
        return Capabilities(
            media_schemes=("https",), price_provider="openai" if self.at_openai() else None
        )

    async def open(self) -> "OpenAIClient":
        """Opens a client; sends no request yet.

        Raises:
          BackendUnusable: OpenAI's own API needs a key and there is none, or the secret cannot be
            read.
        """
        secret = self.api_key_secret
        key = self.api_key or (await read_secret(secret) if secret else "")
        key = (key or os.environ.get("OPENAI_API_KEY") or "").strip()
        if not key and self.at_openai():
            raise BackendUnusable(
                "no OpenAI API key: set OPENAI_API_KEY in the workers' environment, or "
                "set `api_key_secret`"
            )
        shares = self.task == "embed" and self.embedding_limits().max_requests != 1
        client = OpenAIEmbeddingClient if shares else OpenAIClient
        return client(self, key)

    def embedding_limits(self) -> CallLimits:
        """How much one request of ``embeddings`` may carry: of several servers, the least."""
        known = min((_limits_of(url) for url in self.urls), key=lambda one: one.max_requests or 0)
        return CallLimits(
            max_requests=self.max_texts_per_call or known.max_requests,
            max_tokens=self.max_tokens_per_call or known.max_tokens,
            max_bytes=self.max_bytes_per_call or known.max_bytes,
        )

    def refuses_empty(self) -> bool:
        """Whether an empty text would have a whole request of ``embeddings`` refused."""
        return any(_is_at(url, host) for url in self.urls for host in _REFUSE_EMPTY)

    def at_openai(self) -> bool:
        """Whether this is OpenAI's own API, which is ahead of the dialect in some names."""
        return any(URL(url).host == _OPENAI_HOST for url in self.urls)

    @property
    def urls(self) -> tuple[str, ...]:
        """The servers' base URLs."""
        return (self.endpoint,) if isinstance(self.endpoint, str) else self.endpoint


def _is_at(url: str, host: str) -> bool:
    return f".{URL(url).host}".endswith(f".{host}")


def _limits_of(url: str) -> CallLimits:
    found = (limits for host, limits in _CALL_LIMITS.items() if _is_at(url, host))
    return next(found, _COMPATIBLE_LIMITS)


class OpenAIClient:
    """A live connection to one model, on one server or several."""

    def __init__(self, backend: OpenAIBackend, key: str) -> None:
        self._backend = backend
        self._limit_name = "max_completion_tokens" if backend.at_openai() else "max_tokens"
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._servers = Endpoints(backend.urls, self._headers, measured=not backend.at_openai())

    async def generate(self, request: Request) -> Completion:
        """Answers one request; raises the errors of `transforms.backends.base.Client`."""
        backend = self._backend
        kind: str = backend.api
        if backend.task == "embed":
            kind = "embed"
        if "request" in request.body:
            body = request.body["request"]
            if kind == "chat" and "messages" not in body and "prompt" in body:
                kind = "completions"
        elif kind == "embed":
            body = embed_body(request, backend.model)
        else:
            body = chat_body(request, backend.model, limit_name=self._limit_name)
            if kind == "completions":
                body["prompt"] = plain_text(body.pop("messages"))
        reply = await self._servers.post(PATHS[kind], body)
        return shaped(
            lambda data: answer_of(data, PATHS[kind], accept_truncated=backend.accept_truncated),
            reply.data,
            what=backend.model,
        )

    def wanted_in_flight(self) -> int:
        """How many requests the servers can use, where they tell; 0 where they do not."""
        return self._servers.wanted_in_flight()

    def gauges(self) -> dict[str, int]:
        """The servers' queues, where they tell, and how many servers are left out."""
        return self._servers.gauges()

    async def close(self) -> None:
        """Closes the connections."""
        await self._servers.close()


class OpenAIEmbeddingClient(OpenAIClient):
    """A live connection to an embedding model; one call carries many texts."""

    def __init__(self, backend: OpenAIBackend, key: str) -> None:
        super().__init__(backend, key)
        self._limits = backend.embedding_limits()
        texts = self._limits.max_requests or 1
        self._shared = SharedCalls(texts, refuses_empty=backend.refuses_empty())

    @property
    def call_limits(self) -> CallLimits:
        """The provider's limits; fewer texts once the server has refused calls of that size."""
        return dataclasses.replace(self._limits, max_requests=self._shared.texts)

    async def generate_many(self, requests: Sequence[Request]) -> Sequence[EmbedOutcome]:
        """Embeds many texts in one request; see `transforms.backends.base.BatchClient`."""
        return await self._shared.outcomes(requests, self.generate, self._embed)

    async def _embed(self, requests: Sequence[Request]) -> Sequence[EmbedOutcome]:
        model = self._backend.model
        body = embed_many_body(requests, model)
        reply = await self._servers.post(PATHS["embed"], body, requests=len(requests))
        return shaped(lambda data: embeddings_of(data, requests), reply.data, what=model)

    def wanted_in_flight(self) -> int:
        """How many calls the servers can use: their queues count texts."""
        return self._shared.calls(super().wanted_in_flight())
