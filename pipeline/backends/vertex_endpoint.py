"""``--backend=vertex_endpoint``: a custom model behind a Vertex AI endpoint."""

from typing import TYPE_CHECKING

from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.backends.base import BackendAdapter
from pipeline.backends.shared import ENDPOINT, GROUP, check_google_credentials
from pipeline.options.option import Option
from transforms.backends.vertex_endpoint import VertexEndpointBackend

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.options.command_line import Values


def make(values: "Values", options: PipelineOptions) -> VertexEndpointBackend:
    """The backend; ``--model`` only names it in results.

    Raises:
      ConfigurationError: The endpoint is missing or is no endpoint.
    """
    return VertexEndpointBackend(
        endpoint=values.require(
            "endpoint", "which endpoint, e.g. projects/P/locations/L/endpoints/123"
        ),
        method="raw_predict" if values.text("predict_method") == "raw_predict" else "predict",
        model=values.text("model") or "",
    )


def check(backend: VertexEndpointBackend, config: "RunConfig") -> None:
    """Google credentials exist."""
    check_google_credentials(config.adapter.name, backend.base_url())


ADAPTER = BackendAdapter(
    name="vertex_endpoint",
    make=make,
    check=check,
    flags=(
        ENDPOINT,
        Option(
            "instance_fields",
            "Request",
            "The fields that make the instance for a custom model (backend vertex_endpoint).",
            metavar="A,B",
        ),
        Option(
            "predict_method",
            GROUP,
            "How a custom model is called (backend vertex_endpoint).",
            "predict",
            ("predict", "raw_predict"),
        ),
    ),
    refuses=dict.fromkeys(
        ("system_prompt", "system_prompt_file", "messages_field"),
        "backend vertex_endpoint sends instances, which have no messages",
    ),
)
