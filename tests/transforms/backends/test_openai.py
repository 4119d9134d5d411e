"""The OpenAI dialect: bodies as the openai package sends them, for OpenAI and for compatibles."""

import asyncio
import json
import pickle
from collections.abc import Sequence
from typing import Any

import openai
import pytest

from tests.emulators.model_fixtures import SimulatedModelServer
from tests.transforms.backends import opened, prompt, request_of
from transforms.backends.openai import (
    OpenAIBackend,
    answer_of,
    chat_body,
    completion_of,
    embed_body,
    is_closed,
    usage_of,
)
from transforms.records.errors import (
    BackendUnusable,
    Blocked,
    EmptyOutput,
    Forbidden,
    InvalidRequest,
    RateLimited,
    RecordError,
    Truncated,
    Unavailable,
)
from transforms.records.records import Completion, Request, Usage

CLOSED = {
    "type": "object",
    "properties": {"a": {"type": "string"}},
    "required": ["a"],
    "additionalProperties": False,
}
FORMAT = {
    "type": "json_schema",
    "json_schema": {"name": "output", "schema": CLOSED, "strict": True},
}
CONFIG = {"temperature": 0.5, "top_p": 0.9, "stop": ["s"], "seed": 3}


def _outcomes(backend: OpenAIBackend, *requests: Request) -> Sequence[Completion | RecordError]:
    async def ask() -> Any:
        async with opened(backend) as client:
            answers = (client.generate(request) for request in requests)
            return await asyncio.gather(*answers, return_exceptions=True)

    outcomes: Sequence[Completion | RecordError] = asyncio.run(ask())
    return outcomes


def _path_and_body(server: SimulatedModelServer) -> tuple[str, Any]:
    (seen,) = server.requests()
    server.reset()
    return seen["path"], seen["body"]


def test_chat_body_is_that_of_the_sdk(model_server: SimulatedModelServer) -> None:
    """A compatible server gets ``max_tokens``; everything else as the openai package sends it."""
    model_server.reset()
    messages: Any = [{"role": "system", "content": "s"}, {"role": "user", "content": "hello"}]
    with openai.OpenAI(base_url=model_server.openai_url, api_key="k", max_retries=0) as sdk:
        sdk.chat.completions.create(
            model="m", messages=messages, max_tokens=5, response_format=FORMAT, user="u",
            extra_body={"top_k": 3}, **CONFIG,
        )  # type: ignore[call-overload]  # fmt: skip
    expected = _path_and_body(model_server)
    request = request_of(
        {"messages": messages},
        generation_config={"max_output_tokens": 5, "top_k": 3, **CONFIG},
        output_schema=CLOSED,
        request_options={"user": "u"},
    )
    (outcome,) = _outcomes(OpenAIBackend(model="m", endpoint=model_server.openai_url), request)
    assert isinstance(outcome, Completion)
    assert _path_and_body(model_server) == expected


def _media(uri: str, mime_type: str) -> dict[str, Any]:
    return {"type": "media", "uri": uri, "mime_type": mime_type}


