"""The OpenAI dialect: bodies as the openai package sends them, also to compatible servers."""

import asyncio
import contextlib
import json
import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import openai
import pytest
from aiohttp import web

from tests.emulators.model_fixtures import SimulatedModelServer, running_model_server
from tests.emulators.model_server.answers import unit_vector
from tests.transforms.backends import opened, prompt, request_of, serving
from transforms.backends.base import BatchClient, CallLimits
from transforms.backends.openai import OpenAIBackend
from transforms.clients.openai_dialect import (
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
    TooLarge,
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
    """Compatible servers get ``max_tokens``; all else is sent as the openai package does."""
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
    """Images, audio and video are sent in vLLM's and OpenAI's form; other parts are unchanged."""
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
                "use https:// URLs (signed ones, for instance), or the backend gemini"
            ),
        ),
        (
            _media("https://h/a.pdf?signature=secret", "application/pdf"),
            (
                "'https://h/a.pdf': OpenAI's dialect takes images, audio and video by URL, but no "
                "application/pdf; use the backend gemini"
            ),
        ),
        ({"type": "media"}, "a media part: NULL is not a gs:// or https:// URI"),
    ],
)
def test_media_that_cannot_be_sent(part: Any, message: str) -> None:
    """Media that cannot be sent are rejected before the request, with the remedy."""
    request = request_of({"messages": [{"role": "user", "content": [part]}]})
    with pytest.raises(InvalidRequest) as raised:
        chat_body(request, "m", limit_name="max_tokens")
    assert str(raised.value) == message


def test_a_forbidden_url(model_server: SimulatedModelServer) -> None:
    """A forbidden URL fails its own record."""
    content = [_media("https://h/forbidden.png", "image/png")]
    request = request_of({"messages": [{"role": "user", "content": content}]})
    backend = OpenAIBackend(model="m", endpoint=model_server.openai_url)
    failed, fine = _outcomes(backend, request, prompt("fine"))
    assert isinstance(failed, Forbidden)
    assert isinstance(fine, Completion)


def test_embedding_body_is_that_of_the_sdk(model_server: SimulatedModelServer) -> None:
    """An embedding request sends one text and asks for floats."""
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
    """Packed vectors hold the same numbers in single precision."""
    backend = OpenAIBackend(model="m", endpoint=model_server.openai_url, task="embed")
    plain, packed = _outcomes(
        backend,
        request_of({"text": "a"}),
        request_of({"text": "a"}, generation_config={"encoding_format": "base64"}),
    )
    assert isinstance(plain, Completion)
    assert isinstance(packed, Completion)
    assert packed.embedding == pytest.approx(plain.embedding, abs=1e-7)


def _embedding_backend(server: SimulatedModelServer, **fields: Any) -> OpenAIBackend:
    return OpenAIBackend(model="m", endpoint=server.openai_url, task="embed", **fields)


def _embedded(
    backend: OpenAIBackend, *texts: str, **params: Any
) -> Sequence[Completion | RecordError]:
    """The outcomes of one call for all texts."""

    async def ask() -> Any:
        async with opened(backend) as client:
            assert isinstance(client, BatchClient)
            return await client.generate_many([request_of({"text": t}, **params) for t in texts])

    outcomes: Sequence[Completion | RecordError] = asyncio.run(ask())
    return outcomes


def test_body_of_several_texts_is_that_of_the_sdk(model_server: SimulatedModelServer) -> None:
    """One request holds all texts and their parameters; the SDK reads the same vectors."""
    model_server.reset()
    texts = ["hello", "", "a longer text than that"]
    with openai.OpenAI(base_url=model_server.openai_url, api_key="k", max_retries=0) as sdk:
        with pytest.raises(openai.BadRequestError):
            sdk.embeddings.create(model="m", input=texts, encoding_format="float")
        model_server.reset()
        reference = sdk.embeddings.create(
            model="m", input=["hello", texts[2]], dimensions=4, encoding_format="float", user="u"
        )
    expected = _path_and_body(model_server)
    outcomes = _embedded(
        _embedding_backend(model_server),
        "hello",
        texts[2],
        generation_config={"output_dimensionality": 4},
        request_options={"user": "u"},
    )
    assert _path_and_body(model_server) == expected
    assert [one.embedding for one in outcomes if isinstance(one, Completion)] == [
        tuple(item.embedding) for item in reference.data
    ]
    used = [one.usage.input_tokens for one in outcomes if isinstance(one, Completion)]
    assert sum(used) == reference.usage.prompt_tokens == 8  # type: ignore[arg-type]


