"""Requirements and conflicts of a job on Dataflow, checked without calling a service.

Beam accepts all of these; the job would fail minutes later on its workers, or run without its GPU.
"""

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

from pipeline.backends import adapter_of
from pipeline.backends.base import BackendAdapter
from pipeline.options.gpu import (
    GPU_DRIVER,
    GPU_MACHINE_TYPE,
    GPU_TYPE,
    ONE_CONTAINER,
    Accelerator,
    gpu_count,
)
from pipeline.options.model import BACKEND
from pipeline.options.run import on_dataflow
from pipeline.options.sinks import EXACTLY_ONCE
from pipeline.options.values import Values
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
"""The GPUs of ``g2-standard`` machines by vCPUs; the others have one."""

_ALWAYS_WITH_GPUS = ("g2-", "a2-", "a3-")


def check_launch(values: Values, options: PipelineOptions) -> None:
    """Checks whatever the flags of a job on Dataflow reveal.

    Raises:
      ConfigurationError: The job could not run; the message has the value and the remedy.
    """
    if not on_dataflow(options):
        return
    cloud, setup = options.view_as(GoogleCloudOptions), options.view_as(SetupOptions)
    if not cloud.temp_location:
        raise ConfigurationError(
            "--temp_location is missing: Dataflow keeps temporary files there; set a gs:// folder"
        )
    shipped = (setup.setup_file, setup.extra_packages, setup.requirements_file)
    if not options.view_as(WorkerOptions).sdk_container_image and not any(shipped):
        raise ConfigurationError(
            "--sdk_container_image is missing: the workers would not have this code; set it to the "
            "template's image, or set --setup_file=./setup.py"
        )
    if cloud.create_from_snapshot and values[EXACTLY_ONCE]:
        raise ConfigurationError(
            "--create_from_snapshot does not go with --exactly_once=true: the write streams in the "
            "snapshot have advanced since, and BigQuery would drop new rows as already written; drain "
            "the job, seek the subscription and start again"
        )
    adapter = adapter_of(values[BACKEND])
    if cloud.template_location and not adapter.images:
        raise ConfigurationError(
            f"--backend is {adapter.name!r}, which no image of the templates has: launch with "
            "python -m pipeline --runner=DataflowRunner and an --sdk_container_image that has it"
        )
    check_accelerators(adapter, values, options)


def service_options(options: PipelineOptions) -> list[str]:
    """Service options and experiments: a template's launch can carry the former as the latter."""
    return [
        *(options.view_as(GoogleCloudOptions).dataflow_service_options or ()),
        *(options.view_as(DebugOptions).experiments or ()),
    ]


def accelerators(words: list[str]) -> Iterator[Accelerator]:
    """The GPUs that service options request.

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
                f"{word!r} is not an accelerator: write "
                "worker_accelerator=type:nvidia-l4;count:1;install-nvidia-driver"
            )
        yield Accelerator(parts["type"], int(parts["count"]), parts.get("install-nvidia-driver"))


def check_accelerators(adapter: BackendAdapter, values: Values, options: PipelineOptions) -> None:
    """GPU options go together, with the machine and with the backend.

    Raises:
      ConfigurationError: They do not.
    """
    words = service_options(options)
    names = {word.partition("=")[0] for word in words}
    if "use_nvidia_mps" in names and adapter.dataflow.one_process:
        raise ConfigurationError(
            f"use_nvidia_mps shares a GPU among processes, but --backend={adapter.name} runs one "
            "process per worker: remove it"
        )
    if {"use_nvidia_mps", ONE_CONTAINER} <= names:
        raise ConfigurationError(
            f"use_nvidia_mps shares a GPU among processes, but {ONE_CONTAINER} leaves one process "
            "per worker: remove one of them"
        )
    found = list(accelerators(words))
    if len(found) > 1:
        raise ConfigurationError(f"worker_accelerator is set {len(found)} times: set it once")
    asked = _of_flags(values)
    if asked is not None and (found or _hinted(options)):
        other = "worker_accelerator" if found else "--resource_hints"
        raise ConfigurationError(
            f"two settings request an accelerator: remove {other} or --gpu_type"
        )
    if adapter.dataflow.gpu and asked is None and not found and not _hinted(options):
        raise ConfigurationError(
            f"--backend is {adapter.name!r}, but no worker has an accelerator: set --gpu_type, such "
            "as --gpu_type=nvidia-l4"
        )
    machine = options.view_as(WorkerOptions).machine_type
    for gpu in found:
        _check_accelerator(options, gpu, "--machine_type", machine)
        adapter.check_gpu(values, gpu)
    if asked is not None:
        _check_accelerator(options, asked, str(GPU_MACHINE_TYPE), values[GPU_MACHINE_TYPE])
        adapter.check_gpu(values, asked)
        if machine and machine.startswith(_ALWAYS_WITH_GPUS):
            raise ConfigurationError(
                f"--machine_type is {machine!r}, so every other step would have a GPU too: set it "
                "to an ordinary machine, such as n2-standard-4, and --gpu_machine_type to this one"
            )


def _of_flags(values: Values) -> Accelerator | None:
    """The GPUs set by ``--gpu_type`` and related flags."""
    gpu_type = values[GPU_TYPE]
    if gpu_type is None:
        return None
    return Accelerator(gpu_type, gpu_count(gpu_type, values), values[GPU_DRIVER] or "")


def _hinted(options: PipelineOptions) -> bool:
    hints = options.view_as(StandardOptions).resource_hints or ()
    return any("accelerator" in hint for hint in hints)


def _check_accelerator(
    options: PipelineOptions, gpu: Accelerator, flag: str, machine: str | None
) -> None:
    goal = options.view_as(GoogleCloudOptions).flexrs_goal
    if goal:
        raise ConfigurationError(
            f"--flexrs_goal is {goal!r}, but FlexRS has no GPUs and the job requests {gpu.type}: "
            "remove one of them"
        )
    if gpu.driver is None:
        raise ConfigurationError(
            f"worker_accelerator requests {gpu.type} without a driver: add ;install-nvidia-driver"
        )
    if _hinted(options):
        raise ConfigurationError(
            "two settings request an accelerator: remove worker_accelerator or --resource_hints"
        )
    if machine:
        _check_machine(gpu, flag, machine)


def _check_machine(gpu: Accelerator, flag: str, machine: str) -> None:
    family = (known for prefix, known in _GPUS_OF_MACHINES if machine.startswith(prefix))
    fitting = next(family, ())
    if gpu.type not in fitting:
        has = f"it can have {' or '.join(fitting)}" if fitting else "it has no GPUs"
        raise ConfigurationError(f"{flag} is {machine!r}, which cannot have {gpu.type}: {has}")
    has_so_many = _gpus_of(machine)
    if has_so_many and gpu.count != has_so_many:
        raise ConfigurationError(
            f"{flag} is {machine!r}, which has {has_so_many} of {gpu.type}, not {gpu.count}"
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
