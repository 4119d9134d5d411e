"""``--backend=gemini``: models that speak ``generateContent`` on Vertex AI."""

from typing import TYPE_CHECKING, get_args

from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.backends.base import BackendAdapter
from pipeline.backends.shared import ENDPOINT, GROUP, check_google_credentials, check_url, task
from pipeline.options.cloud import project_of, region_of
from pipeline.options.option import Option
from transforms.backends.gemini import GeminiBackend, ServiceTier
from transforms.records.errors import ConfigurationError

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.options.command_line import Values

TIERS: tuple[ServiceTier, ...] = get_args(ServiceTier)


def make(values: "Values", options: PipelineOptions) -> GeminiBackend:
    """The backend; its project and location are the job's unless the flags name others.

    Raises:
      ConfigurationError: No model, project or location is known, or the endpoint is no URL.
    """
    model = values.require("model", "which Gemini model, e.g. --model=gemini-2.5-flash")
    location = values.text("model_location") or region_of(options)
    if location is None:
        raise ConfigurationError(
            "--model_location is missing: set it (e.g. us-central1, or global), or --region, or "
            "GOOGLE_CLOUD_LOCATION in the environment"
        )
    endpoint = values.text("endpoint")
    if endpoint is not None and not endpoint.startswith("projects/"):
        check_url(endpoint)
    project = values.text("model_project") or project_of(options)
    if project is None:
        raise ConfigurationError(
            "--model_project is missing: set it, or --project, or GOOGLE_CLOUD_PROJECT in the "
            "environment"
        )
    tier = values.text("service_tier")
    return GeminiBackend(
        model=model,
        project=project,
        location=location,
        task=task(values),
        endpoint=endpoint,
        accept_truncated=values.boolean("accept_truncated"),
        service_tier=next((known for known in TIERS if known == tier), None),
    )


def check(backend: GeminiBackend, config: "RunConfig") -> None:
    """Google credentials exist."""
    check_google_credentials(config.adapter.name, backend.base_url())


ADAPTER = BackendAdapter(
    name="gemini",
    make=make,
    check=check,
    flags=(
        ENDPOINT,
        Option("model_project", GROUP, "The model's project; --project by default."),
        Option("model_location", GROUP, "The model's location; --region by default."),
        Option(
            "service_tier",
            GROUP,
            "How Gemini serves and bills the calls: flex costs half and may take minutes. By "
            "default provisioned throughput where the project has some, else standard.",
            choices=TIERS,
        ),
    ),
)
