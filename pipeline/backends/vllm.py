"""``--backend=vllm``: a vLLM server on each worker's own GPUs."""

import os
import shlex
import subprocess
from typing import TYPE_CHECKING

from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.backends.base import BackendAdapter, DataflowNeeds
from pipeline.backends.openai import GENERATE_API
from pipeline.backends.shared import EMBEDDING_BATCH_SIZE, GROUP, MODEL
from pipeline.options.flag import Flag, Form, Kind
from pipeline.options.gpu import DISK_GB, GPU_FLAGS, Accelerator
from pipeline.options.kinds import text_kind
from pipeline.options.request import (
    ACCEPT_TRUNCATED,
    GENERATION_CONFIG,
    REQUEST_OPTIONS,
    TASK,
)
from pipeline.options.values import Values
from transforms.backends.vllm.backend import VLLMBackend
from transforms.backends.vllm.gpus import groups, option
from transforms.backends.vllm.launch import PYTHON_VARIABLE
from transforms.records.errors import ConfigurationError

if TYPE_CHECKING:
    from pipeline.config import RunConfig

DRIVER = "5xx"
"""Dataflow's newest driver of that series; the one it installs by default is older."""
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


def _server_args(text: str, flag: str) -> tuple[str, ...]:
    """The arguments of vLLM's server, as a shell would split them."""
    try:
        args = tuple(shlex.split(text))
    except ValueError as error:
        raise ConfigurationError(f"{flag} is {text!r}: {error}") from None
    for word in args:
        if (name := word.partition("=")[0].replace("_", "-")) in _SET_BY_PIPELINE:
            raise ConfigurationError(
                f"{flag} has {name}, which the pipeline sets itself: remove it"
            )
    return args


VLLM_ARGS: Flag[tuple[str, ...]] = Flag(
    "vllm_args",
    GROUP,
    "Arguments for vLLM's server (backend vllm).",
    Kind(
        _server_args,
        "ARGS",
        Form("TEXT", "^--.*$", "--max-model-len=8192 --dtype=half"),
        text=" ".join,
    ),
    of=VLLMBackend,
    field="args",
)
VLLM_PYTHON: Flag[str | None] = Flag(
    "vllm_python",
    GROUP,
    "The Python interpreter that has vLLM (backend vllm).",
    text_kind("PATH", "TEXT", "^/[^[:space:]]+$", "/opt/vllm/bin/python"),
    of=VLLMBackend,
    field="python",
)


def make(values: Values, options: PipelineOptions) -> VLLMBackend:
    """The backend.

    Raises:
      ConfigurationError: The model is missing, or vLLM would ignore or refuse an argument.
    """
    for flag in (GENERATION_CONFIG, REQUEST_OPTIONS):
        if ignored := [name for name in values[flag] if name.startswith("guided_")]:
            raise ConfigurationError(
                f"{flag} has {ignored[0]!r}, which vLLM silently ignores: use --output_schema, "
                "or structured_outputs in --request_options"
            )
    return VLLMBackend(
        model=values.require(MODEL, "a name on the Hugging Face hub, a folder, or gs://…"),
        task=values[TASK],
        api=values[GENERATE_API],
        python=values[VLLM_PYTHON],
        args=values[VLLM_ARGS],
        accept_truncated=values[ACCEPT_TRUNCATED],
        max_texts_per_call=values[EMBEDDING_BATCH_SIZE],
    )


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


def check_gpu(values: Values, gpu: Accelerator) -> None:
    """VLLM and its CUDA can use the GPUs and their driver.

    Most models are published in bfloat16; where the GPU cannot compute in it, a server that loads
    one exits immediately.
    """
    if gpu.type in _TOO_OLD:
        raise ConfigurationError(
            f"{gpu.type} is too old for --backend=vllm, whose CUDA needs compute capability 7.5: "
            "use a newer one, such as nvidia-l4"
        )
    major = (gpu.driver or "").partition(".")[0]
    if major.isdecimal() and int(major) < MINIMUM_DRIVER:
        raise ConfigurationError(
            f"the driver is {gpu.driver!r}, but --backend=vllm needs {MINIMUM_DRIVER} or newer: "
            f"name one, or {DRIVER}"
        )
    args = values[VLLM_ARGS]
    if gpu.type in _WITHOUT_BF16 and option(args, "--dtype") not in _DTYPES_WITHOUT_BF16:
        raise ConfigurationError(
            f"{gpu.type} cannot compute in bfloat16, which most models are published in: add "
            "--dtype=half to --vllm_args, or use another GPU, such as nvidia-l4"
        )
    try:
        groups([str(number) for number in range(gpu.count)], args)
    except ValueError as error:
        raise ConfigurationError(
            f"{VLLM_ARGS} is {values.text(VLLM_ARGS)!r}, but each worker has {gpu.count} of "
            f"{gpu.type}: {error}"
        ) from None


ADAPTER = BackendAdapter(
    name="vllm",
    make=make,
    check=check,
    check_gpu=check_gpu,
    generates=(GENERATE_API,),
    flags=(GENERATE_API, VLLM_ARGS, VLLM_PYTHON, EMBEDDING_BATCH_SIZE, *GPU_FLAGS),
    # One process: containers share no folder, so each would start a server of its own.
    dataflow=DataflowNeeds(gpu=True, gpu_driver=DRIVER, one_process=True, disk_gb=DISK_GB),
    images=("gpu",),
)
