"""Jobs that Dataflow would accept and fail later are refused before the launch, with the remedy."""

import doctest

import pytest

from pipeline.checks import launch as launch_checks
from pipeline.checks import placement
from pipeline.checks.launch import check_launch
from pipeline.options.command_line import parse_flags, parse_values
from pipeline.options.gpu import MACHINES
from transforms.records.errors import ConfigurationError

JOB = ("--runner=DataflowRunner", "--temp_location=gs://b/t", "--sdk_container_image=i:1")
GPU = "--experiments=worker_accelerator=type:nvidia-l4;count:1;install-nvidia-driver:580"
T4 = "--experiments=worker_accelerator=type:nvidia-tesla-t4;count:1;install-nvidia-driver"

L4, VLLM = "--gpu_type=nvidia-l4", "--backend=vllm"


def _check(*argv: str) -> None:
    options = parse_flags(argv)
    check_launch(parse_values(options), options)


def _refused(*argv: str) -> str:
    with pytest.raises(ConfigurationError) as raised:
        _check(*argv)
    return str(raised.value)


@pytest.mark.parametrize("module", [launch_checks, placement])
def test_examples(module: object) -> None:
    """The examples of the docstrings run as written."""
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


def test_valid_jobs() -> None:
    """Complete jobs and all local runs pass the checks."""
    _check(*JOB)
    _check(JOB[0], JOB[1], "--setup_file=./setup.py")
    _check(*JOB, GPU, "--machine_type=g2-standard-8")
    _check(*JOB, T4, "--machine_type=n1-standard-8")
    _check(*JOB, "--flexrs_goal=COST_OPTIMIZED")
    _check()
    _check("--runner=DirectRunner", GPU, "--flexrs_goal=COST_OPTIMIZED")


def test_requirements_of_a_job() -> None:
    """A job needs a place for temporary files and a way to get our code to its workers."""
    assert _refused(JOB[0]).startswith("--temp_location is missing: ")
    assert _refused(JOB[0], JOB[1]) == (
        "--sdk_container_image is missing: the workers would not have this code; set it to the "
        "template's image, or set --setup_file=./setup.py"
    )


def test_a_snapshot_and_write_streams_of_its_job() -> None:
    """A snapshot and its job's write streams exclude each other: BigQuery would drop new rows."""
    _check(*JOB, "--create_from_snapshot=s")
    assert _refused(*JOB, "--create_from_snapshot=s", "--exactly_once=true").startswith(
        "--create_from_snapshot does not go with --exactly_once=true: "
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            [GPU, "--flexrs_goal=COST_OPTIMIZED"],
            "--flexrs_goal is 'COST_OPTIMIZED', but FlexRS has no GPUs and the job requests nvidia-l4",
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
            "worker_accelerator requests nvidia-l4 without a driver: add ;install-nvidia-driver",
        ),
        (
            ["--dataflow_service_options=worker_accelerator=nvidia-l4"],
            "'worker_accelerator=nvidia-l4' is not an accelerator: write ",
        ),
        ([GPU, T4], "worker_accelerator is set 2 times: set it once"),
        (
            [GPU, "--resource_hint=accelerator=type:nvidia-l4;count:1;install-nvidia-driver"],
            "two settings request an accelerator",
        ),
        (
            ["--experiments=use_nvidia_mps,no_use_multiple_sdk_containers"],
            "use_nvidia_mps shares a GPU among processes",
        ),
    ],
)
def test_gpu_options_that_exclude_each_other(argv: list[str], message: str) -> None:
    """GPU options that exclude each other are rejected, as service options or as experiments."""
    assert _refused(*JOB, *argv).startswith(message)


def test_a_backend_that_no_image_has() -> None:
    """A template's image lacks this backend; a user's own image may have it."""
    own = (*JOB, "--backend=sentence_transformers", "--task=embed")
    _check(*own)
    assert _refused(*own, "--template_location=gs://b/job").startswith(
        "--backend is 'sentence_transformers', which no image of the templates has: "
    )


def test_vllm_without_an_accelerator() -> None:
    """Jobs with vLLM need an accelerator, however it is requested."""
    hint = "--resource_hint=accelerator=type:nvidia-l4;count:1;install-nvidia-driver:5xx"
    for given in (L4, GPU, hint):
        _check(*JOB, VLLM, given)
    expected = "--backend is 'vllm', but no worker has an accelerator: set --gpu_type"
    assert _refused(*JOB, VLLM).startswith(expected)
    assert _refused(*JOB, VLLM, "--machine_type=g2-standard-8").startswith(expected)
    _check(VLLM)


