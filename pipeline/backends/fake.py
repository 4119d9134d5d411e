"""``--backend=fake``: made-up answers and faults, without a model."""

from typing import TYPE_CHECKING

from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.backends.base import BackendAdapter
from pipeline.backends.shared import task
from transforms.backends.fake import OPTIONS, FakeBackend
from transforms.records.errors import ConfigurationError

if TYPE_CHECKING:
    from pipeline.options.command_line import Values


def make(values: "Values", options: PipelineOptions) -> FakeBackend:
    """The backend; ``--request_options`` says how it pretends.

    Raises:
      ConfigurationError: An unknown option, or a value out of range.
    """
    given = values.json_object("request_options")
    for name in given:
        if name not in OPTIONS:
            raise ConfigurationError(
                f"--request_options has {name!r}, but the fake backend's options are: "
                f"{', '.join(OPTIONS)}"
            )
    return FakeBackend(model=values.text("model") or "fake", task=task(values), **given)


ADAPTER = BackendAdapter(name="fake", make=make)
