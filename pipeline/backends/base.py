"""The application's knowledge of the backends: one `BackendAdapter` each.

The adapter covers flags and launches; the model's capabilities are on the backend itself
(`transforms.backends.base.Capabilities`).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.options.flag import Flag
from pipeline.options.gpu import Accelerator
from pipeline.options.values import Values
from transforms.backends.base import Backend

if TYPE_CHECKING:  # it needs the adapters' flags
    from pipeline.config import RunConfig

Image = Literal["cpu", "gpu"]
"""An image of the templates: the ordinary one, or the one of workers with GPUs."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DataflowNeeds:
    """What a backend needs from a Dataflow job.

    Attributes:
      gpu: Workers must have an accelerator.
      gpu_driver: The driver to install unless ``--gpu_driver`` names another; ``""`` for
        Dataflow's default.
      one_process: A worker runs a single SDK process, because its processes cannot share the model.
      disk_gb: The workers' disk in GB unless the user sets one; None for Dataflow's default.
    """

    gpu: bool = False
    gpu_driver: str = ""
    one_process: bool = False
    disk_gb: int | None = None


def _nothing_to_check(*_: Any) -> None:
    """The default of both checks."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BackendAdapter:
    """One choice of ``--backend``.

    Attributes:
      name: The value of ``--backend``: lower-case letters, digits and ``_``.
      make: Makes the backend from the flags; raises `ConfigurationError` with the remedy. It
        neither calls a service nor imports an SDK.
      flags: The flags that not every backend takes. Several adapters may list the same `Flag`. A
        flag set for a backend that does not list it is refused.
      generates: Those of `flags` that only go with ``--task=generate``.
      refuses: Flags that every other backend takes, each with the reason why this one does not, as
        a clause.
      check: Called with the backend and the configuration before a launch, within five seconds:
        credentials, installed packages. A `ConfigurationError` stops the launch, any other error
        becomes a warning.
      check_gpu: Called with the flags and the GPUs of each worker before a job is launched on
        Dataflow; raises `ConfigurationError`.
      dataflow: What it needs from a Dataflow job.
      images: The images of the templates that have everything it needs.
    """

    name: str
    make: Callable[[Values, PipelineOptions], Backend]
    flags: tuple[Flag[Any], ...] = ()
    generates: tuple[Flag[Any], ...] = ()
    refuses: Mapping[Flag[Any], str] = dataclasses.field(default_factory=dict)
    check: Callable[[Any, "RunConfig"], None] = _nothing_to_check
    check_gpu: Callable[[Values, Accelerator], None] = _nothing_to_check
    dataflow: DataflowNeeds = DataflowNeeds()
    images: tuple[Image, ...] = ("cpu", "gpu")
