"""A local run with a model of its own: the library has to be here; elsewhere it is not asked for."""

import pathlib
import sys

import pytest

from pipeline.checks.all import check_backend
from pipeline.checks.local_model import check_local_model
from pipeline.config import RunConfig
from pipeline.options.command_line import parse_flags
from tests.transforms.backends.vllm.servers import FAKE_VLLM
from transforms.backends.vllm.backend import VLLMBackend
from transforms.records.errors import ConfigurationError


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the machine's own settings counts."""
    monkeypatch.delenv("VLLM_PYTHON", raising=False)


def _refused(backend: VLLMBackend) -> str:
    with pytest.raises(ConfigurationError) as raised:
        check_local_model(backend)
    return str(raised.value)


def test_an_interpreter_with_vllm() -> None:
    """Named, or this one."""
    there = (("PYTHONPATH", FAKE_VLLM),)
    check_local_model(VLLMBackend(model="m", environment=there))
    check_local_model(VLLMBackend(model="m", python=sys.executable, environment=there))


def test_an_interpreter_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who chose it is in the message."""
    python = sys.executable
    remedy = "which has no vLLM: install it there, or give the Python that has it as --vllm_python"
    assert _refused(VLLMBackend(model="m")) == (
        f"--backend vllm runs on {python!r}, because no --vllm_python is given, {remedy}"
    )
    assert (
        _refused(VLLMBackend(model="m", python=python)) == f"--vllm_python is {python!r}, {remedy}"
    )
    monkeypatch.setenv("VLLM_PYTHON", python)
    assert _refused(VLLMBackend(model="m")) == f"VLLM_PYTHON is {python!r}, {remedy}"


def test_no_interpreter(tmp_path: pathlib.Path) -> None:
    """No such file, or none that runs."""
    assert _refused(VLLMBackend(model="m", python="/no/python")) == (
        "--vllm_python is '/no/python', which cannot be run (No such file or directory): give the "
        "Python that has vLLM"
    )
    assert "(Permission denied)" in _refused(VLLMBackend(model="m", python=str(tmp_path)))


def test_only_where_the_model_runs() -> None:
    """Dataflow's workers have an interpreter of their own."""
    base = ("--input_files=gs://b/a", "--prompt=p", "--output_path=gs://b/o", "--input_format=txt")
    vllm = (*base, "--backend=vllm", "--model=m", "--vllm_python=/no/python")
    remote = ("--runner=DataflowRunner", "--project=p", "--region=r", "--temp_location=gs://b/t")
    check_backend(RunConfig.from_options(parse_flags([*vllm, *remote])))
    with pytest.raises(ConfigurationError, match="--vllm_python is '/no/python', which cannot"):
        check_backend(RunConfig.from_options(parse_flags(vllm)))
