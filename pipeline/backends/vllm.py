"""``--backend=vllm``: a vLLM server on each worker's own GPUs."""

import os
import shlex
import subprocess
from typing import TYPE_CHECKING

from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.backends.base import BackendAdapter, DataflowNeeds
from pipeline.backends.shared import GENERATE_API, GROUP, generate_api, task
from pipeline.options.gpu import DISK_GB, GPU_OPTIONS, Accelerator
from pipeline.options.option import Option
from transforms.backends.vllm.backend import VLLMBackend
from transforms.backends.vllm.gpus import groups, option
from transforms.backends.vllm.launch import PYTHON_VARIABLE
from transforms.records.errors import ConfigurationError

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.options.command_line import Values

DRIVER = "5xx"
"""The newest driver of that series that Dataflow has; the one it installs by default is older."""
MINIMUM_DRIVER = 580
"""The first major version that runs CUDA 13. A newer driver also runs code built for older CUDAs.

Source: https://docs.nvidia.com/cuda/cuda-toolkit-release-notes
"""
_TOO_OLD = ("nvidia-tesla-v100", "nvidia-tesla-p100", "nvidia-tesla-p4")
"""Older than compute capability 7.5, which CUDA 13 needs."""
_WITHOUT_BF16 = ("nvidia-tesla-t4",)
"""Older than compute capability 8.0."""
_DTYPES_WITHOUT_BF16 = ("half", "float16", "float32")
_SET_BY_PIPELINE = ("--model", "--served-model-name", "--host", "--port", "--uds", "--api-key")
_HAS_VLLM = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
_TIMEOUT_S = 4.0
"""Shorter than a check's own limit, so that a slow disk warns and does not refuse."""


def make(values: "Values", options: PipelineOptions) -> VLLMBackend:
    """The backend.

    Raises:
      ConfigurationError: The model is missing, or vLLM would ignore or refuse an argument.
    """
    for flag in ("generation_config", "request_options"):
        given = values.json_object(flag)
        if ignored := [name for name in given if name.startswith("guided_")]:
            raise ConfigurationError(
                f"--{flag} has {ignored[0]!r}, which vLLM silently ignores: use --output_schema, "
                "or structured_outputs in --request_options"
            )
    return VLLMBackend(
        model=values.require("model", "a name on the Hugging Face hub, a folder, or gs://…"),
        task=task(values),
        api=generate_api(values),
        python=values.text("vllm_python"),
        args=server_args(values),
        accept_truncated=values.boolean("accept_truncated"),
    )


def server_args(values: "Values") -> tuple[str, ...]:
    """The arguments of vLLM's server, as a shell would split them.

    Raises:
      ConfigurationError: A quote is not closed, or the pipeline sets an argument itself.
    """
    text = values.text("vllm_args") or ""
    try:
        args = tuple(shlex.split(text))
    except ValueError as error:
        raise ConfigurationError(f"--vllm_args is {text!r}: {error}") from None
    for word in args:
        if (name := word.partition("=")[0].replace("_", "-")) in _SET_BY_PIPELINE:
            raise ConfigurationError(
                f"--vllm_args has {name}, which the pipeline sets itself: remove it"
            )
    return args


def check(backend: VLLMBackend, config: "RunConfig") -> None:
    """A local run has an interpreter with vLLM; workers elsewhere have their own.

    It only looks for the package: importing vLLM takes longer than a check may.
    """
    if not config.local:
        return
    python, environment = backend.interpreter(os.environ)
    named = (
        f"--vllm_python is {backend.python!r}"
        if backend.python
        else f"{PYTHON_VARIABLE} is {python!r}"
        if os.environ.get(PYTHON_VARIABLE)
        else f"--vllm_python is not set and --backend vllm runs on {python!r}"
    )
    try:
        done = subprocess.run(  # noqa: S603 - the user chose the interpreter
            [python, "-c", _HAS_VLLM],
            env=environment,
            cwd="/",
            check=False,
            capture_output=True,
            timeout=_TIMEOUT_S,
        )
    except OSError as error:
        raise ConfigurationError(
            f"{named}, which cannot be run ({error.strerror}): set it to the Python that has vLLM"
        ) from None
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"{python} did not start within {_TIMEOUT_S:g} s") from None
    if done.returncode:
        raise ConfigurationError(
            f"{named}, which has no vLLM: install vLLM there, or set --vllm_python to the Python "
            "that has it"
        )


def check_gpu(values: "Values", gpu: Accelerator) -> None:
    """VLLM and its CUDA can use the GPUs and their driver.

    Most models are published in bfloat16; where the GPU cannot compute in it, a server that loads
    one ends at once.
    """
    if gpu.type in _TOO_OLD:
        raise ConfigurationError(
            f"{gpu.type} is too old for --backend=vllm, whose CUDA needs compute capability 7.5: "
            "take a newer one, such as nvidia-l4"
        )
    major = (gpu.driver or "").partition(".")[0]
    if major.isdecimal() and int(major) < MINIMUM_DRIVER:
        raise ConfigurationError(
            f"the driver is {gpu.driver!r}, but --backend=vllm needs {MINIMUM_DRIVER} or newer: "
            f"name one, or {DRIVER}"
        )
    args = server_args(values)
    if gpu.type in _WITHOUT_BF16 and option(args, "--dtype") not in _DTYPES_WITHOUT_BF16:
        raise ConfigurationError(
            f"{gpu.type} cannot compute in bfloat16, which most models are published in: add "
            "--dtype=half to --vllm_args, or take another GPU, such as nvidia-l4"
        )
    try:
        groups([str(number) for number in range(gpu.count)], args)
    except ValueError as error:
        raise ConfigurationError(
            f"--vllm_args is {values.text('vllm_args')!r}, but each worker has {gpu.count} of "
            f"{gpu.type}: {error}"
        ) from None


ADAPTER = BackendAdapter(
    name="vllm",
    make=make,
    check=check,
    check_gpu=check_gpu,
    flags=(
        GENERATE_API,
        Option("vllm_args", GROUP, "Arguments of vLLM's server (backend vllm).", metavar="ARGS"),
        Option("vllm_python", GROUP, "The Python that has vLLM (backend vllm).", metavar="PATH"),
        *GPU_OPTIONS,
    ),
    # One process: containers share no folder, so each would start a server of its own.
    dataflow=DataflowNeeds(gpu=True, gpu_driver=DRIVER, one_process=True, disk_gb=DISK_GB),
    images=("gpu",),
)
