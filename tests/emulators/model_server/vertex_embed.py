"""Vertex AI's three embedding methods: predict, embedContent, batchEmbedContents.

``predict`` accepts as many texts and tokens as Google documents: 250 and 20,000, for Gemini's
models one text. A text beyond 2,048 tokens is cut, or rejected if ``autoTruncate`` is false.

Markers here: ``empty`` returns a vector without values, ``no-candidates`` omits the text's entry,
``truncated`` says that the text was cut. The other soft faults change nothing.

This does not prove that Vertex AI answers like this. It is written from captures and vendor
documentation; no real endpoint was called; ``batchEmbedContents`` has the shape of the Gemini API's
reference, unverified on Vertex.
"""

from typing import Any

from tests.emulators.model_server import answers, errors
from tests.emulators.model_server.answers import tokens
from tests.emulators.model_server.wire import (
    Call,
    Json,
    Operation,
    Refused,
    instances_of,
    pick,
    texts_of,
    to_int,
)

MAX_INSTANCES = 250
MAX_REQUEST_TOKENS = 20_000
MAX_TEXT_TOKENS = 2048
MAX_BATCH_REQUESTS = 100
_LEARN_MORE = "Learn more: https://cloud.google.com/vertex-ai/generative-ai/docs/model-reference/text-embeddings"


def _embed_instance_texts(call: Call) -> list[str]:
    texts = [pick(instance, "content") for instance in instances_of(call)]
    if not all(isinstance(text, str) for text in texts):
        raise Refused(400, "Invalid instance: each must have a string field 'content'.")
    _check_predict_limits(call, texts)
    return texts


def _check_predict_limits(call: Call, texts: list[str]) -> None:
    if len(texts) > 1 and "gemini" in call.model:
        raise Refused(
            400,
            "Unable to submit request because it included too many instances. Reduce the number of "
            f"instances and try again. {_LEARN_MORE}: Unable to submit request because batchSize "
            f"must be 1 but the entered value was {len(texts)}. Update the batchSize value and try "
            "again.",
        )
    if len(texts) > MAX_INSTANCES:
        raise Refused(
            400, f"{MAX_INSTANCES} instance(s) is allowed per prediction. Actual: {len(texts)}"
        )
    if "" in texts:
        raise Refused(400, "The text content is empty.")
    counts = list(map(tokens, texts))
    if pick(pick(call.body, "parameters"), "autoTruncate") is False:
        _check_tokens(max(counts), MAX_TEXT_TOKENS)
    _check_tokens(sum(counts), MAX_REQUEST_TOKENS)


def _check_tokens(count: int, limit: int) -> None:
    if count > limit:
        raise Refused(
            400,
            f"Unable to submit request because the input token count is {count} but the model "
            f"supports up to {limit}. Reduce the input token count and try again.",
        )


def _vector(text: str, dimensions: Any, fault: str | None) -> list[float]:
    size = to_int(dimensions, answers.DIMENSIONS)
    return [] if fault == "empty" else answers.unit_vector(text, size)


def _embed_predict(call: Call) -> Json:
    size = pick(pick(call.body, "parameters"), "outputDimensionality")
    predictions = [
        {
            "embeddings": {
                "statistics": {
                    "token_count": tokens(text),
                    "truncated": plan.fault == "truncated" or tokens(text) > MAX_TEXT_TOKENS,
                },
                "values": _vector(text, size, plan.fault),
            }
        }
        for text, plan in zip(_embed_instance_texts(call), call.plans, strict=True)
        if plan.fault != "no-candidates"
    ]
    characters = sum(map(len, _embed_instance_texts(call)))
    return {"predictions": predictions, "metadata": {"billableCharacterCount": characters}}


def _embed_texts(call: Call) -> list[str]:
    requests = pick(call.body, "requests")
    requests = [call.body] if requests is None else requests
    if len(requests) > MAX_BATCH_REQUESTS:
        limit = f"at most {MAX_BATCH_REQUESTS} requests can be in one batch"
        raise Refused(400, f"* BatchEmbedContentsRequest.requests: {limit}\n")
    if not all(isinstance(pick(request, "content"), dict) for request in requests):
        raise Refused(400, "Invalid value: content must be set.")
    return ["\n".join(texts_of(pick(request, "content"))) for request in requests]


def _embed_size(request: Any) -> Any:
    nested = pick(pick(request, "embedContentConfig"), "outputDimensionality")
    return pick(request, "outputDimensionality") if nested is None else nested


def _embed_usage(texts: list[str]) -> Json:
    count = sum(map(tokens, texts))
    details = [{"modality": "TEXT", "tokenCount": count}]
    return {
        "promptTokenCount": count,
        "totalTokenCount": count,
        "promptTokensDetails": details,
    }


def _embed_content(call: Call) -> Json:
    texts = _embed_texts(call)
    usage = _embed_usage(texts)
    if call.plan.fault == "no-candidates":
        return {"usageMetadata": usage}
    vector = _vector(texts[0], _embed_size(call.body), call.plan.fault)
    truncated = call.plan.fault == "truncated"
    return {"embedding": {"values": vector}, "usageMetadata": usage, "truncated": truncated}


def _batch_embed(call: Call) -> Json:
    texts = _embed_texts(call)
    embeddings = [
        {"values": _vector(text, _embed_size(request), plan.fault)}
        for request, text, plan in zip(call.body["requests"], texts, call.plans, strict=True)
        if plan.fault != "no-candidates"
    ]
    return {"embeddings": embeddings, "usageMetadata": _embed_usage(texts)}


PREDICT = Operation(_embed_instance_texts, _embed_predict, errors.google)
EMBED_CONTENT = Operation(_embed_texts, _embed_content, errors.google)
BATCH_EMBED_CONTENTS = Operation(_embed_texts, _batch_embed, errors.google)