@pytest.mark.parametrize(
    ("dtype", "accepted"),
    [
        ("--dtype=half", True),
        ("--dtype float16", True),
        ("--dtype=float32 --kv-cache-dtype=auto", True),
        ("--dtype=bfloat16", False),
        ("--dtype bfloat16", False),
        ("--kv-cache-dtype=float16 --dtype=bfloat16", False),
        ("--kv-cache-dtype=half", False),
        ("--dtype=half --dtype=bfloat16", False),
    ],
)
def test_bf16_on_an_old_gpu(dtype: str, accepted: bool) -> None:
    """Only vLLM loads a model on the worker, so only its last ``--dtype`` decides about bf16."""
    message = "nvidia-tesla-t4 cannot compute in bfloat16"
    for asked in (T4, "--gpu_type=nvidia-tesla-t4"):
        given = (*JOB, asked, VLLM, f"--vllm_args={dtype}")
        if accepted:
            _check(*given)
        else:
            assert _refused(*given).startswith(message)
    assert _refused(*JOB, T4, VLLM).startswith(message)
    _check(*JOB, GPU, VLLM, f"--vllm_args={dtype}")
    _check(*JOB, T4, "--backend=gemini")


@pytest.mark.parametrize("gpu", ["nvidia-tesla-v100", "nvidia-tesla-p100", "nvidia-tesla-p4"])
def test_gpus_that_cuda_no_longer_supports(gpu: str) -> None:
    """GPUs that vLLM's CUDA no longer supports are rejected for vLLM only."""
    asked = f"--experiments=worker_accelerator=type:{gpu};count:1;install-nvidia-driver"
    assert _refused(*JOB, VLLM, asked, "--vllm_args=--dtype=half").startswith(
        f"{gpu} is too old for --backend=vllm"
    )
    _check(*JOB, asked, "--backend=gemini")


@pytest.mark.parametrize(
    ("driver", "accepted"),
    [("580", True), ("590.44.01", True), ("5xx", True), ("550", False), ("535.129.03", False)],
)
def test_drivers_older_than_the_cuda_of_vllm(driver: str, accepted: bool) -> None:
    """A named driver version older than vLLM's CUDA is rejected; named series are not."""
    for asked in ([GPU.replace("580", driver)], [L4, f"--gpu_driver={driver}"]):
        if accepted:
            _check(*JOB, VLLM, *asked)
        else:
            assert _refused(*JOB, VLLM, *asked) == (
                f"the driver is {driver!r}, but --backend=vllm needs 580 or newer: name one, or 5xx"
            )
    _check(*JOB, GPU.replace("580", driver), "--backend=gemini")


def test_a_server_that_needs_more_gpus() -> None:
    """A server that needs more GPUs than its worker has is rejected."""
    size = "--vllm_args=--tensor-parallel-size=2"
    for asked in (L4, GPU):
        assert _refused(*JOB, VLLM, asked, size) == (
            "--vllm_args is '--tensor-parallel-size=2', but each worker has 1 of nvidia-l4: the "
            "arguments request 2 GPUs, but the machine has 1"
        )
    _check(*JOB, VLLM, L4, "--gpu_count=2", size)


@pytest.mark.parametrize(
    ("gpu", "count", "machine"),
    [(gpu, count, machine) for gpu in MACHINES for count, machine in MACHINES[gpu].items()],
)
def test_our_own_machines_have_their_gpus(gpu: str, count: int, machine: str) -> None:
    """Each machine type of the table accepts its own number of GPUs and no other."""
    asked = (*JOB, VLLM, "--vllm_args=--dtype=half", f"--gpu_type={gpu}", f"--gpu_count={count}")
    _check(*asked)
    _check(*asked, f"--gpu_machine_type={machine}")
    if not machine.startswith("n1-"):
        wrong = (*JOB, VLLM, f"--gpu_type={gpu}", f"--gpu_machine_type={machine}")
        other = count + 1 if count + 1 in MACHINES[gpu] else 1
        if other != count and other in MACHINES[gpu]:
            assert "which has" in _refused(*wrong, f"--gpu_count={other}")


@pytest.mark.parametrize(
    ("gpu", "count", "machine"),
    [
        ("nvidia-h100-80gb", 8, "a3-ultragpu-8g"),
        ("nvidia-l4", 2, "g2-standard-4"),
        ("nvidia-l4", 2, "g2-standard-32"),
    ],
)
def test_machines_that_have_others(gpu: str, count: int, machine: str) -> None:
    """Machine types with other GPUs, by their family or their size, are rejected."""
    flags = (f"--gpu_type={gpu}", f"--gpu_count={count}", f"--gpu_machine_type={machine}")
    assert _refused(*JOB, VLLM, *flags).startswith(f"--gpu_machine_type is '{machine}', which ")


def test_flags_of_gpus_that_can_run() -> None:
    """The machine type of other steps is not checked: these need no GPU."""
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
            ["--machine_type=g2-standard-8"],
            "--machine_type is 'g2-standard-8', so every other step would have a GPU too: set it ",
        ),
        (
            [GPU],
            "two settings request an accelerator: remove worker_accelerator or --gpu_type",
        ),
        (
            ["--resource_hint=accelerator=type:nvidia-l4;count:1;install-nvidia-driver"],
            "two settings request an accelerator: remove --resource_hints or --gpu_type",
        ),
        (
            ["--experiments=use_nvidia_mps"],
            "use_nvidia_mps shares a GPU among processes, but --backend=vllm runs one process",
        ),
    ],
)
def test_flags_of_gpus_that_exclude_each_other(argv: list[str], message: str) -> None:
    """Our flags have the same rules as service options, in messages that name the flags."""
    assert _refused(*JOB, VLLM, L4, *argv).startswith(message)
