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

L4, VLLM = "--gpu_type=nvidia-l4", "--backend=vllm"


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


def test_a_snapshot_and_write_streams_of_its_job() -> None:
    """Other rows would be taken for written."""
    _check(*JOB, "--create_from_snapshot=s")
    assert _refused(*JOB, "--create_from_snapshot=s", "--exactly_once=true").startswith(
        "--create_from_snapshot does not go with --exactly_once=true: "
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


def test_bf16_on_an_old_gpu() -> None:
    """Only vLLM loads a model on the worker, and only these GPUs cannot."""
    _check(*JOB, GPU, VLLM)
    assert _refused(*JOB, T4, VLLM).startswith("nvidia-tesla-t4 cannot compute in bfloat16")
    _check(*JOB, T4, VLLM, "--vllm_args=--dtype=half")
    assert "bfloat16" in _refused(*JOB, T4, VLLM, "--vllm_args=--dtype=bfloat16")
    _check(*JOB, T4, "--backend=gemini")
    assert "bfloat16" in _refused(*JOB, VLLM, "--gpu_type=nvidia-tesla-t4")


def test_flags_of_gpus_that_can_run() -> None:
    """The other steps' machine is not asked: theirs needs no GPU."""
    _check(*JOB, VLLM, L4)
    _check(*JOB, VLLM, L4, "--machine_type=n2-standard-8")
    _check(*JOB, VLLM, L4, "--gpu_machine_type=g2-standard-12")
    _check(*JOB, VLLM, L4, "--gpu_count=4", "--gpu_machine_type=g2-standard-48")
    _check(*JOB, VLLM, "--gpu_type=nvidia-h200-141gb")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--gpu_machine_type=n2-standard-8"],
            "--gpu_machine_type is 'n2-standard-8', which cannot have nvidia-l4: it has no GPUs",
        ),
        (
            ["--gpu_machine_type=a2-highgpu-1g"],
            "--gpu_machine_type is 'a2-highgpu-1g', which cannot have nvidia-l4: it can have ",
        ),
        (
            ["--gpu_count=2", "--gpu_machine_type=g2-standard-8"],
            "--gpu_machine_type is 'g2-standard-8', which has 1 of nvidia-l4, not 2",
        ),
        (
            ["--gpu_type=nvidia-tesla-a100", "--gpu_machine_type=a2-highgpu-4g"],
            "--gpu_machine_type is 'a2-highgpu-4g', which has 4 of nvidia-tesla-a100, not 1",
        ),
        (["--flexrs_goal=COST_OPTIMIZED"], "--flexrs_goal is 'COST_OPTIMIZED', but FlexRS has no"),
        (
            [GPU],
            "an accelerator is asked for twice: remove worker_accelerator or --gpu_type",
        ),
        (
            ["--resource_hint=accelerator=type:nvidia-l4;count:1;install-nvidia-driver"],
            "an accelerator is asked for twice: remove --resource_hints or --gpu_type",
        ),
        (
            ["--experiments=use_nvidia_mps"],
            "use_nvidia_mps shares a GPU among processes, but --backend=vllm runs one server",
        ),
    ],
)
def test_flags_of_gpus_that_exclude_each_other(argv: list[str], message: str) -> None:
    """The same rules as for service options, in the words of our flags."""
    assert _refused(*JOB, VLLM, L4, *argv).startswith(message)
