"""The flags of models, and the backend that they describe."""

import shlex
from collections.abc import Callable
from typing import Any, Literal, get_args

from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.options.flag import BOTH, Flag, Place
from pipeline.options.kinds import TEXT, one_of, one_of_field, text_kind
from pipeline.options.run import project_of, region_of
from pipeline.options.values import Values
from transforms.backends.base import Backend
from transforms.backends.fake import FakeBackend
from transforms.backends.gemini import GeminiBackend, ServiceTier
from transforms.backends.openai import OPENAI_URL, OpenAIBackend
from transforms.backends.sentence_transformers import SentenceTransformersBackend
from transforms.backends.vertex_endpoint import VertexEndpointBackend
from transforms.backends.vllm.backend import VLLMBackend
from transforms.clients.secrets import check_secret_name
from transforms.records.errors import ConfigurationError

GROUP = "Model"

_OF_GEMINI = Place(parent="backend", triggers=("gemini",))
_OF_VLLM = Place(parent="backend", triggers=("vllm",), gpu=True)

BACKEND: Flag[str] = Flag(
    "backend",
    GROUP,
    "Who serves the model.",
    one_of(("gemini", "vertex_endpoint", "openai", "vllm", "sentence_transformers", "fake")),
    default="gemini",
)
MODEL: Flag[str | None] = Flag(
    "model",
    GROUP,
    "The model's name; a path for sentence_transformers and vllm, any word for fake.",
    TEXT,
    place=Place(required=BOTH),
)
GENERATE_API: Flag[Any] = Flag(
    "generate_api",
    GROUP,
    "Which API of openai and vllm to call: chat, or completions for base models without a chat "
    "template.",
    one_of_field(OpenAIBackend, "api"),
    of=OpenAIBackend,
    field="api",
    place=Place(parent="backend", triggers=("openai", "vllm")),
)
VLLM_ARGS: Flag[str | None] = Flag(
    "vllm_args",
    GROUP,
    "Arguments for vLLM's server (backend vllm).",
    text_kind("ARGS", "TEXT", "^--.*$", "--max-model-len=8192 --dtype=half"),
    place=_OF_VLLM,
)
VLLM_PYTHON: Flag[str | None] = Flag(
    "vllm_python",
    GROUP,
    "The Python interpreter that has vLLM (backend vllm).",
    text_kind("PATH", "TEXT", "^/[^[:space:]]+$", "/opt/vllm/bin/python"),
    of=VLLMBackend,
    field="python",
    place=_OF_VLLM,
)
ENDPOINT: Flag[str | None] = Flag(
    "endpoint",
    GROUP,
    "A base URL (for openai it ends in /v1, and several are separated by commas), or the resource "
    "name of a Vertex AI endpoint.",
    text_kind(
        "URL_OR_RESOURCE",
        "TEXT",
        "^(https?://[^[:space:]]+|projects/[^[:space:]]+)$",
        "https://models.example.com/v1",
    ),
    of=GeminiBackend,
    place=Place(parent="backend", triggers=("openai", "vertex_endpoint", "gemini")),
)
API_KEY_SECRET: Flag[str | None] = Flag(
    "api_key_secret",
    GROUP,
    "The Secret Manager version that holds the API key (backend openai); workers read it. Without "
    "it they use their OPENAI_API_KEY.",
    text_kind(
        "projects/P/secrets/S/versions/V",
        "TEXT",
        "^projects/[^/]+/(locations/[^/]+/)?secrets/[^/]+/versions/[^/]+$",
        "projects/p/secrets/openai/versions/1",
    ),
    of=OpenAIBackend,
    place=Place(parent="backend", triggers=("openai",), label="API key secret"),
)
PREDICT_METHOD: Flag[Any] = Flag(
    "predict_method",
    GROUP,
    "How a custom model is called (backend vertex_endpoint).",
    one_of_field(VertexEndpointBackend, "method"),
    of=VertexEndpointBackend,
    field="method",
    place=Place(parent="backend", triggers=("vertex_endpoint",)),
)
MODEL_PROJECT: Flag[str | None] = Flag(
    "model_project", GROUP, "The model's project. Default: --project.", TEXT, place=_OF_GEMINI
)
MODEL_LOCATION: Flag[str | None] = Flag(
    "model_location", GROUP, "The model's location. Default: --region.", TEXT, place=_OF_GEMINI
)
SERVICE_TIER: Flag[ServiceTier | None] = Flag(
    "service_tier",
    GROUP,
    "How Gemini serves and bills the calls: flex costs half and may take minutes. Default: "
    "provisioned throughput where the project has some, else standard.",
    one_of(ServiceTier),
    of=GeminiBackend,
    place=_OF_GEMINI,
)

