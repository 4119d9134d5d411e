"""Commands, environments and accelerator groups of servers."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.transforms.backends.vllm.servers import fake_spec
from transforms.backends.vllm.gpus import accelerators, groups, option, tensor_parallel_size
from transforms.backends.vllm.launch import (
    Facts,
    ServerSpec,
    command,
    interpreter,
    plan,
    server_environment,
)
from transforms.backends.vllm.paths import base_folder
from transforms.records.errors import BackendUnusable

SPEC = ServerSpec(model="/m", served_name="m")
NEW, OLD = Facts(performance_mode=True), Facts(performance_mode=False)


def _spec(*args: str, **fields: Any) -> ServerSpec:
    return ServerSpec(model="/m", served_name="m", args=args, **fields)


def test_defaults_are_for_throughput() -> None:
    """The defaults are prefix caching, no request logs, and performance mode if there is one."""
    assert command(SPEC, "py", NEW, ()) == [
        *("py", "-m", "vllm.entrypoints.openai.api_server", "--model", "/m"),
        *("--served-model-name", "m", "--host", "127.0.0.1", "--port", "{port}"),
        "--disable-uvicorn-access-log",
        "--enable-prefix-caching",
        "--enable-prompt-tokens-details",
        *("--performance-mode", "throughput"),
    ]
    assert "--performance-mode" not in command(SPEC, "py", OLD, ())


def test_the_users_arguments_win() -> None:
    """The user's arguments override ours, also as the opposite switch or with underscores."""
    words = command(
        _spec("--no-enable-prefix-caching", "--performance_mode=balanced"), "py", NEW, ()
    )
    assert "--enable-prefix-caching" not in words
    assert "--performance-mode" not in words
    assert words[-2:] == ["--no-enable-prefix-caching", "--performance_mode=balanced"]


def test_a_pooling_server() -> None:
    """A pooling server embeds with any model and gets no flags for generation."""
    words = command(_spec(pooling=True), "py", OLD, ())
    assert words[-4:] == ["--runner", "pooling", "--convert", "embed"]
    assert "--enable-prefix-caching" not in words


def test_tensor_parallelism_follows_the_group() -> None:
    """Tensor parallelism is the group's size unless the arguments set it."""
    assert command(SPEC, "py", OLD, ("0", "1"))[-2:] == ["--tensor-parallel-size", "2"]
    assert "--tensor-parallel-size" not in command(_spec("-tp", "2"), "py", OLD, ("0", "1"))
    assert tensor_parallel_size(("0", "1", "2", "3"), ["-pp=2"]) == 2
    assert tensor_parallel_size(("0",), []) is None


@pytest.mark.parametrize(
    ("devices", "args", "expected"),
    [
        (0, "", [0]),
        (1, "", [1]),
        (4, "", [4]),
        (6, "", [4]),
        (4, "--tensor-parallel-size=1", [1, 1, 1, 1]),
        (4, "-tp 2", [2, 2]),
        (8, "-tp 2 -pp 2", [4, 4]),
        (4, "--data-parallel-size 2", [4]),
        (3, "--tensor_parallel_size 2", [2]),
    ],
)
def test_groups(devices: int, args: str, expected: list[int]) -> None:
    """Each group has as many accelerators as the arguments request; no two groups share one."""
    found = groups([str(n) for n in range(devices)], args.split())
    assert list(map(len, found)) == expected
    assert len({device for group in found for device in group}) == sum(expected)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-tp=4"], "request 4 GPUs, but the machine has 2"),
        (["-tp=x"], "--tensor-parallel-size is 'x', but must be a number"),
        (["-tp=0"], "--tensor-parallel-size is '0', but must be a number"),
    ],
)
def test_arguments_that_request_too_much(args: list[str], message: str) -> None:
    """Arguments that request too many accelerators are rejected before anything starts."""
    with pytest.raises(ValueError, match=message):
        groups(["0", "1"], args)


@pytest.mark.parametrize(
    ("visible", "expected"),
    [("", ()), ("-1", ()), ("2,3", ("2", "3")), ("0,-1,1", ("0",)), ("GPU-a", ("GPU-a",))],
)
def test_visible_devices_limit_the_accelerators(visible: str, expected: tuple[str, ...]) -> None:
    """Visible devices limit the accelerators as CUDA reads the variable."""
    assert accelerators({"CUDA_VISIBLE_DEVICES": visible}) == expected


