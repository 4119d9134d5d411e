"""Checks of what a local run needs to compute a model itself; workers elsewhere have their own."""

import importlib.util
import os
import subprocess

from transforms.backends.base import Backend
from transforms.backends.sentence_transformers import SentenceTransformersBackend
from transforms.backends.vllm.backend import VLLMBackend
from transforms.backends.vllm.launch import PYTHON_VARIABLE
from transforms.records.errors import ConfigurationError

_HAS_VLLM = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
_TIMEOUT_S = 4.0
"""Below that of a check: a slow disk is no reason to refuse."""


def check_local_model(backend: Backend) -> None:
    """The library of the model is here.

    Raises:
      ConfigurationError: It is not, with how to get it.
    """
    if isinstance(backend, SentenceTransformersBackend):
        if importlib.util.find_spec("sentence_transformers") is None:
            raise ConfigurationError(
                "--backend sentence_transformers: the package is not installed: pip install "
                "'.[embed]'"
            )
    elif isinstance(backend, VLLMBackend):
        _check_vllm(backend)


def _check_vllm(backend: VLLMBackend) -> None:
    """Looks for the package only: to import it takes longer than a check may."""
    python, environment = backend.interpreter(os.environ)
    named = (
        f"--vllm_python is {backend.python!r}"
        if backend.python
        else f"{PYTHON_VARIABLE} is {python!r}"
        if os.environ.get(PYTHON_VARIABLE)
        else f"--backend vllm runs on {python!r}, because no --vllm_python is given"
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
            f"{named}, which cannot be run ({error.strerror}): give the Python that has vLLM"
        ) from None
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"{python} did not start within {_TIMEOUT_S:g} s") from None
    if done.returncode:
        raise ConfigurationError(
            f"{named}, which has no vLLM: install it there, or give the Python that has it as "
            "--vllm_python"
        )
