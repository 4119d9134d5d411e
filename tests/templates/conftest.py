"""Fixtures: the loopback Dataflow, and scripts that call it through the real gcloud."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.emulators.dataflow_server import DataflowServer, serve_dataflow
from tests.emulators.google_cloud import LoopbackCloud
from tests.end_to_end.runs import missing_part
from tests.templates.launches import ROOT, storage

Script = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def dataflow() -> Iterator[DataflowServer]:
    """A Dataflow API that records its requests."""
    with serve_dataflow() as server:
        yield server


@pytest.fixture
def inputs(loopback_cloud: LoopbackCloud) -> str:
    """A bucket with one input file."""
    bucket = loopback_cloud.new_bucket()
    line = json.dumps({"id": "1", "text": "My invoice is wrong."}) + "\n"
    with storage(loopback_cloud) as client:
        client.bucket(bucket).blob("in/a.jsonl").upload_from_string(line)
    return bucket


@pytest.fixture
def script(dataflow: DataflowServer, tmp_path: Path) -> Script:
    """Runs a script of ``templates/``; gcloud has no account and uses only the loopback API."""
    if shutil.which("gcloud") is None:
        missing_part("gcloud is not installed: the launch scripts cannot be tested")
    environment = os.environ | {
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_DATAFLOW": f"{dataflow.url}/",
        "CLOUDSDK_AUTH_DISABLE_CREDENTIALS": "true",
        "CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK": "true",
        "CLOUDSDK_CONFIG": str(tmp_path / "gcloud"),
        "CLOUDSDK_CORE_DISABLE_FILE_LOGGING": "true",
        "CLOUDSDK_CORE_DISABLE_PROMPTS": "true",
        "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "true",
        "DATAFLOW_API": dataflow.url,
        "NO_PROXY": "127.0.0.1,localhost",
    }

    def run(name: str, *arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [f"templates/{name}", *arguments],
            cwd=ROOT,
            env=environment | more,
            capture_output=True,
            text=True,
            check=False,
        )

    return run
