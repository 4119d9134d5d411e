"""The simulated model server against the real SDKs, with its refusals and counts.

This does not prove that Vertex AI or OpenAI answer like this. The SDKs only show that the server's
answers can be read by the code that reads the real ones; no real endpoint was called.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import openai
import pytest
from google import genai
from google.cloud import aiplatform
from google.genai import errors as genai_errors
from google.genai import types
from google.oauth2.credentials import Credentials
from pydantic import ValidationError

from tests.emulators.model_calls import GENERATE, PARENT, SCHEMA, TICKET, chat, gemini, post
from tests.emulators.model_fixtures import SimulatedModelServer, running_model_server
from tests.emulators.model_server import answers


@pytest.fixture
def server(model_server: SimulatedModelServer) -> SimulatedModelServer:
    """The shared server with all counts at zero."""
    model_server.reset()
    return model_server


@pytest.fixture
def google(server: SimulatedModelServer) -> Iterator[genai.Client]:
    """The real google-genai client, without the fields that its types reject."""
    options = types.HttpOptions(
        base_url=server.base_url, api_version="v1", headers={"x-simulated-strict": "1"}
    )
    client = genai.Client(
        vertexai=True,
        project="p",
        location="us-central1",
        credentials=Credentials(token="t"),  # type: ignore[no-untyped-call]
        http_options=options,
    )
    with client:
        yield client


@pytest.fixture
def oai(server: SimulatedModelServer) -> Iterator[openai.OpenAI]:
    """The real openai client, which does not retry."""
    with openai.OpenAI(base_url=server.openai_url, api_key="k", max_retries=0) as client:
        yield client


def test_google_genai_reads_an_answer(google: genai.Client) -> None:
    """Text, finish, usage and ids of generateContent arrive in the SDK's types."""
    config = types.GenerateContentConfig(system_instruction="Be brief.", temperature=0.0)
    response = google.models.generate_content(
        model="gemini-2.5-flash", contents="What is 2+2?", config=config
    )
    assert response.text == "answer to What is 2+2?"
    assert response.candidates is not None
    assert response.candidates[0].finish_reason is types.FinishReason.STOP
    usage = response.usage_metadata
    assert usage is not None
    assert usage.prompt_token_count == 6  # "Be brief.What is 2+2?": 21 characters
    assert usage.cached_content_token_count == 3
    assert usage.candidates_token_count == 6
    assert usage.thoughts_token_count == 3
    assert usage.total_token_count == 15
    assert usage.traffic_type is types.TrafficType.ON_DEMAND
    assert response.model_version == "gemini-2.5-flash"
    assert response.response_id == answers.digest("What is 2+2?")


def test_google_genai_refuses_the_fields_of_real_rows(server: SimulatedModelServer) -> None:
    """By default the answer carries the two fields that break the SDK's response type."""
    status, _, body = gemini(server, "hello")
    assert status == 200
    assert body["candidates"][0]["score"] == -1.5
    assert body["usageMetadata"]["billablePromptUsage"] == {"textCount": 5}
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        types.GenerateContentResponse.model_validate(body)


def test_google_genai_structured_output(google: genai.Client) -> None:
    """An OpenAPI-style schema with upper-case types is honoured, also by tuned endpoints."""
    schema = types.Schema(
        type=types.Type.OBJECT,
        properties={
            "category": types.Schema(type=types.Type.STRING, enum=["billing", "other"]),
            "stars": types.Schema(type=types.Type.INTEGER, minimum=1, maximum=5),
        },
        required=["category", "stars"],
    )
    config = types.GenerateContentConfig(
        response_mime_type="application/json", response_schema=schema
    )
    response = google.models.generate_content(
        model="projects/p/locations/us-central1/endpoints/42", contents=TICKET, config=config
    )
    assert response.text is not None
    value = json.loads(response.text)
    assert value["category"] == "billing"
    assert 1 <= value["stars"] <= 5
    assert set(value) == {"category", "stars"}


