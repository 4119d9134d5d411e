"""From a server's specification to the command of each accelerator group's server."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from transforms.backends.vllm.gpus import accelerators, groups, option, tensor_parallel_size
from transforms.backends.vllm.keeper import Settings
from transforms.backends.vllm.paths import FOLDER_VARIABLE, base_folder
from transforms.records.errors import BackendUnusable

PYTHON_VARIABLE = "VLLM_PYTHON"
"""Names the interpreter where the backend does not, for example in a worker's container."""
_PACKAGE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_LONGEST_SOCKET_PATH = 100
_FACTS = (
    "import importlib.util, json, pathlib\n"
    "found = importlib.util.find_spec('vllm')\n"
    "if found is None: raise SystemExit('no module named vllm')\n"
    "text = (pathlib.Path(found.origin).parent / 'engine' / 'arg_utils.py').read_text('utf-8')\n"
    "print(json.dumps({'performance_mode': '--performance-mode' in text}))\n"
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ServerSpec:
    """The server of a model, independent of the machine.

    Attributes:
      model: The model to load: a name on the Hugging Face hub, or the full path of a local folder.
      served_name: The model's name in requests.
      pooling: Serve embeddings instead of generating text.
      python: The interpreter that has vLLM; by default `PYTHON_VARIABLE`, else this interpreter.
      args: Additional arguments for vLLM's server; they override the defaults. Files need full
        paths: the server runs in ``/``.
      environment: Additional environment variables for the server.
      folder: The machine-wide folder for locks and state; None for that of `base_folder`.
      start_timeout_s: How long loading the model may take, in seconds.
      linger_s: How long a server outlives a killed user, in seconds.
    """

    model: str
    served_name: str
    pooling: bool = False
    python: str | None = None
    args: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    folder: str | None = None
    start_timeout_s: float = 1800.0
    linger_s: float = 2.0


class Facts(NamedTuple):
    """Facts about an installed vLLM, found without loading it (that takes ten seconds)."""

    performance_mode: bool


def interpreter(spec: ServerSpec, environment: Mapping[str, str]) -> str:
    """The interpreter that runs vLLM; as a full path, because the server runs in another folder."""
    python = spec.python or environment.get(PYTHON_VARIABLE) or sys.executable
    return os.path.abspath(python) if os.sep in python else python


def facts_of(python: str, environment: Mapping[str, str]) -> Facts:
    """Inspects an interpreter's vLLM.

    Raises:
      BackendUnusable: There is no such interpreter, or it has no vLLM.
    """
    try:
        done = subprocess.run(  # noqa: S603 - the user chose the interpreter
            [python, "-c", _FACTS],
            capture_output=True,
            text=True,
            env=dict(environment),
            check=False,
            timeout=120,
            cwd="/",
        )
        if done.returncode == 0:
            return Facts(**json.loads(done.stdout))
        said = done.stderr.strip().rpartition("\n")[2]
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        said = str(error)
    raise BackendUnusable(
        f"{python!r} cannot run vLLM ({said}): install vLLM for it, or name an interpreter that "
        f"has it with `python` or, in the workers' environment, with {PYTHON_VARIABLE}"
    )


def server_environment(
    spec: ServerSpec, python: str, inherited: Mapping[str, str]
) -> dict[str, str]:
    """The environment of a server: this process's, without the variables of its interpreter.

    It also lacks ``VLLM_API_KEY``: the server would refuse our requests, and nobody else reaches
    it.
    """
    environment = {name: value for name, value in inherited.items() if name != "VLLM_API_KEY"}
    if python != sys.executable:
        for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__"):
            environment.pop(name, None)
    environment |= {"PYTHONUNBUFFERED": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    return {**environment, **dict(spec.environment)}


def command(spec: ServerSpec, python: str, facts: Facts, group: Sequence[str]) -> list[str]:
    """The command of one group's server; ``{port}`` is filled in at its start.

    The defaults are for throughput: performance mode (it doubles ``max-num-seqs`` and the tokens
    per step) if this vLLM has it, prefix caching, no log line per request. The user's arguments
    override them.
    """
    words = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", spec.model]
    words += ["--served-model-name", spec.served_name, "--host", "127.0.0.1", "--port", "{port}"]
    defaults: list[tuple[str, ...]] = [("--disable-uvicorn-access-log",)]
    if spec.pooling:
        defaults += [("--runner", "pooling"), ("--convert", "embed")]
    else:
        defaults += [("--enable-prefix-caching",), ("--enable-prompt-tokens-details",)]
    if facts.performance_mode:
        defaults.append(("--performance-mode", "throughput"))
    if (size := tensor_parallel_size(group, spec.args)) is not None:
        defaults.append(("--tensor-parallel-size", str(size)))
    for default in defaults:
        name = default[0]
        opposite = "--no-" + name.removeprefix("--")
        if option(spec.args, name, opposite) is None:
            words += default
    return [*words, *spec.args]


def plan(spec: ServerSpec) -> list[Settings]:
    """The settings of one server for each group of this machine's accelerators.

    Raises:
      BackendUnusable: The interpreter, the arguments or the folder cannot be used.
    """
    python = interpreter(spec, os.environ)
    environment = server_environment(spec, python, os.environ)
    facts = facts_of(python, environment)
    try:
        found = groups(accelerators(environment), spec.args)
    except ValueError as error:
        raise BackendUnusable(f"`args`: {error}") from None
    return [_settings(spec, python, facts, environment, group) for group in found]


def _settings(
    spec: ServerSpec,
    python: str,
    facts: Facts,
    environment: dict[str, str],
    group: tuple[str, ...],
) -> Settings:
    words = command(spec, python, facts, group)
    if group:
        environment = {**environment, "CUDA_VISIBLE_DEVICES": ",".join(group)}
    identity = json.dumps([words, spec.environment, group])
    return Settings(
        package=_PACKAGE,
        folder=_folder(spec, "gpu-" + "-".join(group) if group else "cpu"),
        identity=hashlib.sha256(identity.encode()).hexdigest()[:16],
        description=f"model {spec.served_name!r} with {' '.join(spec.args) or 'no arguments'}",
        command=words,
        environment=environment,
        start_timeout_s=spec.start_timeout_s,
        linger_s=spec.linger_s,
    )


def _folder(spec: ServerSpec, group: str) -> str:
    """The folder of one group, created for this user alone."""
    base = base_folder(spec.folder)
    folder = os.path.join(base, hashlib.sha256(group.encode()).hexdigest()[:8])
    if len(group) < 16:
        folder = os.path.join(base, group)
    if len(folder) > _LONGEST_SOCKET_PATH - len("/keeper.sock"):
        raise BackendUnusable(
            f"the path {base!r} is too long for a Unix socket: set {FOLDER_VARIABLE} to a "
            "shorter one"
        )
    os.makedirs(folder, mode=0o700, exist_ok=True)
    return folder
