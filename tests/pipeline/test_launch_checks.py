"""What Dataflow would take and fail on later: refused before the launch, with the remedy."""

import doctest

import pytest

from pipeline import launch_checks, placement
from pipeline.launch_checks import check_launch
from pipeline.options import parse_flags
from transforms.errors import ConfigurationError

JOB = ("--runner=DataflowRunner", "--temp_location=gs://b/t", "--sdk_container_image=i:1")
GPU = "--experiments=worker_accelerator=type:nvidia-l4;count:1;install-nvidia-driver:550"
T4 = "--experiments=worker_accelerator=type:nvidia-tesla-t4;count:1;install-nvidia-driver"


def _check(*argv: str) -> None:
    check_launch(parse_flags(argv))


def _refused(*argv: str) -> str:
    with pytest.raises(ConfigurationError) as raised:
        _check(*argv)
    return str(raised.value)


@pytest.mark.parametrize("module", [launch_checks, placement])
def test_examples(module: object) -> None:
    """The docstrings' examples are true."""
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


def test_what_can_run() -> None:
    """Complete jobs, and any local run."""
    _check(*JOB)
    _check(JOB[0], JOB[1], "--setup_file=./setup.py")
    _check(*JOB, GPU, "--machine_type=g2-standard-8")
    _check(*JOB, T4, "--machine_type=n1-standard-8")
    _check(*JOB, "--flexrs_goal=COST_OPTIMIZED")
    _check()
    _check("--runner=DirectRunner", GPU, "--flexrs_goal=COST_OPTIMIZED")


def test_what_a_job_needs() -> None:
    """A place for temporary files, and the code."""
    assert _refused(JOB[0]).startswith("--temp_location is missing: ")
    assert _refused(JOB[0], JOB[1]) == (
        "--sdk_container_image is missing: the workers would not have this code; give the "
        "template's image, or --setup_file=./setup.py"
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            [GPU, "--flexrs_goal=COST_OPTIMIZED"],
            "--flexrs_goal is 'COST_OPTIMIZED', but FlexRS has no GPUs and nvidia-l4 is asked for",
        ),
        (
            [GPU, "--machine_type=n2-standard-8"],
            "--machine_type is 'n2-standard-8', which cannot have nvidia-l4: it has no GPUs",
        ),
        (
            [T4, "--machine_type=g2-standard-8"],
            "--machine_type is 'g2-standard-8', which cannot have nvidia-tesla-t4: it can have ",
        ),
        (
            ["--dataflow_service_options=worker_accelerator=type:nvidia-l4;count:1"],
            "worker_accelerator asks for nvidia-l4 without a driver: add ;install-nvidia-driver",
        ),
        (
            ["--dataflow_service_options=worker_accelerator=nvidia-l4"],
            "'worker_accelerator=nvidia-l4' is no accelerator: write ",
        ),
        ([GPU, T4], "worker_accelerator is given 2 times: give it once"),
        (
            [GPU, "--resource_hint=accelerator=type:nvidia-l4;count:1;install-nvidia-driver"],
            "an accelerator is asked for twice",
        ),
        (
            ["--experiments=use_nvidia_mps,no_use_multiple_sdk_containers"],
            "use_nvidia_mps shares a GPU among processes",
        ),
    ],
)
def test_gpu_options_that_exclude_each_other(argv: list[str], message: str) -> None:
    """As service options or as experiments."""
    assert _refused(*JOB, *argv).startswith(message)


def test_bf16_on_an_old_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only vLLM loads a model on the worker, and only these GPUs cannot."""
    given = {"backend": "vllm", "vllm_args": ""}
    monkeypatch.setattr(launch_checks.Values, "of", lambda _: launch_checks.Values(given))
    _check(*JOB, GPU)
    assert _refused(*JOB, T4).startswith("nvidia-tesla-t4 cannot compute in bfloat16")
    given["vllm_args"] = "--dtype=half"
    _check(*JOB, T4)
    given |= {"backend": "gemini", "vllm_args": ""}
    _check(*JOB, T4)
