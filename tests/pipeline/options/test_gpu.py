"""GPU flags: hints for the one step that calls the model, and rejected combinations."""

from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import DebugOptions, WorkerOptions
from apache_beam.transforms.resources import AcceleratorHint

from pipeline.build import build
from pipeline.config import RunConfig
from pipeline.main import set_defaults
from pipeline.options.command_line import parse_flags
from pipeline.options.gpu import MACHINES
from transforms.records.errors import ConfigurationError

BASE = ("--input_files=gs://b/a.jsonl", "--prompt=Hello", "--output_path=gs://b/out")
VLLM = ("--backend=vllm", "--model=m")
DATAFLOW = ("--runner=DataflowRunner", "--project=p", "--region=r", "--temp_location=gs://b/t")
JOB = (*BASE, *VLLM, *DATAFLOW)
STREAM = (
    "--input_subscription=projects/a-project/subscriptions/tickets",
    "--prompt=Hello",
    "--output_table=p:d.t",
    *VLLM,
    *DATAFLOW,
)


def _config(*argv: str) -> RunConfig:
    return RunConfig.from_options(parse_flags(argv))


def _refused(*argv: str) -> str:
    with pytest.raises(ConfigurationError) as raised:
        _config(*argv)
    return str(raised.value)


def test_hints() -> None:
    """The hint's machine has this many GPUs, and its default driver supports vLLM's CUDA."""
    assert _config(*JOB, "--gpu_type=nvidia-l4").resource_hints == {
        "accelerator": "type:nvidia-l4;count:1;machine_type:g2-standard-8;install-nvidia-driver:5xx"
    }
    argv = ("--gpu_type=nvidia-tesla-a100", "--gpu_count=2", "--gpu_driver=580")
    assert _config(*JOB, *argv).resource_hints == {
        "accelerator": "type:nvidia-tesla-a100;count:2;machine_type:a2-highgpu-2g;"
        "install-nvidia-driver:580"
    }
    embed = ("--backend=sentence_transformers", "--task=embed", "--model=m")
    others = _config(*BASE, *DATAFLOW, *embed, "--gpu_type=nvidia-l4").resource_hints["accelerator"]
    assert others.endswith(";install-nvidia-driver")
    named = ("--gpu_type=nvidia-l4", "--gpu_machine_type=g2-standard-32")
    assert "machine_type:g2-standard-32;" in _config(*JOB, *named).resource_hints["accelerator"]
    only_eight = _config(*JOB, "--gpu_type=nvidia-h200-141gb").resource_hints["accelerator"]
    assert only_eight.startswith("type:nvidia-h200-141gb;count:8;machine_type:a3-ultragpu-8g")
    assert _config(*JOB).resource_hints == {}
    assert all(MACHINES.values())


def _hinted(proto: Any) -> Iterator[str]:
    """The names of the steps that run on an accelerator."""
    components = proto.components
    for step in components.transforms.values():
        place = components.environments.get(step.environment_id)
        if (
            place is not None
            and AcceleratorHint.urn in place.resource_hints
            and not (step.subtransforms)
        ):
            yield step.unique_name