def test_google_genai_embeds_by_predict(google: genai.Client) -> None:
    """text-embedding-005 goes through :predict and gets one vector per text, in order."""
    contents: list[Any] = ["a", "bcdef"]
    config = types.EmbedContentConfig(output_dimensionality=16, task_type="RETRIEVAL_DOCUMENT")
    response = google.models.embed_content(
        model="text-embedding-005", contents=contents, config=config
    )
    assert response.embeddings is not None
    vectors = [embedding.values for embedding in response.embeddings]
    assert vectors == [answers.unit_vector("a", 16), answers.unit_vector("bcdef", 16)]
    statistics = [embedding.statistics for embedding in response.embeddings]
    assert [s.token_count for s in statistics if s] == [1, 2]
    assert [s.truncated for s in statistics if s] == [False, False]


def test_google_genai_embeds_by_embed_content(google: genai.Client) -> None:
    """gemini-embedding-2 goes through :embedContent."""
    config = types.EmbedContentConfig(output_dimensionality=4)
    response = google.models.embed_content(
        model="gemini-embedding-2", contents="hello", config=config
    )
    assert response.embeddings is not None
    (embedding,) = response.embeddings
    assert embedding.values == answers.unit_vector("hello", 4)
    assert embedding.statistics is not None
    assert embedding.statistics.token_count == 2


def test_batch_embed_contents(server: SimulatedModelServer) -> None:
    """:batchEmbedContents answers one embedding per request; the default is 8 dimensions."""
    model = f"{PARENT}/publishers/google/models/gemini-embedding-2:batchEmbedContents"
    requests = [
        {"content": {"parts": [{"text": "a"}]}},
        {"content": {"parts": [{"text": "b"}]}, "output_dimensionality": 2},
    ]
    status, _, body = post(server, model, {"requests": requests})
    assert status == 200
    assert body["embeddings"] == [
        {"values": answers.unit_vector("a", 8)},
        {"values": answers.unit_vector("b", 2)},
    ]


@pytest.mark.parametrize(
    ("model", "texts", "message"),
    [
        ("gemini-embedding-001", ["a", "b"], "batchSize must be 1 but the entered value was 2"),
        (
            "text-embedding-005",
            ["a"] * 251,
            r"250 instance\(s\) is allowed per prediction. Actual: 251",
        ),
        (
            "text-embedding-005",
            ["a" * 804] * 100,
            "count is 20100 but the model supports up to 20000",
        ),
    ],
)
def test_google_genai_reads_refusals_of_many_texts(
    google: genai.Client, model: str, texts: list[str], message: str
) -> None:
    """The whole request is refused, in the words that users report of the service."""
    with pytest.raises(genai_errors.ClientError, match=message) as caught:
        google.models.embed_content(model=model, contents=list(texts))
    assert (caught.value.code, caught.value.status) == (400, "INVALID_ARGUMENT")


def test_an_empty_text_among_others_is_refused(server: SimulatedModelServer) -> None:
    """Predict rejects an empty text, which google-genai would drop with one vector fewer."""
    path = f"{PARENT}/publishers/google/models/text-embedding-005:predict"
    status, _, body = post(server, path, {"instances": [{"content": "a"}, {"content": ""}]})
    assert (status, body["error"]["message"]) == (400, "The text content is empty.")


def test_a_long_text_is_cut_or_refused(google: genai.Client) -> None:
    """Predict cuts a long text or refuses it, by ``auto_truncate``; others stay whole."""
    texts: list[Any] = ["a" * 9000, "b"]
    response = google.models.embed_content(model="text-embedding-005", contents=texts)
    statistics = [embedding.statistics for embedding in response.embeddings or ()]
    assert [s.truncated for s in statistics if s] == [True, False]
    with pytest.raises(genai_errors.ClientError, match="2250 but the model supports up to 2048"):
        google.models.embed_content(
            model="text-embedding-005",
            contents=texts,
            config=types.EmbedContentConfig(auto_truncate=False),
        )


