"""Any custom model on a Vertex AI endpoint: ``predict`` or ``rawPredict``.

Shared public endpoints take 1.5 MB and 60 s per request, dedicated ones 10 MB and 10 minutes.
Dedicated endpoints answer on their own host, which the client looks up when it opens.
"""

import asyncio
import dataclasses
from typing import Any, Literal

from yarl import URL

from transforms.backends.base import Capabilities
from transforms.clients.google_auth import GoogleAuth, auth_for, vertex_base_url
from transforms.clients.http import JsonClient, Reply, shaped
from transforms.records import json_values
from transforms.records.errors import ConfigurationError, EmptyOutput, InvalidRequest, RecordError
from transforms.records.records import Completion, Json, Request

LOOKUP_TIMEOUT_S = 5.0
"""How long the client waits to learn the dedicated host before it uses the shared one."""
_DEPLOYED_MODEL_HEADER = "X-Vertex-AI-Deployed-Model-Id"
_GOOGLE_API = ".googleapis.com"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VertexEndpointBackend:
    """A deployed model.

    Attributes:
      endpoint: ``projects/P/locations/L/endpoints/E``, or a full URL of one. A URL on any host
        but Google's shared ones (a dedicated host, a private one) is used unchanged.
      method: ``predict`` wraps an instance; ``raw_predict`` sends it as the whole body, and the
        generation config is not used.
      model: The name in results and fingerprints; by default the endpoint's id.
      api_base: Another base URL of the API; plain HTTP gets a made-up token.

    Raises:
      ConfigurationError: The endpoint is neither a resource name nor such a URL.
    """

    endpoint: str
    method: Literal["predict", "raw_predict"] = "predict"
    model: str = ""
    api_base: str | None = None

    def __post_init__(self) -> None:
        parts = self.resource().split("/")
        if len(parts) != 6 or parts[::2] != ["projects", "locations", "endpoints"]:
            raise ConfigurationError(
                f"`endpoint` is {self.endpoint!r}, but must be projects/P/locations/L/endpoints/E, "
                "or an https URL that ends so"
            )
        if not self.model:
            object.__setattr__(self, "model", parts[-1])

    @property
    def family(self) -> str:
        """The registered name; part of every fingerprint."""
        return "vertex_endpoint"

    @property
    def capabilities(self) -> Capabilities:
        """Predictions for instances."""
        return Capabilities(tasks=("generate",), media_schemes=(), instances=True)

    def resource(self) -> str:
        """``projects/P/locations/L/endpoints/E``."""
        if "://" not in self.endpoint:
            return self.endpoint.strip("/")
        path = URL(self.endpoint).path.partition(":")[0].strip("/")
        return path[path.find("projects/") :] if "projects/" in path else path

    def base_url(self) -> str:
        """Scheme and host of the first call."""
        if "://" in self.endpoint:
            return str(URL(self.endpoint).origin())
        return vertex_base_url(self.resource().split("/")[3], self.api_base)

    async def open(self) -> "VertexEndpointClient":
        """Opens a client, which finds out where the endpoint answers.

        Raises:
          BackendUnusable: There are no credentials, or no token can be fetched with them.
        """
        base = self.base_url()
        exact = "://" in self.endpoint and not (URL(base).host or "").endswith(_GOOGLE_API)
        auth = await auth_for(base)
        http = JsonClient()
        if not exact:
            base = await _serving_base(http, auth, base, self.resource())
        return VertexEndpointClient(self, base, auth, http)


async def _serving_base(http: JsonClient, auth: GoogleAuth, base: str, resource: str) -> str:
    """The base URL on which the endpoint answers: its dedicated host if known, else `base`."""
    try:
        headers = await auth.headers()
        reply = await asyncio.wait_for(
            http.get(f"{base}/v1/{resource}", headers), timeout=LOOKUP_TIMEOUT_S
        )
    except (RecordError, asyncio.TimeoutError):
        return base  # may call it, but may not look at it: the call itself will tell
    host = reply.data.get("dedicatedEndpointDns") if isinstance(reply.data, dict) else None
    return f"{URL(base).scheme}://{host}" if host else base


class VertexEndpointClient:
    """A live connection to one endpoint."""

    def __init__(
        self,
        backend: VertexEndpointBackend,
        base_url: str,
        auth: GoogleAuth,
        http: JsonClient,
    ) -> None:
        verb = "predict" if backend.method == "predict" else "rawPredict"
        self._backend = backend
        self._url = f"{base_url}/v1/{backend.resource()}:{verb}"
        self._auth = auth
        self._http = http

    async def generate(self, request: Request) -> Completion:
        """Answers one request; raises the errors of `transforms.backends.base.Client`."""
        raw = self._backend.method == "raw_predict"
        body = request_body(request, raw=raw)
        headers = await self._auth.headers()
        parse = _json_or_text if raw else json_values.loads
        reply = await self._http.post(self._url, body, headers, parse=parse)
        if raw:
            return _completion(reply.data, reply.headers.get(_DEPLOYED_MODEL_HEADER))
        return shaped(_prediction, reply, what=f"endpoint {self._backend.model}")

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.close()


def request_body(request: Request, *, raw: bool) -> Json:
    """The body to post.

    Raises:
      InvalidRequest: The request has neither an instance nor a whole request.
    """
    if "request" in request.body:
        return request.body["request"]
    if "instance" not in request.body:
        raise InvalidRequest(f"a request with {sorted(request.body)} has no instance")
    if raw:
        return request.body["instance"]
    body: dict[str, Json] = {"instances": [request.body["instance"]]}
    parameters = request.params.get("generation_config")
    if parameters:
        body["parameters"] = parameters
    body.update(request.params.get("request_options") or {})
    return body


def _prediction(reply: Reply) -> Completion:
    """Reads a reply of ``predict``: its first prediction, since one instance was sent."""
    version = reply.data.get("deployedModelId") or reply.data.get("modelVersionId")
    predictions = reply.data["predictions"]
    if not predictions:
        raise EmptyOutput("the reply holds no predictions", model_version=version)
    return _completion(predictions[0], version)


def _completion(prediction: Any, version: str | None) -> Completion:
    """A completion with text as its output, and anything else as JSON.

    Raises:
      EmptyOutput: The prediction is an empty text or null.
    """
    if prediction is None or prediction == "":
        raise EmptyOutput("the prediction is empty", model_version=version)
    if isinstance(prediction, str):
        return Completion(output=prediction, model_version=version)
    return Completion(output_json=json_values.dumps(prediction).decode(), model_version=version)


def _json_or_text(body: bytes) -> Any:
    """A model's own reply, which need not be JSON; refuses bytes that are not text."""
    try:
        return json_values.loads(body)
    except UnicodeDecodeError:
        raise
    except ValueError:
        return body.decode("utf-8")
