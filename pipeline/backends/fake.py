"""``--backend=fake``: made-up answers and faults, without a model."""

from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.backends.base import BackendAdapter
from pipeline.backends.shared import MODEL
from pipeline.options.request import REQUEST_OPTIONS, TASK
from pipeline.options.values import Values
from transforms.backends.fake import OPTIONS, FakeBackend
from transforms.records.errors import ConfigurationError


def make(values: Values, options: PipelineOptions) -> FakeBackend:
    """The backend, configured by ``--request_options``.

    Raises:
      ConfigurationError: An option is unknown, or a value is out of range.
    """
    given = values[REQUEST_OPTIONS]
    for name in given:
        if name not in OPTIONS:
            raise ConfigurationError(
                f"{REQUEST_OPTIONS} has {name!r}, but the fake backend's options are: "
                f"{', '.join(OPTIONS)}"
            )
    try:
        return FakeBackend(model=values[MODEL] or "fake", task=values[TASK], **given)
    except ConfigurationError as error:
        raise ConfigurationError(f"{REQUEST_OPTIONS}: {error}") from None


ADAPTER = BackendAdapter(name="fake", make=make)
