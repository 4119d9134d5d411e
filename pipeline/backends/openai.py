"""``--backend=openai``: OpenAI, and every server that speaks its dialect."""

import os
from typing import TYPE_CHECKING

from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.backends.base import BackendAdapter
from pipeline.backends.shared import ENDPOINT, GENERATE_API, GROUP, check_url, generate_api, task
from pipeline.options.option import Option
from transforms.backends.openai import OPENAI_URL, OpenAIBackend
from transforms.clients.secrets import check_secret_name
from transforms.records.errors import ConfigurationError

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.options.command_line import Values


def make(values: "Values", options: PipelineOptions) -> OpenAIBackend:
    """The backend; OpenAI's own API unless ``--endpoint`` names one server or several.

    Raises:
      ConfigurationError: The model is missing, or the endpoints cannot be used together.
    """
    endpoints = tuple(map(check_url, values.items("endpoint"))) or (OPENAI_URL,)
    if len({url.rstrip("/") for url in endpoints}) < len(endpoints):
        raise ConfigurationError(f"--endpoint names a server twice: {', '.join(endpoints)}")
    secret = values.text("api_key_secret")
    backend = OpenAIBackend(
        model=values.require("model", "the name that the server knows the model by"),
        endpoint=endpoints if len(endpoints) > 1 else endpoints[0],
        task=task(values),
        api=generate_api(values),
        accept_truncated=values.boolean("accept_truncated"),
        api_key_secret=check_secret_name(secret, "--api_key_secret") if secret else None,
    )
    if backend.at_openai() and len(endpoints) > 1:
        raise ConfigurationError(
            f"--endpoint is {', '.join(endpoints)}, but several endpoints must serve the same "
            f"model, and only {OPENAI_URL} serves OpenAI's: set that alone, or leave it out"
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
    flags=(
        ENDPOINT,
        GENERATE_API,
        Option(
            "api_key_secret",
            GROUP,
            "The Secret Manager version that holds the API key (backend openai); workers read it. "
            "Without it they use their OPENAI_API_KEY.",
            metavar="projects/P/secrets/S/versions/V",
        ),
    ),
)
