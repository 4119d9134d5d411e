"""The wire formats: parsed requests, and answers and errors in each dialect's own words.

Two OpenAI paths as vLLM answers them, OpenAI's embeddings, and ``generateContent`` and ``predict``
(of text embedding models) of Vertex AI. Field names follow the vendors' references and recorded SDK
requests; look-ups accept snake_case and camelCase, since the SDKs mix both.

A call of embeddings may hold as many texts as the provider documents; more are refused in the words
that users report. A text's vector is a function of the text (`vector_of`).

This does not prove that a real service answers like this; no real endpoint was called. Streaming,
tools, schemas, output limits and safety filters are not modelled.
"""

import functools
import hashlib
import re
import struct
from dataclasses import dataclass
from typing import Any

import orjson

Json = dict[str, Any]

CREATED = 1_795_219_200
"""A fixed creation time (2026-11-21): equal calls get equal bytes."""

_RECORD = re.compile(r"record (\w+)")
_VERTEX = re.compile(
    r"/v1(?:beta1)?/projects/[^/]+/locations/[^/]+/publishers/[^/]+/models/([^/:]+):(\w+)"
)
_METHODS = {"generateContent": "gemini", "predict": "predict"}
_OPENAI = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text",
    "/v1/embeddings": "embeddings",
}
_EMBEDS = ("embeddings", "predict")
_MOST_TEXTS = {"embeddings": 2048, "predict": 250}
_MOST_TOKENS = {"embeddings": 300_000, "predict": 20_000}
_DIMENSIONS = 8
_FORBIDDEN = "forbidden"


class Refused(Exception):
    """The request cannot be served.

    Attributes:
        status: HTTP status.
        message: Text for the client; None for the dialect's usual one.
    """

    def __init__(self, status: int, message: str | None = None) -> None:
        """Keeps both."""
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True, slots=True)
class Route:
    """The operation of a path.

    Attributes:
        form: ``gemini``, ``chat``, ``text`` (plain completions), ``embeddings`` (OpenAI's) or
            ``predict`` (Vertex AI's embeddings).
        model: The model that the path names; None if the body names it.
    """

    form: str
    model: str | None = None


@dataclass(slots=True)
class Asked:
    """The content of one call.

    Attributes:
        form: The form of the route.
        model: The model's name.
        record_id: See ``record_id``; of several texts, that of the first.
        prompt_tokens: The tokens of all texts of the call.
        forbidden: Whether it names a forbidden media file.
        texts: The texts to embed; empty for any other form.
        dimensions: The length of a text's vector.
    """

    form: str
    model: str
    record_id: str
    prompt_tokens: int
    forbidden: bool
    texts: tuple[str, ...] = ()
    dimensions: int = _DIMENSIONS

    @property
    def record_ids(self) -> list[str]:
        """The records that the call is about: one, or one for each text to embed."""
        return list(map(record_id, self.texts)) or [self.record_id]


@functools.lru_cache(maxsize=1024)
def route(target: str) -> Route | None:
    """The route of a model call, None for any other path.

    Examples:
        >>> route("/v1/chat/completions")
        Route(form='chat', model=None)
    """
    path = target.partition("?")[0]
    if path in _OPENAI:
        return Route(_OPENAI[path])
    found = _VERTEX.fullmatch(path)
    form = _METHODS.get(found[2]) if found else None
    return Route(form, found[1]) if found and form else None


def record_id(text: str) -> str:
    """The record that a call is about: the word after ``record``, else the whole text.

    Examples:
        >>> record_id("Classify record 17: the parcel never arrived.")
        '17'
    """
    found = _RECORD.search(text)
    return found[1] if found else text


def tokens(characters: int) -> int:
    """Tokens of a text of this length: one per four characters or part of them."""
    return (characters + 3) // 4


def read(asked_for: Route, raw: bytes) -> Asked:
    """The parsed body of a request.

    Raises:
        Refused: 400 if it cannot be read.
    """
    try:
        body = orjson.loads(raw)
        if body.get("stream"):
            raise Refused(400, "The simulated server does not stream.")
        texts, last, media = _READ[asked_for.form](body)
        model = asked_for.model or str(body["model"])
        if asked_for.form in _EMBEDS:
            return _to_embed(asked_for.form, model, tuple(texts), body)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise Refused(400, f"Invalid JSON payload received: {error!r}") from None
    forbidden = any(isinstance(uri, str) and _FORBIDDEN in uri for uri in media)
    return Asked(asked_for.form, model, record_id(last), tokens(sum(map(len, texts))), forbidden)


