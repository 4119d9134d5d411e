"""Gemini: bodies are those of google-genai; replies and soft failures are read exactly."""

import asyncio
import pickle
import re
from collections.abc import Sequence
from typing import Any

import pytest
from aiohttp import web
from google import genai
from google.genai import types
from google.oauth2.credentials import Credentials

from tests.emulators.model_fixtures import SimulatedModelServer
from tests.emulators.model_server.answers import unit_vector
from tests.transforms.backends import opened, prompt, request_of, serving
from transforms.backends.base import Backend, BatchClient, CallLimits, Client
from transforms.backends.gemini import GeminiBackend, completion_of, generate_body
from transforms.records.errors import (
    Blocked,
    EmptyOutput,
    Forbidden,
    InvalidRequest,
    RateLimited,
    RecordError,
    RequestTimeout,
    Truncated,
    Unavailable,
)
from transforms.records.records import Completion, Request, Usage


def _image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "string"}},
    "required": ["a"],
    "additionalProperties": False,
}
FIELDS: dict[str, Any] = {"model": "gemini-2.5-flash", "project": "p", "location": "us-central1"}


def _outcomes(backend: Backend, *requests: Request) -> Sequence[Completion | RecordError]:
    async def ask() -> Any:
        async with opened(backend) as client:
            answers = (client.generate(request) for request in requests)
            return await asyncio.gather(*answers, return_exceptions=True)

    outcomes: Sequence[Completion | RecordError] = asyncio.run(ask())
    return outcomes


def _sdk(server: SimulatedModelServer) -> genai.Client:
    options = types.HttpOptions(
        base_url=server.base_url, api_version="v1", headers={"x-simulated-strict": "1"}
    )
    return genai.Client(
        vertexai=True,
        project="p",
        location="us-central1",
        credentials=Credentials(token="fake"),
        http_options=options,
    )


def _path_and_body(server: SimulatedModelServer) -> tuple[str, Any]:
    (seen,) = server.requests()
    server.reset()
    return seen["path"], seen["body"]


def test_body_is_that_of_the_sdk(model_server: SimulatedModelServer) -> None:
    """Messages, configuration, schema and options are sent exactly as google-genai sends them."""
    model_server.reset()
    with _sdk(model_server) as sdk:
        sdk.models.generate_content(
            model="gemini-2.5-flash",
            contents=[
                types.Content(role="user", parts=[types.Part(text="one"), types.Part(text="two")]),
                types.Content(role="model", parts=[types.Part(text="yes?")]),
                types.Content(role="user", parts=[types.Part(text="hello")]),
            ],
            config=types.GenerateContentConfig(
                system_instruction="Be brief.\n\nBe kind.",
                max_output_tokens=5,
                temperature=0.5,
                top_p=0.9,
                top_k=3,
                stop_sequences=["x"],
                seed=3,
                response_mime_type="application/json",
                response_json_schema=SCHEMA,
                safety_settings=[
                    types.SafetySetting(
                        category=types.HarmCategory.HARM_CATEGORY_HARASSMENT,
                        threshold=types.HarmBlockThreshold.BLOCK_NONE,
                    )
                ],
                labels={"team": "a"},
                tools=[types.Tool(google_search=types.GoogleSearch())],
            ),
        )
    expected = _path_and_body(model_server)
    request = request_of(
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}],
                },
                {"role": "assistant", "content": "yes?"},
                {"role": "system", "content": "Be kind."},
                {"role": "user", "parts": [{"text": "hello"}]},
            ]
        },
        generation_config={
            "max_output_tokens": 5,
            "temperature": 0.5,
            "top_p": 0.9,
            "topK": 3.0,
            "stop": "x",
            "seed": 3,
        },
        output_schema=SCHEMA,
        request_options={
            "safetySettings": [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}],
            "labels": {"team": "a"},
            "tools": [{"googleSearch": {}}],
        },
    )
    (outcome,) = _outcomes(GeminiBackend(**FIELDS, endpoint=model_server.base_url), request)
    assert isinstance(outcome, Completion)
    assert _path_and_body(model_server) == expected


