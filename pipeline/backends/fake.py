"""``--backend=fake``: made-up answers and faults, without a model."""

from typing import TYPE_CHECKING

from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.backends.base import BackendAdapter
from pipeline.backends.shared import task
from transforms.backends.fake import FakeBackend

if TYPE_CHECKING:
    from pipeline.options.command_line import Values


def make(values: "Values", options: PipelineOptions) -> FakeBackend:
    """The backend; ``--request_options`` says how it pretends.

    Raises:
      ConfigurationError: An unknown option, or a value out of range.
    """
    return FakeBackend.from_request_options(
        values.json_object("request_options"),
        model=values.text("model") or "fake",
        task=task(values),
    )


ADAPTER = BackendAdapter(name="fake", make=make)