def _to_embed(form: str, model: str, texts: tuple[str, ...], body: Json) -> Asked:
    """A call of embeddings.

    Raises:
        Refused: 400 if it holds more than the provider accepts.
    """
    counts = [tokens(len(text)) for text in texts]
    count, most = sum(counts), _MOST_TOKENS[form]
    if form == "predict":
        size = _pick(body.get("parameters") or {}, "outputDimensionality", "output_dimensionality")
        if len(texts) > 1 and "gemini" in model:
            raise Refused(400, "Unable to submit request because batchSize must be 1.")
        too_many = f"250 instance(s) is allowed per prediction. Actual: {len(texts)}"
        too_long = (
            f"Unable to submit request because the input token count is {count} but the model "
            f"supports up to {most}. Reduce the input token count and try again."
        )
    else:
        size = body.get("dimensions")
        too_many = (
            "Invalid 'input': array too long. Expected an array with maximum length 2048, but got "
            f"an array with length {len(texts)} instead."
        )
        too_long = f"Requested {count} tokens, max {most} tokens per request"
        if max(counts) > 8192:
            raise Refused(400, "Invalid 'input': maximum input length is 8192 tokens.")
    if len(texts) > _MOST_TEXTS[form]:
        raise Refused(400, too_many)
    if count > most:
        raise Refused(400, too_long)
    return Asked(form, model, record_id(texts[0]), count, False, texts, size or _DIMENSIONS)


def vector_of(text: str, dimensions: int) -> list[float]:
    """The vector of a text: numbers from -1 to 1 that JSON represents exactly.

    Examples:
        >>> vector_of("a", 2) == vector_of("a", 2) != vector_of("b", 2)
        True
    """
    raw = hashlib.shake_128(text.encode("utf-8", "surrogatepass")).digest(2 * dimensions)
    return [number / 32768 for number in struct.unpack(f"<{dimensions}h", raw)]


def answer(asked: Asked, text: str, output_tokens: int) -> bytes:
    """The body of an answer with HTTP status 200."""
    return orjson.dumps(_ANSWER[asked.form](asked, text, output_tokens))


def error(form: str, status: int, message: str | None, retry_after_s: float | None) -> bytes:
    """An error body.

    Args:
        form: The form of the route.
        status: HTTP status.
        message: The message; None for the usual one.
        retry_after_s: The Retry-After, repeated in Google's body as ``RetryInfo``.
    """
    message = message or _MESSAGES.get(status, "Internal error encountered.")
    if form == "embeddings":
        kind = "invalid_request_error" if status < 500 else "server_error"
        fault = {"message": message, "type": kind, "param": None, "code": None}
        return orjson.dumps({"error": fault})
    if form in ("chat", "text"):
        if status == 401:  # vLLM's own middleware answers like this
            return b'{"error":"Unauthorized"}'
        kind = _VLLM_KINDS.get(status, "InternalServerError")
        fault = {"message": message, "type": kind, "param": None, "code": status}
        return orjson.dumps({"error": fault})
    name = _GOOGLE_NAMES.get(status, "UNKNOWN")
    body: Json = {"code": status, "message": message, "status": name}
    if retry_after_s is not None:
        kind = "type.googleapis.com/google.rpc.RetryInfo"
        body["details"] = [{"@type": kind, "retryDelay": f"{retry_after_s:g}s"}]
    return orjson.dumps({"error": body})


_Read = tuple[list[str], str, list[Any]]
"""All texts, the last user text, and the addresses of media."""


def _pick(mapping: Json, camel: str, snake: str) -> Any:
    return mapping[camel] if camel in mapping else mapping.get(snake)


def _read_gemini(body: Json) -> _Read:
    contents = body["contents"]
    contents = [contents] if isinstance(contents, dict) else contents
    if not contents:
        raise Refused(400, "Unable to submit request because it must have at least one content.")
    system = _pick(body, "systemInstruction", "system_instruction")
    texts: list[str] = []
    media: list[Any] = []
    last = ""
    for content in [system, *contents] if system else contents:
        some = []
        parts = content["parts"]
        for part in [parts] if isinstance(parts, dict) else parts:
            if "text" in part:
                some.append(part["text"])
            else:
                file = _pick(part, "fileData", "file_data")
                media += [_pick(file, "fileUri", "file_uri")] if file else []
        texts += some
        if content is not system and content.get("role", "user") == "user":
            last = "\n".join(some)
    return texts, last, media