def test_tokens_are_shared_by_estimate(model_server: SimulatedModelServer) -> None:
    """The server's count for a request is split by estimates into whole numbers."""
    requests = [
        Request(request_of({}).record, {"text": "x" * size}, {}, "f", size // 4)
        for size in (40, 4, 400, 41)
    ]

    async def ask() -> Any:
        async with opened(_embedding_backend(model_server)) as client:
            return await client.generate_many(requests)

    used = [one.usage for one in asyncio.run(ask())]
    assert used == [Usage(input_tokens=tokens) for tokens in (10, 1, 101, 10)]


@pytest.mark.parametrize("config", [{}, {"encoding_format": "base64"}])
def test_a_thousand_texts_in_one_request(model_server: SimulatedModelServer, config: Any) -> None:
    """Each of a thousand texts has its own vector, in both encodings."""
    model_server.reset()
    texts = [f"text {number}" for number in range(1000)]
    outcomes = _embedded(_embedding_backend(model_server), *texts, generation_config=config)
    assert len(outcomes) == 1000
    for text, outcome in zip(texts, outcomes, strict=True):
        assert isinstance(outcome, Completion)
        assert outcome.embedding == pytest.approx(unit_vector(text, 8), abs=1e-7)
    stats = model_server.stats()
    assert (stats["calls"], stats["texts"]) == (1, 1000)


def test_an_empty_vector_costs_its_own_text(model_server: SimulatedModelServer) -> None:
    """An empty vector fails its own text; other texts keep theirs."""
    first, empty, last = _embedded(_embedding_backend(model_server), "a", "[[empty]]", "b")
    assert isinstance(empty, EmptyOutput)
    assert [one.embedding for one in (first, last) if isinstance(one, Completion)] == [
        tuple(unit_vector("a", 8)),
        tuple(unit_vector("b", 8)),
    ]


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        (["a", "b [[http:400]]"], InvalidRequest, "HTTP 400 from .*invalid argument"),
        (["a", "b [[http:503]]"], Unavailable, "HTTP 503 from .*"),
        (["a", "b [[malformed]]"], Unavailable, "cannot be read as JSON"),
        (["a", "b [[wrong-shape]]"], Unavailable, "does not have the expected shape"),
        (["a"] * 2049, InvalidRequest, "array too long. Expected an array with maximum length"),
        (["a" * 20_000] * 61, InvalidRequest, "Requested 305000 tokens, max 300000 tokens"),
        (["a", "b" * 32_769], InvalidRequest, "maximum input length is 8192 tokens"),
        (["a", ""], InvalidRequest, "'\\$.input' is invalid"),
        (
            ["a", "b [[no-candidates]]"],
            InvalidRequest,
            "asked for the embeddings of 2 texts, the server answered 1 vectors .*\\[0\\]",
        ),
    ],
)
def test_a_call_that_fails_as_a_whole(
    model_server: SimulatedModelServer, texts: list[str], error: type[RecordError], message: str
) -> None:
    """A call that fails raises, and no text of it has an outcome."""
    with pytest.raises(error, match=message):
        _embedded(_embedding_backend(model_server), *texts)


def test_a_refusal_by_text_embeddings_inference(tmp_path: Path) -> None:
    """The limit of Text Embeddings Inference is learnt from a few refused calls."""
    with running_model_server(tmp_path, "--max_texts=4") as server:

        async def ask() -> list[Any]:
            async with opened(_embedding_backend(server)) as client:
                limits = []
                while not limits or limits[-1] > 4:
                    limits.append(client.call_limits.max_requests)
                    texts = [request_of({"text": str(number)}) for number in range(limits[-1])]
                    with contextlib.suppress(TooLarge):
                        await client.generate_many(texts)
                return limits

        assert asyncio.run(ask()) == [32] * 3 + [16] * 3 + [8] * 3 + [4]


def _vectors(*indexes: Any) -> dict[str, Any]:
    """A response in which each vector is its text's index."""
    data: list[dict[str, Any]] = [
        {"object": "embedding", "embedding": [float(place)]} for place in range(len(indexes))
    ]
    for item, index in zip(data, indexes, strict=True):
        if index is not None:
            item["index"], item["embedding"] = index, [float(index)]
    return {"object": "list", "data": data, "model": "m", "usage": {"prompt_tokens": 3}}


