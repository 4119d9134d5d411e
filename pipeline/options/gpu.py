"""The flags of GPUs, and the hints that they give the one step that needs them.

The hints are Dataflow's right fitting: the step that calls the model runs on machines with GPUs, all
others on ordinary ones.
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

from pipeline.options.option import Option
from transforms.records.errors import ConfigurationError

if TYPE_CHECKING:
    from pipeline.backends.base import DataflowNeeds

GROUP = "GPUs"
ONE_CONTAINER = "no_use_multiple_sdk_containers"
"""The experiment that makes Dataflow run one SDK process per worker."""
STREAMING_HINTS = "enable_streaming_rightfitting"
"""The experiment without which a streaming job ignores the hints of a step."""
DISK_GB = 200
"""The disk of workers that load a model: Dataflow's own 25 GB are too small for most weights."""

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
"""How many of each GPU one machine can have, and the machine for that where none is named.

Older ones are left out: CUDA 13, which vLLM's wheels bring along, needs compute capability 7.5.
Source: https://cloud.google.com/compute/docs/gpus
"""

GPU_OPTIONS: tuple[Option, ...] = (
    Option(
        "gpu_type",
        GROUP,
        "The GPU of the workers that call the model, on Dataflow; other steps run without. A local "
        "run takes the GPUs that the machine has.",
        choices=tuple(MACHINES),
    ),
    Option("gpu_count", GROUP, "GPUs of each such worker; 1 by default.", metavar="N"),
    Option(
        "gpu_driver",
        GROUP,
        "The driver that Dataflow installs: 5xx by default with vllm, whose CUDA needs 580 or "
        "newer; else Dataflow's default version.",
        metavar="NAME",
    ),
    Option(
        "gpu_machine_type",
        GROUP,
        "The machine of each such worker; one that has so many GPUs by default.",
        metavar="MACHINE_TYPE",
    ),
)

_NEEDS_TYPE = ("gpu_count", "gpu_driver", "gpu_machine_type")


@dataclasses.dataclass(frozen=True, slots=True)
class Accelerator:
    """GPUs that each worker is to have.

    Attributes:
      type: As Compute Engine calls it.
      count: Per worker.
      driver: The version that Dataflow installs, ``""`` for its default; None when it installs none.
    """

    type: str
    count: int
    driver: str | None


def resource_hints(
    given: Mapping[str, str], default_driver: str, options: PipelineOptions
) -> Mapping[str, str]:
    """Beam's hints for the step that calls the model; none without ``--gpu_type``.

    Flags that only fail on Dataflow are checked in `pipeline.checks.launch`.

    Args:
      given: The flags.
      default_driver: The driver where ``--gpu_driver`` names none; ``""`` for Dataflow's default.
      options: Beam's own options.

    Raises:
      ConfigurationError: Flags that do not go together.
    """
    gpu_type = given["gpu_type"]
    if not gpu_type:
        for name in _NEEDS_TYPE:
            if given[name]:
                raise ConfigurationError(
                    f"--{name} is {given[name]!r}, but the job has no GPU: set --gpu_type as well"
                )
        return {}
    runner = str(options.view_as(StandardOptions).runner or "the local one")
    if "Dataflow" not in runner:
        raise ConfigurationError(
            f"--gpu_type is {gpu_type!r}, but the runner is {runner}: such a run takes the GPUs "
            "that its machine has; remove it, or set --runner=DataflowRunner"
        )
    count = gpu_count(given)
    driver = given["gpu_driver"] or default_driver
    if driver and not re.fullmatch(r"[A-Za-z0-9.-]+", driver):
        raise ConfigurationError(
            f"--gpu_driver is {driver!r}, but must be a version, such as 5xx, or left out"
        )
    machine = given["gpu_machine_type"] or MACHINES[gpu_type][count]
    installed = f"install-nvidia-driver{':' if driver else ''}{driver}"
    return {"accelerator": f"type:{gpu_type};count:{count};machine_type:{machine};{installed}"}


def gpu_count(given: Mapping[str, str]) -> int:
    """How many GPUs each worker has, by ``--gpu_type`` and ``--gpu_count``.

    Raises:
      ConfigurationError: No machine has so many.
    """
    count, gpu_type = given["gpu_count"] or "1", given["gpu_type"]
    known = MACHINES[gpu_type]
    if not given["gpu_count"] and 1 not in known:
        return min(known)
    if not count.isdecimal() or int(count) not in known:
        raise ConfigurationError(
            f"--gpu_count is {count!r}, but a machine has {' or '.join(map(str, known))} of "
            f"{gpu_type}"
        )
    return int(count)


def has_one_process(needs: "DataflowNeeds", experiments: Any) -> bool:
    """Whether each worker runs one SDK process."""
    return needs.one_process or ONE_CONTAINER in (experiments or ())


def set_worker_defaults(needs: "DataflowNeeds", options: PipelineOptions, *, gpu: bool) -> None:
    """Beam's own options for the workers of a remote job, where the user set none.

    The disk is set here because the one of a template's environment is said not to reach workers.

    Args:
      needs: The backend's.
      options: What to complete.
      gpu: Whether the flags ask for GPUs.
    """
    debug, worker = options.view_as(DebugOptions), options.view_as(WorkerOptions)
    if needs.one_process and not debug.lookup_experiment(ONE_CONTAINER):
        debug.add_experiment(ONE_CONTAINER)
    if worker.disk_size_gb is None:
        worker.disk_size_gb = DISK_GB if gpu else needs.disk_gb
    streaming = options.view_as(StandardOptions).streaming
    if gpu and streaming and not debug.lookup_experiment(STREAMING_HINTS):
        debug.add_experiment(STREAMING_HINTS)