def test_only_the_call_has_a_gpu() -> None:
    """Only the step that calls the model has a GPU; the others run on ordinary machines."""
    for gpu, expected in (("--gpu_type=nvidia-l4", True), ("--gpu_type=", False)):
        root = beam.Pipeline()  # a Dataflow runner would ask Cloud Storage
        build(root, _config(*JOB, gpu))
        names = set(_hinted(root.to_runner_api()))
        assert bool(names) is expected
        assert all(name.startswith("Infer/CallModel") for name in names)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            [*JOB, "--gpu_type=nvidia-l40"],
            "--gpu_type is 'nvidia-l40', but must be one of: nvidia-l4, ",
        ),
        ([*JOB, "--gpu_type=nvidia-tesla-v100"], "--gpu_type is 'nvidia-tesla-v100', but must be"),
        (
            [*BASE, *VLLM, "--gpu_type=nvidia-l4"],
            "--gpu_type is 'nvidia-l4', but the runner is the local one, which uses the GPUs ",
        ),
        (
            [*BASE, *VLLM, "--gpu_type=nvidia-l4", "--runner=DirectRunner"],
            "--gpu_type is 'nvidia-l4', but the runner is DirectRunner, ",
        ),
        (
            [*BASE, *DATAFLOW, "--model=m", "--backend=openai", "--gpu_type=nvidia-l4"],
            "--gpu_type is 'nvidia-l4', but backend openai does not take it: ",
        ),
        ([*JOB, "--gpu_count=2"], "--gpu_count is '2', but the job has no GPU: set --gpu_type"),
        ([*JOB, "--gpu_driver=5xx"], "--gpu_driver is '5xx', but the job has no GPU: "),
        (
            [*JOB, "--gpu_machine_type=g2-standard-8"],
            "--gpu_machine_type is 'g2-standard-8', but the job has no GPU: ",
        ),
        (
            [*JOB, "--gpu_type=nvidia-l4", "--gpu_count=3"],
            "--gpu_count is 3, but a machine has 1 or 2 or 4 or 8 of nvidia-l4",
        ),
        (
            [*JOB, "--gpu_type=nvidia-h200-141gb", "--gpu_count=1"],
            "--gpu_count is 1, but a machine has 8 of nvidia-h200-141gb",
        ),
        (
            [*JOB, "--gpu_type=nvidia-l4", "--gpu_count=two"],
            "--gpu_count is 'two', but must be a whole number",
        ),
        (
            [*JOB, "--gpu_type=nvidia-l4", "--gpu_driver=5;x"],
            "--gpu_driver is '5;x', but must be a version, such as 5xx: correct or remove it",
        ),
    ],
)
def test_refused(argv: list[str], message: str) -> None:
    """A wrong combination is rejected with the value and the remedy."""
    assert _refused(*argv).startswith(message)


def _completed(*argv: str) -> Any:
    options = parse_flags(argv)
    set_defaults(options, RunConfig.from_options(options))
    return options


def test_defaults_of_a_job_with_a_gpu() -> None:
    """A GPU job gets one container and a disk that holds weights; the user's own values stay."""
    options = _completed(*JOB, "--gpu_type=nvidia-l4")
    assert options.view_as(WorkerOptions).disk_size_gb == 200
    experiments = options.view_as(DebugOptions).experiments
    assert "no_use_multiple_sdk_containers" in experiments
    assert "enable_streaming_rightfitting" not in experiments
    options = _completed(
        *STREAM,
        "--gpu_type=nvidia-l4",
        "--disk_size_gb=500",
        "--experiments=no_use_multiple_sdk_containers",
    )
    assert options.view_as(WorkerOptions).disk_size_gb == 500
    experiments = options.view_as(DebugOptions).experiments
    assert experiments.count("no_use_multiple_sdk_containers") == 1
    assert "enable_streaming_rightfitting" in experiments


def test_defaults_of_other_jobs() -> None:
    """Jobs with vLLM on all workers get disk and container too; others and local runs do not."""
    options = _completed(*JOB)
    assert options.view_as(WorkerOptions).disk_size_gb == 200
    assert options.view_as(DebugOptions).experiments == ["no_use_multiple_sdk_containers"]
    for argv in ((*BASE, *DATAFLOW, "--backend=fake"), (*BASE, *VLLM)):
        options = _completed(*argv)
        assert not options.view_as(DebugOptions).experiments
        assert options.view_as(WorkerOptions).disk_size_gb is None


def test_a_quota_is_shared_by_one_process_per_worker() -> None:
    """The quota counts one process per worker, although the container count is set later."""
    config = _config(*JOB, "--max_requests_per_minute=100", "--max_num_workers=4")
    assert config.limits.requests_per_minute == 25