def _in_camel_case(body: Any) -> Any:
    if isinstance(body, list):
        return [_in_camel_case(item) for item in body]
    if not isinstance(body, dict):
        return body
    return {
        re.sub("_([a-z])", lambda found: found[1].upper(), name): _in_camel_case(value)
        for name, value in body.items()
    }


def test_media_are_those_of_the_sdk(model_server: SimulatedModelServer) -> None:
    """Media parts, and images in OpenAI's form, are sent as google-genai sends them.

    Only the spelling of nested names differs: the SDK writes ``file_uri``, the REST reference
    ``fileUri``, and Google's JSON accepts either.
    """
    model_server.reset()
    with _sdk(model_server) as sdk:
        sdk.models.generate_content(
            model="gemini-2.5-flash",
            contents=[
                types.Content(
                    role="user",
                    parts=[
                        types.Part.from_uri(file_uri="gs://b/a.webp", mime_type="image/webp"),
                        types.Part.from_uri(file_uri="https://h/1?k=v", mime_type="video/mp4"),
                        types.Part.from_uri(file_uri="https://h/a.png", mime_type="image/png"),
                        types.Part.from_bytes(data=b"abc", mime_type="image/gif"),
                        types.Part(text="hello"),
                    ],
                ),
            ],
        )
    path, body = _path_and_body(model_server)
    content = [
        {"type": "media", "uri": "gs://b/a.webp", "mime_type": "image/webp"},
        {"type": "media", "uri": "https://h/1?k=v", "mime_type": "video/mp4"},
        _image("https://h/a.png"),
        _image("data:image/gif;base64,YWJj"),
        {"type": "text", "text": "hello"},
    ]
    request = request_of({"messages": [{"role": "user", "content": content}]})
    (outcome,) = _outcomes(GeminiBackend(**FIELDS, endpoint=model_server.base_url), request)
    assert isinstance(outcome, Completion)
    assert outcome.output == "answer to hello"
    assert _path_and_body(model_server) == (path, _in_camel_case(body))


def test_a_forbidden_object(model_server: SimulatedModelServer) -> None:
    """A forbidden object fails its own record."""
    part = {"type": "media", "uri": "gs://b/forbidden.png", "mime_type": "image/png"}
    request = request_of({"messages": [{"role": "user", "content": [part]}]})
    backend = GeminiBackend(**FIELDS, endpoint=model_server.base_url)
    failed, fine = _outcomes(backend, request, prompt("fine"))
    assert isinstance(failed, Forbidden)
    assert isinstance(fine, Completion)


_KIND, _SHARED_KIND = "x-vertex-ai-llm-request-type", "x-vertex-ai-llm-shared-request-type"


@pytest.mark.parametrize(
    ("tier", "headers", "served"),
    [
        (None, {}, "ON_DEMAND"),
        ("standard", {_KIND: "shared"}, "ON_DEMAND"),
        ("flex", {_KIND: "shared", _SHARED_KIND: "flex"}, "ON_DEMAND_FLEX"),
        ("priority", {_KIND: "shared", _SHARED_KIND: "priority"}, "ON_DEMAND_PRIORITY"),
        ("provisioned", {_KIND: "dedicated"}, "PROVISIONED_THROUGHPUT"),
    ],
)
def test_service_tier(
    model_server: SimulatedModelServer, tier: Any, headers: dict[str, str], served: str
) -> None:
    """Headers request the service tier; answers and failures name the tier that served them."""
    model_server.reset()
    backend = GeminiBackend(**FIELDS, endpoint=model_server.base_url, service_tier=tier)
    answered, blocked = _outcomes(backend, prompt("a"), prompt("[[blocked]]"))
    assert isinstance(answered, Completion)
    assert isinstance(blocked, Blocked)
    assert (answered.service_tier, blocked.service_tier) == (served, served)
    for seen in model_server.requests():
        given = {name.lower(): value for name, value in seen["headers"].items()}
        assert {n: v for n, v in given.items() if n.startswith("x-vertex")} == headers
        assert "authorization" in given


