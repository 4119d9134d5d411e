"""The build request and the validation of a launch, with a fake gcloud.

This does not prove that Cloud Build runs it, and that the build's identity may do so.
"""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.templates.launches import ROOT

PRETENDER = """\
#!/usr/bin/env bash
# Notes its arguments; the bucket holds a spec for GPUs where $GPU_SPEC is true.
printf '%s\\n' "$*" >>"$NOTES"
case "$*" in
  'storage ls '*) [ "$GPU_SPEC" = true ] ;;
esac
"""
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FLAGS = ("--project=p", "--region=us-central1", "--bucket=b")


def build(folder: Path, *flags: str, gpu_spec: bool = False) -> tuple[int, str, list[str]]:
    """The exit code of build.sh, its output, and gcloud's arguments."""
    notes = folder / "notes"
    for name, text in (("gcloud", PRETENDER), ("git", f"#!/bin/sh\necho {COMMIT}\n")):
        (folder / name).write_text(text, encoding="utf-8")
        (folder / name).chmod(0o755)
    notes.unlink(missing_ok=True)
    notes.touch()
    environment = os.environ | {
        "NOTES": str(notes),
        "GPU_SPEC": str(gpu_spec).lower(),
        "PATH": f"{folder}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["templates/build.sh", *FLAGS, *flags],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr, notes.read_text("utf-8").splitlines()


def _substitutions(command: str) -> dict[str, str]:
    (given,) = re.findall(r"--substitutions=(\S+)", command)
    return dict(pair.split("=", 1) for pair in given.split(","))


def test_the_build_request(tmp_path: Path) -> None:
    """It has every substitution, the commit and both identities; the bucket has the source."""
    code, printed, commands = build(tmp_path, "--service_account=builder@p", "--worker=worker@p")
    assert code == 0, printed
    submitted = commands[-1]
    assert submitted.startswith("builds submit . --project=p")
    assert "--service-account=projects/p/serviceAccounts/builder@p" in submitted
    assert "--gcs-source-staging-dir=gs://b/source" in submitted
    assert _substitutions(submitted) == {
        "_IMAGE": "us-central1-docker.pkg.dev/p/inference/batch-inference",
        "_TAG": COMMIT[:7],
        "_REVISION": COMMIT,
        "_BUCKET": "b",
        "_REGION": "us-central1",
        "_WORKER": "worker@p",
        "_GPU": "false",
        "_TESTS": "true",
    }
    _, _, commands = build(tmp_path)
    assert "--service-account" not in commands[-1]


def test_specs_for_gpus_never_become_stale(tmp_path: Path) -> None:
    """A build without the specs for GPUs is rejected before it starts if the bucket has some."""
    code, printed, commands = build(tmp_path, gpu_spec=True)
    assert code == 2
    assert printed.startswith("error: gs://b/templates/batch-gpu.json exists")
    assert not any("builds submit" in command for command in commands)
    code, printed, commands = build(tmp_path, "--gpu", gpu_spec=True)
    assert code == 0, printed
    assert _substitutions(commands[-1])["_GPU"] == "true"


def test_promotion_comes_last() -> None:
    """Live specs change only after all specs were validated under their tag."""
    text = (ROOT / "templates/cloudbuild.yaml").read_text("utf-8")
    steps = {step["id"]: step["args"][-1] for step in yaml.safe_load(text)["steps"]}
    assert list(steps)[-3:] == ["copy", "validate", "promote"]
    live = [name for name, text in steps.items() if "gs://$_BUCKET/templates/ " in f"{text} "]
    assert live == ["promote"]
    assert steps["copy"].endswith("gs://$_BUCKET/templates/$_TAG/")
    assert "for spec in specs/*.json" in steps["validate"]
    assert "--service_account=$_WORKER" in steps["validate"]


def _validate(*flags: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["templates/validate.sh", *FLAGS[:2], "--template=gs://b/templates/batch.json", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def _environment(*flags: str) -> Any:
    done = _validate("--dry_run", "a=b", *flags)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["launchParameter"]["environment"]


def test_validation_names_the_workers_identity() -> None:
    """The caller must be allowed to act as the workers' identity, by default the project's."""
    assert _environment("--service_account=worker@p") == {
        "tempLocation": "gs://b/tmp",
        "serviceAccountEmail": "worker@p",
    }
    assert _environment("--service_account=") == {"tempLocation": "gs://b/tmp"}


def test_validation_needs_parameters() -> None:
    """Validation needs parameters, because every template has required ones."""
    done = _validate("--dry_run")
    assert done.returncode == 2
    assert done.stderr.startswith("error: there are no parameters")
