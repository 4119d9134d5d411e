"""Whether a run ends by itself: decided once, from its source, and read everywhere else."""

import enum

from transforms.sources.base import Source


class Mode(enum.Enum):
    """How long a run lasts; the value is also the name of the template that launches such runs."""

    BATCH = "batch"
    """The input ends, and the run with it."""
    STREAMING = "streaming"
    """The input never ends: the run goes on until it is stopped."""

    @classmethod
    def of(cls, source: Source) -> "Mode":
        """The mode of a run that reads a source."""
        return cls.BATCH if source.bounded else cls.STREAMING

    @property
    def bounded(self) -> bool:
        """Whether the input ends: Beam's word for it."""
        return self is Mode.BATCH

    @property
    def streaming(self) -> bool:
        """Whether the run goes on until it is stopped."""
        return self is Mode.STREAMING