@pytest.mark.parametrize(
    "model", ["gemini-embedding-001", "text-embedding-005", "gemini-embedding-2"]
)
@pytest.mark.parametrize("config", [{}, {"task_type": "RETRIEVAL_DOCUMENT", "title": "T"}])
@pytest.mark.parametrize("more", [{}, {"output_dimensionality": 4, "auto_truncate": True}])
def test_embedding_body_is_that_of_the_sdk(
    model_server: SimulatedModelServer, model: str, config: Any, more: Any
) -> None:
    """Both embedding methods send the SDK's body, with the settings in their three places."""
    model_server.reset()
    with _sdk(model_server) as sdk:
        reference = sdk.models.embed_content(
            model=model, contents="hello", config=types.EmbedContentConfig(**config, **more)
        )
    expected = _path_and_body(model_server)
    backend = GeminiBackend(
        **{**FIELDS, "model": model}, task="embed", endpoint=model_server.base_url
    )
    (outcome,) = _outcomes(
        backend, request_of({"text": "hello"}, generation_config={**config, **more})
    )
    assert _path_and_body(model_server) == expected
    assert reference.embeddings is not None
    assert isinstance(outcome, Completion)
    assert list(outcome.embedding or ()) == reference.embeddings[0].values
    assert len(outcome.embedding or ()) == (4 if more else 8)
    assert outcome.usage == Usage(input_tokens=2)


def _embedding_backend(endpoint: str, model: str = "text-embedding-005") -> GeminiBackend:
    return GeminiBackend(**{**FIELDS, "model": model}, task="embed", endpoint=endpoint)


def _embedded(
    backend: GeminiBackend, *texts: str, **params: Any
) -> Sequence[Completion | RecordError]:
    """The outcomes of one call for all texts."""

    async def ask() -> Any:
        async with opened(backend) as client:
            assert isinstance(client, BatchClient)
            return await client.generate_many([request_of({"text": t}, **params) for t in texts])

    outcomes: Sequence[Completion | RecordError] = asyncio.run(ask())
    return outcomes


@pytest.mark.parametrize("config", [{}, {"task_type": "RETRIEVAL_DOCUMENT", "title": "T"}])
@pytest.mark.parametrize("more", [{}, {"output_dimensionality": 4, "auto_truncate": True}])
def test_body_of_several_texts_is_that_of_the_sdk(
    model_server: SimulatedModelServer, config: Any, more: Any
) -> None:
    """A call has one instance per text, in order; the SDK reads the same vectors and tokens."""
    model_server.reset()
    contents: list[Any] = ["hello", "a longer text", "x"]
    with _sdk(model_server) as sdk:
        reference = sdk.models.embed_content(
            model="text-embedding-005",
            contents=contents,
            config=types.EmbedContentConfig(**config, **more),
        )
    expected = _path_and_body(model_server)
    outcomes = _embedded(
        _embedding_backend(model_server.base_url),
        *contents,
        generation_config={**config, **more},
    )
    assert _path_and_body(model_server) == expected
    assert [
        (list(one.embedding or ()), one.usage.input_tokens)
        for one in outcomes
        if isinstance(one, Completion)
    ] == [
        (item.values, item.statistics and item.statistics.token_count)
        for item in reference.embeddings or ()
    ]


