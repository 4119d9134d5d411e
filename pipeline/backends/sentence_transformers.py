"""``--backend=sentence_transformers``: an embedding model in the worker's own process."""

import importlib.util
from typing import TYPE_CHECKING

from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.backends.base import BackendAdapter
from pipeline.backends.shared import MODEL
from pipeline.options.gpu import GPU_FLAGS
from pipeline.options.request import (
    GENERATION_CONFIG,
    MAX_OUTPUT_TOKENS,
    REQUEST_FIELD,
    REQUEST_OPTIONS,
    TEMPERATURE,
)
from pipeline.options.values import Values
from transforms.backends.sentence_transformers import SentenceTransformersBackend
from transforms.records.errors import ConfigurationError

if TYPE_CHECKING:
    from pipeline.config import RunConfig


def make(values: Values, options: PipelineOptions) -> SentenceTransformersBackend:
    """The backend.

    Raises:
      ConfigurationError: The model is missing.
    """
    return SentenceTransformersBackend(
        model=values.require(MODEL, "a model's name or path, e.g. all-MiniLM-L6-v2")
    )


def check(backend: SentenceTransformersBackend, config: "RunConfig") -> None:
    """A local run has the package; workers elsewhere have their own."""
    if config.local and importlib.util.find_spec("sentence_transformers") is None:
        raise ConfigurationError(
            f"--backend {config.adapter.name}: the package is not installed: pip install '.[embed]'"
        )


ADAPTER = BackendAdapter(
    name="sentence_transformers",
    make=make,
    check=check,
    flags=GPU_FLAGS,
    refuses={
        **dict.fromkeys(
            (GENERATION_CONFIG, MAX_OUTPUT_TOKENS, TEMPERATURE, REQUEST_OPTIONS),
            "backend sentence_transformers has no parameters for a request",
        ),
        REQUEST_FIELD: "backend sentence_transformers embeds a prompt's text",
    },
    images=(),
)
