"""A real launch: gcloud, the launcher's argv, our entry point, the recorded job.

Each launch is a process of its own, with Google's clients, against services on loopback; the
docstring of `tests.templates.launches` lists the limits of this.
"""

import json

import pytest

from templates import render
from tests.emulators.dataflow_server import DataflowServer
from tests.emulators.google_cloud import LoopbackCloud
from tests.templates.conftest import Script
from tests.templates.launches import (
    IMAGE,
    RUNNING,
    batch_parameters,
    launch,
    launcher_argv,
    sent,
)

(BATCH, _) = render.TEMPLATES


def test_batch_job_from_gcloud_to_dataflow(
    script: Script, dataflow: DataflowServer, loopback_cloud: LoopbackCloud, inputs: str
) -> None:
    """Dataflow's job has all of the script's flags; values keep commas and spaces."""
    done = script(
        "run_batch.sh", "--project=emu-proj", "--region=us-central1", f"--bucket={inputs}",
        "--job=answers", "--service_account=worker@emu-proj.example.com",
        "--network=n", "--subnetwork=regions/us-central1/subnetworks/s", "--labels=team=support,env=test",
        "--kms_key=projects/p/locations/us-central1/keyRings/r/cryptoKeys/k",
        "--num_workers=2", "--max_workers=5", "--machine_type=n2-standard-4", "--flexrs",
        "--experiment=enable_recommendations", "--option=update_compatibility_version=2.77.0",
        *batch_parameters(inputs), "max_requests_per_minute=600", "resource_labels=team=ml",
        "number_of_worker_harness_threads=7", "disk_size_gb=77",
        "dataflow_service_options=automatically_use_created_reservation,enable_prime=no",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    launched = sent(dataflow)
    assert launched["containerSpecGcsPath"] == f"gs://{inputs}/templates/batch.json"
    assert launched["parameters"]["prompt"] == "Answer, shortly: {{ text }}"

    spec = render.container_spec(BATCH, IMAGE)
    argv = launcher_argv(launched, spec, "emu-proj", "us-central1")
    found = launch(loopback_cloud, dataflow, inputs, argv)
    assert found.code == 0, found.messages
    (job,) = found.jobs
    assert (job["name"], job["type"]) == ("answers", 1)  # JOB_TYPE_BATCH
    assert job["labels"] == {
        "goog-dataflow-provided-template-type": "flex",
        "pipeline": "batch-inference",
        "team": "ml",  # ours overrides the launch's
        "env": "test",
    }
    pool = found.pool
    assert pool["machineType"] == "n2-standard-4"
    assert pool["numWorkers"] == 2
    assert pool["autoscalingSettings"]["maxNumWorkers"] == 5
    assert pool["diskSizeGb"] == 77
    assert pool["numThreadsPerWorker"] == 7
    assert pool["network"] == "n"
    assert pool["subnetwork"] == "regions/us-central1/subnetworks/s"
    assert pool["ipConfiguration"] == 2  # WORKER_IP_PRIVATE
    assert pool["workerHarnessContainerImage"] == IMAGE
    assert [image["containerImage"] for image in pool["sdkHarnessContainerImages"]] == [IMAGE]
    environment = found.environment
    assert environment["serviceAccountEmail"] == "worker@emu-proj.example.com"
    assert environment["serviceKmsKeyName"].endswith("/cryptoKeys/k")
    assert environment["flexResourceSchedulingGoal"] == 2  # FLEXRS_COST_OPTIMIZED
    assert environment["serviceOptions"] == [
        "automatically_use_created_reservation",
        "enable_prime=no",
    ]
    assert "enable_recommendations" in environment["experiments"]
    assert found.options["update_compatibility_version"] == "2.77.0"
    assert not found.options.get("streaming")
    assert found.steps >= {"ReadRecords", "RenderRequests", "BatchRequests", "Infer"}
    images = {e.payload for e in found.pipeline.components.environments.values()}
    assert all(IMAGE.encode() in payload for payload in images)
    assert found.accelerators == {}


def test_template_location(
    dataflow: DataflowServer, loopback_cloud: LoopbackCloud, inputs: str
) -> None:
    """The job is written to a file, without a call to Dataflow and without a wait."""
    argv = template_argv(inputs)
    found = launch(loopback_cloud, dataflow, inputs, [*argv, "--wait=true"])
    assert found.code == 0, found.messages
    assert dataflow.calls == []
    job = json.loads(found.objects["staging/template_launches/1/job_object"])
    assert job["name"] == "answers"
    (pool,) = job["environment"]["workerPools"]
    assert pool["workerHarnessContainerImage"] == IMAGE
    assert "template staged" in found.messages
    assert not [name for name in found.objects if name.startswith("out/")]


def template_argv(bucket: str, *more: str) -> list[str]:
    """The launcher's own flags, with the path for the job."""
    pairs = dict(word.split("=", 1) for word in [*batch_parameters(bucket), *more])
    environment = {"tempLocation": f"gs://{bucket}/tmp", "stagingLocation": f"gs://{bucket}/s"}
    launched = {"jobName": "answers", "parameters": pairs, "environment": environment}
    spec = render.container_spec(BATCH, IMAGE)
    location = f"--template_location=gs://{bucket}/staging/template_launches/1/job_object"
    return [*launcher_argv(launched, spec, "emu-proj", "us-central1"), location]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--no_use_public_ip"], "unknown flag --no_use_public_ip"),
        (["--temp_location="], "--temp_location is missing"),
        (["--sdk_container_image="], "--sdk_container_image is missing"),
        (["--backend=sentence_transformers", "--task=embed"], "which no image of the templates"),
    ],
)
def test_refused_launches(
    dataflow: DataflowServer,
    loopback_cloud: LoopbackCloud,
    inputs: str,
    more: list[str],
    message: str,
) -> None:
    """A rejected launch fails for the launcher, logs the remedy and stages nothing."""
    found = launch(loopback_cloud, dataflow, inputs, [*template_argv(inputs), *more])
    assert found.code == 2
    assert message in found.messages
    assert list(found.objects) == ["in/a.jsonl"]