def test_as_many_texts_as_the_model_takes(model_server: SimulatedModelServer) -> None:
    """A call holds as many texts as the model accepts, each with its own vector and token count."""
    model_server.reset()
    texts = [f"text {number} {'x' * number}" for number in range(250)]
    outcomes = _embedded(_embedding_backend(model_server.base_url), *texts)
    assert outcomes == [
        Completion(
            embedding=tuple(unit_vector(text, 8)), usage=Usage(input_tokens=(len(text) + 3) // 4)
        )
        for text in texts
    ]
    stats = model_server.stats()
    assert (stats["calls"], stats["texts"]) == (1, 250)


def test_failures_of_single_texts(model_server: SimulatedModelServer) -> None:
    """An empty vector or text fails its own record; a cut text keeps its vector."""
    outcomes = _embedded(
        _embedding_backend(model_server.base_url), "a", "[[empty]]", "", "b" * 9000, "[[truncated]]"
    )
    assert [type(one) for one in outcomes] == [
        Completion,
        EmptyOutput,
        InvalidRequest,
        Completion,
        Completion,
    ]


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        (["a", "b [[http:400]]"], InvalidRequest, "HTTP 400 from .*invalid argument"),
        (["a", "b [[http:429]]"], RateLimited, "Resource exhausted"),
        (["a", "b [[wrong-shape]]"], Unavailable, "does not have the expected shape"),
        (["a"] * 251, InvalidRequest, "250 instance\\(s\\) is allowed per prediction. Actual: 251"),
        (["a" * 804] * 100, InvalidRequest, "20100 but the model supports up to 20000"),
        (
            ["a", "b [[no-candidates]]"],
            InvalidRequest,
            "^asked for the embeddings of 2 texts, the server answered 1 vectors$",
        ),
    ],
)
def test_a_call_that_fails_as_a_whole(
    model_server: SimulatedModelServer, texts: list[str], error: type[RecordError], message: str
) -> None:
    """A call that fails raises, and no text of it has an outcome."""
    with pytest.raises(error, match=message):
        _embedded(_embedding_backend(model_server.base_url), *texts)


@pytest.mark.parametrize("values", [["a"], [None], "ab"])
def test_vectors_of_something_else(values: Any) -> None:
    """Vectors of a wrong shape are not an answer."""

    async def ask() -> Any:
        async def handle(request: web.Request) -> web.Response:
            predictions = [{"embeddings": {"values": [1.0]}}, {"embeddings": {"values": values}}]
            return web.json_response({"predictions": predictions})

        async with serving(handle) as url, opened(_embedding_backend(url)) as client:
            return await client.generate_many([request_of({"text": text}) for text in "ab"])

    with pytest.raises(Unavailable, match="does not have the expected shape"):
        asyncio.run(ask())


_PREDICT = CallLimits(max_requests=250, max_tokens=15_000)
_ALONE = CallLimits(max_requests=1, max_tokens=15_000)


@pytest.mark.parametrize(
    ("fields", "limits"),
    [
        ({"model": "text-embedding-005"}, _PREDICT),
        ({"model": "google/text-multilingual-embedding-002"}, _PREDICT),
        ({"model": "gemini-embedding-001"}, _ALONE),
        ({"model": "gemini-embedding-001", "max_texts_per_call": 250}, _PREDICT),
        ({"model": "gemini-embedding-2"}, CallLimits()),
        ({"model": "gemini-embedding-2", "max_texts_per_call": 9}, CallLimits()),
        (
            {
                "model": "text-embedding-005",
                "max_texts_per_call": 5,
                "max_tokens_per_call": 6,
                "max_bytes_per_call": 7,
            },
            CallLimits(max_requests=5, max_tokens=6, max_bytes=7),
        ),
    ],
)
def test_limits_of_a_call(fields: Any, limits: CallLimits) -> None:
    """Limits are the model's or the user's; ``embedContent`` accepts one text in any case."""
    backend = GeminiBackend(**{**FIELDS, **fields}, task="embed", endpoint="http://127.0.0.1:1")
    assert backend.embedding_limits() == limits

    async def opened_limits() -> Any:
        async with opened(backend) as client:
            return client.call_limits if isinstance(client, BatchClient) else None

    shares = limits.max_requests != 1
    assert asyncio.run(opened_limits()) == (limits if shares else None)


