"""The OpenAI dialect: chat completions, embeddings, models.

It serves the common part of OpenAI, vLLM and Vertex AI's OpenAI-compatible endpoint.

This does not prove that any of them answers like this. It is written from captures and vendor
documentation; no real endpoint was called. Streaming, tools, ``n`` and output limits are not
modelled. Reasoning is 3 tokens, within ``completion_tokens``; system messages count as cached.
Media are not opened and cost no tokens; a URL with ``forbidden`` in it is a 403.
"""

import base64
import struct
from typing import Any

from tests.emulators.model_server import answers, errors
from tests.emulators.model_server.answers import Answer, Asked, tokens
from tests.emulators.model_server.wire import (
    CREATED,
    Call,
    Json,
    Operation,
    Refused,
    check_media,
    to_int,
)

MODELS = ("simulated-model", "simulated-embedding-model")
MAX_INPUTS = 2048
MAX_INPUT_TOKENS = 8192
MAX_REQUEST_TOKENS = 300_000
_MEDIA = ("image_url", "audio_url", "video_url")
_PARTS = ("text", "input_audio", "file", *_MEDIA)
_FINISH = {"stop": "stop", "length": "length", "filter": "content_filter", "new": "something_new"}


def _texts(message: Any) -> list[str]:
    """The texts of one message, whose content is a string or a list of parts."""
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, str):
        return [content]
    parts = content if isinstance(content, list) else []
    return [part["text"] for part in parts if isinstance(part.get("text"), str)]


def _chat_texts(call: Call) -> list[str]:
    messages = call.body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Refused(400, "Invalid value for 'messages': expected a non-empty array.")
    if call.body.get("stream"):
        raise Refused(400, "The simulated server does not stream.")
    for message in messages:
        _check_parts(message)
    user = [message for message in messages if message.get("role") == "user"]
    return [next(iter(reversed(_texts(user[-1]))), "") if user else ""]


def _check_parts(message: Any) -> None:
    content = message.get("content")
    for part in content if isinstance(content, list) else []:
        kind = part.get("type")
        if kind not in _PARTS:
            raise Refused(400, f"Invalid value: {kind!r}. Supported values are {_PARTS}.")
        if kind in _MEDIA:
            check_media(part[kind]["url"], ("https://", "http://", "data:"))


def _asked(body: Json) -> Asked:
    form = body.get("response_format") or {}
    if form.get("type") == "json_schema":
        return Asked(True, form.get("json_schema", {}).get("schema"))
    return Asked(form.get("type") == "json_object")


def _usage(body: Json, answer: Answer) -> Json:
    texts = [(m.get("role"), t) for m in body["messages"] for t in _texts(m)]
    prompt = tokens("".join(text for _, text in texts))
    system = tokens("".join(text for role, text in texts if role in ("system", "developer")))
    completion = tokens(answer.text or "") + answer.thoughts
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": system, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": answer.thoughts, "audio_tokens": 0},
    }


def _chat(call: Call) -> Json:
    text = _chat_texts(call)[0]
    fault = call.plan.fault
    if fault == "prompt-blocked":
        raise Refused(400, "The prompt was refused by the content policy.", "content_filter")
    if fault == "no-candidates":
        answer, choices = Answer(None, thoughts=0), []
    else:
        answer = answers.compose(text, _asked(call.body), fault, call.answer_mode)
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": None,
            "finish_reason": _FINISH[answer.finish],
        }
        choices = [choice]
    return {
        "id": f"chatcmpl-{answers.digest(text)}",
        "object": "chat.completion",
        "created": CREATED,
        "model": call.model,
        "choices": choices,
        "usage": _usage(call.body, answer),
        "service_tier": "default",
        "system_fingerprint": "fp_simulated",
    }


def _embedding_texts(call: Call) -> list[str]:
    given = call.body.get("input")
    if isinstance(given, list) and given and all(isinstance(item, int) for item in given):
        given = [given]  # one text as token numbers
    given = [given] if isinstance(given, str) else given
    if not isinstance(given, list) or not given or "" in given:
        reference = "https://platform.openai.com/docs/api-reference"
        raise Refused(400, f"'$.input' is invalid. Please check the API reference: {reference}.")
    texts = [item if isinstance(item, str) else str(item) for item in given]
    if call.max_texts is not None and len(texts) > call.max_texts:
        message = f"batch size {len(texts)} > maximum allowed batch size {call.max_texts}"
        raise Refused(413, message, body={"message": message, "code": 413, "type": "Validation"})
    _check_embedding_limits(texts)
    return texts


def _check_embedding_limits(texts: list[str]) -> None:
    """OpenAI's limits of one request; https://platform.openai.com/docs/api-reference/embeddings."""
    if len(texts) > MAX_INPUTS:
        raise Refused(
            400,
            f"Invalid 'input': array too long. Expected an array with maximum length {MAX_INPUTS}, "
            f"but got an array with length {len(texts)} instead.",
            "array_above_max_length",
        )
    counts = list(map(tokens, texts))
    for place, count in enumerate(counts):
        if count > MAX_INPUT_TOKENS:
            limit = f"maximum input length is {MAX_INPUT_TOKENS} tokens."
            raise Refused(400, f"Invalid 'input[{place}]': {limit}")
    if sum(counts) > MAX_REQUEST_TOKENS:
        code = "max_tokens_per_request"
        limit = f"max {MAX_REQUEST_TOKENS} tokens per request"
        raise Refused(400, f"Requested {sum(counts)} tokens, {limit}", code)


def _embeddings(call: Call) -> Json:
    texts = _embedding_texts(call)
    size = to_int(call.body.get("dimensions"), answers.DIMENSIONS)
    packed = call.body.get("encoding_format") == "base64"
    data: list[Json] = []
    for index, (text, plan) in enumerate(zip(texts, call.plans, strict=True)):
        if plan.fault == "no-candidates":
            continue
        vector = [] if plan.fault == "empty" else answers.unit_vector(text, size)
        raw = struct.pack(f"<{len(vector)}f", *vector) if packed else b""
        embedding = base64.b64encode(raw).decode() if packed else vector
        data.append({"object": "embedding", "index": index, "embedding": embedding})
    count = sum(map(tokens, texts))
    usage = {"prompt_tokens": count, "total_tokens": count}
    return {"object": "list", "data": data, "model": call.model, "usage": usage}


def models() -> Json:
    """The body of ``GET /v1/models``."""
    data = [
        {"id": name, "object": "model", "created": CREATED, "owned_by": "simulated"}
        for name in MODELS
    ]
    return {"object": "list", "data": data}


CHAT = Operation(_chat_texts, _chat, errors.openai)
EMBEDDINGS = Operation(_embedding_texts, _embeddings, errors.openai)
