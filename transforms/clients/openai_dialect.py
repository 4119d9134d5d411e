"""OpenAI's dialect as pure functions: build request bodies, and read replies into completions.

Several backends speak it. A test compares the bodies with those of the openai package.
"""

import base64
import dataclasses
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from transforms.clients.embeddings import EmbedOutcome, mixed_up, share_tokens
from transforms.clients.http import token_count
from transforms.records import json_values
from transforms.records.errors import (
    Blocked,
    EmptyOutput,
    InvalidRequest,
    RecordError,
    Truncated,
)
from transforms.records.media import media_part, shown
from transforms.records.records import Completion, Json, Request, Usage

_MEDIA_KINDS = {"image": "image_url", "audio": "audio_url", "video": "video_url"}
PATHS = {"chat": "chat/completions", "completions": "completions", "embed": "embeddings"}
"""The path of each kind of request, below the base URL."""
_NOT_STRICT = {
    "allOf",
    "oneOf",
    "not",
    "if",
    "then",
    "else",
    "dependentRequired",
    "dependentSchemas",
    "patternProperties",
}


def chat_body(request: Request, model: str, *, limit_name: str) -> dict[str, Json]:
    """The body of ``chat/completions``; messages are unchanged, except for their media parts.

    Args:
      request: A request with ``messages``.
      model: The server's name for the model.
      limit_name: This server's name for the limit of output tokens: compatible servers know
        ``max_tokens``, OpenAI's reasoning models only ``max_completion_tokens``.

    Raises:
      InvalidRequest: There are no messages, or media that this dialect cannot express.
    """
    if "messages" not in request.body:
        raise InvalidRequest(f"a request with {sorted(request.body)} has no messages")
    messages = request.body["messages"]
    if isinstance(messages, list):
        messages = [_message(message) for message in messages]
    body: dict[str, Json] = {"model": model, "messages": messages}
    for name, value in (request.params.get("generation_config") or {}).items():
        body[limit_name if name == "max_output_tokens" else name] = value
    schema = request.params.get("output_schema")
    if schema is not None and "response_format" not in body:
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "output", "schema": schema, "strict": is_closed(schema)},
        }
    body.update(request.params.get("request_options") or {})
    return body


def _message(message: Any) -> Any:
    content = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(content, list):
        return message
    return {**message, "content": [_part(part) for part in content]}


def _part(part: Any) -> Any:
    """A media part in the form of vLLM and OpenAI; any other part unchanged.

    OpenAI itself takes images by URL only. Neither takes a PDF by URL: ``file`` parts hold data.
    """
    if not isinstance(part, Mapping) or part.get("type") != "media":
        return part
    media = media_part(part.get("uri"), part.get("mime_type"), "a media part", "set its mime_type")
    uri, mime_type = media["uri"], media["mime_type"]
    if uri.startswith("gs://"):
        raise InvalidRequest(
            f"{shown(uri)}: a server that speaks OpenAI's dialect cannot read gs:// objects; use "
            "https:// URLs (signed ones, for instance), or the backend gemini"
        )
    kind = _MEDIA_KINDS.get(mime_type.partition("/")[0].lower())
    if kind is None:
        raise InvalidRequest(
            f"{shown(uri)}: OpenAI's dialect takes images, audio and video by URL, but no "
            f"{mime_type}; use the backend gemini"
        )
    return {"type": kind, kind: {"url": uri}}


def embed_body(request: Request, model: str) -> dict[str, Json]:
    """The body of ``embeddings``.

    Raises:
      InvalidRequest: There is no text.
    """
    text = request.body.get("text")
    if not isinstance(text, str):
        raise InvalidRequest(f"an embedding request with {sorted(request.body)} has no text")
    body: dict[str, Json] = {"model": model, "input": text, "encoding_format": "float"}
    for name, value in (request.params.get("generation_config") or {}).items():
        body["dimensions" if name == "output_dimensionality" else name] = value
    body.update(request.params.get("request_options") or {})
    return body


def embed_many_body(requests: Sequence[Request], model: str) -> dict[str, Json]:
    """The body of ``embeddings`` for several texts, which share their parameters.

    Raises:
      InvalidRequest: There is no text.
    """
    texts = [request.body["text"] for request in requests]
    return {**embed_body(requests[0], model), "input": texts}


def is_closed(schema: Any) -> bool:
    """Whether OpenAI's strict mode accepts a schema; it refuses requests with any other schema.

    Strict mode requires an object at the root; every object must forbid additional properties and
    require all that it names; some keywords are not allowed at all.

    >>> is_closed({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"],
    ...            "additionalProperties": False})
    True
    >>> is_closed({"type": "object", "properties": {"a": {"type": "string"}}})
    False
    """
    return isinstance(schema, Mapping) and schema.get("type") == "object" and _closed(schema)


def _closed(schema: Any) -> bool:
    if not isinstance(schema, Mapping) or _NOT_STRICT & schema.keys():
        return False
    kind, properties = schema.get("type"), schema.get("properties")
    inner: list[Any] = []
    kinds = kind if isinstance(kind, list) else [kind]
    if "object" in kinds or properties is not None:
        properties = properties or {}
        if schema.get("additionalProperties") is not False:
            return False
        if set(schema.get("required") or ()) != set(properties):
            return False
        inner += properties.values()
    if "items" in schema:
        inner.append(schema["items"])
    inner += schema.get("anyOf") or []
    for name in ("$defs", "definitions"):
        inner += (schema.get(name) or {}).values()
    return all(map(_closed, inner))