def test_answer(model_server: SimulatedModelServer) -> None:
    """An answer has its text, finish reason, tokens by kind, model and tier."""
    request = request_of(
        {
            "messages": [
                {"role": "system", "content": "brief"},
                {"role": "user", "content": "hello"},
            ]
        }
    )
    outcomes = _outcomes(GeminiBackend(**FIELDS, endpoint=model_server.base_url), request)
    assert outcomes == [
        Completion(
            output="answer to hello",
            finish_reason="STOP",
            usage=Usage(input_tokens=3, cached_input_tokens=2, output_tokens=4, reasoning_tokens=3),
            model_version="gemini-2.5-flash",
            service_tier="ON_DEMAND",
        )
    ]


def test_a_whole_request_goes_as_it_stands(model_server: SimulatedModelServer) -> None:
    """A whole request is sent unchanged, without parameters, for texts and for embeddings."""
    model_server.reset()
    body = {"contents": [{"role": "user", "parts": [{"text": "a"}]}], "labels": {"b": "c"}}
    request = request_of({"request": body}, generation_config={"seed": 1}, output_schema=SCHEMA)
    _outcomes(GeminiBackend(**FIELDS, endpoint=model_server.base_url), request)
    assert _path_and_body(model_server)[1] == body
    embed = {"instances": [{"content": "a"}], "parameters": {"autoTruncate": False}}
    fields = {**FIELDS, "model": "text-embedding-005", "task": "embed"}
    _outcomes(
        GeminiBackend(**fields, endpoint=model_server.base_url), request_of({"request": embed})
    )
    assert _path_and_body(model_server)[1] == embed


def test_urls(monkeypatch: pytest.MonkeyPatch) -> None:
    """URLs follow regions, publishers, tuned models and base URLs."""
    monkeypatch.delenv("GOOGLE_VERTEX_BASE_URL", raising=False)

    def url(**fields: Any) -> str:
        return GeminiBackend(**{**FIELDS, **fields}).url()

    google = "https://us-central1-aiplatform.googleapis.com/v1/projects/p/locations/us-central1"
    assert url() == f"{google}/publishers/google/models/gemini-2.5-flash:generateContent"
    assert url(model="meta/llama-4") == f"{google}/publishers/meta/models/llama-4:generateContent"
    assert url(model="publishers/a/models/b") == f"{google}/publishers/a/models/b:generateContent"
    assert url(location="global") == (
        "https://aiplatform.googleapis.com/v1/projects/p/locations/global"
        "/publishers/google/models/gemini-2.5-flash:generateContent"
    )
    tuned = "projects/9/locations/europe-west4/endpoints/42"
    tuned_url = f"https://europe-west4-aiplatform.googleapis.com/v1/{tuned}:generateContent"
    assert url(endpoint=tuned) == tuned_url
    assert url(endpoint="http://127.0.0.1:1/", model=tuned) == (
        f"http://127.0.0.1:1/v1/{tuned}:generateContent"
    )
    assert url(task="embed", model="google/gemini-embedding-2-preview").endswith(
        "/publishers/google/models/gemini-embedding-2-preview:embedContent"
    )
    monkeypatch.setenv("GOOGLE_VERTEX_BASE_URL", "http://127.0.0.1:2")
    assert url(endpoint=tuned) == f"http://127.0.0.1:2/v1/{tuned}:generateContent"


