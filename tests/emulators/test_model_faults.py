"""Every marker of the simulated model server: the exact answer, in both dialects.

This does not prove how often or in which form a real service fails; no real endpoint was called.
"""

import http.client
import json
import math
import urllib.parse
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest

from tests.emulators.model_calls import SCHEMA, chat, gemini, texts
from tests.emulators.model_fixtures import SimulatedModelServer


@pytest.fixture
def server(model_server: SimulatedModelServer) -> SimulatedModelServer:
    """The shared server with all counts at zero."""
    model_server.reset()
    return model_server


@pytest.mark.parametrize(
    ("marker", "candidates", "choices"),
    [
        (
            "blocked",
            [{"finishReason": "SAFETY"}],
            [{"content": None, "finish_reason": "content_filter"}],
        ),
        (
            "empty",
            [{"finishReason": "STOP", "content": {"role": "model"}}],
            [{"content": "", "finish_reason": "stop"}],
        ),
        ("no-candidates", None, []),
        (
            "truncated",
            [{"finishReason": "MAX_TOKENS", "text": "answer to x"}],
            [{"content": "answer to x", "finish_reason": "length"}],
        ),
        (
            "thoughts-only",
            [{"finishReason": "MAX_TOKENS", "content": {"role": "model"}}],
            [{"content": None, "finish_reason": "length"}],
        ),
        (
            "unknown-finish",
            [{"finishReason": "SOMETHING_NEW", "text": "answer to x [[unknown-finish]]"}],
            [{"content": "answer to x [[unknown-finish]]", "finish_reason": "something_new"}],
        ),
        (
            "surrogate",
            [{"finishReason": "STOP", "text": "answer to x [[surrogate]] \ud83d"}],
            [{"content": "answer to x [[surrogate]] \ud83d", "finish_reason": "stop"}],
        ),
    ],
)
def test_unusual_answers(
    server: SimulatedModelServer, marker: str, candidates: Any, choices: Any
) -> None:
    """Each soft fault has its finish reason and text in both dialects."""
    text = f"x [[{marker}]]"
    status, _, body = gemini(server, text)
    assert status == 200
    seen = body.get("candidates")
    for candidate in seen or []:
        for name in ("score", "index", "avgLogprobs", "safetyRatings"):
            candidate.pop(name, None)
        if "parts" in candidate.get("content", {}):
            candidate["text"] = candidate.pop("content")["parts"][0]["text"]
    if marker == "truncated":
        whole = f"answer to {text}"
        candidates[0]["text"] = choices[0]["content"] = whole[: len(whole) // 2]
    assert seen == candidates
    status, _, body = chat(server, text)
    assert status == 200
    assert [
        {"content": c["message"]["content"], "finish_reason": c["finish_reason"]}
        for c in body["choices"]
    ] == choices
    assert server.stats()["by_fault"] == {marker: 2}


def test_blocked_prompt(server: SimulatedModelServer) -> None:
    """Vertex answers promptFeedback without candidates and counts prompt tokens only."""
    status, _, body = gemini(server, "x [[prompt-blocked]]")
    assert (status, body["promptFeedback"]["blockReason"]) == (200, "PROHIBITED_CONTENT")
    assert "candidates" not in body
    assert body["usageMetadata"]["totalTokenCount"] == body["usageMetadata"]["promptTokenCount"]


def test_thoughts_only_bills_thoughts(server: SimulatedModelServer) -> None:
    """The tokens of a thoughts-only answer are all thoughts."""
    usage = gemini(server, "x [[thoughts-only]]")[2]["usageMetadata"]
    assert usage["thoughtsTokenCount"] == 64
    assert "candidatesTokenCount" not in usage
    usage = chat(server, "x [[thoughts-only]]")[2]["usage"]
    assert usage["completion_tokens"] == 64
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 64


def test_json_wrapped_in_prose(server: SimulatedModelServer) -> None:
    """The prompt's JSON satisfies the schema with text around it: fenced, chatty and two-json."""
    for fenced in texts(server, "x [[fenced]]"):
        head, good, tail = fenced.split("\n")
        assert (head, tail) == ("```json", "```")
        jsonschema.validate(json.loads(good), SCHEMA)
    for chatty in texts(server, "x [[chatty]]"):
        head, good, tail = chatty.split("\n")
        assert head == "Sure! Here is the JSON you asked for:"
        assert tail == "Let me know if you need more."
        jsonschema.validate(json.loads(good), SCHEMA)
    for double in texts(server, "x [[two-json]]"):
        decoder = json.JSONDecoder()
        first, end = decoder.raw_decode(double, double.index("{"))
        second, _ = decoder.raw_decode(double, double.index("{", end))
        assert first != second


def test_json_that_cannot_be_used(server: SimulatedModelServer) -> None:
    """The JSON cannot be parsed, violates the schema, or holds a NaN."""
    assert texts(server, "x [[not-json]]") == ("I am sorry, I cannot express this as JSON.",) * 2
    for wrong in texts(server, "x [[schema-wrong]]"):
        with pytest.raises(jsonschema.ValidationError, match="'category' is a required"):
            jsonschema.validate(json.loads(wrong), SCHEMA)
    for nan in texts(server, "x [[nan-json]]"):
        assert math.isnan(json.loads(nan)["confidence"])
    for lone in texts(server, "x [[surrogate]]"):
        assert json.loads(lone)["category"].endswith("\ud83d")
        assert "\\ud83d" in lone


def test_malformed_and_wrong_shape(server: SimulatedModelServer) -> None:
    """Both kinds are 200s that no client can use."""
    for call in (gemini, chat):
        assert call(server, "[[malformed]]")[::2] == (200, b"this is not JSON {")
        assert call(server, "[[wrong-shape]]")[::2] == (200, {"unexpected": ["shape"]})


def test_reset_closes_the_connection(server: SimulatedModelServer) -> None:
    """A reset never answers; resetx1 answers on the second attempt."""
    for call in (gemini, chat):
        for _ in range(2):
            with pytest.raises(http.client.RemoteDisconnected):
                call(server, "a [[reset]]")
        with pytest.raises(http.client.RemoteDisconnected):
            call(server, f"{call.__name__} [[resetx1]]")
        assert call(server, f"{call.__name__} [[resetx1]]")[0] == 200


def test_hang_ends_with_the_client(server: SimulatedModelServer) -> None:
    """A hanging call sends no byte before the client's timeout, and is not in flight after it."""
    host = urllib.parse.urlsplit(server.base_url).netloc
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "[[hang]]"}]})
    connection = http.client.HTTPConnection(host, timeout=0.2)
    with pytest.raises(TimeoutError):
        connection.request("POST", "/v1/chat/completions", body)
        connection.getresponse()
    assert server.stats()["in_flight"] == 1
    connection.close()
    while server.stats()["in_flight"]:
        pass  # each look is a round trip; the server notices the closed connection in between
    stats = server.stats()
    assert (stats["calls"], stats["served"], stats["by_fault"]) == (1, 0, {"hang": 1})


def test_counted_markers_are_a_script(server: SimulatedModelServer) -> None:
    """Counted markers play in order, per prompt, until the prompt succeeds; reset starts over."""
    text = "x [[http:503x2]][[http:429x1]] [[retry-after:0.5]] [[latency:1]]"
    outcomes = [gemini(server, text) for _ in range(5)]
    assert [status for status, _, _ in outcomes] == [503, 503, 429, 200, 200]
    assert [h.get("retry-after") for _, h, _ in outcomes] == ["0.5"] * 3 + [None] * 2
    assert gemini(server, text + "!")[0] == 503
    server.reset()
    assert gemini(server, text)[0] == 503


def test_unknown_markers_are_counted_and_ignored(server: SimulatedModelServer) -> None:
    """A marker with a typo changes nothing but shows in the statistics."""
    assert gemini(server, "x [[htp:503]]")[0] == 200
    assert server.stats()["unknown_markers"] == {"htp": 1}