def _answered(answer: Any) -> Sequence[Completion | RecordError]:
    """The outcomes of three texts, from a server with this response."""

    async def ask() -> Any:
        async def handle(request: web.Request) -> web.Response:
            return web.json_response(answer)

        async with serving(handle) as url:
            backend = OpenAIBackend(model="m", endpoint=f"{url}/v1", task="embed")
            async with opened(backend) as client:
                return await client.generate_many([request_of({"text": text}) for text in "abc"])

    outcomes: Sequence[Completion | RecordError] = asyncio.run(ask())
    return outcomes


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (2, 1, 0)])
def test_vectors_in_another_order(order: tuple[int, ...]) -> None:
    """Vectors are matched by index (https://github.com/pydantic/pydantic-ai/issues/7284)."""
    outcomes = _answered(_vectors(*order))
    assert [one.embedding for one in outcomes if isinstance(one, Completion)] == [
        (0.0,),
        (1.0,),
        (2.0,),
    ]


@pytest.mark.parametrize(
    ("indexes", "found"),
    [
        ((), "0 vectors with the indexes []"),
        ((0, 1), "2 vectors with the indexes [0, 1]"),  # vercel/ai#20359: fewer than texts
        ((0, 1, 2, 3), "4 vectors with the indexes [0, 1, 2, 3]"),  # LightRAG#3537: twice as many
        ((1, 2, 3), "3 vectors with the indexes [1, 2, 3]"),  # xorbitsai/inference#5240
        ((0, 0, 0), "3 vectors with the indexes [0, 0, 0]"),
        ((None, None, None), "3 vectors with the indexes [None, None, None]"),
        (range(9), "9 vectors with the indexes [0, 1, 2, 3, 4, 5, 6, 7, …]"),
    ],
)
def test_vectors_that_cannot_be_matched(indexes: Sequence[Any], found: str) -> None:
    """Vectors that cannot be matched fail the call, whose texts are retried in smaller ones."""
    message = f"asked for the embeddings of 3 texts, the server answered {found}"
    with pytest.raises(InvalidRequest, match=f"^{re.escape(message)}$"):
        _answered(_vectors(*indexes))


def test_a_server_that_counts_no_tokens() -> None:
    """Without a count by the server no text has one."""
    outcomes = _answered({**_vectors(0, 1, 2), "usage": None})
    assert [one.usage for one in outcomes] == [Usage()] * 3


_OPENAI = CallLimits(max_requests=2048, max_tokens=225_000)
_OTHERS = CallLimits(max_requests=32, max_bytes=2_000_000)


@pytest.mark.parametrize(
    ("fields", "limits", "refuses_empty"),
    [
        ({"endpoint": "https://api.openai.com/v1"}, _OPENAI, True),
        ({"endpoint": "https://mine.openai.azure.com/openai/v1"}, _OPENAI, True),
        (
            {"endpoint": "https://api.mistral.ai/v1"},
            CallLimits(max_requests=256, max_tokens=12_000),
            False,
        ),
        ({"endpoint": "http://10.0.0.1:8000/v1"}, _OTHERS, False),
        ({"endpoint": "https://notapi.openai.com/v1"}, _OTHERS, False),
        ({"endpoint": ("https://api.openai.com/v1", "http://h/v1")}, _OTHERS, True),
        ({"max_texts_per_call": 7}, CallLimits(max_requests=7, max_tokens=225_000), True),
        (
            {"max_tokens_per_call": 8, "max_bytes_per_call": 9},
            CallLimits(max_requests=2048, max_tokens=8, max_bytes=9),
            True,
        ),
    ],
)
def test_limits_of_a_call(fields: Any, limits: CallLimits, refuses_empty: bool) -> None:
    """Limits are the known provider's, safe defaults elsewhere, or the user's."""
    backend = OpenAIBackend(model="m", task="embed", api_key="k", **fields)
    assert backend.embedding_limits() == limits
    assert backend.refuses_empty() is refuses_empty

    async def opened_limits() -> Any:
        async with opened(backend) as client:
            return client.call_limits

    assert asyncio.run(opened_limits()) == limits


def test_only_embeddings_share_a_call() -> None:
    """A generating client sends one request per call."""

    async def shares(**fields: Any) -> bool:
        async with opened(OpenAIBackend(model="m", endpoint="http://h/v1", **fields)) as client:
            return isinstance(client, BatchClient)

    assert asyncio.run(shares(task="embed"))
    assert not asyncio.run(shares())