def test_the_driver_lists_accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver's tool lists accelerators; without the tool its devices are counted."""
    listed = subprocess.CompletedProcess([], 0, stdout="GPU 0: X\n  MIG 1g\nGPU 1: X\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: listed)
    assert accelerators({}) == ("0", "1")

    def fails(*_: Any, **__: Any) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", fails)
    found = ["/dev/nvidia0", "/dev/nvidiactl", "/dev/nvidia-uvm"]
    monkeypatch.setattr("glob.glob", lambda _: found)
    assert accelerators({}) == ("0",)


def test_the_last_of_repeated_flags_wins() -> None:
    """The last of repeated flags counts, as in argparse."""
    assert option(["--a=1", "--a", "2"], "--a") == "2"
    assert option(["--a", "--b"], "--a") == ""


def test_another_interpreter_gets_a_clean_environment() -> None:
    """Another interpreter gets the spec's variables, without those of Beam's interpreter."""
    inherited = {"PYTHONPATH": "x", "PATH": "p", "HF_TOKEN": "t"}
    spec = _spec(environment=(("A", "b"),))
    other = server_environment(spec, "/other/python", inherited)
    assert "PYTHONPATH" not in other
    assert (other["PATH"], other["HF_TOKEN"], other["A"]) == ("p", "t", "b")
    assert server_environment(spec, sys.executable, inherited)["PYTHONPATH"] == "x"


def test_our_own_server_requires_no_key() -> None:
    """Our own server gets no API key of another vLLM, which would make it reject our requests."""
    inherited = {"VLLM_API_KEY": "secret", "VLLM_LOGGING_LEVEL": "DEBUG"}
    environment = server_environment(SPEC, sys.executable, inherited)
    assert "VLLM_API_KEY" not in environment
    assert environment["VLLM_LOGGING_LEVEL"] == "DEBUG"


@pytest.mark.parametrize(
    ("python", "expected"),
    [
        ("venv/bin/python", f"{os.getcwd()}/venv/bin/python"),
        ("/opt/bin/python", "/opt/bin/python"),
        ("python3", "python3"),
    ],
)
def test_an_interpreters_path_is_absolute(python: str, expected: str) -> None:
    """An interpreter's path becomes absolute, because the server runs in another folder."""
    assert interpreter(_spec(python=python), {}) == expected
    assert interpreter(SPEC, {"VLLM_PYTHON": python}) == expected


def test_an_interpreter_that_is_not_there() -> None:
    """A missing interpreter is named in the message, with the remedy."""
    with pytest.raises(BackendUnusable, match=r"'/no/python' cannot run vLLM.*`python`"):
        plan(_spec(python="/no/python"))


def test_the_interpreter_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers may name the interpreter in their environment."""
    monkeypatch.setenv("VLLM_PYTHON", "/no/other")
    with pytest.raises(BackendUnusable, match="'/no/other' cannot run vLLM"):
        plan(SPEC)


def test_groups_have_folders_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Groups have their own folders, and their servers see only their own accelerators."""
    folder = tmp_path_factory.mktemp("s")
    spec = fake_spec(folder, environment={"CUDA_VISIBLE_DEVICES": "0,1"}, args=("-tp=1",))
    first, second = plan(spec)
    assert (first.folder, second.folder) == (f"{folder}/gpu-0", f"{folder}/gpu-1")
    assert first.environment["CUDA_VISIBLE_DEVICES"] == "0"
    assert first.identity != second.identity


def test_a_folder_that_is_too_deep(tmp_path: Path) -> None:
    """A folder that is too deep for a Unix socket's path is rejected."""
    with pytest.raises(BackendUnusable, match=r"too long for a Unix socket.*VLLM_SERVER_FOLDER"):
        plan(fake_spec(tmp_path / ("x" * 100)))


def test_a_folder_of_another_user(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of another user is rejected, because its files cannot be trusted."""
    folder = tmp_path_factory.mktemp("s")
    spec = fake_spec(folder)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(BackendUnusable, match="belongs to another user"):
        plan(spec)


def test_a_folder_that_others_can_write_to(tmp_path: Path) -> None:
    """A folder that others can write to is rejected, because its files are trusted."""
    tmp_path.chmod(0o777)
    with pytest.raises(BackendUnusable, match=r"other users can write to .*chmod go-w"):
        plan(fake_spec(tmp_path))


def test_the_folder_below_the_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default folder belongs to this user alone; a link in its place is not followed."""
    monkeypatch.delenv("VLLM_SERVER_FOLDER", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = Path(base_folder())
    assert folder == tmp_path / f"batch-inference-vllm-{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BackendUnusable, match="belongs to another user"):
        base_folder()


def test_the_folder_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment names the folder unless the backend does."""
    monkeypatch.setenv("VLLM_SERVER_FOLDER", str(tmp_path / "a"))
    assert base_folder() == str(tmp_path / "a")
    assert base_folder(str(tmp_path / "b")) == str(tmp_path / "b")
