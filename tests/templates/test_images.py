"""Images, lock files, scripts and the build, as far as checks work without a container engine.

This does not prove that the images build and start: no test builds them.
"""

import doctest
import importlib.metadata
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipeline.backends.vllm import MINIMUM_DRIVER
from pipeline.options.gpu import GPU_DRIVER
from templates import main, render
from tests.end_to_end.runs import missing_part
from tests.templates.launches import ROOT

TEMPLATES = ROOT / "templates"
SCRIPTS = sorted(path.name for path in TEMPLATES.glob("*.sh"))
DOCKERFILES = ["Dockerfile", "Dockerfile.gpu"]
LOCKS = ["requirements.lock", "requirements-gpu.lock"]


def _tool(name: str) -> str:
    """A tool of the tests' environment."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        missing_part(f"{name} is not installed: pip install '.[test]'")
    return found


def _pins(name: str) -> dict[str, str]:
    """The packages of a lock file and their versions."""
    text = (TEMPLATES / name).read_text("utf-8")
    pinned = re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;\\]+)", text, re.MULTILINE)
    return {canonicalize_name(package): version for package, version in pinned}


# Lock files


@pytest.mark.parametrize("name", LOCKS)
def test_locks_are_complete(name: str) -> None:
    """Every line of a lock file pins one version by its hashes and names no index."""
    text = (TEMPLATES / name).read_text("utf-8")
    entries = re.split(r"\n(?=[A-Za-z0-9])", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
    assert len(entries) == len(_pins(name)) > 50
    for entry in entries:
        assert re.match(r"[A-Za-z0-9._-]+(\[[^\]]*\])?==\S+", entry), entry
        assert "--hash=sha256:" in entry
    assert "://" not in text


def test_the_lock_has_what_the_code_needs() -> None:
    """The lock file has all requirements of setup.py, recursively, in the tested versions."""
    pins = _pins("requirements.lock")
    tested = {}
    for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines():
        name, _, version = line.partition("==")
        tested[canonicalize_name(name)] = version
    assert {name: tested.get(name) for name in pins} == pins

    waiting = [Requirement(text) for text in _base_requirements()]
    seen = set()
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        assert name in pins, f"{wanted} is not locked: run make lock"
        assert wanted.specifier.contains(pins[name], prereleases=True), wanted
        for extra in ("", *sorted(wanted.extras)):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            waiting += [
                needed
                for needed in map(Requirement, importlib.metadata.requires(name) or ())
                if _applies(needed, extra)
            ]


_IMAGE = {
    "python_version": "3.11",
    "python_full_version": "3.11.9",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "implementation_name": "cpython",
    "os_name": "posix",
}


def _applies(needed: Requirement, extra: str) -> bool:
    return needed.marker is None or needed.marker.evaluate({**_IMAGE, "extra": extra})


def _base_requirements() -> list[str]:
    """The packages that setup.py installs without an extra."""
    text = (ROOT / "setup.py").read_text("utf-8")
    found = re.search(r"^BASE = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert found is not None
    return re.findall(r'"([^"]+)"', found[1])


def test_the_gpu_lock_follows_its_input() -> None:
    """The lock file has the version of vLLM that requirements-gpu.in requires."""
    text = (TEMPLATES / "requirements-gpu.in").read_text("utf-8")
    wanted = [Requirement(line) for line in text.splitlines() if not line.startswith("#")]
    pins = _pins("requirements-gpu.lock")
    assert wanted
    assert all(each.specifier.contains(pins[each.name]) for each in wanted)


_DRIVERS = {12: 525, 13: 580}
"""The first driver of each CUDA; source: https://docs.nvidia.com/cuda/cuda-toolkit-release-notes"""


def test_the_driver_follows_the_gpu_lock() -> None:
    """A new CUDA in the lock file requires a new minimum driver and perhaps other GPUs."""
    major = int(_pins("requirements-gpu.lock")["nvidia-cuda-runtime"].partition(".")[0])
    assert _DRIVERS[major] == MINIMUM_DRIVER
    help_text = GPU_DRIVER.help
    for text in (help_text, (ROOT / "docs/vllm.md").read_text("utf-8")):
        assert f"{MINIMUM_DRIVER} or newer" in text


@pytest.mark.parametrize("name", LOCKS)
def test_the_guide_counts_the_packages(name: str) -> None:
    """The guide's number of packages is that of the lock file."""
    guide = (ROOT / "docs/deploy.md").read_text("utf-8")
    assert f"{len(_pins(name))} pinned packages" in guide