@pytest.mark.parametrize(
    ("text", "error", "retry_after_s"),
    [
        ("a [[http:400]]", InvalidRequest, None),
        ("b [[http:403]]", Forbidden, None),
        ("c [[http:429]][[retry-after:7]]", RateLimited, 7.0),
        ("d [[http:503]]", Unavailable, None),
        ("e [[http:504]]", RequestTimeout, None),
        ("f [[reset]]", Unavailable, None),
        ("g [[malformed]]", Unavailable, None),
        ("h [[wrong-shape]]", Unavailable, None),
        ("i [[blocked]]", Blocked, None),
        ("j [[prompt-blocked]]", Blocked, None),
        ("k [[empty]]", EmptyOutput, None),
        ("l [[no-candidates]]", EmptyOutput, None),
        ("m [[truncated]]", Truncated, None),
        ("n [[thoughts-only]]", Truncated, None),
    ],
)
def test_failures(
    model_server: SimulatedModelServer,
    text: str,
    error: type[RecordError],
    retry_after_s: float | None,
) -> None:
    """Each failure of a server becomes its error and leaves other answers untouched."""
    backend = GeminiBackend(**FIELDS, endpoint=model_server.base_url)
    failed, fine = _outcomes(backend, prompt(text), prompt("fine"))
    assert type(failed) is error
    assert failed.retry_after_s == retry_after_s
    assert isinstance(fine, Completion)
    assert fine.output == "answer to fine"


def test_soft_failures_keep_their_answers(model_server: SimulatedModelServer) -> None:
    """Soft failures keep tokens, model, finish reason and any text."""
    backend = GeminiBackend(**FIELDS, endpoint=model_server.base_url)
    truncated, blocked, refused = _outcomes(
        backend, prompt("[[truncated]]"), prompt("[[blocked]]"), prompt("[[prompt-blocked]]")
    )
    assert isinstance(truncated, Truncated)
    assert (truncated.finish_reason, truncated.output) == ("MAX_TOKENS", "answer to [")
    assert truncated.usage == Usage(input_tokens=4, output_tokens=3, reasoning_tokens=3)
    assert truncated.model_version == "gemini-2.5-flash"
    assert isinstance(blocked, Blocked)
    assert (blocked.finish_reason, blocked.output) == ("SAFETY", None)
    assert isinstance(refused, Blocked)
    assert refused.finish_reason == "PROHIBITED_CONTENT"
    assert refused.usage == Usage(input_tokens=5)


def test_accept_truncated(model_server: SimulatedModelServer) -> None:
    """With ``accept_truncated`` a cut text is a result, unless thoughts used up the whole limit."""
    backend = GeminiBackend(**FIELDS, endpoint=model_server.base_url, accept_truncated=True)
    cut, nothing = _outcomes(backend, prompt("[[truncated]]"), prompt("[[thoughts-only]]"))
    assert isinstance(cut, Completion)
    assert (cut.output, cut.finish_reason) == ("answer to [", "MAX_TOKENS")
    assert isinstance(nothing, Truncated)


def test_unknown_reasons_and_odd_text_pass(model_server: SimulatedModelServer) -> None:
    """An unknown finish reason with text, and a lone surrogate, are answers."""
    backend = GeminiBackend(**FIELDS, endpoint=model_server.base_url)
    new, odd = _outcomes(backend, prompt("[[unknown-finish]]"), prompt("[[surrogate]]"))
    assert isinstance(new, Completion)
    assert (new.finish_reason, new.output) == ("SOMETHING_NEW", "answer to [[unknown-finish]]")
    assert isinstance(odd, Completion)
    assert odd.output == "answer to [[surrogate]] \\ud83d"


def test_embedding_failures(model_server: SimulatedModelServer) -> None:
    """A missing vector is not an answer."""
    for model in ("gemini-embedding-001", "gemini-embedding-2"):
        backend = GeminiBackend(
            **{**FIELDS, "model": model}, task="embed", endpoint=model_server.base_url
        )
        empty, shape, texts = _outcomes(
            backend,
            request_of({"text": "[[empty]]"}),
            request_of({"text": "[[wrong-shape]]"}),
            request_of({"messages": []}),
        )
        assert isinstance(empty, EmptyOutput)
        assert isinstance(shape, Unavailable)
        assert isinstance(texts, InvalidRequest)


def _reply(parts: Any, reason: str | None = "STOP", **more: Any) -> dict[str, Any]:
    return {"candidates": [{"content": {"parts": parts}, "finishReason": reason}], **more}


