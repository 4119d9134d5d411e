"""Creates the Python environment that the emulated servers run in.

The servers need packages that must not enter the project's own environment (bqemulator
registers a pytest plugin and pins DuckDB), so they get a virtual environment of their own:
``<repository>/.venv-emulators``, or the folder that ``EMULATORS_VENV`` names. It is created
on first use and rebuilt when ``requirements.txt`` changes.
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

HOW_TO_GET_IT = (
    "create it with 'python -m tests.emulators.environment' (needs a package index), "
    "or name an existing one in EMULATORS_VENV"
)


class EnvironmentUnavailableError(RuntimeError):
    """The servers' environment does not exist and could not be created."""


def environment_folder() -> Path:
    """Returns the environment's folder, which need not exist yet."""
    return Path(os.environ.get("EMULATORS_VENV") or REPOSITORY / ".venv-emulators")


def emulator_python(folder: Path | None = None) -> Path:
    """Returns the interpreter that runs the servers, creating its environment if needed.

    Safe to call from several processes at once: one creates, the others wait for it.

    Args:
        folder: the environment's folder; default: ``environment_folder()``.

    Raises:
        EnvironmentUnavailableError: it could not be created; the message says why and how
            to get it.
    """
    folder = folder or environment_folder()
    python = folder / "bin" / "python"
    if _is_current(folder):
        return python
    if os.environ.get("EMULATORS_VENV") and python.exists() and not _stamp(folder).exists():
        return python  # another's environment is used as it is, never rebuilt
    try:
        with _exclusive(folder):
            if not _is_current(folder):
                _create(folder)
    except (OSError, subprocess.SubprocessError) as error:
        raise EnvironmentUnavailableError(
            f"no environment for the emulated Google Cloud at {folder}: "
            f"{_reason(error)}; {HOW_TO_GET_IT}"
        ) from error
    return python


def _create(folder: Path) -> None:
    """Builds the environment from scratch; the stamp is written last."""
    shutil.rmtree(folder, ignore_errors=True)
    python = folder / "bin" / "python"
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [*pip, "install", "--quiet", "--retries", "1", "--requirement", str(REQUIREMENTS)],
    ):
        subprocess.run(command, check=True, capture_output=True, text=True)
    _stamp(folder).write_text(_requirements_hash())


def _is_current(folder: Path) -> bool:
    try:
        return _stamp(folder).read_text() == _requirements_hash()
    except OSError:
        return False


def _stamp(folder: Path) -> Path:
    return folder / "requirements.sha256"


def _requirements_hash() -> str:
    return hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()


@contextlib.contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Holds a lock for ``folder`` that ends with the process, however that ends."""
    name = hashlib.sha256(f"{os.getuid()} {folder.resolve()}".encode()).hexdigest()[:16]
    with (Path(tempfile.gettempdir()) / f"emulators-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _reason(error: Exception) -> str:
    """Returns one line with the reason of the failure."""
    if isinstance(error, subprocess.CalledProcessError):
        lines = (error.stderr or error.stdout or "").strip().splitlines()
        return f"'{' '.join(error.cmd[1:3])} …' failed: {lines[-1] if lines else error}"
    return str(error)


if __name__ == "__main__":
    print(emulator_python())
