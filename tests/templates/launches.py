"""A launch without a cloud: gcloud's request, the launcher's argv, the recorded job.

This does not prove that Dataflow's launcher hands over exactly these flags. They are those in its
public logs, one string for each field of the runtime environment; the flag for the streaming mode
is the one in Dataflow's guide.
"""

import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.transforms.resources import AcceleratorHint
from google.auth.credentials import AnonymousCredentials
from google.cloud.storage import Client

from tests.emulators.dataflow_server import DataflowServer
from tests.emulators.google_cloud import LoopbackCloud
from tests.templates.posix import matches

IMAGE, GPU_IMAGE = "us-docker.pkg.dev/p/r/inference:1", "us-docker.pkg.dev/p/r/inference:1-gpu"
ROOT = Path(__file__).resolve().parents[2]
Json = dict[str, Any]
RUNNING = {
    "id": "job-1",
    "name": "answers",
    "type": "JOB_TYPE_STREAMING",
    "currentState": "JOB_STATE_RUNNING",
    "createTime": "2026-11-21T00:00:00Z",
    "currentStateTime": "2026-11-21T00:00:00Z",
    "location": "us-central1",
}
"""A streaming job in Dataflow's listing."""

_FLAGS = {
    "numWorkers": "num_workers",
    "maxWorkers": "max_num_workers",
    "zone": "zone",
    "workerRegion": "worker_region",
    "workerZone": "worker_zone",
    "serviceAccountEmail": "service_account_email",
    "machineType": "machine_type",
    "network": "network",
    "subnetwork": "subnetwork",
    "kmsKeyName": "dataflow_kms_key",
    "sdkContainerImage": "sdk_container_image",
    "diskSizeGb": "disk_size_gb",
    "autoscalingAlgorithm": "autoscaling_algorithm",
    "tempLocation": "temp_location",
    "stagingLocation": "staging_location",
}
"""Fields of the runtime environment that become flags with the same value."""
_ELSEWHERE = {
    "additionalExperiments",
    "additionalPipelineOptions",
    "additionalUserLabels",
    "enableStreamingEngine",
    "flexrsGoal",
    "ipConfiguration",
    "launcherMachineType",
    "streamingMode",
}


def launcher_argv(launch: Json, spec: Json, project: str, region: str) -> list[str]:
    """The arguments with which Dataflow's launcher runs the entry point.

    Args:
      launch: The ``launchParameter`` of the request.
      spec: The container spec that it names; the request's environment overrides its own.
      project: The project of the request's path.
      region: The region of the request's path.
    """
    own, given = spec["defaultEnvironment"], launch.get("environment", {})
    environment = own | given
    assert not set(environment) - set(_FLAGS) - _ELSEWHERE, set(environment)
    labels = {"goog-dataflow-provided-template-type": "flex"}
    labels |= own.get("additionalUserLabels", {}) | given.get("additionalUserLabels", {})
    experiments = own.get("additionalExperiments", []) + given.get("additionalExperiments", [])
    argv = [
        "--runner=DataflowRunner",
        f"--project={project}",
        f"--region={region}",
        f"--job_name={launch['jobName']}",
        "--labels=" + str(labels).replace("'", '"'),
    ]
    argv += [f"--{_FLAGS[name]}={environment[name]}" for name in environment if name in _FLAGS]
    argv += [f"--experiments={experiment}" for experiment in experiments]
    argv += [f"--{option}" for option in environment.get("additionalPipelineOptions", [])]
    if environment.get("ipConfiguration") == "WORKER_IP_PRIVATE":
        argv.append("--no_use_public_ips")
    if environment.get("enableStreamingEngine"):
        argv.append("--enable_streaming_engine=true")
    if goal := environment.get("flexrsGoal"):
        argv.append(f"--flexrs_goal={goal.removeprefix('FLEXRS_')}")
    if mode := environment.get("streamingMode"):
        argv.append(f"--dataflow_service_options={mode.lower()}")
    if launch.get("update"):
        argv.append("--update=true")
    _check_parameters(launch["parameters"], spec["metadata"]["parameters"])
    return argv + [f"--{name}={value}" for name, value in launch["parameters"].items()]


def _check_parameters(given: Mapping[str, str], declared: Sequence[Json]) -> None:
    """Fails for parameters that the service refuses before it starts a launcher."""
    known = {parameter["name"]: parameter for parameter in declared}
    assert set(given) <= set(known), f"undeclared: {set(given) - set(known)}"
    for name, parameter in known.items():
        assert name in given or parameter["isOptional"], f"{name} is missing"
        for pattern in parameter.get("regexes", ()) if name in given else ():
            assert matches(pattern, given[name]), f"{name}={given[name]} does not match {pattern}"