def test_parts() -> None:
    """Text parts are joined without thoughts; function calls become JSON."""
    spoken = completion_of(
        _reply([{"text": "a", "thought": True}, {"text": "b"}, {"inlineData": {}}, {"text": "c"}]),
        accept_truncated=False,
    )
    assert (spoken.output, spoken.output_json) == ("bc", None)
    called = completion_of(
        _reply([{"functionCall": {"name": "f", "args": {"x": 1}}}]), accept_truncated=False
    )
    assert called.output is None
    assert called.output_json == '[{"name":"f","args":{"x":1}}]'


@pytest.mark.parametrize(
    "reason",
    [
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
    ],
)
def test_blocked_reasons(reason: str) -> None:
    """A blocked answer is blocked even if some text came before."""
    with pytest.raises(Blocked) as caught:
        completion_of(_reply([{"text": "some"}], reason), accept_truncated=False)
    assert (caught.value.finish_reason, caught.value.output) == (reason, "some")


@pytest.mark.parametrize("reason", ["OTHER", "MALFORMED_FUNCTION_CALL", "TOMORROW", None])
def test_other_reasons(reason: str | None) -> None:
    """Any other reason passes with text, and is an empty output without."""
    assert completion_of(_reply([{"text": "x"}], reason), accept_truncated=False).output == "x"
    with pytest.raises(EmptyOutput):
        completion_of(_reply([], reason), accept_truncated=False)


def test_own_schema_wins() -> None:
    """A response schema in the generation config is sent instead of the output schema."""
    config = {"response_schema": {"type": "OBJECT"}}
    body = generate_body(prompt("a", generation_config=config, output_schema=SCHEMA))
    assert body["generationConfig"] == config


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"text": "a"}, "a request with ['text'] has no messages"),
        ({"messages": "a"}, "a request with ['messages'] has no messages"),
        ({"messages": ["a"]}, "a message is a str, not an object"),
        (
            {"messages": [{"role": "tool", "content": "a"}]},
            "role 'tool' is not one of system, user, assistant, model",
        ),
        ({"messages": [{"role": "user"}]}, "a message's content is a NoneType, not text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "a part of type 'image_url' is neither text nor media; use Gemini's own 'parts' for others",
        ),
        (
            {"messages": [{"role": "user", "content": ["a"]}]},
            "a part of type 'str' is neither text nor media; use Gemini's own 'parts' for others",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]},
            "a part of type 'text' is neither text nor media; use Gemini's own 'parts' for others",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "media", "uri": "b/a.png"}]}]},
            "a media part: 'b/a.png' is not a gs:// or https:// URI",
        ),
        (
            {"messages": [{"role": "user", "content": [_image("https://h/a?key=secret")]}]},
            (
                "a media part: the MIME type of 'https://h/a' cannot be told from its name; use a "
                "part of type 'media' with one"
            ),
        ),
        (
            {"messages": [{"role": "system", "content": [_image("https://h/a.png")]}]},
            "a system message holds media; move them to the user's message",
        ),
    ],
)
def test_roles_and_types_that_gemini_lacks(body: Any, message: str) -> None:
    """A role or type that Gemini lacks is rejected by name before the request is sent."""
    with pytest.raises(InvalidRequest) as caught:
        generate_body(request_of(body))
    assert str(caught.value) == message


def test_backend_is_a_picklable_description() -> None:
    """The backend can be pickled for workers; its client answers one by one."""
    backend = GeminiBackend(**FIELDS, endpoint="http://127.0.0.1:1")
    assert pickle.loads(pickle.dumps(backend)) == backend
    assert (backend.family, backend.model) == ("gemini", "gemini-2.5-flash")

    async def kind() -> tuple[bool, Client]:
        async with opened(backend) as client:
            return isinstance(client, BatchClient), client

    assert asyncio.run(kind())[0] is False