def completion_of(data: Any, *, accept_truncated: bool) -> Completion:
    """Reads a reply of ``chat/completions``; the first of several choices counts.

    Raises:
      Blocked, EmptyOutput, Truncated: With the text and tokens received.
    """
    known: dict[str, Any] = {
        "usage": usage_of(data),
        "model_version": data.get("model"),
        "service_tier": data.get("service_tier"),
    }
    if not data["choices"]:
        raise EmptyOutput("the reply holds no choices", **known)
    choice = data["choices"][0]
    message, reason = choice["message"], choice.get("finish_reason")
    text, calls, refusal = _text(message), message.get("tool_calls"), message.get("refusal")
    known["finish_reason"] = reason
    failure: RecordError | None = None
    if refusal:
        failure = Blocked("the model refused to answer", output=refusal, **known)
    elif reason == "content_filter":
        failure = Blocked("a content filter ended the answer", output=text or None, **known)
    elif reason == "length" and not (accept_truncated and text):
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


def answer_of(data: Any, path: str, *, accept_truncated: bool) -> Completion:
    """Reads a reply; requested logprobs go into ``output_json``, with any tool calls.

    Raises:
      Blocked, EmptyOutput, Truncated: With the text and tokens received.
    """
    if path == PATHS["embed"]:
        return embedding_of(data)
    if path == PATHS["completions"]:
        choices = [{**c, "message": {"content": c["text"]}} for c in data["choices"]]
        data = {**data, "choices": choices}
    completion = completion_of(data, accept_truncated=accept_truncated)
    choice = data["choices"][0]
    if logprobs := choice.get("logprobs"):
        calls = choice["message"].get("tool_calls")
        found = {"logprobs": logprobs, **({"tool_calls": calls} if calls else {})}
        text = json_values.dumps(found).decode()
        completion = dataclasses.replace(completion, output_json=text)
    return completion


def plain_text(messages: Any) -> str:
    """The text for a base model to continue: the messages' texts, one after another.

    Raises:
      InvalidRequest: A message's content is not text.
    """
    contents = [message.get("content") for message in messages if isinstance(message, Mapping)]
    texts = [text for text in contents if isinstance(text, str)]
    if not texts or len(texts) < len(contents):
        raise InvalidRequest("a base model continues text: send messages whose content is text")
    return "\n\n".join(texts)


def _text(message: Any) -> str:
    """A message's text; some compatible servers send a list of parts."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part.get("type") == "text")


def usage_of(data: Any) -> Usage:
    """The tokens of a reply; `completion_tokens` includes reasoning tokens, Usage does not."""
    counts = data.get("usage") or {}
    output = token_count(counts.get("completion_tokens"))
    reasoning = token_count((counts.get("completion_tokens_details") or {}).get("reasoning_tokens"))
    cached = (counts.get("prompt_tokens_details") or {}).get("cached_tokens")
    return Usage(
        input_tokens=token_count(counts.get("prompt_tokens")),
        cached_input_tokens=token_count(cached),
        output_tokens=None if output is None else max(0, output - (reasoning or 0)),
        reasoning_tokens=reasoning,
    )


def embedding_of(data: Any) -> Completion:
    """Reads a reply of ``embeddings`` for one text."""
    vector = _vector(data["data"][0]) if data["data"] else ()
    return _embedded(vector, dataclasses.replace(usage_of(data), output_tokens=None), data)


def embeddings_of(data: Any, requests: Sequence[Request]) -> Sequence[EmbedOutcome]:
    """Reads a reply of ``embeddings`` for several texts: one outcome per text, in their order.

    Vectors are matched by their ``index``, whatever their order. The server counts the tokens
    of the whole request; each text gets a share of them in proportion to its estimate, and the
    shares add up to the server's count.

    Raises:
      InvalidRequest: There is not exactly one vector for each text.
    """
    indexes = [item.get("index") for item in data["data"]]
    vectors = dict(zip(indexes, map(_vector, data["data"]), strict=True))
    if len(indexes) != len(requests) or vectors.keys() != set(range(len(requests))):
        some = ", ".join(map(str, [*indexes[:8], *(["…"] if len(indexes) > 8 else [])]))
        raise mixed_up(len(requests), f"{len(indexes)} vectors with the indexes [{some}]")
    total = usage_of(data).input_tokens
    shares: Sequence[int | None] = [None] * len(requests)
    if total is not None:
        shares = share_tokens(total, [request.estimated_tokens for request in requests])
    outcomes: list[EmbedOutcome] = []
    for place, tokens in enumerate(shares):
        try:
            outcomes.append(_embedded(vectors[place], Usage(input_tokens=tokens), data))
        except EmptyOutput as error:
            outcomes.append(error)
    return outcomes


def _vector(item: Any) -> tuple[float, ...]:
    """The vector, sent as floats, or as base64 if the request asked for it."""
    values = item["embedding"] or ()
    if isinstance(values, str):
        packed = base64.b64decode(values)
        values = struct.unpack(f"<{len(packed) // 4}f", packed)
    return tuple(map(float, values))


def _embedded(vector: tuple[float, ...], usage: Usage, data: Any) -> Completion:
    if not vector:
        raise EmptyOutput("the reply holds no embedding", model_version=data.get("model"))
    return Completion(embedding=vector, usage=usage, model_version=data.get("model"))
