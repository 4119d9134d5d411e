"""``--backend=vertex_endpoint``: a custom model behind a Vertex AI endpoint."""

from typing import TYPE_CHECKING, Any

from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.backends.base import BackendAdapter
from pipeline.backends.shared import ENDPOINT, GROUP, MODEL, check_google_credentials
from pipeline.options.flag import Flag
from pipeline.options.kinds import one_of_field
from pipeline.options.request import (
    INSTANCE_FIELDS,
    MESSAGES_FIELD,
    SYSTEM_PROMPT,
    SYSTEM_PROMPT_FILE,
)
from pipeline.options.values import Values
from transforms.backends.vertex_endpoint import VertexEndpointBackend

if TYPE_CHECKING:
    from pipeline.config import RunConfig

PREDICT_METHOD: Flag[Any] = Flag(
    "predict_method",
    GROUP,
    "How a custom model is called (backend vertex_endpoint).",
    one_of_field(VertexEndpointBackend, "method"),
    of=VertexEndpointBackend,
    field="method",
)


def make(values: Values, options: PipelineOptions) -> VertexEndpointBackend:
    """The backend; ``--model`` only names it in results.

    Raises:
      ConfigurationError: The endpoint is missing or is no endpoint.
    """
    return VertexEndpointBackend(
        endpoint=values.require(
            ENDPOINT, "which endpoint, e.g. projects/P/locations/L/endpoints/123"
        ),
        method=values[PREDICT_METHOD],
        model=values[MODEL] or "",
    )


def check(backend: VertexEndpointBackend, config: "RunConfig") -> None:
    """Google credentials exist."""
    check_google_credentials(config.adapter.name, backend.base_url())


ADAPTER = BackendAdapter(
    name="vertex_endpoint",
    make=make,
    check=check,
    flags=(ENDPOINT, INSTANCE_FIELDS, PREDICT_METHOD),
    refuses=dict.fromkeys(
        (SYSTEM_PROMPT, SYSTEM_PROMPT_FILE, MESSAGES_FIELD),
        "backend vertex_endpoint sends instances, which have no messages",
    ),
)
