"""A local run needs an interpreter with vLLM; Dataflow's workers have their own."""

import dataclasses
import pathlib
import sys
from typing import Any

import pytest

from pipeline.backends.vllm import check
from pipeline.config import RunConfig
from pipeline.options.command_line import parse_flags
from tests.transforms.backends.vllm.servers import FAKE_VLLM
from transforms.backends.vllm.backend import VLLMBackend
from transforms.records.errors import ConfigurationError

BASE = ("--input_files=gs://b/a", "--prompt=p", "--output_path=gs://b/o", "--input_format=txt")
RUN = (*BASE, "--backend=vllm", "--model=m", "--vllm_python=/no/python")


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clears the machine's own settings."""
    monkeypatch.delenv("VLLM_PYTHON", raising=False)


def _check(**fields: Any) -> None:
    backend = VLLMBackend(model="m", **fields)
    check(backend, dataclasses.replace(RunConfig.from_options(parse_flags(RUN)), backend=backend))


def _refused(**fields: Any) -> str:
    with pytest.raises(ConfigurationError) as raised:
        _check(**fields)
    return str(raised.value)


def test_an_interpreter_with_vllm() -> None:
    """A local run uses the named interpreter, or else this one."""
    there = (("PYTHONPATH", FAKE_VLLM),)
    _check(environment=there)
    _check(python=sys.executable, environment=there)


def test_an_interpreter_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the interpreter lacks vLLM, the message says which setting chose it."""
    python = sys.executable
    remedy = "which has no vLLM: install vLLM there, or set --vllm_python to the Python that has it"
    assert _refused() == (
        f"--vllm_python is not set and --backend vllm runs on {python!r}, {remedy}"
    )
    assert _refused(python=python) == f"--vllm_python is {python!r}, {remedy}"
    monkeypatch.setenv("VLLM_PYTHON", python)
    assert _refused() == f"VLLM_PYTHON is {python!r}, {remedy}"


def test_no_interpreter(tmp_path: pathlib.Path) -> None:
    """A missing or broken interpreter is rejected."""
    assert _refused(python="/no/python") == (
        "--vllm_python is '/no/python', which cannot be run (No such file or directory): set it to "
        "the Python that has vLLM"
    )
    assert "(Permission denied)" in _refused(python=str(tmp_path))


def test_only_where_the_model_runs() -> None:
    """A remote job needs no interpreter with vLLM on this machine."""
    remote = ("--runner=DataflowRunner", "--project=p", "--region=r", "--temp_location=gs://b/t")
    for argv in ((*RUN, *remote), RUN):
        config = RunConfig.from_options(parse_flags(argv))
        if config.local:
            with pytest.raises(ConfigurationError, match="--vllm_python is '/no/python', which"):
                config.adapter.check(config.backend, config)
        else:
            config.adapter.check(config.backend, config)
