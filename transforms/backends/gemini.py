"""Gemini, and other publishers' models with ``generateContent``, on Vertex AI.

Requests and replies are plain dicts: the SDK's response model refuses fields that real replies
have, and costs several times the CPU. A test compares the bodies with those of google-genai.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from transforms.backends.base import ACCEPT_TRUNCATED, CallLimits, Capabilities
from transforms.clients.embeddings import ESTIMATE_MARGIN, EmbedOutcome, SharedCalls, mixed_up
from transforms.clients.google_auth import GoogleAuth, auth_for, vertex_base_url
from transforms.clients.http import JsonClient, Reply, shaped, token_count
from transforms.records import json_values
from transforms.records.errors import Blocked, EmptyOutput, InvalidRequest, RecordError, Truncated
from transforms.records.media import media_part
from transforms.records.records import Completion, Json, Request, Usage

ServiceTier = Literal["standard", "flex", "priority", "provisioned"]

_ROLES = {"user": "user", "assistant": "model", "model": "model"}
_GENERATION_NAMES = {
    "max_output_tokens": "maxOutputTokens",
    "top_p": "topP",
    "stop": "stopSequences",
}
_EMBEDDING_NAMES = {
    "task_type": "taskType",
    "output_dimensionality": "outputDimensionality",
    "auto_truncate": "autoTruncate",
}
_PREDICT_LIMITS = CallLimits(max_requests=250, max_tokens=round(20_000 * ESTIMATE_MARGIN))
"""How much one ``predict`` of a text embedding model may carry: 250 texts and 20,000 tokens, but a
single text for Gemini's embedding models
(https://cloud.google.com/vertex-ai/generative-ai/docs/embeddings/get-text-embeddings#api_limits). A
model cuts a text beyond 2,048 tokens unless ``auto_truncate`` is false."""
_ANSWER_NAMES = {"candidates", "usageMetadata", "modelVersion", "responseId"}
_SCHEMA_NAMES = {"responseSchema", "response_schema", "responseJsonSchema", "response_json_schema"}
_TIER_HEADERS: Mapping[str, Mapping[str, str]] = {
    "standard": {"X-Vertex-AI-LLM-Request-Type": "shared"},
    "flex": {
        "X-Vertex-AI-LLM-Request-Type": "shared",
        "X-Vertex-AI-LLM-Shared-Request-Type": "flex",
    },
    "priority": {
        "X-Vertex-AI-LLM-Request-Type": "shared",
        "X-Vertex-AI-LLM-Shared-Request-Type": "priority",
    },
    "provisioned": {"X-Vertex-AI-LLM-Request-Type": "dedicated"},
}
_BLOCKED = {
    "SAFETY",
    "RECITATION",
    "LANGUAGE",
    "BLOCKLIST",
    "PROHIBITED_CONTENT",
    "SPII",
    "MODEL_ARMOR",
    "IMAGE_SAFETY",
    "IMAGE_PROHIBITED_CONTENT",
    "IMAGE_RECITATION",
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GeminiBackend:
    """A model on Vertex AI.

    Attributes:
      model: ``gemini-2.5-flash``, ``publisher/model``, or a full resource name.
      project: The project whose quota is used and which is billed.
      location: A region, ``us``, ``eu`` or ``global``.
      task: ``generate``, or ``embed`` for an embedding model.
      endpoint: Another base URL (plain HTTP gets a made-up token), or the resource of a tuned
        model, ``projects/P/locations/L/endpoints/E``.
      accept_truncated: Whether an answer cut at its token limit is a result, not a failure.
      service_tier: How calls are served and billed; None uses provisioned throughput if there is
        any, then the standard tier. Not part of the fingerprint: the answer is the same.
      max_texts_per_call: The most texts to embed in one ``predict``; None for the model's limit.
      max_tokens_per_call: The most tokens in one such request, as estimated; None for the model's
        limit.
      max_bytes_per_call: The most bytes of text in one such request; None for no limit.

    An output schema is sent as ``responseJsonSchema``, which takes JSON Schema as it is (Gemini
    2.0 and later); for an older model, set ``response_schema`` in the generation config.
    """

    model: str
    project: str
    location: str
    task: Literal["generate", "embed"] = "generate"
    endpoint: str | None = None
    accept_truncated: bool = ACCEPT_TRUNCATED
    service_tier: ServiceTier | None = None
    max_texts_per_call: int | None = None
    max_tokens_per_call: int | None = None
    max_bytes_per_call: int | None = None

    @property
    def family(self) -> str:
        """The registered name; part of every fingerprint."""
        return "gemini"

    @property
    def capabilities(self) -> Capabilities:
        """Media from buckets and the web; Google's list prices."""
        return Capabilities(price_provider="google")

    async def open(self) -> "GeminiClient":
        """Opens a client with the environment's Google credentials.

        Raises:
          BackendUnusable: There are none, or no token can be fetched with them.
        """
        url = self.url()
        shares = self.task == "embed" and self.embedding_limits().max_requests != 1
        client = GeminiEmbeddingClient if shares else GeminiClient
        return client(self, url, await auth_for(url))

    def embedding_limits(self) -> CallLimits:
        """How much one embedding request may carry; ``embedContent`` takes a single text."""
        if self.embeds_content():
            return CallLimits()
        known = _PREDICT_LIMITS
        if self.model.rsplit("/", 1)[-1].startswith("gemini-"):
            known = dataclasses.replace(known, max_requests=1)
        return CallLimits(
            max_requests=self.max_texts_per_call or known.max_requests,
            max_tokens=self.max_tokens_per_call or known.max_tokens,
            max_bytes=self.max_bytes_per_call,
        )

    def base_url(self) -> str:
        """Where every request goes: scheme and host."""
        endpoint, location = self.endpoint or "", self.location
        if endpoint.startswith("projects/"):
            location = endpoint.split("/")[3] if endpoint.count("/") >= 4 else location
            return vertex_base_url(location)
        return vertex_base_url(location, endpoint)

    def url(self) -> str:
        """Where every request of this backend goes."""
        endpoint = self.endpoint or ""
        resource = endpoint if endpoint.startswith("projects/") else self._model_resource()
        verb = "generateContent"
        if self.task == "embed":
            verb = "embedContent" if self.embeds_content() else "predict"
        return f"{self.base_url()}/v1/{resource}:{verb}"

    def embeds_content(self) -> bool:
        """Whether the model embeds with ``embedContent`` instead of ``predict``."""
        return self.model.rsplit("/", 1)[-1].startswith("gemini-embedding-2")

    def _model_resource(self) -> str:
        if self.model.startswith("projects/"):
            return self.model
        name = self.model
        if not name.startswith("publishers/"):
            publisher, _, model = name.rpartition("/")
            name = f"publishers/{publisher or 'google'}/models/{model}"
        return f"projects/{self.project}/locations/{self.location}/{name}"


class GeminiClient:
    """A live connection to one model."""

    def __init__(self, backend: GeminiBackend, url: str, auth: GoogleAuth) -> None:
        self._backend = backend
        self._url = url
        self._auth = auth
        self._tier = _TIER_HEADERS.get(backend.service_tier or "", {})
        self._http = JsonClient()

    async def generate(self, request: Request) -> Completion:
        """Answers one request; raises the errors of `transforms.backends.base.Client`."""
        backend = self._backend
        embedding = backend.task == "embed"
        if "request" in request.body:
            body = request.body["request"]
        elif embedding:
            body = _embed_body(request, backend.embeds_content())
        else:
            body = generate_body(request)
        reply = await self._post(body)
        if embedding:
            return shaped(_embedding, reply.data, what=backend.model)
        return shaped(
            lambda data: completion_of(data, accept_truncated=backend.accept_truncated),
            reply.data,
            what=backend.model,
        )

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.close()

    async def _post(self, body: Json) -> Reply:
        headers = {**await self._auth.headers(), **self._tier}
        return await self._http.post(self._url, body, headers)


class GeminiEmbeddingClient(GeminiClient):
    """A live connection to an embedding model with ``predict``; one call carries many texts."""

    def __init__(self, backend: GeminiBackend, url: str, auth: GoogleAuth) -> None:
        super().__init__(backend, url, auth)
        self._limits = backend.embedding_limits()
        self._shared = SharedCalls(self._limits.max_requests or 1, refuses_empty=True)

    @property
    def call_limits(self) -> CallLimits:
        """The model's limits; fewer texts once the server has refused calls of that size."""
        return dataclasses.replace(self._limits, max_requests=self._shared.texts)

    async def generate_many(self, requests: Sequence[Request]) -> Sequence[EmbedOutcome]:
        """Embeds many texts in one request; see `transforms.backends.base.BatchClient`."""
        return await self._shared.outcomes(requests, self.generate, self._embed)

    async def _embed(self, requests: Sequence[Request]) -> Sequence[EmbedOutcome]:
        reply = await self._post(embed_many_body(requests))
        return shaped(
            lambda data: _embeddings(data, len(requests)), reply.data, what=self._backend.model
        )


def generate_body(request: Request) -> dict[str, Json]:
    """The body of ``generateContent``.

    Raises:
      InvalidRequest: Gemini cannot express a message or part; the error names its role or type.
    """
    messages = request.body.get("messages")
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise InvalidRequest(f"a request with {sorted(request.body)} has no messages")
    system: list[str] = []
    contents: list[Json] = []
    for message in messages:
        _add_message(message, system, contents)
    body: dict[str, Json] = {"contents": contents}
    if system:
        body["systemInstruction"] = {"role": "user", "parts": [{"text": "\n\n".join(system)}]}
    config = {
        _GENERATION_NAMES.get(name, name): value
        for name, value in (request.params.get("generation_config") or {}).items()
    }
    if isinstance(config.get("stopSequences"), str):
        config["stopSequences"] = [config["stopSequences"]]
    schema = request.params.get("output_schema")
    if schema is not None and not _SCHEMA_NAMES & config.keys():
        config.setdefault("responseMimeType", "application/json")
        config["responseJsonSchema"] = schema
    if config:
        body["generationConfig"] = config
    body.update(request.params.get("request_options") or {})
    return body


def _add_message(message: Any, system: list[str], contents: list[Json]) -> None:
    if not isinstance(message, Mapping):
        raise InvalidRequest(f"a message is a {type(message).__name__}, not an object")
    role = message.get("role", "user")
    if role == "system":
        parts = _parts(message.get("parts", message.get("content")))
        if not all("text" in part for part in parts):
            raise InvalidRequest("a system message holds media; move them to the user's message")
        system.append("\n".join(part["text"] for part in parts))
    elif "parts" in message:
        contents.append(message)
    elif role in _ROLES:
        contents.append({"role": _ROLES[role], "parts": _parts(message.get("content"))})
    else:
        raise InvalidRequest(f"role {role!r} is not one of {', '.join(['system', *_ROLES])}")


def _parts(content: Any) -> list[dict[str, Json]]:
    """A message's content as parts: a string, or a list of parts in OpenAI's or Gemini's form."""
    if isinstance(content, str):
        return [{"text": content}]
    if not isinstance(content, list):
        raise InvalidRequest(f"a message's content is a {type(content).__name__}, not text")
    return [_part(part) for part in content]


def _part(part: Any) -> dict[str, Json]:
    kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
    if kind == "text" and isinstance(part.get("text"), str):
        return {"text": part["text"]}
    if kind == "media":
        return _file(part.get("uri"), part.get("mime_type"))
    if kind == "image_url" and isinstance(part.get("image_url"), Mapping):
        url = part["image_url"].get("url")
        if found := re.fullmatch(r"data:([^;,]+);base64,(.+)", str(url), re.DOTALL):
            return {"inlineData": {"mimeType": found[1], "data": found[2]}}
        return _file(url, None)
    raise InvalidRequest(
        f"a part of type {kind!r} is neither text nor media; use Gemini's own 'parts' for others"
    )


def _file(uri: Json, mime_type: Json) -> dict[str, Json]:
    """A part that Vertex AI reads itself, by its URI."""
    part = media_part(uri, mime_type, "a media part", "use a part of type 'media' with one")
    return {"fileData": {"fileUri": part["uri"], "mimeType": part["mime_type"]}}


def completion_of(data: Any, *, accept_truncated: bool) -> Completion:
    """Reads a reply of ``generateContent``; the first of several candidates counts.

    Raises:
      Blocked, EmptyOutput, Truncated: With the text and tokens received.
    """
    counts = data.get("usageMetadata") or {}
    known: dict[str, Any] = {
        "usage": Usage(
            input_tokens=token_count(counts.get("promptTokenCount")),
            cached_input_tokens=token_count(counts.get("cachedContentTokenCount")),
            output_tokens=token_count(counts.get("candidatesTokenCount")),
            reasoning_tokens=token_count(counts.get("thoughtsTokenCount")),
        ),
        "model_version": data.get("modelVersion"),
        "service_tier": counts.get("trafficType"),
    }
    block = (data.get("promptFeedback") or {}).get("blockReason")
    if block:
        raise Blocked(f"the prompt was blocked: {block}", finish_reason=block, **known)
    candidates = data.get("candidates")
    if not candidates:
        if not data.keys() & _ANSWER_NAMES:
            raise KeyError("candidates")  # a proxy's page, not an answer without candidates
        raise EmptyOutput("the reply holds no candidates", **known)
    reason = candidates[0].get("finishReason")
    parts = (candidates[0].get("content") or {}).get("parts") or []
    text = "".join(part["text"] for part in parts if "text" in part and not part.get("thought"))
    calls = [part["functionCall"] for part in parts if "functionCall" in part]
    known["finish_reason"] = reason
    failure: RecordError | None = None
    if reason in _BLOCKED:
        failure = Blocked(f"the answer was blocked: {reason}", output=text or None, **known)
    elif reason == "MAX_TOKENS" and not (accept_truncated and text):
        failure = Truncated("the answer reached its token limit", output=text or None, **known)
    elif not text and not calls:
        failure = EmptyOutput(f"an answer without text (finish reason {reason})", **known)
    if failure:
        raise failure
    return Completion(
        output=text or None,
        output_json=json_values.dumps(calls).decode() if calls else None,
        **known,
    )


def _embed_body(request: Request, embeds_content: bool) -> dict[str, Json]:
    """One text's body, as google-genai 2.34 sends it, with its settings in three places."""
    text = request.body.get("text")
    if not isinstance(text, str):
        raise InvalidRequest(f"an embedding request with {sorted(request.body)} has no text")
    config = {
        _EMBEDDING_NAMES.get(name, name): value
        for name, value in (request.params.get("generation_config") or {}).items()
    }
    body: dict[str, Json]
    if embeds_content:
        body = {"content": {"role": "user", "parts": [{"text": text}]}}
        if config:
            body["embedContentConfig"] = config
    else:
        instance = {"content": text}
        if "taskType" in config:
            instance["task_type"] = config.pop("taskType")
        if "title" in config:
            instance["title"] = config.pop("title")
        body = {"instances": [instance]}
        if config:
            body["parameters"] = config
    body.update(request.params.get("request_options") or {})
    return body


def embed_many_body(requests: Sequence[Request]) -> dict[str, Json]:
    """The body of ``predict`` for several texts, which share their parameters.

    Raises:
      InvalidRequest: There is no text.
    """
    bodies = [_embed_body(request, embeds_content=False) for request in requests]
    return {**bodies[0], "instances": [body["instances"][0] for body in bodies]}


def _embedding(data: Any) -> Completion:
    """Reads a reply of ``predict`` or ``embedContent`` for one text."""
    if "embedding" in data:
        tokens = (data.get("usageMetadata") or {}).get("promptTokenCount")
        return _embedded(data["embedding"].get("values"), tokens, data)
    return _predicted((data["predictions"] or [{}])[0], data)


def _embeddings(data: Any, texts: int) -> Sequence[EmbedOutcome]:
    """Reads a reply of ``predict`` for several texts: one outcome per text, in their order.

    Raises:
      InvalidRequest: There is not exactly one prediction for each text.
    """
    predictions = data["predictions"]
    if len(predictions) != texts:
        raise mixed_up(texts, f"{len(predictions)} vectors")
    outcomes: list[EmbedOutcome] = []
    for prediction in predictions:
        try:
            outcomes.append(_predicted(prediction, data))
        except EmptyOutput as error:
            outcomes.append(error)
    return outcomes


def _predicted(prediction: Any, data: Any) -> Completion:
    found = prediction.get("embeddings") or {}
    usage = data.get("usageMetadata") or {}
    tokens = (found.get("statistics") or {}).get("token_count", usage.get("promptTokenCount"))
    return _embedded(found.get("values"), tokens, data)


def _embedded(values: Any, tokens: Any, data: Any) -> Completion:
    if not values:
        raise EmptyOutput("the reply holds no embedding", model_version=data.get("modelVersion"))
    return Completion(
        embedding=tuple(map(float, values)),
        usage=Usage(input_tokens=token_count(tokens)),
        model_version=data.get("modelVersion"),
        service_tier=(data.get("usageMetadata") or {}).get("trafficType"),
    )
