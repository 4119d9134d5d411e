"""Creates the Python environment in which the real vLLM runs, and a tiny model for it.

vLLM must not enter the project's own environment (its dependencies conflict with Beam's), so it
gets one of its own: ``<repository>/.venv-vllm``, or the folder that ``VLLM_VENV`` names. Its first
use creates it in about two minutes, 2.5 GB, with CPython 3.11, for which there are wheels.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
REPOSITORY = Path(__file__).resolve().parents[2]
TORCH_WHEELS = "https://download.pytorch.org/whl/cpu"
UNUSED = ("torchvision", "torchaudio", "torchcodec", "triton")
"""Packages whose wheels do not load with this build of torch; vLLM imports them if installed."""

HOW_TO_GET_IT = (
    "create it with 'make vllm' (Python 3.11 and a package index), or name an existing one in "
    "VLLM_VENV"
)


class EnvironmentUnavailableError(RuntimeError):
    """The environment does not exist and cannot be created."""


def environment_folder() -> Path:
    """The environment's folder; it need not exist yet."""
    return Path(os.environ.get("VLLM_VENV") or REPOSITORY / ".venv-vllm")


def is_there() -> bool:
    """Whether the environment exists, whoever created it."""
    return (environment_folder() / "bin" / "python").exists()


def vllm_python() -> str:
    """The interpreter that has vLLM; creates its environment if necessary.

    Raises:
        EnvironmentUnavailableError: It cannot be created; the message says why.
    """
    folder = environment_folder()
    python = folder / "bin" / "python"
    stamp = folder / "requirements.sha256"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    with _exclusive(folder):
        if python.exists() and (not stamp.exists() or stamp.read_text() == wanted):
            return str(python)  # without a stamp it is not ours: left unchanged
        try:
            _make(folder)
        except (OSError, subprocess.SubprocessError) as error:
            said = getattr(error, "stderr", "") or str(error)
            shutil.rmtree(folder, ignore_errors=True)
            raise EnvironmentUnavailableError(
                f"no environment for vLLM at {folder}: {said.strip()[-500:]}; {HOW_TO_GET_IT}"
            ) from error
        stamp.write_text(wanted)
    return str(python)


def _make(folder: Path) -> None:
    base = shutil.which("python3.11")
    if base is None:
        raise FileNotFoundError("there is no python3.11 on the PATH")
    shutil.rmtree(folder, ignore_errors=True)
    _run(base, "-m", "venv", str(folder))
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    install = [*pip, "install", "--quiet", "--requirement", str(REQUIREMENTS)]
    try:
        _run(*install)
    except subprocess.CalledProcessError:
        _run(*install, "--extra-index-url", TORCH_WHEELS)
    _run(*pip, "uninstall", "--quiet", "--yes", *UNUSED)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


@contextlib.contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    name = hashlib.sha256(f"{os.getuid()} {folder.resolve()}".encode()).hexdigest()[:16]
    with (Path(tempfile.gettempdir()) / f"vllm-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def tiny_model(folder: Path) -> str:
    """Generates a model of 820,000 random parameters, always the same, in five seconds."""
    script = Path(__file__).with_name("tiny_model.py")
    subprocess.run([vllm_python(), str(script), str(folder)], check=True, capture_output=True)
    return str(folder)


if __name__ == "__main__":
    print(vllm_python(), file=sys.stdout)