# The scripts


def test_update_and_drain(script: Script, dataflow: DataflowServer) -> None:
    """An update is marked as one and keeps the name; a drain finds the job by its name."""
    done = script(
        "update_streaming.sh", "--project=p", "--region=us-central1", "--bucket=b",
        "--job=answers", "--mappings=Old=New", "--compatibility=2.77.0", "model=m",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    launched = sent(dataflow)
    assert launched["jobName"] == "answers"
    assert launched["update"] is True
    assert launched["transformNameMappings"] == {"Old": "New"}
    assert launched["containerSpecGcsPath"] == "gs://b/templates/streaming.json"
    options = launched["environment"]["additionalPipelineOptions"]
    assert options == ["update_compatibility_version=2.77.0"]

    dataflow.jobs.append(RUNNING)
    done = script("drain.sh", "--project=p", "--region=us-central1", "--job=answers")
    assert done.returncode == 0, done.stderr
    (drained,) = [call for call in dataflow.calls if call.method == "PUT"]
    assert drained.path.endswith("/jobs/job-1")
    assert drained.body["requestedState"] == "JOB_STATE_DRAINED"


def test_drain_of_a_missing_job(script: Script) -> None:
    """The message names the job, the region and the project."""
    done = script("drain.sh", "--project=p", "--region=us-central1", "--job=other")
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last == "error: no job named 'other' is running in us-central1 of p"


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("run_batch.sh", ["--project=p", "--region=r", "a=b"], "--bucket is missing"),
        ("run_batch.sh", ["--projct=p"], "unknown flag --projct=p"),
        ("run_batch.sh", ["word"], "'word' is neither a flag nor a parameter"),
        ("run_batch.sh", ["--project=p", "--region=r", "--bucket=b"], "there are no parameters"),
        (
            "run_batch.sh",
            ["--project=p", "--region=r", "--bucket=b", "a=b", "--gpu=nvidia-l4", "--flexrs"],
            "--flexrs has no GPUs",
        ),
        (
            "run_streaming.sh",
            ["--project=p", "--region=r", "--bucket=b", "a=b", "--flexrs"],
            "--flexrs is for batch jobs only",
        ),
        ("update_streaming.sh", ["a=b"], "--job is missing"),
        ("build.sh", ["--project=p", "--region=r"], "--bucket is missing"),
    ],
)
def test_wrong_use(script: Script, name: str, arguments: list[str], message: str) -> None:
    """A usage error returns 2 with the remedy before any call."""
    done = script(name, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}")


def test_validate(script: Script, dataflow: DataflowServer) -> None:
    """The request only validates, and the token is not an argument."""
    done = script(
        "validate.sh", "--project=p", "--region=us-central1", "--dry_run",
        "--template=gs://b/templates/batch.json", 'prompt={"a": "b=c"}',
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "launchParameter": {
            "jobName": "validate-only",
            "containerSpecGcsPath": "gs://b/templates/batch.json",
            "parameters": {"prompt": '{"a": "b=c"}'},
            "environment": {"tempLocation": "gs://b/tmp"},
        },
        "validateOnly": True,
    }
    assert dataflow.calls == []