MODEL_FLAGS: tuple[Flag[Any], ...] = (
    BACKEND,
    MODEL,
    GENERATE_API,
    VLLM_ARGS,
    VLLM_PYTHON,
    ENDPOINT,
    API_KEY_SECRET,
    PREDICT_METHOD,
    MODEL_PROJECT,
    MODEL_LOCATION,
    SERVICE_TIER,
)


def _only_with(values: Values, flag: str, allowed: bool, wanted: str) -> None:
    if values.text(flag) and not allowed:
        raise ConfigurationError(
            f"--{flag} is {values.text(flag)!r}, but goes with {wanted} only: remove it"
        )


def _model_project(values: Values, options: PipelineOptions) -> str:
    project = values.text("model_project") or project_of(options)
    if project is None:
        raise ConfigurationError(
            "--model_project is missing: give it, or --project, or set GOOGLE_CLOUD_PROJECT"
        )
    return project


def _require_url(endpoint: str) -> None:
    if not endpoint.startswith(("http://", "https://")):
        raise ConfigurationError(
            f"--endpoint is {endpoint!r}, but must be a URL that begins with http:// or https://"
        )
    if "," in endpoint:
        raise ConfigurationError(
            f"--endpoint is {endpoint!r}, but only --backend=openai takes several: give one"
        )


def _task(values: Values) -> Literal["generate", "embed"]:
    return "embed" if values.text("task") == "embed" else "generate"


def _api(values: Values) -> Literal["chat", "completions"]:
    return "completions" if values.text("generate_api") == "completions" else "chat"


def _gemini(values: Values, options: PipelineOptions) -> Backend:
    model = values.require("model", "which Gemini model, e.g. --model=gemini-2.5-flash")
    location = values.text("model_location") or region_of(options)
    if location is None:
        raise ConfigurationError(
            "--model_location is missing: give it (e.g. us-central1, or global), or --region, "
            "or set GOOGLE_CLOUD_LOCATION"
        )
    endpoint = values.text("endpoint")
    if endpoint is not None and not endpoint.startswith("projects/"):
        _require_url(endpoint)
    return GeminiBackend(
        model=model,
        project=_model_project(values, options),
        location=location,
        task=_task(values),
        endpoint=endpoint,
        accept_truncated=values.boolean("accept_truncated"),
        service_tier=_service_tier(values),
    )


def _service_tier(values: Values) -> ServiceTier | None:
    tier = values.text("service_tier")
    return next((known for known in get_args(ServiceTier) if known == tier), None)


def _vertex_endpoint(values: Values, options: PipelineOptions) -> Backend:
    endpoint = values.require(
        "endpoint", "which endpoint, e.g. projects/P/locations/L/endpoints/123"
    )
    if values.text("task") == "embed":
        raise ConfigurationError(
            "--task is 'embed', but backend vertex_endpoint has predictions only: remove it; "
            "a prediction that is a list is in output_json"
        )
    return VertexEndpointBackend(
        endpoint=endpoint,
        method="raw_predict" if values.text("predict_method") == "raw_predict" else "predict",
        model=values.text("model") or "",
    )


def _openai(values: Values, options: PipelineOptions) -> Backend:
    endpoints = values.items("endpoint") or (OPENAI_URL,)
    for endpoint in endpoints:
        _require_url(endpoint)
    if len({url.rstrip("/") for url in endpoints}) < len(endpoints):
        raise ConfigurationError(f"--endpoint names a server twice: {', '.join(endpoints)}")
    secret = values.text("api_key_secret")
    backend = OpenAIBackend(
        model=values.require("model", "the name that the server knows the model by"),
        endpoint=endpoints if len(endpoints) > 1 else endpoints[0],
        task=_task(values),
        api=_api(values),
        accept_truncated=values.boolean("accept_truncated"),
        api_key_secret=check_secret_name(secret, "--api_key_secret") if secret else None,
    )
    if backend.at_openai() and len(endpoints) > 1:
        raise ConfigurationError(
            f"--endpoint is {', '.join(endpoints)}, but several must serve the same model, and "
            "OpenAI's own is at one: give that alone, or leave it out"
        )
    return backend