def _read_chat(body: Json) -> _Read:
    if not body["messages"]:
        raise Refused(400, "'messages' must not be empty.")
    texts: list[str] = []
    media: list[Any] = []
    last = ""
    for message in body["messages"]:
        content = message["content"]
        if isinstance(content, str):
            some = [content]
        else:
            some = [part["text"] for part in content if part["type"] == "text"]
            named = [part.get(part["type"]) for part in content]
            media += [item.get("url") for item in named if isinstance(item, dict)]
        texts += some
        if message["role"] == "user":
            last = "\n".join(some)
    return texts, last, media


def _read_text(body: Json) -> _Read:
    prompt = body["prompt"]
    texts = [prompt] if isinstance(prompt, str) else [str(text) for text in prompt]
    return texts, texts[-1], []


def _read_embeddings(body: Json) -> _Read:
    given = body["input"]
    texts = [given] if isinstance(given, str) else list(given)
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise Refused(400, "'$.input' is invalid.")
    return texts, texts[-1], []


def _read_predict(body: Json) -> _Read:
    texts = [instance["content"] for instance in body["instances"]]
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise Refused(400, "The text content is empty.")
    return texts, texts[-1], []


_READ = {
    "gemini": _read_gemini,
    "chat": _read_chat,
    "text": _read_text,
    "embeddings": _read_embeddings,
    "predict": _read_predict,
}


def _gemini(asked: Asked, text: str, output_tokens: int) -> Json:
    content = {"role": "model", "parts": [{"text": text}]}
    return {
        "candidates": [{"content": content, "finishReason": "STOP", "index": 0}],
        "usageMetadata": {
            "promptTokenCount": asked.prompt_tokens,
            "candidatesTokenCount": output_tokens,
            "totalTokenCount": asked.prompt_tokens + output_tokens,
            "trafficType": "ON_DEMAND",
        },
        "modelVersion": asked.model,
        "createTime": "2026-11-21T00:00:00.000000Z",
        "responseId": f"simulated-{asked.record_id}",
    }


def _completion(kind: str, choice: Json, asked: Asked, output_tokens: int) -> Json:
    return {
        "id": f"{'chatcmpl' if kind == 'chat.completion' else 'cmpl'}-{asked.record_id}",
        "object": kind,
        "created": CREATED,
        "model": asked.model,
        "choices": [{"index": 0, "logprobs": None, "finish_reason": "stop", **choice}],
        "usage": {
            "prompt_tokens": asked.prompt_tokens,
            "completion_tokens": output_tokens,
            "total_tokens": asked.prompt_tokens + output_tokens,
        },
    }


def _chat(asked: Asked, text: str, output_tokens: int) -> Json:
    choice = {"message": {"role": "assistant", "content": text, "refusal": None}}
    return _completion("chat.completion", choice, asked, output_tokens)


def _text(asked: Asked, text: str, output_tokens: int) -> Json:
    return _completion("text_completion", {"text": text}, asked, output_tokens)


def _embeddings(asked: Asked, text: str, output_tokens: int) -> Json:
    data = [
        {"object": "embedding", "index": index, "embedding": vector_of(one, asked.dimensions)}
        for index, one in enumerate(asked.texts)
    ]
    usage = {"prompt_tokens": asked.prompt_tokens, "total_tokens": asked.prompt_tokens}
    return {"object": "list", "data": data, "model": asked.model, "usage": usage}


def _predict(asked: Asked, text: str, output_tokens: int) -> Json:
    return {
        "predictions": [
            {
                "embeddings": {
                    "statistics": {"token_count": tokens(len(one)), "truncated": False},
                    "values": vector_of(one, asked.dimensions),
                }
            }
            for one in asked.texts
        ],
        "metadata": {"billableCharacterCount": sum(map(len, asked.texts))},
    }


_ANSWER = {
    "gemini": _gemini,
    "chat": _chat,
    "text": _text,
    "embeddings": _embeddings,
    "predict": _predict,
}


_GOOGLE_NAMES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    409: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_VLLM_KINDS = {
    400: "BadRequestError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    429: "RateLimitError",
    503: "ServiceUnavailableError",
}
_MESSAGES = {
    400: "Request contains an invalid argument.",
    401: "Request had invalid authentication credentials.",
    403: "Permission denied on resource, or it may not exist.",
    404: "The requested model was not found.",
    429: "Resource exhausted, please try again later.",
    503: "The service is currently unavailable.",
    504: "Deadline expired before operation could complete.",
}
