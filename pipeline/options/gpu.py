"""The flags for GPUs, and the resource hints that they set on the one step that needs them.

The hints are Dataflow's right fitting: the step that calls the model runs on machines with GPUs,
all other steps on ordinary ones.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from apache_beam.options.pipeline_options import (
    DebugOptions,
    PipelineOptions,
    StandardOptions,
    WorkerOptions,
)

from pipeline.options.flag import Flag, Kind, Place
from pipeline.options.kinds import COUNT, NAME, one_of, text_kind
from pipeline.options.mode import Mode
from pipeline.options.run import on_dataflow
from pipeline.options.values import Values
from transforms.records.errors import ConfigurationError

if TYPE_CHECKING:
    from pipeline.backends.base import DataflowNeeds

GROUP = "GPUs"
ONE_CONTAINER = "no_use_multiple_sdk_containers"
"""The experiment that makes Dataflow run one SDK process per worker."""
STREAMING_HINTS = "enable_streaming_rightfitting"
"""The experiment that a streaming job needs to respect the hints of a step."""
DISK_GB = 200
"""The disk of workers that load a model: Dataflow's 25 GB are too small for most weights."""

MACHINES: Mapping[str, Mapping[int, str]] = {
    "nvidia-l4": {
        1: "g2-standard-8",
        2: "g2-standard-24",
        4: "g2-standard-48",
        8: "g2-standard-96",
    },
    "nvidia-tesla-a100": {
        1: "a2-highgpu-1g",
        2: "a2-highgpu-2g",
        4: "a2-highgpu-4g",
        8: "a2-highgpu-8g",
        16: "a2-megagpu-16g",
    },
    "nvidia-a100-80gb": {
        1: "a2-ultragpu-1g",
        2: "a2-ultragpu-2g",
        4: "a2-ultragpu-4g",
        8: "a2-ultragpu-8g",
    },
    "nvidia-h100-80gb": {
        1: "a3-highgpu-1g",
        2: "a3-highgpu-2g",
        4: "a3-highgpu-4g",
        8: "a3-highgpu-8g",
    },
    "nvidia-h100-mega-80gb": {8: "a3-megagpu-8g"},
    "nvidia-h200-141gb": {8: "a3-ultragpu-8g"},
    "nvidia-tesla-t4": {1: "n1-standard-8", 2: "n1-standard-16", 4: "n1-standard-32"},
}
"""How many of each GPU one machine can have, and the machine to use unless one is set.

Older GPUs are left out: CUDA 13, which comes with vLLM's wheels, needs compute capability 7.5.
Source: https://cloud.google.com/compute/docs/gpus
"""


def _driver(text: str, flag: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9.-]+", text):
        raise ConfigurationError(
            f"{flag} is {text!r}, but must be a version, such as 5xx: correct or remove it"
        )
    return text


_WITH_TYPE = Place(parent="gpu_type", gpu=True)

GPU_TYPE: Flag[str | None] = Flag(
    "gpu_type",
    GROUP,
    "The GPU of the workers that call the model, on Dataflow; other steps run without one. A local "
    "run uses the GPUs of its machine.",
    one_of(tuple(MACHINES)),
)
GPU_COUNT: Flag[int | None] = Flag(
    "gpu_count",
    GROUP,
    "How many GPUs each such worker has. Default: the fewest that a machine can have.",
    COUNT,
    place=_WITH_TYPE,
)
GPU_DRIVER: Flag[str | None] = Flag(
    "gpu_driver",
    GROUP,
    "The driver that Dataflow installs. Default: 5xx with vllm, whose CUDA needs 580 or newer; else "
    "Dataflow's default version.",
    Kind(_driver, NAME.metavar, NAME.form),
    place=_WITH_TYPE,
)
GPU_MACHINE_TYPE: Flag[str | None] = Flag(
    "gpu_machine_type",
    GROUP,
    "The machine of each such worker. Default: one that has as many GPUs.",
    text_kind("MACHINE_TYPE", "MACHINE_TYPE", "^[a-z0-9-]+$", "g2-standard-8"),
    place=_WITH_TYPE,
)

