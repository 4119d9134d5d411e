"""Streams, from the script to the recorded job: with GPUs, staged as a template, and updated."""

import json

import pytest

from templates import render
from tests.emulators.dataflow_server import DataflowServer
from tests.emulators.google_cloud import LoopbackCloud
from tests.pipeline.streaming_steps import HERE
from tests.templates.conftest import Script
from tests.templates.launches import (
    GPU_IMAGE,
    IMAGE,
    RUNNING,
    Launched,
    launch,
    launcher_argv,
    sent,
)

(_, STREAMING) = render.TEMPLATES
LOCATION = "staging/template_launches/1/job_object"


def _flags(cloud: LoopbackCloud, bucket: str) -> list[str]:
    """A stream whose graph is that of `tests.pipeline.streaming_steps`."""
    table = cloud.new_dataset().replace(".", ":") + ".answers"
    return [
        "--project=emu-proj", "--region=us-central1", f"--bucket={bucket}", "--job=answers",
        "input_subscription=projects/emu-proj/subscriptions/tickets", "prompt=Say {{ text }}",
        'output_schema={"type": "object"}', f"output_table={table}",
        "dead_letter_topic=projects/emu-proj/topics/dead",
    ]  # fmt: skip


FAKE = ("backend=fake", "model=fake")


def _kept_steps() -> set[str]:
    """The names of all steps of a running job."""
    lines = (HERE / "streaming_steps.txt").read_text("utf-8").splitlines()
    outputs = [line for line in lines if " [" in line]
    return {line.rpartition(" [")[0].partition(" [")[0] for line in outputs}


def _streamed(
    cloud: LoopbackCloud,
    dataflow: DataflowServer,
    bucket: str,
    *more: str,
    worker_image: str = "",
) -> Launched:
    """The job of the streaming launch request to Dataflow."""
    spec = render.container_spec(STREAMING, IMAGE, worker_image)
    argv = launcher_argv(sent(dataflow), spec, "emu-proj", "us-central1")
    found = launch(cloud, dataflow, bucket, [*argv, *more])
    assert found.code == 0, found.messages
    return found


def test_streaming_job_and_its_update(
    script: Script, dataflow: DataflowServer, loopback_cloud: LoopbackCloud, inputs: str
) -> None:
    """A stream runs on the Streaming Engine with exactly-once; an update finds every step again."""
    flags = [*_flags(loopback_cloud, inputs), *FAKE]
    done = script("run_streaming.sh", *flags)
    assert done.returncode == 0, done.stderr
    first = _streamed(loopback_cloud, dataflow, inputs)
    (job,) = first.jobs
    assert job["type"] == 2  # JOB_TYPE_STREAMING
    assert first.options["streaming"] is True
    assert "enable_streaming_engine" in first.environment["experiments"]
    assert first.environment["serviceOptions"] == ["streaming_mode_exactly_once"]
    assert first.leaves == _kept_steps()
    assert first.accelerators == {}

    dataflow.calls.clear()
    dataflow.jobs.append(RUNNING)
    done = script("update_streaming.sh", *flags, "max_batch_size=64")
    assert done.returncode == 0, done.stderr
    assert sent(dataflow)["update"] is True
    second = _streamed(loopback_cloud, dataflow, inputs)
    (job,) = second.jobs
    assert job["replaceJobId"] == RUNNING["id"]
    assert second.leaves == first.leaves


def test_stream_with_gpus(
    script: Script, dataflow: DataflowServer, loopback_cloud: LoopbackCloud, inputs: str
) -> None:
    """Only one step has GPUs, and all names are those of a stream without them."""
    done = script(
        "run_streaming.sh", *_flags(loopback_cloud, inputs), "--gpu=nvidia-l4",
        "backend=vllm", "model=gs://b/models/m", "--experiment=streaming_mode_at_least_once",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sent(dataflow)["containerSpecGcsPath"] == f"gs://{inputs}/templates/streaming-gpu.json"
    found = _streamed(loopback_cloud, dataflow, inputs, worker_image=GPU_IMAGE)
    wanted = "type:nvidia-l4;count:1;machine_type:g2-standard-8;install-nvidia-driver:5xx"
    assert found.accelerators == {"Infer/CallModel/ParDo(_CallModelDoFn)": wanted}
    assert found.leaves == _kept_steps()
    assert (found.images, found.pool["diskSizeGb"]) == ({GPU_IMAGE}, 200)
    experiments = found.environment["experiments"]
    assert {"enable_streaming_rightfitting", "no_use_multiple_sdk_containers"} <= set(experiments)
    assert "streaming_mode_at_least_once" in experiments


@pytest.mark.parametrize("update", [False, True], ids=["new", "update"])
def test_streaming_template_location(
    script: Script,
    dataflow: DataflowServer,
    loopback_cloud: LoopbackCloud,
    inputs: str,
    update: bool,
) -> None:
    """The job is written to a file, and the service finds the job that an update replaces."""
    dataflow.jobs.append(RUNNING)
    name = "update_streaming.sh" if update else "run_streaming.sh"
    done = script(name, *_flags(loopback_cloud, inputs), *FAKE)
    assert done.returncode == 0, done.stderr
    location = f"--template_location=gs://{inputs}/{LOCATION}"
    found = _streamed(loopback_cloud, dataflow, inputs, location)
    assert found.jobs == []
    job = json.loads(found.objects[LOCATION])
    assert (job["name"], job["type"]) == ("answers", "JOB_TYPE_STREAMING")
    assert job.get("replaceJobId") == (RUNNING["id"] if update else None)
    assert "template staged" in found.messages
    assert found.leaves == _kept_steps()
