"""Deployed models: instances in, predictions out, on the endpoint's own host."""

import asyncio
import pickle
from collections.abc import Sequence
from typing import Any

import pytest
from aiohttp import web

from tests.emulators.model_fixtures import SimulatedModelServer
from tests.transforms.backends import Handler, opened, request_of, serving
from transforms.backends.vertex_endpoint import VertexEndpointBackend
from transforms.records.errors import (
    ConfigurationError,
    EmptyOutput,
    InvalidRequest,
    RateLimited,
    RecordError,
    Unavailable,
)
from transforms.records.records import Completion, Request

ENDPOINT = "projects/p/locations/us-central1/endpoints/99"


async def _ask(backend: VertexEndpointBackend, *requests: Request) -> Any:
    async with opened(backend) as client:
        answers = (client.generate(request) for request in requests)
        return await asyncio.gather(*answers, return_exceptions=True)


def _outcomes(
    backend: VertexEndpointBackend, *requests: Request
) -> Sequence[Completion | RecordError]:
    outcomes: Sequence[Completion | RecordError] = asyncio.run(_ask(backend, *requests))
    return outcomes


def _replies(handler: Handler, *requests: Request, **fields: Any) -> Any:
    """The outcomes of requests to a server of their own."""

    async def exchange() -> Any:
        async with serving(handler) as url:
            backend = VertexEndpointBackend(endpoint=f"{url}/v1/{ENDPOINT}", **fields)
            return await _ask(backend, *requests)

    return asyncio.run(exchange())


def test_predict(model_server: SimulatedModelServer) -> None:
    """Each request is one instance; a text is the output, anything else becomes JSON."""
    model_server.reset()
    backend = VertexEndpointBackend(endpoint=ENDPOINT, api_base=model_server.base_url)
    request = request_of(
        {"instance": {"prompt": "x"}}, generation_config={"n": 1}, request_options={"labels": {}}
    )
    first, second = _outcomes(backend, request, request_of({"instance": "hello"}))
    assert isinstance(first, Completion)
    assert (first.output, first.model_version) == (None, "1")
    assert (first.output_json or "").startswith('{"output":"answer to x","score":')
    assert second == Completion(output="answer to hello", model_version="1")
    seen = sorted(model_server.requests(), key=lambda seen: len(str(seen["body"])))
    assert [call["body"] for call in seen] == [
        {"instances": ["hello"]},
        {"instances": [{"prompt": "x"}], "parameters": {"n": 1}, "labels": {}},
    ]
    assert {call["path"] for call in seen} == {f"/v1/{ENDPOINT}:predict"}


def test_raw_predict(model_server: SimulatedModelServer) -> None:
    """The instance is the whole body, and the container's own JSON is the whole answer."""
    model_server.reset()
    backend = VertexEndpointBackend(
        endpoint=ENDPOINT, method="raw_predict", api_base=model_server.base_url
    )
    (outcome,) = _outcomes(
        backend, request_of({"instance": {"q": "hello"}}, generation_config={"n": 1})
    )
    assert outcome == Completion(
        output_json='{"output":"answer to hello","input":{"q":"hello"}}', model_version="1"
    )
    (seen,) = model_server.requests()
    assert (seen["path"], seen["body"]) == (f"/v1/{ENDPOINT}:rawPredict", {"q": "hello"})


@pytest.mark.parametrize("method", ["predict", "raw_predict"])
def test_a_whole_request_goes_as_it_stands(model_server: SimulatedModelServer, method: Any) -> None:
    """A whole request is sent unchanged by both methods."""
    model_server.reset()
    backend = VertexEndpointBackend(
        endpoint=ENDPOINT, method=method, api_base=model_server.base_url
    )
    body = {"instances": ["hello"], "parameters": {"a": 1}}
    _outcomes(backend, request_of({"request": body}, generation_config={"b": 2}))
    assert [seen["body"] for seen in model_server.requests()] == [body]


def test_failures(model_server: SimulatedModelServer) -> None:
    """A null, missing or malformed prediction and a refusal become their errors."""
    backend = VertexEndpointBackend(endpoint=ENDPOINT, api_base=model_server.base_url)
    texts = ["[[empty]]", "[[no-candidates]]", "[[wrong-shape]]", "[[malformed]]", "[[http:429]]"]
    outcomes = _outcomes(
        backend, *(request_of({"instance": text}) for text in texts), request_of({"text": "a"})
    )
    assert [type(outcome) for outcome in outcomes] == [
        EmptyOutput, EmptyOutput, Unavailable, Unavailable, RateLimited, InvalidRequest,
    ]  # fmt: skip
    assert str(outcomes[-1]) == "a request with ['text'] has no instance"


