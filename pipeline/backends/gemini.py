"""``--backend=gemini``: models that speak ``generateContent`` on Vertex AI."""

from typing import TYPE_CHECKING

from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.backends.base import BackendAdapter
from pipeline.backends.shared import (
    EMBEDDING_BATCH_SIZE,
    ENDPOINT,
    GROUP,
    MODEL,
    check_google_credentials,
    check_url,
)
from pipeline.options.flag import Flag
from pipeline.options.kinds import TEXT, one_of
from pipeline.options.request import ACCEPT_TRUNCATED, TASK
from pipeline.options.run import project_of, region_of
from pipeline.options.values import Values
from transforms.backends.gemini import GeminiBackend, ServiceTier
from transforms.records.errors import ConfigurationError

if TYPE_CHECKING:
    from pipeline.config import RunConfig

MODEL_PROJECT: Flag[str | None] = Flag(
    "model_project", GROUP, "The model's project. Default: --project.", TEXT
)
MODEL_LOCATION: Flag[str | None] = Flag(
    "model_location", GROUP, "The model's location. Default: --region.", TEXT
)
SERVICE_TIER: Flag[ServiceTier | None] = Flag(
    "service_tier",
    GROUP,
    "How Gemini serves and bills the calls: flex costs half and may take minutes. Default: "
    "provisioned throughput where the project has some, else standard.",
    one_of(ServiceTier),
    of=GeminiBackend,
)


def make(values: Values, options: PipelineOptions) -> GeminiBackend:
    """The backend; its project and location are the job's unless the flags name others.

    Raises:
      ConfigurationError: No model, project or location is known, or the endpoint is no URL.
    """
    model = values.require(MODEL, "which Gemini model, e.g. --model=gemini-2.5-flash")
    location = values[MODEL_LOCATION] or region_of(options)
    if location is None:
        raise ConfigurationError(
            "--model_location is missing: set it (e.g. us-central1, or global), or --region, or "
            "GOOGLE_CLOUD_LOCATION in the environment"
        )
    endpoint = values[ENDPOINT]
    if endpoint is not None and not endpoint.startswith("projects/"):
        check_url(endpoint)
    project = values[MODEL_PROJECT] or project_of(options)
    if project is None:
        raise ConfigurationError(
            "--model_project is missing: set it, or --project, or GOOGLE_CLOUD_PROJECT in the "
            "environment"
        )
    return GeminiBackend(
        model=model,
        project=project,
        location=location,
        task=values[TASK],
        endpoint=endpoint,
        accept_truncated=values[ACCEPT_TRUNCATED],
        service_tier=values[SERVICE_TIER],
        max_texts_per_call=values[EMBEDDING_BATCH_SIZE],
    )


def check(backend: GeminiBackend, config: "RunConfig") -> None:
    """Google credentials exist."""
    check_google_credentials(config.adapter.name, backend.base_url())


ADAPTER = BackendAdapter(
    name="gemini",
    make=make,
    check=check,
    flags=(ENDPOINT, MODEL_PROJECT, MODEL_LOCATION, SERVICE_TIER, EMBEDDING_BATCH_SIZE),
)
