"""What a job on Dataflow needs and what excludes each other: checked without asking a service.

Beam takes all of these, and the job fails minutes later on its workers, or runs without its GPU.
"""

import dataclasses
import re
from collections.abc import Iterator

from apache_beam.options.pipeline_options import (
    DebugOptions,
    GoogleCloudOptions,
    PipelineOptions,
    SetupOptions,
    StandardOptions,
    WorkerOptions,
)

from pipeline.options.gpu import MINIMUM_DRIVER, VLLM_DRIVER, gpu_count
from pipeline.options.model import vllm_args
from pipeline.options.run import on_dataflow
from pipeline.options.values import Values
from transforms.backends.vllm.gpus import option
from transforms.records.errors import ConfigurationError

_GPUS_OF_MACHINES = (
    ("g2-", ("nvidia-l4",)),
    ("a2-highgpu-", ("nvidia-tesla-a100",)),
    ("a2-megagpu-", ("nvidia-tesla-a100",)),
    ("a2-ultragpu-", ("nvidia-a100-80gb",)),
    ("a3-megagpu-", ("nvidia-h100-mega-80gb",)),
    ("a3-ultragpu-", ("nvidia-h200-141gb",)),
    ("a3-", ("nvidia-h100-80gb",)),
    (
        "n1-",
        ("nvidia-tesla-t4", "nvidia-tesla-v100", "nvidia-tesla-p100", "nvidia-tesla-p4"),
    ),
)
"""Which GPUs a machine family can have; other families have none."""
_L4S = {24: 2, 48: 4, 96: 8}
"""How many a ``g2-standard`` machine of so many vCPUs has; the others have one."""

_TOO_OLD_FOR_VLLM = ("nvidia-tesla-v100", "nvidia-tesla-p100", "nvidia-tesla-p4")
"""Older than compute capability 7.5."""
_WITHOUT_BF16 = ("nvidia-tesla-t4",)
"""Older than compute capability 8.0."""
_DTYPES_WITHOUT_BF16 = ("half", "float16", "float32")
_ALWAYS_WITH_GPUS = ("g2-", "a2-", "a3-")


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


def check_launch(values: Values, options: PipelineOptions) -> None:
    """Everything that can be told from the flags of a job on Dataflow.

    Raises:
      ConfigurationError: The job could not run; with the value and the remedy.
    """
    if not on_dataflow(options):
        return
    cloud, setup = options.view_as(GoogleCloudOptions), options.view_as(SetupOptions)
    if not cloud.temp_location:
        raise ConfigurationError(
            "--temp_location is missing: Dataflow keeps temporary files there; give a gs:// folder"
        )
    shipped = (setup.setup_file, setup.extra_packages, setup.requirements_file)
    if not options.view_as(WorkerOptions).sdk_container_image and not any(shipped):
        raise ConfigurationError(
            "--sdk_container_image is missing: the workers would not have this code; give the "
            "template's image, or --setup_file=./setup.py"
        )
    if cloud.create_from_snapshot and values.boolean("exactly_once"):
        raise ConfigurationError(
            "--create_from_snapshot does not go with --exactly_once=true: the write streams in the "
            "snapshot have gone on since, and other rows would be taken for written; drain the job, "
            "seek the subscription and start anew"
        )
    if values.text("backend") == "sentence_transformers" and cloud.template_location:
        raise ConfigurationError(
            "--backend is 'sentence_transformers', which no image of the templates has: launch with "
            "python -m pipeline --runner=DataflowRunner and an --sdk_container_image that has it"
        )
    check_accelerators(values, options)


def service_options(options: PipelineOptions) -> list[str]:
    """Service options and experiments: a template's launch can carry the former as the latter."""
    return [
        *(options.view_as(GoogleCloudOptions).dataflow_service_options or ()),
        *(options.view_as(DebugOptions).experiments or ()),
    ]


def accelerators(words: list[str]) -> Iterator[Accelerator]:
    """The GPUs that service options ask for.

    >>> list(accelerators(["worker_accelerator=type:nvidia-l4;count:1;install-nvidia-driver"]))
    [Accelerator(type='nvidia-l4', count=1, driver='')]

    Raises:
      ConfigurationError: One that cannot be read.
    """
    for word in words:
        name, _, value = word.partition("=")
        if name != "worker_accelerator":
            continue
        parts = dict(part.partition(":")[::2] for part in value.split(";"))
        if not parts.get("type") or not re.fullmatch("[1-9][0-9]?", parts.get("count", "")):
            raise ConfigurationError(
                f"{word!r} is no accelerator: write "
                "worker_accelerator=type:nvidia-l4;count:1;install-nvidia-driver"
            )
        yield Accelerator(parts["type"], int(parts["count"]), parts.get("install-nvidia-driver"))


