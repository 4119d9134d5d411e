"""``--backend=openai``: OpenAI, and every server that speaks its dialect."""

import os
from typing import TYPE_CHECKING, Any

from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.backends.base import BackendAdapter
from pipeline.backends.shared import EMBEDDING_BATCH_SIZE, ENDPOINT, GROUP, MODEL, check_url
from pipeline.options.flag import Flag, Form, Kind, Place
from pipeline.options.kinds import items, one_of_field
from pipeline.options.request import ACCEPT_TRUNCATED, TASK
from pipeline.options.values import Values
from transforms.backends.openai import OPENAI_URL, OpenAIBackend
from transforms.clients.secrets import check_secret_name
from transforms.records.errors import ConfigurationError

if TYPE_CHECKING:
    from pipeline.config import RunConfig

GENERATE_API: Flag[Any] = Flag(
    "generate_api",
    GROUP,
    "The API that generates text with openai and vllm: chat, or completions for base models "
    "without a chat template.",
    one_of_field(OpenAIBackend, "api"),
    of=OpenAIBackend,
    field="api",
)
API_KEY_SECRET: Flag[str | None] = Flag(
    "api_key_secret",
    GROUP,
    "The Secret Manager version that holds the API key (backend openai); workers read it. Without "
    "it they use their OPENAI_API_KEY.",
    Kind(
        check_secret_name,
        "projects/P/secrets/S/versions/V",
        Form(
            "TEXT",
            "^projects/[^/]+/(locations/[^/]+/)?secrets/[^/]+/versions/[^/]+$",
            "projects/p/secrets/openai/versions/1",
        ),
    ),
    of=OpenAIBackend,
    place=Place(label="API key secret"),
)


def make(values: Values, options: PipelineOptions) -> OpenAIBackend:
    """The backend; OpenAI's own API unless ``--endpoint`` names one server or several.

    Raises:
      ConfigurationError: The model is missing, or the endpoints cannot be used together.
    """
    endpoints = tuple(map(check_url, items(values.text(ENDPOINT)))) or (OPENAI_URL,)
    if len({url.rstrip("/") for url in endpoints}) < len(endpoints):
        raise ConfigurationError(f"--endpoint names a server twice: {', '.join(endpoints)}")
    backend = OpenAIBackend(
        model=values.require(MODEL, "the name that the server knows the model by"),
        endpoint=endpoints if len(endpoints) > 1 else endpoints[0],
        task=values[TASK],
        api=values[GENERATE_API],
        accept_truncated=values[ACCEPT_TRUNCATED],
        api_key_secret=values[API_KEY_SECRET],
        max_texts_per_call=values[EMBEDDING_BATCH_SIZE],
    )
    if backend.at_openai() and len(endpoints) > 1:
        raise ConfigurationError(
            f"--endpoint is {', '.join(endpoints)}, but several endpoints must serve the same "
            f"model, and only {OPENAI_URL} serves OpenAI's: set that alone, or remove --endpoint"
        )
    return backend


def check(backend: OpenAIBackend, config: "RunConfig") -> None:
    """OpenAI itself has a key; other servers may need none."""
    key = backend.api_key_secret or os.environ.get("OPENAI_API_KEY")
    if backend.at_openai() and not key:
        raise ConfigurationError(
            f"--backend {config.adapter.name}: OPENAI_API_KEY is not set: set it, or set "
            "--api_key_secret, or --endpoint for a server that needs no key"
        )


ADAPTER = BackendAdapter(
    name="openai",
    make=make,
    check=check,
    generates=(GENERATE_API,),
    flags=(ENDPOINT, GENERATE_API, API_KEY_SECRET, EMBEDDING_BATCH_SIZE),
)