def test_media(model_server: SimulatedModelServer) -> None:
    """Images as OpenAI and vLLM know them, audio and video as vLLM does; other parts as they are."""
    model_server.reset()
    own = {"type": "image_url", "image_url": {"url": "data:image/png;base64,YQ==", "detail": "low"}}
    text = {"type": "text", "text": "hello"}
    content = [
        _media("https://h/a.png?k=v", "image/png"),
        _media("https://h/a.mp3", "audio/mpeg"),
        _media("https://h/a.mp4", "video/mp4"),
        own,
        text,
    ]
    request = request_of({"messages": [{"role": "user", "content": content, "name": "n"}]})
    (outcome,) = _outcomes(OpenAIBackend(model="m", endpoint=model_server.openai_url), request)
    assert isinstance(outcome, Completion)
    assert outcome.output == "answer to hello"
    assert _path_and_body(model_server)[1]["messages"] == [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "https://h/a.png?k=v"}},
                {"type": "audio_url", "audio_url": {"url": "https://h/a.mp3"}},
                {"type": "video_url", "video_url": {"url": "https://h/a.mp4"}},
                own,
                text,
            ],
            "name": "n",
        }
    ]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            _media("gs://b/a.png", "image/png"),
            (
                "'gs://b/a.png': a server that speaks OpenAI's dialect cannot read gs:// objects; "
                "give https:// URLs (signed ones, for instance), or use --backend=gemini"
            ),
        ),
        (
            _media("https://h/a.pdf?signature=secret", "application/pdf"),
            (
                "'https://h/a.pdf': OpenAI's dialect takes images, audio and video by URL, but no "
                "application/pdf; use --backend=gemini"
            ),
        ),
        ({"type": "media"}, "a media part: NULL is not a gs:// or https:// URI"),
    ],
)
def test_media_that_cannot_be_sent(part: Any, message: str) -> None:
    """The record is refused before it is sent, with what to do."""
    request = request_of({"messages": [{"role": "user", "content": [part]}]})
    with pytest.raises(InvalidRequest) as raised:
        chat_body(request, "m", limit_name="max_tokens")
    assert str(raised.value) == message


def test_a_forbidden_url(model_server: SimulatedModelServer) -> None:
    """Costs its own record."""
    content = [_media("https://h/forbidden.png", "image/png")]
    request = request_of({"messages": [{"role": "user", "content": content}]})
    backend = OpenAIBackend(model="m", endpoint=model_server.openai_url)
    failed, fine = _outcomes(backend, request, prompt("fine"))
    assert isinstance(failed, Forbidden)
    assert isinstance(fine, Completion)


def test_embedding_body_is_that_of_the_sdk(model_server: SimulatedModelServer) -> None:
    """One text, as floats."""
    model_server.reset()
    with openai.OpenAI(base_url=model_server.openai_url, api_key="k", max_retries=0) as sdk:
        reference = sdk.embeddings.create(
            model="m", input="hello", dimensions=4, encoding_format="float"
        )
    expected = _path_and_body(model_server)
    backend = OpenAIBackend(model="m", endpoint=model_server.openai_url, task="embed")
    (outcome,) = _outcomes(
        backend, request_of({"text": "hello"}, generation_config={"output_dimensionality": 4})
    )
    assert _path_and_body(model_server) == expected
    assert outcome == Completion(
        embedding=tuple(reference.data[0].embedding),
        usage=Usage(input_tokens=2),
        model_version="m",
    )


def test_base64_embeddings(model_server: SimulatedModelServer) -> None:
    """Who asks for packed vectors gets the same numbers, in single precision."""
    backend = OpenAIBackend(model="m", endpoint=model_server.openai_url, task="embed")
    plain, packed = _outcomes(
        backend,
        request_of({"text": "a"}),
        request_of({"text": "a"}, generation_config={"encoding_format": "base64"}),
    )
    assert isinstance(plain, Completion)
    assert isinstance(packed, Completion)
    assert packed.embedding == pytest.approx(plain.embedding, abs=1e-7)


def test_answer(model_server: SimulatedModelServer) -> None:
    """Reasoning tokens are counted apart from those of the answer."""
    request = request_of(
        {
            "messages": [
                {"role": "system", "content": "brief"},
                {"role": "user", "content": "hello"},
            ]
        }
    )
    backend = OpenAIBackend(model="m", endpoint=model_server.openai_url + "/")
    assert _outcomes(backend, request) == [
        Completion(
            output="answer to hello",
            finish_reason="stop",
            usage=Usage(input_tokens=3, cached_input_tokens=2, output_tokens=4, reasoning_tokens=3),
            model_version="m",
            service_tier="default",
        )
    ]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a [[http:400]]", InvalidRequest),
        ("b [[http:400]][[vllm-error]]", InvalidRequest),
        ("c [[http:401]]", Forbidden),
        ("d [[http:429]]", RateLimited),
        ("e [[http:429]][[google-error]]", RateLimited),
        ("f [[http:500]]", Unavailable),
        ("g [[http:503]][[vllm-error]]", Unavailable),
        ("h [[reset]]", Unavailable),
        ("i [[malformed]]", Unavailable),
        ("j [[wrong-shape]]", Unavailable),
        ("k [[blocked]]", Blocked),
        ("l [[prompt-blocked]]", Blocked),
        ("m [[empty]]", EmptyOutput),
        ("n [[no-candidates]]", EmptyOutput),
        ("o [[truncated]]", Truncated),
        ("p [[thoughts-only]]", Truncated),
    ],
)
def test_failures(model_server: SimulatedModelServer, text: str, error: type[RecordError]) -> None:
    """Each of a server's failures becomes its error, beside an answer that is not touched."""
    backend = OpenAIBackend(model="m", endpoint=model_server.openai_url)
    failed, fine = _outcomes(backend, prompt(text), prompt("fine"))
    assert type(failed) is error
    assert isinstance(fine, Completion)
    assert fine.output == "answer to fine"