def _sentence_transformers(values: Values, options: PipelineOptions) -> Backend:
    for flag in ("generation_config", "max_output_tokens", "temperature", "request_options"):
        _only_with(values, flag, False, "a backend that is a server")
    if values.text("task") != "embed":
        raise ConfigurationError("backend sentence_transformers embeds only: give --task=embed")
    return SentenceTransformersBackend(
        model=values.require("model", "a model's name or path, e.g. all-MiniLM-L6-v2")
    )


_OURS = ("--model", "--served-model-name", "--host", "--port", "--uds", "--api-key")


def vllm_args(values: Values) -> tuple[str, ...]:
    """The arguments of vLLM's server, as a shell would split them.

    Raises:
      ConfigurationError: A quote is not closed, or one is the pipeline's own.
    """
    text = values.text("vllm_args") or ""
    try:
        args = tuple(shlex.split(text))
    except ValueError as error:
        raise ConfigurationError(f"--vllm_args is {text!r}: {error}") from None
    for word in args:
        if (name := word.partition("=")[0].replace("_", "-")) in _OURS:
            raise ConfigurationError(
                f"--vllm_args has {name}, which the pipeline sets itself: remove it"
            )
    return args


def _vllm(values: Values, options: PipelineOptions) -> Backend:
    for flag in ("generation_config", "request_options"):
        given = values.json_object(flag) or {}
        if ignored := [name for name in given if name.startswith("guided_")]:
            raise ConfigurationError(
                f"--{flag} has {ignored[0]!r}, which vLLM ignores without a word: use "
                "--output_schema, or structured_outputs in --request_options"
            )
    args = vllm_args(values)
    return VLLMBackend(
        model=values.require("model", "a name on the Hugging Face hub, a folder, or gs://…"),
        task=_task(values),
        api=_api(values),
        python=values.text("vllm_python"),
        args=args,
        accept_truncated=values.boolean("accept_truncated"),
    )


def _fake(values: Values, options: PipelineOptions) -> Backend:
    return FakeBackend.from_request_options(
        values.json_object("request_options"),
        model=values.text("model") or "fake",
        task=_task(values),
    )


BACKENDS: dict[str, Callable[[Values, PipelineOptions], Backend]] = {
    "gemini": _gemini,
    "vertex_endpoint": _vertex_endpoint,
    "openai": _openai,
    "vllm": _vllm,
    "sentence_transformers": _sentence_transformers,
    "fake": _fake,
}


def make_backend(values: Values, options: PipelineOptions) -> Backend:
    """The backend that the flags name.

    Raises:
      ConfigurationError: A flag that it needs is missing, or one does not go with it.
    """
    name = values.require("backend", f"one of {', '.join(BACKENDS)}")
    for flag in ("vllm_args", "vllm_python"):
        _only_with(values, flag, name == "vllm", "--backend=vllm")
    if values.is_set(GENERATE_API) and name not in ("openai", "vllm"):
        raise ConfigurationError(
            f"--generate_api is {values.text('generate_api')!r}, but goes with --backend=openai or "
            "vllm only: remove it"
        )
    if name in ("vllm", "sentence_transformers", "fake"):
        _only_with(values, "endpoint", False, "a backend that is a server")
    _only_with(values, "instance_fields", name == "vertex_endpoint", "--backend=vertex_endpoint")
    _only_with(values, "service_tier", name == "gemini", "--backend=gemini")
    if values.text("api_key_secret") and name != "openai":
        raise ConfigurationError("--api_key_secret goes with --backend=openai only: remove it")
    if name == "sentence_transformers" or values.text("task") == "embed":
        _only_with(values, "output_schema", False, "--task=generate")
        _only_with(values, "system_prompt", False, "--task=generate")
        _only_with(values, "system_prompt_file", False, "--task=generate")
        _only_with(values, "messages_field", False, "--task=generate")
        values.only_with(GENERATE_API, "--task=generate")
    return BACKENDS[name](values, options)


def price_provider(backend: Backend) -> str | None:
    """Whose list prices a backend's tokens have; None where there are none."""
    if backend.family == "gemini":
        return "google"
    if isinstance(backend, OpenAIBackend) and "api.openai.com" in " ".join(backend.urls):
        return "openai"
    return None