@pytest.mark.parametrize(
    ("marker", "code", "status"),
    [
        ("[[http:400]]", 400, "INVALID_ARGUMENT"),
        ("[[http:403]]", 403, "PERMISSION_DENIED"),
        ("[[http:404]]", 404, "NOT_FOUND"),
        ("[[http:429]] [[retry-after:2]]", 429, "RESOURCE_EXHAUSTED"),
        ("[[http:500]]", 500, "INTERNAL"),
        ("[[http:503]]", 503, "UNAVAILABLE"),
    ],
)
def test_google_genai_reads_errors(
    google: genai.Client, marker: str, code: int, status: str
) -> None:
    """The SDK finds code, status, message and details of a Google-style error."""
    with pytest.raises(genai_errors.APIError) as caught:
        google.models.generate_content(model="m", contents=f"x {marker}")
    assert (caught.value.code, caught.value.status) == (code, status)
    details = caught.value.details["error"]["details"]
    assert [d["retryDelay"] for d in details if "retryDelay" in d] == (
        ["2s"] if "retry-after" in marker else []
    )


def test_vertex_authorization_and_missing_model(server: SimulatedModelServer) -> None:
    """A missing token is 401, the token "forbidden" 403, the model "missing-model" 404."""
    body = {"contents": [{"parts": [{"text": "x"}]}]}
    missing = GENERATE.replace("gemini-2.5-flash", "missing-model")
    outcomes = [
        post(server, GENERATE, body, token=None),
        post(server, GENERATE, body, token="forbidden"),
        post(server, missing, body),
        post(server, f"{PARENT}/endpoints/missing-model:predict", {"instances": ["x"]}),
    ]
    assert [(o[0], o[2]["error"]["code"], o[2]["error"]["status"]) for o in outcomes] == [
        (401, 401, "UNAUTHENTICATED"),
        (403, 403, "PERMISSION_DENIED"),
        (404, 404, "NOT_FOUND"),
        (404, 404, "NOT_FOUND"),
    ]


def test_invalid_bodies_are_refused(server: SimulatedModelServer) -> None:
    """A wrong role, no contents, another shape and no messages are 400s, never 500s."""
    wrong_role = {"contents": [{"role": "tester", "parts": [{"text": "x"}]}]}
    status, _, body = post(server, GENERATE, wrong_role)
    assert (status, body["error"]["message"]) == (400, "Please use a valid role: user, model.")
    bodies = [(GENERATE, {}), (GENERATE, {"contents": "x"}), (GENERATE, [1])]
    bodies += [("/v1/chat/completions", {"model": "m"}), ("/v1/chat/completions", {})]
    bodies += [("/v1/embeddings", {"model": "m", "input": []})]
    assert [post(server, path, body)[0] for path, body in bodies] == [400] * 6


def _with_file(**file: str) -> Any:
    return {"contents": [{"parts": [{"fileData": file}, {"text": "x"}]}]}


def _with_part(kind: str, url: str = "") -> Any:
    content = [{"type": kind, kind: {"url": url}}, {"type": "text", "text": "x"}]
    return {"model": "m", "messages": [{"role": "user", "content": content}]}


def test_media_are_taken_and_not_opened(server: SimulatedModelServer) -> None:
    """In both dialects the text decides the answer, and ``forbidden`` in the URI is a 403."""
    mime = {"mimeType": "image/png"}
    snake = {"contents": [{"parts": {"file_data": {"file_uri": "b/a", "mime_type": "image/png"}}}]}
    chat_path = "/v1/chat/completions"
    calls = [
        (GENERATE, _with_file(fileUri="gs://b/a.png", **mime), 200),
        (GENERATE, _with_file(fileUri="https://h/a.png", **mime), 200),
        (GENERATE, _with_file(fileUri="gs://b/forbidden.png", **mime), 403),
        (GENERATE, _with_file(fileUri="gs://b/a.png"), 400),
        (GENERATE, _with_file(fileUri="ftp://h/a.png", **mime), 400),
        (GENERATE, _with_file(**mime), 400),
        (GENERATE, snake, 400),
        (chat_path, _with_part("image_url", "https://h/a.png"), 200),
        (chat_path, _with_part("audio_url", "https://h/a.mp3"), 200),
        (chat_path, _with_part("video_url", "https://h/a.mp4"), 200),
        (chat_path, _with_part("video_url", "https://h/forbidden.mp4"), 403),
        (chat_path, _with_part("image_url", "gs://b/a.png"), 400),
        (chat_path, _with_part("media", "https://h/a.png"), 400),
    ]
    assert [post(server, path, body)[0] for path, body, _ in calls] == [s for _, _, s in calls]