def test_raw_replies() -> None:
    """Raw replies may be text, JSON text or exact numbers; other bytes and no output fail."""
    replies = [b"plain text", b'"quoted"', b'{"n":1180591620717411303424}', b"", b"null", b"\xff"]

    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=replies[await request.json()])

    requests = [request_of({"instance": number}) for number in range(len(replies))]
    *answers, empty, null, no_text = _replies(handler, *requests, method="raw_predict")
    assert answers == [
        Completion(output="plain text"),
        Completion(output="quoted"),
        Completion(output_json='{"n":1180591620717411303424}'),
    ]
    assert [type(empty), type(null), type(no_text)] == [EmptyOutput, EmptyOutput, Unavailable]


def test_model_version_of_a_prediction() -> None:
    """The model version is the deployed model if named, else the version; NaN survives as text."""
    replies = [
        b'{"predictions": [[1, NaN]], "modelVersionId": "7"}',
        b'{"predictions": [0], "deployedModelId": "d", "modelVersionId": "7"}',
    ]

    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=replies[(await request.json())["instances"][0]])

    assert _replies(handler, *(request_of({"instance": number}) for number in (0, 1))) == [
        Completion(output_json='[1,"NaN"]', model_version="7"),
        Completion(output_json="0", model_version="d"),
    ]


@pytest.mark.parametrize("status", [200, 403, 404, 500])
def test_dedicated_host(status: int) -> None:
    """A dedicated endpoint is called on its own host; an unknown one on the regional host."""
    calls: list[tuple[str, str, str]] = []
    hosts: list[str] = []

    async def shared(request: web.Request) -> web.Response:
        calls.append(("shared", request.method, request.path))
        if request.method == "GET":
            body = {"dedicatedEndpointDns": hosts[0]}
            return web.json_response(body, status=status)
        return web.json_response({"predictions": ["from shared"]})

    async def dedicated(request: web.Request) -> web.Response:
        calls.append(("dedicated", request.method, request.path))
        return web.json_response({"predictions": ["from dedicated"]})

    async def exchange() -> Any:
        async with serving(shared) as shared_url, serving(dedicated) as dedicated_url:
            hosts.append(dedicated_url.removeprefix("http://"))
            backend = VertexEndpointBackend(endpoint=ENDPOINT, api_base=shared_url)
            return await _ask(backend, request_of({"instance": 1}))

    (outcome,) = asyncio.run(exchange())
    where = "dedicated" if status == 200 else "shared"
    assert outcome.output == f"from {where}"
    assert calls == [
        ("shared", "GET", f"/v1/{ENDPOINT}"),
        (where, "POST", f"/v1/{ENDPOINT}:predict"),
    ]


def test_base_url_of_the_environment(
    model_server: SimulatedModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``GOOGLE_VERTEX_BASE_URL`` redirects requests as it does for Google's own SDK."""
    monkeypatch.setenv("GOOGLE_VERTEX_BASE_URL", model_server.base_url)
    (outcome,) = _outcomes(VertexEndpointBackend(endpoint=ENDPOINT), request_of({"instance": "a"}))
    assert outcome == Completion(output="answer to a", model_version="1")


def test_names() -> None:
    """The model is the endpoint's id unless named; a URL or a resource names the endpoint."""
    backend = VertexEndpointBackend(endpoint=ENDPOINT)
    assert (backend.family, backend.model, backend.resource()) == (
        "vertex_endpoint", "99", ENDPOINT,
    )  # fmt: skip
    assert VertexEndpointBackend(endpoint=ENDPOINT, model="mine").model == "mine"
    url = f"https://99.us-central1-7.prediction.vertexai.goog/v1/{ENDPOINT}:predict"
    assert VertexEndpointBackend(endpoint=url).resource() == ENDPOINT
    assert pickle.loads(pickle.dumps(backend)) == backend


@pytest.mark.parametrize(
    "endpoint", ["99", "projects/p/endpoints/99", "https://host/v1/models/m", f"{ENDPOINT}/x"]
)
def test_no_endpoint(endpoint: str) -> None:
    """Any other endpoint is rejected before the launch."""
    with pytest.raises(
        ConfigurationError, match=f"^`endpoint` is '{endpoint}', but must be projects/"
    ):
        VertexEndpointBackend(endpoint=endpoint)