GPU_FLAGS: tuple[Flag[Any], ...] = (GPU_TYPE, GPU_COUNT, GPU_DRIVER, GPU_MACHINE_TYPE)


@dataclasses.dataclass(frozen=True, slots=True)
class Accelerator:
    """The GPUs that each worker must have.

    Attributes:
      type: The name in Compute Engine.
      count: The number per worker.
      driver: The version that Dataflow installs, ``""`` for its default; None if it installs none.
    """

    type: str
    count: int
    driver: str | None


def resource_hints(
    values: Values, default_driver: str, options: PipelineOptions
) -> Mapping[str, str]:
    """Beam's hints for the step that calls the model; none without ``--gpu_type``.

    Flags that only fail on Dataflow are checked in `pipeline.checks.launch`.

    Args:
      values: The flags.
      default_driver: The driver where ``--gpu_driver`` names none; ``""`` for Dataflow's default.
      options: Beam's own options.

    Raises:
      ConfigurationError: Flags exclude each other.
    """
    gpu_type = values[GPU_TYPE]
    if gpu_type is None:
        flag: Flag[Any]
        for flag in (GPU_COUNT, GPU_DRIVER, GPU_MACHINE_TYPE):
            if values.is_set(flag):
                raise ConfigurationError(
                    f"{flag} is {values.text(flag)!r}, but the job has no GPU: set {GPU_TYPE} as well"
                )
        return {}
    if not on_dataflow(options):
        runner = options.view_as(StandardOptions).runner or "the local one"
        raise ConfigurationError(
            f"{GPU_TYPE} is {gpu_type!r}, but the runner is {runner}, which uses the GPUs of its "
            "machine: remove it, or set --runner=DataflowRunner"
        )
    count = gpu_count(gpu_type, values)
    driver = values[GPU_DRIVER] or default_driver
    machine = values[GPU_MACHINE_TYPE] or MACHINES[gpu_type][count]
    installed = f"install-nvidia-driver{':' if driver else ''}{driver}"
    return {"accelerator": f"type:{gpu_type};count:{count};machine_type:{machine};{installed}"}


def gpu_count(gpu_type: str, values: Values) -> int:
    """How many GPUs of a type each worker has: ``--gpu_count``, else the fewest possible.

    Raises:
      ConfigurationError: No machine has that many.
    """
    known, count = MACHINES[gpu_type], values[GPU_COUNT]
    if count is None:
        return min(known)
    if count not in known:
        raise ConfigurationError(
            f"{GPU_COUNT} is {count}, but a machine has {' or '.join(map(str, known))} of {gpu_type}"
        )
    return count


def has_one_process(needs: "DataflowNeeds", experiments: Any) -> bool:
    """Whether each worker runs one SDK process."""
    return needs.one_process or ONE_CONTAINER in (experiments or ())


def set_worker_defaults(
    needs: "DataflowNeeds", options: PipelineOptions, mode: Mode, *, gpu: bool
) -> None:
    """Sets Beam's own options for the workers of a remote job, unless the user has set them.

    The disk is set here because that of a template's environment reportedly does not reach workers.

    Args:
      needs: The backend's needs.
      options: The options to complete.
      mode: Whether the job is a stream.
      gpu: Whether the flags request GPUs.
    """
    debug, worker = options.view_as(DebugOptions), options.view_as(WorkerOptions)
    if needs.one_process and not debug.lookup_experiment(ONE_CONTAINER):
        debug.add_experiment(ONE_CONTAINER)
    if worker.disk_size_gb is None:
        worker.disk_size_gb = DISK_GB if gpu else needs.disk_gb
    if gpu and mode.streaming and not debug.lookup_experiment(STREAMING_HINTS):
        debug.add_experiment(STREAMING_HINTS)