def test_snake_case_and_mixed_bodies(server: SimulatedModelServer) -> None:
    """Nested keys may have either spelling; the last text of the last user turn decides."""
    body = {
        "system_instruction": {"parts": {"text": "sys"}},
        "contents": [
            {"role": "user", "parts": [{"text": "[[http:500]]"}]},
            {"role": "model", "parts": [{"text": "[[http:500]]"}]},
            {"role": "user", "parts": [{"text": "[[http:500]]"}, {"text": "last"}]},
        ],
        "generation_config": {"thinkingConfig": {"thinking_budget": 0}},
    }
    headers = {"X-Vertex-AI-LLM-Shared-Request-Type": "flex"}
    status, _, answer = post(server, GENERATE, body, **headers)
    assert (status, answer["candidates"][0]["content"]["parts"]) == (
        200,
        [{"text": "answer to last"}],
    )
    usage = answer["usageMetadata"]
    assert usage["cachedContentTokenCount"] == 1
    assert "thoughtsTokenCount" not in usage
    assert usage["trafficType"] == "ON_DEMAND_FLEX"


def test_aiplatform_predicts(server: SimulatedModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Endpoint.predict gets the endpoint, then one prediction per instance, in order."""
    # The process's own configuration stays as it is.
    config = aiplatform.initializer._Config()  # type: ignore[no-untyped-call]
    monkeypatch.setattr(aiplatform.initializer, "global_config", config)
    config.init(
        project="p",
        location="us-central1",
        api_endpoint=server.base_url,
        api_transport="rest",
        credentials=Credentials(token="t"),  # type: ignore[no-untyped-call]
    )
    endpoint = aiplatform.Endpoint("projects/p/locations/us-central1/endpoints/99")
    prediction = endpoint.predict(instances=["a", {"prompt": "b"}], parameters={"n": 1})
    assert prediction.predictions[0] == "answer to a"
    assert prediction.predictions[1]["output"] == "answer to b"
    assert set(prediction.predictions[1]) == {"output", "score"}
    assert prediction.deployed_model_id == "1"
    assert prediction.model_resource_name == (
        "projects/123456789012/locations/us-central1/models/simulated-model"
    )
    assert endpoint.dedicated_endpoint_enabled is False
    dedicated = aiplatform.Endpoint("projects/p/locations/us-central1/endpoints/dedicated-1")
    assert dedicated.dedicated_endpoint_enabled is True
    assert dedicated.dedicated_endpoint_dns == (
        "dedicated-1.us-central1-123456789012.prediction.vertexai.goog"
    )


def test_endpoint_markers_cost_one_instance_or_the_request(server: SimulatedModelServer) -> None:
    """A soft fault fails its own prediction, a hard one all of them."""
    path = f"{PARENT}/endpoints/99:predict"
    instances = ["a", "b [[empty]]", "c [[no-candidates]]", {"text": "d"}]
    predictions = post(server, path, {"instances": instances})[2]["predictions"]
    assert predictions[:2] == ["answer to a", None]
    assert [p["output"] for p in predictions[2:]] == ["answer to d"]
    assert post(server, path, {"instances": ["a", "[[http:400]]"]})[0] == 400


def test_raw_predict_takes_any_json(server: SimulatedModelServer) -> None:
    """Raw predictions answer chat bodies as a chat, instances as predictions, else in/out."""
    path = f"{PARENT}/endpoints/99:rawPredict"
    messages = [{"role": "user", "content": "hi"}]
    _, headers, answer = post(server, path, {"messages": messages})
    assert answer["choices"][0]["message"]["content"] == "answer to hi"
    assert headers["x-vertex-ai-deployed-model-id"] == "1"
    assert post(server, path, {"instances": ["a"]})[2] == {"predictions": ["answer to a"]}
    assert post(server, path, {"x": ["q"]})[2] == {"output": "answer to q", "input": {"x": ["q"]}}


def test_openai_reads_an_answer(oai: openai.OpenAI) -> None:
    """The SDK reads text, finish, full usage and the request id of a chat completion."""
    completion = oai.chat.completions.create(
        model="m",
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "What is 2+2?"}]},
        ],
    )
    choice = completion.choices[0]
    assert (choice.message.content, choice.finish_reason) == ("answer to What is 2+2?", "stop")
    usage = completion.usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (6, 9, 15)
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == 3
    assert usage.completion_tokens_details is not None
    assert usage.completion_tokens_details.reasoning_tokens == 3
    assert completion.model == "m"
    assert str(completion._request_id).startswith("req_")


def test_openai_structured_output(oai: openai.OpenAI) -> None:
    """A json_schema answer satisfies its schema; json_object gets an object."""
    completion = oai.chat.completions.create(
        model="m",
        messages=[{"role": "user", "content": TICKET}],
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "ticket", "schema": SCHEMA, "strict": True},
        },
    )
    value = json.loads(completion.choices[0].message.content or "")
    jsonschema.validate(value, SCHEMA)
    assert (value["category"], value["priority"]) == ("billing", "urgent")
    assert value["summary"] == "My invoice is wrong, I was charged twice"
    loose = oai.chat.completions.create(
        model="m",
        messages=[{"role": "user", "content": "hi"}],
        response_format={"type": "json_object"},
    )
    assert json.loads(loose.choices[0].message.content or "") == {"answer": "answer to hi"}


def test_openai_embeds_in_both_encodings(oai: openai.OpenAI) -> None:
    """The SDK's default (base64) and float agree within float32."""
    packed = oai.embeddings.create(model="m", input=["a", "b"], dimensions=4)
    plain = oai.embeddings.create(model="m", input="a", dimensions=4, encoding_format="float")
    assert plain.data[0].embedding == answers.unit_vector("a", 4)
    assert packed.data[0].embedding == pytest.approx(plain.data[0].embedding, abs=1e-6)
    assert [item.index for item in packed.data] == [0, 1]
    assert (packed.usage.prompt_tokens, packed.usage.total_tokens) == (2, 2)


@pytest.mark.parametrize(
    ("texts", "message", "code"),
    [
        (
            ["a"] * 2049,
            "maximum length 2048, but got an array with length 2049",
            "array_above_max_length",
        ),
        (["a" * 20_000] * 61, "Requested 305000 tokens, max 300000", "max_tokens_per_request"),
        (["a", "b" * 32_769], r"Invalid 'input\[1\]': maximum input length is 8192 tokens", None),
        (["a", ""], r"'\$.input' is invalid", None),
        (["a", "b [[http:400]]"], "invalid argument", None),
    ],
)
def test_openai_reads_refusals_of_many_texts(
    oai: openai.OpenAI, texts: list[str], message: str, code: str | None
) -> None:
    """The whole request is refused, in the words that users report of the service."""
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        oai.embeddings.create(model="m", input=texts)
    assert caught.value.code == code


def test_a_server_that_takes_fewer_texts(tmp_path: Path) -> None:
    """A server that takes fewer texts words its refusal as Text Embeddings Inference does."""
    with running_model_server(tmp_path, "--max_texts=2") as server:
        status, _, body = post(server, "/v1/embeddings", {"model": "m", "input": ["a", "b", "c"]})
        message = "batch size 3 > maximum allowed batch size 2"
        assert (status, body) == (413, {"message": message, "code": 413, "type": "Validation"})
        post(server, "/v1/embeddings", {"model": "m", "input": ["a", "b"]})
        stats = server.stats()
        assert (stats["calls"], stats["texts"], stats["served"]) == (2, 2, 1)


def test_openai_lists_models(oai: openai.OpenAI) -> None:
    """The SDK reads GET /v1/models."""
    listed = [model.id for model in oai.models.list()]
    assert listed == ["simulated-model", "simulated-embedding-model"]


@pytest.mark.parametrize(
    ("marker", "kind", "code"),
    [
        ("[[http:400]]", openai.BadRequestError, None),
        ("[[http:403]]", openai.PermissionDeniedError, "model_access_denied"),
        ("[[http:404]]", openai.NotFoundError, "model_not_found"),
        ("[[http:429]][[retry-after:2]]", openai.RateLimitError, "rate_limit_exceeded"),
        ("[[http:429]][[vllm-error]]", openai.RateLimitError, "429"),
        ("[[http:429]][[google-error]]", openai.RateLimitError, "429"),
        ("[[http:503]]", openai.InternalServerError, None),
        ("[[prompt-blocked]]", openai.BadRequestError, "content_filter"),
    ],
)
def test_openai_reads_errors(
    oai: openai.OpenAI, marker: str, kind: type[openai.APIStatusError], code: str | None
) -> None:
    """The SDK finds status, code and Retry-After of OpenAI-, vLLM- and Google-style errors."""
    with pytest.raises(kind) as caught:
        oai.chat.completions.create(
            model="m", messages=[{"role": "user", "content": f"x {marker}"}]
        )
    assert caught.value.code == code
    expected = "2" if "retry-after" in marker else None
    assert caught.value.response.headers.get("retry-after") == expected


def test_openai_missing_model_and_key(tmp_path: Path) -> None:
    """Missing-model is a 404; the key is checked only by a server that has one."""
    with running_model_server(tmp_path, "--api_key=right", "--answer=schema") as server:
        right = openai.OpenAI(base_url=server.openai_url, api_key="right", max_retries=0)
        wrong = openai.OpenAI(base_url=server.openai_url, api_key="wrong", max_retries=0)
        with right, wrong:
            with pytest.raises(openai.NotFoundError):
                right.embeddings.create(model="missing-model", input="x")
            with pytest.raises(openai.AuthenticationError) as caught:
                wrong.models.list()
            assert caught.value.code == "invalid_api_key"
            answer = right.chat.completions.create(
                model="m", messages=[{"role": "user", "content": TICKET}]
            )
        value = json.loads(answer.choices[0].message.content or "")
        jsonschema.validate(value, answers.TICKET_SCHEMA)
        assert value["category"] == "billing"


def test_openai_over_vertex(server: SimulatedModelServer) -> None:
    """Vertex's OpenAI-compatible route requires a token and words errors the Google way."""
    path = f"{PARENT}/endpoints/openapi/chat/completions"
    body = {"model": "google/m", "messages": [{"role": "user", "content": "x"}]}
    status, _, answer = post(server, path, body)
    assert (status, answer["choices"][0]["message"]["content"]) == (200, "answer to x")
    assert post(server, path, body, token=None)[2]["error"]["status"] == "UNAUTHENTICATED"


def test_statistics_and_requests(server: SimulatedModelServer) -> None:
    """Calls, served, statuses, paths and faults are counted; secrets are not remembered."""
    gemini(server, "a")
    chat(server, "b [[http:429]]")
    stats = server.stats()
    assert (stats["calls"], stats["texts"], stats["served"]) == (2, 2, 1)
    assert (stats["in_flight"], stats["in_flight_max"]) == (0, 1)
    assert stats["by_status"] == {"200": 1, "429": 1}
    assert stats["by_path"] == {GENERATE: 1, "/v1/chat/completions": 1}
    assert stats["by_fault"] == {"http:429": 1}
    first, second = server.requests()
    assert (first["method"], first["path"]) == ("POST", GENERATE)
    assert first["headers"]["authorization"] == "(hidden)"
    assert first["body"]["contents"][0]["parts"] == [{"text": "a"}]
    assert second["body"]["messages"][0]["content"] == "b [[http:429]]"
    server.reset()
    assert server.requests() == []
    assert server.stats()["calls"] == 0
