"""Vertex AI's generateContent, and the tables of all Vertex methods.

Field names follow recorded SDK requests, published response rows and the REST reference. Fields
that real rows have and the Python SDK's strict types reject (``candidates[].score``,
``usageMetadata.billablePromptUsage``) are sent unless the call is strict.

This does not prove that Vertex AI answers like this. No real endpoint was called; quotas, request
size limits, safety filters and regional availability are not modelled. Output limits are ignored:
only a marker truncates. Thoughts are 3 tokens unless the thinking budget is 0; the system
instruction counts as cached. Media are not opened and cost no tokens; a URI with ``forbidden`` in
it is a 403.
"""

from typing import Any

from tests.emulators.model_server import answers, errors, vertex_embed, vertex_endpoint
from tests.emulators.model_server.answers import Answer, Asked, tokens
from tests.emulators.model_server.wire import (
    Call,
    Json,
    Operation,
    Refused,
    check_media,
    pick,
    texts_of,
)

_FINISH = {"stop": "STOP", "length": "MAX_TOKENS", "filter": "SAFETY", "new": "SOMETHING_NEW"}


def _generate_texts(call: Call) -> list[str]:
    contents = pick(call.body, "contents")
    contents = [contents] if isinstance(contents, dict) else contents
    if not contents:
        raise Refused(400, "Unable to submit request because it must have at least one content.")
    if any(content.get("role", "user") not in ("user", "model") for content in contents):
        raise Refused(400, "Please use a valid role: user, model.")
    for content in contents:
        _check_files(content)
    user = [content for content in contents if content.get("role", "user") == "user"]
    return [next(iter(reversed(texts_of(user[-1]))), "") if user else ""]


def _check_files(content: Any) -> None:
    """Files by URI need a MIME type; nothing is opened."""
    parts = pick(content, "parts") or []
    for part in [parts] if isinstance(parts, dict) else parts:
        file = pick(part, "fileData")
        if file is None:
            continue
        if not pick(file, "mimeType"):
            raise Refused(
                400, "Unable to submit request because it must have a mimeType parameter."
            )
        check_media(pick(file, "fileUri"), ("gs://", "https://"))


def _asked(config: Any) -> Asked:
    mime = pick(config, "responseMimeType")
    schema = pick(config, "responseSchema") or pick(config, "responseJsonSchema")
    bare_enum = mime == "text/x.enum"
    return Asked(schema is not None or mime == "application/json", schema, bare_enum)


def _traffic_type(call: Call) -> str:
    shared = call.headers.get("X-Vertex-AI-LLM-Shared-Request-Type", "").lower()
    if shared in ("flex", "priority"):
        return f"ON_DEMAND_{shared.upper()}"
    if call.headers.get("X-Vertex-AI-LLM-Request-Type", "").lower() == "dedicated":
        return "PROVISIONED_THROUGHPUT"
    return "ON_DEMAND"


def _usage(call: Call, answer: Answer | None) -> Json:
    """A usage block; counts of zero are omitted, as in proto3 JSON."""
    contents = pick(call.body, "contents")
    contents = [contents] if isinstance(contents, dict) else contents
    system = "".join(texts_of(pick(call.body, "systemInstruction")))
    prompt = system + "".join(text for content in contents for text in texts_of(content))
    candidates = tokens(answer.text or "") if answer else 0
    thinking = pick(pick(call.body, "generationConfig"), "thinkingConfig")
    thoughts = answer.thoughts if answer and pick(thinking, "thinkingBudget") != 0 else 0
    counts = {
        "promptTokenCount": tokens(prompt),
        "candidatesTokenCount": candidates,
        "thoughtsTokenCount": thoughts,
        "cachedContentTokenCount": tokens(system),
        "totalTokenCount": tokens(prompt) + candidates + thoughts,
    }
    usage: Json = {name: count for name, count in counts.items() if count}
    usage["trafficType"] = _traffic_type(call)
    usage["promptTokensDetails"] = [{"modality": "TEXT", "tokenCount": tokens(prompt)}]
    if candidates:
        usage["candidatesTokensDetails"] = [{"modality": "TEXT", "tokenCount": candidates}]
    if not call.strict:
        usage["billablePromptUsage"] = {"textCount": len(prompt)}
    return usage


def _generate(call: Call) -> Json:
    text = _generate_texts(call)[0]
    response: Json = {
        "modelVersion": call.model,
        "createTime": "2026-11-21T00:00:00.000000Z",
        "responseId": answers.digest(text),
    }
    fault = call.plan.fault
    if fault == "prompt-blocked":
        reason = {"blockReason": "PROHIBITED_CONTENT", "blockReasonMessage": "Blocked."}
        return {"promptFeedback": reason, "usageMetadata": _usage(call, None), **response}
    if fault == "no-candidates":
        return {"usageMetadata": _usage(call, None), **response}
    config = pick(call.body, "generationConfig")
    answer = answers.compose(text, _asked(config), fault, call.answer_mode)
    candidate: Json = {"finishReason": _FINISH[answer.finish], "index": 0}
    if answer.text:
        content: Json = {"role": "model", "parts": [{"text": answer.text}]}
        candidate = {"content": content, **candidate, "avgLogprobs": -0.25}
    elif fault == "blocked":
        rating = {"category": "HARM_CATEGORY_DANGEROUS_CONTENT", "probability": "HIGH"}
        candidate["safetyRatings"] = [{**rating, "blocked": True}]
    else:
        candidate = {"content": {"role": "model"}, **candidate}
    if not call.strict:
        candidate["score"] = -1.5
    return {"candidates": [candidate], "usageMetadata": _usage(call, answer), **response}


def _count_tokens(call: Call) -> Json:
    counted = _usage(call, None).get("promptTokenCount", 0)
    return {"totalTokens": counted, "totalBillableCharacters": 4 * counted}


_GENERATE = Operation(_generate_texts, _generate, errors.google)
_COUNT_TOKENS = Operation(_generate_texts, _count_tokens, errors.google)

PUBLISHER = {
    "generateContent": _GENERATE,
    "countTokens": _COUNT_TOKENS,
    "predict": vertex_embed.PREDICT,
    "embedContent": vertex_embed.EMBED_CONTENT,
    "batchEmbedContents": vertex_embed.BATCH_EMBED_CONTENTS,
}
"""Methods of ``…/publishers/PUB/models/M:METHOD``."""

ENDPOINT = {
    "generateContent": _GENERATE,
    "countTokens": _COUNT_TOKENS,
    "predict": vertex_endpoint.PREDICT,
    "rawPredict": vertex_endpoint.RAW_PREDICT,
}
"""Methods of ``…/endpoints/E:METHOD``."""