def sent(dataflow: DataflowServer) -> Json:
    """The parameters of the one launch request to Dataflow."""
    (request,) = dataflow.posted("flexTemplates:launch")
    found: Json = request["launchParameter"]
    return found


def batch_parameters(bucket: str) -> list[str]:
    """The parameters of a small batch job."""
    return [
        f"input_files=gs://{bucket}/in/*.jsonl",
        "prompt=Answer, shortly: {{ text }}",
        "backend=fake",
        "model=fake",
        f"output_path=gs://{bucket}/out",
    ]


@dataclasses.dataclass(frozen=True, slots=True)
class Launched:
    """The results of a launch.

    Attributes:
      code: The entry point's exit code.
      messages: Its output.
      jobs: The job requests that Dataflow got.
      objects: The objects of the bucket, by name.
    """

    code: int
    messages: str
    jobs: list[Json]
    objects: Mapping[str, bytes]

    @property
    def environment(self) -> Json:
        """The environment of the one job."""
        (job,) = self.jobs
        return job["environment"]

    @property
    def pool(self) -> Json:
        """Its one worker pool."""
        (pool,) = self.environment["workerPools"]
        return pool

    @property
    def images(self) -> set[str]:
        """The images of its workers: one per kind of resource hints."""
        return {image["containerImage"] for image in self.pool["sdkHarnessContainerImages"]}

    @property
    def options(self) -> Json:
        """Beam's options in the console's form."""
        shown = self.environment["sdkPipelineOptions"]["display_data"]
        return {item["key"]: item.get("value") for item in shown}

    @property
    def pipeline(self) -> beam_runner_api_pb2.Pipeline:
        """The pipeline staged last: folder names contain job and time."""
        staged = sorted(name for name in self.objects if name.endswith("/pipeline.pb"))
        return beam_runner_api_pb2.Pipeline.FromString(self.objects[staged[-1]])

    @property
    def steps(self) -> set[str]:
        """The names of the pipeline's outermost steps."""
        return {
            transform.unique_name
            for transform in self.pipeline.components.transforms.values()
            if transform.unique_name and "/" not in transform.unique_name
        }

    @property
    def leaves(self) -> set[str]:
        """The names of the executed steps, without the lines of Beam's own lambdas."""
        return {
            re.sub(r"core\.py:\d+", "core.py", step.unique_name)
            for step in self.pipeline.components.transforms.values()
            if step.unique_name and not step.subtransforms and step.outputs
        }

    @property
    def accelerators(self) -> dict[str, str]:
        """The GPU in the resource hints of each executed step, by name."""
        components = self.pipeline.components
        found = {}
        for step in components.transforms.values():
            hints = components.environments[step.environment_id].resource_hints
            if AcceleratorHint.urn in hints and not step.subtransforms:
                found[step.unique_name] = hints[AcceleratorHint.urn].decode()
        return found


def storage(cloud: LoopbackCloud) -> Client:
    """A client of the storage emulator that works without redirection."""
    return Client(
        cloud.project,
        AnonymousCredentials(),  # type: ignore[no-untyped-call]
        client_options={"api_endpoint": cloud.environment["STORAGE_EMULATOR_HOST"]},
    )


def run_entry_point(
    cloud: LoopbackCloud, dataflow: DataflowServer, argv: Sequence[str]
) -> "subprocess.CompletedProcess[str]":
    """Runs the entry point in its own process to its end, like the launcher."""
    environment = cloud.subprocess_environment()
    paths = [str(ROOT), environment["PYTHONPATH"]]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    return subprocess.run(
        [sys.executable, "templates/main.py", f"--dataflow_endpoint={dataflow.url}", *argv],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def launch(
    cloud: LoopbackCloud, dataflow: DataflowServer, bucket: str, argv: Sequence[str]
) -> Launched:
    """Runs the entry point; returns its results in Dataflow and in the bucket."""
    done = run_entry_point(cloud, dataflow, argv)
    with storage(cloud) as client:
        objects = {blob.name: blob.download_as_bytes() for blob in client.list_blobs(bucket)}
    return Launched(done.returncode, done.stdout + done.stderr, dataflow.posted("/jobs"), objects)