def check_accelerators(values: Values, options: PipelineOptions) -> None:
    """GPU options that exclude each other, or the machine.

    Raises:
      ConfigurationError: They do.
    """
    words = service_options(options)
    names = {word.partition("=")[0] for word in words}
    if "use_nvidia_mps" in names and values.text("backend") == "vllm":
        raise ConfigurationError(
            "use_nvidia_mps shares a GPU among processes, but --backend=vllm runs one server for "
            "all of a machine: remove it"
        )
    if {"use_nvidia_mps", "no_use_multiple_sdk_containers"} <= names:
        raise ConfigurationError(
            "use_nvidia_mps shares a GPU among processes and no_use_multiple_sdk_containers leaves "
            "one process: remove one of them"
        )
    found = list(accelerators(words))
    if len(found) > 1:
        raise ConfigurationError(f"worker_accelerator is given {len(found)} times: give it once")
    asked = _of_flags(values)
    if asked is not None and (found or _hinted(options)):
        other = "worker_accelerator" if found else "--resource_hints"
        raise ConfigurationError(f"an accelerator is asked for twice: remove {other} or --gpu_type")
    if values.text("backend") == "vllm" and asked is None and not found and not _hinted(options):
        raise ConfigurationError(
            "--backend is 'vllm', but no worker has an accelerator: give --gpu_type, such as "
            "nvidia-l4"
        )
    machine = options.view_as(WorkerOptions).machine_type
    for gpu in found:
        _check_accelerator(values, options, gpu, "machine_type", machine)
    if asked is not None:
        _check_accelerator(
            values, options, asked, "gpu_machine_type", values.text("gpu_machine_type")
        )
        if machine and machine.startswith(_ALWAYS_WITH_GPUS):
            raise ConfigurationError(
                f"--machine_type is {machine!r}, which would give every other step a GPU too: name "
                "an ordinary machine there, such as n2-standard-4, and this one, if need be, as "
                "--gpu_machine_type"
            )


def _of_flags(values: Values) -> Accelerator | None:
    """What ``--gpu_type`` and its like ask for."""
    gpu_type = values.text("gpu_type")
    if gpu_type is None:
        return None
    return Accelerator(gpu_type, gpu_count(values.given), values.text("gpu_driver") or "")


def _hinted(options: PipelineOptions) -> bool:
    hints = options.view_as(StandardOptions).resource_hints or ()
    return any("accelerator" in hint for hint in hints)


def _check_accelerator(
    values: Values, options: PipelineOptions, gpu: Accelerator, flag: str, machine: str | None
) -> None:
    goal = options.view_as(GoogleCloudOptions).flexrs_goal
    if goal:
        raise ConfigurationError(
            f"--flexrs_goal is {goal!r}, but FlexRS has no GPUs and {gpu.type} is asked for: "
            "remove one of them"
        )
    if gpu.driver is None:
        raise ConfigurationError(
            f"worker_accelerator asks for {gpu.type} without a driver: add ;install-nvidia-driver"
        )
    if _hinted(options):
        raise ConfigurationError(
            "an accelerator is asked for twice: remove worker_accelerator or --resource_hints"
        )
    if machine:
        _check_machine(gpu, flag, machine)
    if values.text("backend") == "vllm":
        _check_vllm(values, gpu, gpu.driver)


def _check_machine(gpu: Accelerator, flag: str, machine: str) -> None:
    family = (known for prefix, known in _GPUS_OF_MACHINES if machine.startswith(prefix))
    fitting = next(family, ())
    if gpu.type not in fitting:
        has = f"it can have {' or '.join(fitting)}" if fitting else "it has no GPUs"
        raise ConfigurationError(f"--{flag} is {machine!r}, which cannot have {gpu.type}: {has}")
    has_so_many = _gpus_of(machine)
    if has_so_many and gpu.count != has_so_many:
        raise ConfigurationError(
            f"--{flag} is {machine!r}, which has {has_so_many} of {gpu.type}, not {gpu.count}"
        )


def _gpus_of(machine: str) -> int | None:
    """How many GPUs a machine always has; None where they are attached, in any number.

    >>> [_gpus_of(name) for name in ("g2-standard-24", "a2-megagpu-16g", "n1-standard-8")]
    [2, 16, None]
    """
    if named := re.search(r"gpu-([0-9]+)g$", machine):
        return int(named[1])
    vcpus = machine.rpartition("-")[2]
    return _L4S.get(int(vcpus), 1) if machine.startswith("g2-") and vcpus.isdecimal() else None


def _check_vllm(values: Values, gpu: Accelerator, driver: str) -> None:
    """What vLLM and its CUDA need of a GPU and its driver.

    Most models are published in bfloat16; a server started with one ends at once where the GPU
    cannot compute in it.
    """
    if gpu.type in _TOO_OLD_FOR_VLLM:
        raise ConfigurationError(
            f"{gpu.type} is too old for --backend=vllm, whose CUDA needs compute capability 7.5: "
            "take a newer one, such as nvidia-l4"
        )
    major = driver.partition(".")[0]
    if major.isdecimal() and int(major) < MINIMUM_DRIVER:
        raise ConfigurationError(
            f"the driver is {driver!r}, but --backend=vllm needs {MINIMUM_DRIVER} or newer: name "
            f"one, or {VLLM_DRIVER}"
        )
    dtype = option(vllm_args(values), "--dtype")
    if gpu.type in _WITHOUT_BF16 and dtype not in _DTYPES_WITHOUT_BF16:
        raise ConfigurationError(
            f"{gpu.type} cannot compute in bfloat16, which most models are published in: add "
            "--dtype=half to --vllm_args, or take another GPU, such as nvidia-l4"
        )
