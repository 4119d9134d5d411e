"""Jobs with GPUs, from the script to the staged pipeline: for one step, or for all workers."""

import pytest

from templates import render
from tests.emulators.dataflow_server import DataflowServer
from tests.emulators.google_cloud import LoopbackCloud
from tests.templates.conftest import Script
from tests.templates.launches import (
    GPU_IMAGE,
    Launched,
    batch_parameters,
    launch,
    launcher_argv,
    sent,
)

(BATCH, _) = render.TEMPLATES


def _launched(
    script: Script, dataflow: DataflowServer, cloud: LoopbackCloud, bucket: str, *flags: str
) -> Launched:
    """A batch job with vLLM from the template for GPUs."""
    given = [*batch_parameters(bucket), "backend=vllm", "model=gs://b/models/m"]
    done = script(
        "run_batch.sh", "--project=emu-proj", "--region=us-central1", f"--bucket={bucket}",
        *flags, *[word for word in given if word not in ("backend=fake", "model=fake")],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    launched = sent(dataflow)
    assert launched["containerSpecGcsPath"] == f"gs://{bucket}/templates/batch-gpu.json"
    spec = render.container_spec(BATCH, "us-docker.pkg.dev/p/r/inference:1", GPU_IMAGE)
    argv = launcher_argv(launched, spec, "emu-proj", "us-central1")
    found = launch(cloud, dataflow, bucket, argv)
    assert found.code == 0, found.messages
    assert found.images == {GPU_IMAGE}
    assert found.pool["diskSizeGb"] == 200
    experiments = found.environment["experiments"]
    assert "no_use_multiple_sdk_containers" in experiments
    assert "use_multiple_sdk_containers" not in experiments  # Beam's default
    return found


def test_gpus_for_the_step_that_calls_the_model(
    script: Script, dataflow: DataflowServer, loopback_cloud: LoopbackCloud, inputs: str
) -> None:
    """The calling step's machine fits its number of GPUs; other steps have an ordinary one."""
    found = _launched(
        script, dataflow, loopback_cloud, inputs,
        "--gpu=nvidia-l4", "--gpu_count=2", "--gpu_driver=580", "--reservation=automatic",
        "--machine_type=n2-standard-4",
    )  # fmt: skip
    wanted = "type:nvidia-l4;count:2;machine_type:g2-standard-24;install-nvidia-driver:580"
    assert found.accelerators == {"Infer/CallModel/ParDo(_CallModelDoFn)": wanted}
    assert found.pool["machineType"] == "n2-standard-4"
    experiments = found.environment["experiments"]
    assert "automatically_use_created_reservation" in experiments
    assert not any("worker_accelerator" in experiment for experiment in experiments)


def test_gpus_for_all_workers(
    script: Script, dataflow: DataflowServer, loopback_cloud: LoopbackCloud, inputs: str
) -> None:
    """A service option of Dataflow requests GPUs for all workers, without resource hints."""
    accelerator = "worker_accelerator=type:nvidia-l4;count:1;install-nvidia-driver:5xx"
    found = _launched(
        script, dataflow, loopback_cloud, inputs,
        f"--template=gs://{inputs}/templates/batch-gpu.json", "--machine_type=g2-standard-8",
        f"--experiment={accelerator}",
    )  # fmt: skip
    assert found.accelerators == {}
    assert found.pool["machineType"] == "g2-standard-8"
    assert accelerator in found.environment["experiments"]


def test_the_template_without_gpus_refuses_them(
    script: Script, dataflow: DataflowServer, inputs: str
) -> None:
    """Without GPUs the template's form has neither the backend nor the GPU, as at the service."""
    spec = render.container_spec(BATCH, "image")
    for words, message in (
        (["backend=vllm", "model=m"], "backend=vllm does not match"),
        (["model=m", "gpu_type=nvidia-l4"], "undeclared: {'gpu_type'}"),
        (["prompt=x"], "model is missing"),
    ):
        dataflow.calls.clear()
        flags = ["--project=p", "--region=us-central1", f"--bucket={inputs}", *words]
        assert script("run_batch.sh", *flags).returncode == 0
        with pytest.raises(AssertionError, match=message):
            launcher_argv(sent(dataflow), spec, "p", "us-central1")