def test_a_whole_request_goes_as_it_stands(model_server: SimulatedModelServer) -> None:
    """Parameters are not mixed into it."""
    model_server.reset()
    body = {"model": "other", "messages": [{"role": "user", "content": "a"}]}
    backend = OpenAIBackend(model="m", endpoint=model_server.openai_url)
    _outcomes(backend, request_of({"request": body}, generation_config={"seed": 1}))
    assert _path_and_body(model_server)[1] == body


def test_accept_truncated(model_server: SimulatedModelServer) -> None:
    """Then a cut text is a result; reasoning that ate the whole limit still is not."""
    backend = OpenAIBackend(model="m", endpoint=model_server.openai_url, accept_truncated=True)
    cut, nothing = _outcomes(backend, prompt("[[truncated]]"), prompt("[[thoughts-only]]"))
    assert isinstance(cut, Completion)
    assert (cut.output, cut.finish_reason) == ("answer to [", "length")
    assert isinstance(nothing, Truncated)
    assert nothing.usage == Usage(5, 0, 0, 64)


def _reply(message: dict[str, Any], reason: str = "stop") -> dict[str, Any]:
    return {"model": "m", "choices": [{"message": message, "finish_reason": reason}]}


def test_refusal_and_tool_calls() -> None:
    """A refusal is blocked, with its words; calls of tools are JSON."""
    with pytest.raises(Blocked) as caught:
        completion_of(_reply({"content": None, "refusal": "I will not."}), accept_truncated=False)
    assert caught.value.output == "I will not."
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    called = completion_of(
        _reply({"content": None, "tool_calls": calls}, "tool_calls"), accept_truncated=False
    )
    assert called.output is None
    assert called.output_json == (
        '[{"id":"c","type":"function","function":{"name":"f","arguments":"{}"}}]'
    )


def test_logprobs_of_a_tool_call() -> None:
    """Both in one object; without logprobs the calls stand alone."""
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    choice = {"message": {"tool_calls": calls}, "finish_reason": "tool_calls"}
    path = "chat/completions"
    plain = answer_of({"choices": [choice]}, path, accept_truncated=False)
    assert json.loads(plain.output_json) == calls
    choice["logprobs"] = {"content": [{"token": "a", "logprob": -0.5}]}
    both = answer_of({"choices": [choice]}, path, accept_truncated=False)
    assert json.loads(both.output_json) == {"logprobs": choice["logprobs"], "tool_calls": calls}