def test_calls_that_servers_can_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue with room for 100 texts has room for four calls of up to 32."""

    async def wanted() -> tuple[int, int]:
        async with opened(OpenAIBackend(model="m", endpoint="http://h/v1", task="embed")) as client:
            before = client.wanted_in_flight()
            monkeypatch.setattr(client._servers, "wanted_in_flight", lambda: 100)
            return before, client.wanted_in_flight()

    assert asyncio.run(wanted()) == (0, 4)


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
    """Each failure of a server becomes its error and leaves other answers untouched."""
    backend = OpenAIBackend(model="m", endpoint=model_server.openai_url)
    failed, fine = _outcomes(backend, prompt(text), prompt("fine"))
    assert type(failed) is error
    assert isinstance(fine, Completion)
    assert fine.output == "answer to fine"


def test_a_whole_request_goes_as_it_stands(model_server: SimulatedModelServer) -> None:
    """A whole request is sent unchanged, without parameters."""
    model_server.reset()
    body = {"model": "other", "messages": [{"role": "user", "content": "a"}]}
    backend = OpenAIBackend(model="m", endpoint=model_server.openai_url)
    _outcomes(backend, request_of({"request": body}, generation_config={"seed": 1}))
    assert _path_and_body(model_server)[1] == body


def test_accept_truncated(model_server: SimulatedModelServer) -> None:
    """With ``accept_truncated`` a cut text is a result, unless it is all reasoning."""
    backend = OpenAIBackend(model="m", endpoint=model_server.openai_url, accept_truncated=True)
    cut, nothing = _outcomes(backend, prompt("[[truncated]]"), prompt("[[thoughts-only]]"))
    assert isinstance(cut, Completion)
    assert (cut.output, cut.finish_reason) == ("answer to [", "length")
    assert isinstance(nothing, Truncated)
    assert nothing.usage == Usage(5, 0, 0, 64)


def _reply(message: dict[str, Any], reason: str = "stop") -> dict[str, Any]:
    return {"model": "m", "choices": [{"message": message, "finish_reason": reason}]}


def test_refusal_and_tool_calls() -> None:
    """A refusal is blocked with its text; tool calls become JSON."""
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
    """Logprobs and tool calls share one object; without logprobs the calls are the output."""
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    choice = {"message": {"tool_calls": calls}, "finish_reason": "tool_calls"}
    path = "chat/completions"
    plain = answer_of({"choices": [choice]}, path, accept_truncated=False)
    assert json.loads(plain.output_json) == calls
    choice["logprobs"] = {"content": [{"token": "a", "logprob": -0.5}]}
    both = answer_of({"choices": [choice]}, path, accept_truncated=False)
    assert json.loads(both.output_json) == {"logprobs": choice["logprobs"], "tool_calls": calls}


def test_parts_of_content() -> None:
    """Content may be a list of parts, as some compatible servers send it."""
    parts = [{"type": "thinking"}, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert completion_of(_reply({"content": parts}), accept_truncated=False).output == "ab"


def test_usage() -> None:
    """Usage that a server omits or sends as null is unknown."""
    assert usage_of({}) == Usage()
    assert usage_of({"usage": None}) == Usage()
    counts = {"prompt_tokens": 1, "completion_tokens": 2}
    details: dict[str, Any] = {"prompt_tokens_details": None, "completion_tokens_details": None}
    assert usage_of({"usage": {**counts, **details}}) == Usage(1, None, 2, None)
    details = {"completion_tokens_details": {"reasoning_tokens": 5}}
    assert usage_of({"usage": {**counts, **details}}) == Usage(1, None, 0, 5)


def test_names_of_the_token_limit() -> None:
    """OpenAI's reasoning models get another name of the token limit than compatible servers."""
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
    """Strict mode is set only for closed schemas; others are sent without it."""
    assert is_closed(schema) is closed
    body = chat_body(prompt("a", output_schema=schema), "m", limit_name="max_tokens")
    assert body["response_format"]["json_schema"]["strict"] is closed


def test_requests_that_cannot_be_sent() -> None:
    """A request of the other task is rejected before it is sent."""
    with pytest.raises(InvalidRequest, match=r"^a request with \['text'\] has no messages$"):
        chat_body(request_of({"text": "a"}), "m", limit_name="max_tokens")
    with pytest.raises(InvalidRequest, match=r"with \['messages'\] has no text$"):
        embed_body(prompt("a"), "m")


def test_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key is configured or from the environment; only OpenAI itself requires one."""

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
    """The backend can be pickled with its key for workers, and does not show it."""
    backend = OpenAIBackend(model="m", api_key="sk-secret")
    assert pickle.loads(pickle.dumps(backend)) == backend
    assert (backend.family, backend.model) == ("openai", "m")
    assert "sk-secret" not in repr(backend)
