"""The flags of GPUs, and what they make of a job: hints for the one step that needs them.

The hints are Dataflow's right fitting: the step that calls the model runs on machines with GPUs, all
others on ordinary ones.
"""

import re
from collections.abc import Mapping
from typing import Any

from apache_beam.options.pipeline_options import (
    DebugOptions,
    PipelineOptions,
    StandardOptions,
    WorkerOptions,
)

from pipeline.options.flag import Flag, Place
from pipeline.options.kinds import COUNT, NAME, one_of, text_kind
from transforms.backends.base import Backend
from transforms.backends.vllm.backend import VLLMBackend
from transforms.backends.vllm.gpus import groups
from transforms.records.errors import ConfigurationError

GROUP = "GPUs"
_WITH_TYPE = Place(parent="gpu_type", gpu=True)
ONE_CONTAINER = "no_use_multiple_sdk_containers"
"""The experiment that leaves one process per worker: all of a machine share one vLLM server."""
STREAMING_HINTS = "enable_streaming_rightfitting"
DISK_GB = 200
"""Dataflow's own 25 GB hold no model's weights."""

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

VLLM_DRIVER = "5xx"
"""The newest that Dataflow has of that series; what it installs without a version is older."""
MINIMUM_DRIVER = 580
"""The first major version that runs CUDA 13. A newer driver runs what was built for an older CUDA.

Source: https://docs.nvidia.com/cuda/cuda-toolkit-release-notes
"""

GPU_TYPE: Flag[str | None] = Flag(
    "gpu_type",
    GROUP,
    "The GPU of the workers that call the model, on Dataflow; other steps run without one. A local "
    "run uses the GPUs of its machine.",
    one_of(tuple(MACHINES)),
    place=Place(parent="backend", triggers=("vllm",), gpu=True),
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
    f"The driver that Dataflow installs. Default: {VLLM_DRIVER} with vllm, whose CUDA needs "
    f"{MINIMUM_DRIVER} or newer; else Dataflow's default version.",
    NAME,
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

_NEEDS_TYPE = ("gpu_count", "gpu_driver", "gpu_machine_type")


def resource_hints(
    given: Mapping[str, str], backend: Backend, options: PipelineOptions
) -> Mapping[str, str]:
    """Beam's hints for the step that calls the model; none without ``--gpu_type``.

    What only a job on Dataflow can get wrong is in `pipeline.checks.launch`.

    Raises:
      ConfigurationError: Flags that do not go together.
    """
    gpu_type = given["gpu_type"]
    if not gpu_type:
        for name in _NEEDS_TYPE:
            if given[name]:
                raise ConfigurationError(
                    f"--{name} is {given[name]!r}, but no GPU is asked for: give --gpu_type as well"
                )
        return {}
    if backend.family not in ("vllm", "sentence_transformers"):
        raise ConfigurationError(
            f"--gpu_type is {gpu_type!r}, but backend {backend.family} does not compute on the "
            "workers: remove it, or use --backend=vllm or sentence_transformers"
        )
    runner = str(options.view_as(StandardOptions).runner or "the local one")
    if "Dataflow" not in runner:
        raise ConfigurationError(
            f"--gpu_type is {gpu_type!r}, but the runner is {runner}: such a run takes the GPUs "
            "that its machine has; remove it, or give --runner=DataflowRunner"
        )
    count = gpu_count(given)
    driver = given["gpu_driver"] or (VLLM_DRIVER if backend.family == "vllm" else "")
    if driver and not re.fullmatch(r"[A-Za-z0-9.-]+", driver):
        raise ConfigurationError(
            f"--gpu_driver is {driver!r}, but must be a version, such as 5xx, or left out"
        )
    if isinstance(backend, VLLMBackend):
        try:
            groups([str(number) for number in range(count)], backend.args)
        except ValueError as error:
            raise ConfigurationError(f"--vllm_args with --gpu_count={count}: {error}") from None
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


def has_one_process(given: Mapping[str, str], experiments: Any) -> bool:
    """Whether each worker runs one process: with vLLM always, as containers share no folder."""
    return given["backend"] == "vllm" or ONE_CONTAINER in (experiments or ())


def set_gpu_defaults(given: Mapping[str, str], options: PipelineOptions) -> None:
    """Beam's own options for a remote job with a model on its workers, where the user set none.

    The disk is set here because the one of a template's environment is said not to reach workers.
    """
    debug, worker = options.view_as(DebugOptions), options.view_as(WorkerOptions)
    vllm = given["backend"] == "vllm"
    if vllm and not debug.lookup_experiment(ONE_CONTAINER):
        debug.add_experiment(ONE_CONTAINER)
    if (vllm or given["gpu_type"]) and worker.disk_size_gb is None:
        worker.disk_size_gb = DISK_GB
    streaming = options.view_as(StandardOptions).streaming
    if given["gpu_type"] and streaming and not debug.lookup_experiment(STREAMING_HINTS):
        debug.add_experiment(STREAMING_HINTS)