def test_parts_of_content() -> None:
    """Some compatible servers answer with a list of parts."""
    parts = [{"type": "thinking"}, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert completion_of(_reply({"content": parts}), accept_truncated=False).output == "ab"


def test_usage() -> None:
    """What a server leaves out, or sends as null, is not known."""
    assert usage_of({}) == Usage()
    assert usage_of({"usage": None}) == Usage()
    counts = {"prompt_tokens": 1, "completion_tokens": 2}
    details: dict[str, Any] = {"prompt_tokens_details": None, "completion_tokens_details": None}
    assert usage_of({"usage": {**counts, **details}}) == Usage(1, None, 2, None)
    details = {"completion_tokens_details": {"reasoning_tokens": 5}}
    assert usage_of({"usage": {**counts, **details}}) == Usage(1, None, 0, 5)


def test_names_of_the_token_limit() -> None:
    """OpenAI's reasoning models refuse the name that compatible servers know."""
    openai_backend = OpenAIBackend(model="m", api_key="k")
    assert openai_backend.at_openai()
    assert not OpenAIBackend(model="m", endpoint="http://api.openai.com.test/v1").at_openai()

    async def limit_name() -> Any:
        async with opened(openai_backend) as client:
            return client._limit_name

    assert asyncio.run(limit_name()) == "max_completion_tokens"
    body = chat_body(
        prompt("a", generation_config={"max_output_tokens": 5}), "m", limit_name="max_tokens"
    )
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "a"}],
        "max_tokens": 5,
    }


_OBJECT: dict[str, Any] = {"type": "object", "additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "closed"),
    [
        (CLOSED, True),
        ({**_OBJECT, "properties": {}}, True),
        ({**CLOSED, "required": []}, False),
        ({**CLOSED, "additionalProperties": True}, False),
        ({"type": "object", "properties": {}}, False),
        ({"type": "array", "items": CLOSED}, False),
        ({**_OBJECT, "properties": {"a": {"type": "object"}}, "required": ["a"]}, False),
        (
            {
                **_OBJECT,
                "properties": {"a": {"type": "array", "items": {"$ref": "#/$defs/b"}}},
                "required": ["a"],
                "$defs": {"b": CLOSED},
            },
            True,
        ),
        ({**CLOSED, "$defs": {"b": {"type": "object"}}}, False),
        (
            {
                **_OBJECT,
                "properties": {"a": {"anyOf": [{"type": "null"}, {"type": "object"}]}},
                "required": ["a"],
            },
            False,
        ),
        (
            {**_OBJECT, "properties": {"a": {"type": ["object", "null"]}}, "required": ["a"]},
            False,
        ),
        ({**CLOSED, "allOf": []}, False),
        ({**_OBJECT, "properties": {"a": True}, "required": ["a"]}, False),
        (True, False),
    ],
)
def test_strict_only_for_closed_schemas(schema: Any, closed: bool) -> None:
    """Strict mode refuses every other schema, which is sent as a wish then."""
    assert is_closed(schema) is closed
    body = chat_body(prompt("a", output_schema=schema), "m", limit_name="max_tokens")
    assert body["response_format"]["json_schema"]["strict"] is closed


def test_what_cannot_be_sent() -> None:
    """A request of the other task is refused before it is sent."""
    with pytest.raises(InvalidRequest, match=r"^a request with \['text'\] has no messages$"):
        chat_body(request_of({"text": "a"}), "m", limit_name="max_tokens")
    with pytest.raises(InvalidRequest, match=r"with \['messages'\] has no text$"):
        embed_body(prompt("a"), "m")


def test_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the configuration, else the environment; only OpenAI itself demands one."""

    async def headers(**fields: Any) -> Any:
        async with opened(OpenAIBackend(model="m", **fields)) as client:
            return client._headers

    monkeypatch.setenv("OPENAI_API_KEY", "from-environment\n")
    assert asyncio.run(headers()) == {"Authorization": "Bearer from-environment"}
    assert asyncio.run(headers(api_key="given")) == {"Authorization": "Bearer given"}
    monkeypatch.delenv("OPENAI_API_KEY")
    assert asyncio.run(headers(endpoint="http://127.0.0.1:8000/v1")) == {}
    with pytest.raises(BackendUnusable, match=r"^no OpenAI API key: set OPENAI_API_KEY"):
        asyncio.run(headers())


def test_backend_is_a_picklable_description_without_its_key() -> None:
    """It travels to workers with its key, but does not show it."""
    backend = OpenAIBackend(model="m", api_key="sk-secret")
    assert pickle.loads(pickle.dumps(backend)) == backend
    assert (backend.family, backend.model) == ("openai", "m")
    assert "sk-secret" not in repr(backend)