# Images


@pytest.mark.parametrize("name", DOCKERFILES)
def test_dockerfiles_pass_their_linter(name: str) -> None:
    """Hadolint reports nothing for any Dockerfile."""
    done = subprocess.run(
        [_tool("hadolint"), f"templates/{name}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", DOCKERFILES)
def test_images_copy_existing_files(name: str) -> None:
    """Each copied file is in the repository, and .dockerignore does not exclude it."""
    text = (TEMPLATES / name).read_text("utf-8")
    let_through = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE):
        *sources, _ = line.split()
        for source in sources:
            assert (ROOT / source).exists()
            assert f"!{source}" in let_through


def test_the_image_has_beams_version() -> None:
    """Boot program, SDK and code have the same Beam; vLLM is outside its packages."""
    text = (TEMPLATES / "Dockerfile").read_text("utf-8")
    found = re.search(r"apache/beam_python3\.11_sdk:(\S+)", text)
    assert found is not None
    assert found[1] == _pins("requirements.lock")["apache-beam"]
    assert "vllm" not in _pins("requirements.lock")
    assert "apache-beam" not in _pins("requirements-gpu.lock")
    assert "FLEX_TEMPLATE_PYTHON_PY_FILE=/template/main.py" in text
    assert not re.search(r"^ENV.*(REQUIREMENTS|SETUP)_FILE", text, re.MULTILINE)
    for name in DOCKERFILES:
        assert "pip check" in (TEMPLATES / name).read_text("utf-8")


# Scripts and the build


def test_scripts_pass_shellcheck() -> None:
    """Shellcheck reports nothing for any script."""
    assert {"build.sh", "drain.sh", "run_batch.sh", "smoke.sh"} <= set(SCRIPTS)
    done = subprocess.run(
        [_tool("shellcheck"), "--external-sources", *SCRIPTS],
        cwd=TEMPLATES,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name != "lib.sh"])
def test_scripts_explain_themselves(name: str) -> None:
    """``--help`` shows the usage and every flag that the script itself reads."""
    done = subprocess.run([f"templates/{name}", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"templates/{name}" in done.stdout
    text = (TEMPLATES / name).read_text("utf-8")
    if name.startswith("run_"):
        text += (TEMPLATES / "lib.sh").read_text("utf-8")
    read = set(re.findall(r"^ +(--\w+)(?:=\*|=\?\*)?\)", text, re.MULTILINE)) - {"--help"}
    only_batch = {"--flexrs"} if name == "run_streaming.sh" else set()
    assert read - only_batch <= set(re.findall(r"--\w+", done.stdout))


def test_build_steps() -> None:
    """The build tests, makes image and spec, checks and promotes, using files that exist."""
    text = (TEMPLATES / "cloudbuild.yaml").read_text("utf-8")
    build = yaml.safe_load(text)
    ids = [step["id"] for step in build["steps"]]
    assert ids == ["test", "image", "gpu-image", "push", "spec", "copy", "validate", "promote"]
    used = set(re.findall(r"\$(_[A-Z]+)", text))
    assert used == set(build["substitutions"])
    for script in re.findall(r"templates/\w+\.sh", text):
        assert (ROOT / script).exists()
    passed = (TEMPLATES / "build.sh").read_text("utf-8")
    assert all(f"{name}=" in passed for name in used)
    for step in build["steps"]:
        if step.get("entrypoint") == "bash":
            lines = step["args"][-1].replace("$$", "$")
            done = subprocess.run(
                [_tool("shellcheck"), "--shell=bash", "--exclude=SC2086,SC2154,SC2035", "-"],
                input=lines,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stdout


# The entry point


@pytest.mark.parametrize("module", [main, render])
def test_examples(module: ModuleType) -> None:
    """The examples of the docstrings run as written."""
    tried = doctest.testmod(module)
    assert (tried.failed, tried.attempted > 0) == (0, True)


def test_switches_of_the_launcher() -> None:
    """Switches lose the string value that a launch passes; all other flags are unchanged."""
    argv = ["--update=true", "--use_public_ips=False", "--no_use_public_ips=true", "--region=r"]
    argv += ["--streaming", "--accept_truncated=true", "--enable_streaming_engine=1", "--x=false"]
    assert main.launcher_flags(argv) == [
        "--update", "--no_use_public_ips", "--region=r", "--streaming", "--accept_truncated=true",
        "--enable_streaming_engine", "--x=false",
    ]  # fmt: skip
    assert main.launcher_flags(["--streaming=maybe"]) == ["--streaming=maybe"]
