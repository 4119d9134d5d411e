"""From names to parts: which flags make which source, backend and sink."""

import os
import shlex
from collections.abc import Callable
from typing import Literal, get_args

from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions

from pipeline.options.command_line import Values
from transforms.backends.base import Backend
from transforms.backends.fake import FakeBackend
from transforms.backends.gemini import GeminiBackend, ServiceTier
from transforms.backends.openai import OPENAI_URL, OpenAIBackend
from transforms.backends.sentence_transformers import SentenceTransformersBackend
from transforms.backends.vertex_endpoint import VertexEndpointBackend
from transforms.backends.vllm.backend import VLLMBackend
from transforms.clients.bigquery import TableName
from transforms.clients.secrets import check_secret_name
from transforms.records.errors import ConfigurationError
from transforms.sources.base import Source
from transforms.sources.bigquery import QuerySource, TableSource
from transforms.sources.dead_letters import DeadLetterSource, is_table
from transforms.sources.files import FileSource
from transforms.sources.pubsub import PubSubSource

INPUTS = (
    "input_files",
    "input_table",
    "input_query",
    "input_subscription",
    "input_dead_letters",
)


def project_of(options: PipelineOptions) -> str | None:
    """The job's project, else the environment's."""
    project = options.view_as(GoogleCloudOptions).project
    return project or os.environ.get("GOOGLE_CLOUD_PROJECT") or None


def _region_of(options: PipelineOptions) -> str | None:
    region = options.view_as(GoogleCloudOptions).region
    return region or os.environ.get("GOOGLE_CLOUD_LOCATION") or None


def make_source(values: Values, options: PipelineOptions) -> Source:
    """The one source that the flags name.

    Raises:
      ConfigurationError: None or several are named, or a flag does not go with it.
    """
    named = [name for name in INPUTS if values.text(name)]
    if len(named) != 1:
        given = f"--{' and --'.join(named)} are given" if named else "none is given"
        raise ConfigurationError(
            f"exactly one input is needed, but {given}: use one of --{', --'.join(INPUTS)}"
        )
    name = named[0]
    _only_with(values, "input_format", name == "input_files", "--input_files")
    _only_with(values, "input_fields", name == "input_table", "--input_table")
    letters_in_table = name == "input_dead_letters" and is_table(values.require(name, ""))
    filtered = name == "input_table" or letters_in_table
    _only_with(values, "input_filter", filtered, "--input_table or a table of dead letters")
    queried = name in ("input_table", "input_query", "input_dead_letters")
    _only_with(values, "temp_dataset", queried, "--input_query or --input_table")
    _only_with(values, "limit", name != "input_subscription", "an input that ends")
    _only_with(values, "pubsub_id_attribute", name == "input_subscription", "--input_subscription")
    if name == "input_subscription":
        return PubSubSource(
            subscription=values.require(name, ""), id_attribute=values.text("pubsub_id_attribute")
        )
    limit = values.integer("limit")
    if name == "input_files" or (name == "input_dead_letters" and not letters_in_table):
        files = FileSource(
            pattern=values.require(name, ""), format=values.text("input_format"), limit=limit
        )
        return files if name == "input_files" else DeadLetterSource(rows=files)
    project = project_of(options)
    if name != "input_query":
        table = TableName.parse(values.require(name, ""), project)
        rows = TableSource(
            table=table,
            fields=values.items("input_fields"),
            filter=values.text("input_filter"),
            limit=limit,
            job_project=project or table.project,
            temp_dataset=values.text("temp_dataset"),
            location=values.text("bigquery_location"),
            labels=values.pairs("resource_labels"),
        )
        return rows if name == "input_table" else DeadLetterSource(rows=rows)
    if project is None:
        raise ConfigurationError("--input_query needs --project: who pays for the query")
    return QuerySource(
        query=values.require(name, ""),
        limit=limit,
        job_project=project,
        temp_dataset=values.text("temp_dataset"),
        location=values.text("bigquery_location"),
        labels=values.pairs("resource_labels"),
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
    location = values.text("model_location") or _region_of(options)
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
    if values.text("generate_api") and name not in ("openai", "vllm"):
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
        _only_with(values, "generate_api", False, "--task=generate")
    return BACKENDS[name](values, options)


def write_method(values: Values, *, to_table: bool, streaming: bool) -> str | None:
    """How tables get their rows; None for what the input asks for.

    Raises:
      ConfigurationError: The flag does not go with another.
    """
    method, mode = values.text("write_method"), values.text("write_mode")
    for flag in ("write_method", "exactly_once"):
        if values.text(flag) and not to_table:
            raise ConfigurationError(
                f"--{flag} is {values.text(flag)!r}, but goes with a table only: remove it"
            )
    if streaming and method == "file_loads":
        raise ConfigurationError(
            "--write_method is 'file_loads', but the input never ends: use storage_write"
        )
    if streaming and to_table and mode == "replace":
        raise ConfigurationError(
            "--write_mode is 'replace', but the input never ends, and a stream only adds rows: "
            "remove it"
        )
    if method == "streaming_inserts" and values.boolean("exactly_once"):
        raise ConfigurationError(
            "--exactly_once is 'true', but --write_method is 'streaming_inserts': use storage_write"
        )
    if method not in (None, "file_loads") and mode == "replace":
        raise ConfigurationError(
            f"--write_mode is 'replace', but --write_method is {method!r}, which only adds rows: "
            "use file_loads"
        )
    return method


def price_provider(backend: Backend) -> str | None:
    """Whose list prices a backend's tokens have; None where there are none."""
    if backend.family == "gemini":
        return "google"
    if isinstance(backend, OpenAIBackend) and "api.openai.com" in " ".join(backend.urls):
        return "openai"
    return None
