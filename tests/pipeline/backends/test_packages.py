"""A backend from a third-party package is an entry point and needs no change of ours."""

import importlib.metadata
import json
import logging
import os
import pathlib
import subprocess
import sys

import pytest

from pipeline.backends import BUILT_IN, GROUP, load
from pipeline.backends.base import BackendAdapter
from pipeline.backends.shared import ENDPOINT
from pipeline.options.flag import Flag
from pipeline.options.kinds import TEXT
from pipeline.options.plugins import Unusable

ROOT = pathlib.Path(__file__).resolve().parents[3]
ECHO = '''
"""Answers with the prompt."""

import dataclasses

from pipeline.backends.base import BackendAdapter
from pipeline.backends.shared import MODEL
from pipeline.options.flag import Flag
from pipeline.options.kinds import TEXT
from transforms import Completion

PREFIX = Flag("echo_prefix", "Model", "Text in front of each answer (backend echo).", TEXT)


@dataclasses.dataclass(frozen=True)
class EchoBackend:
    model: str
    prefix: str
    family: str = "echo"

    async def open(self):
        return EchoClient(self)


class EchoClient:
    def __init__(self, backend):
        self._prefix = backend.prefix

    async def generate(self, request):
        return Completion(output=self._prefix + request.body["messages"][-1]["content"])

    async def close(self):
        pass


def make(values, options):
    return EchoBackend(values[MODEL] or "echo", values[PREFIX] or "")


ADAPTER = BackendAdapter(
    name="echo",
    make=make,
    flags=(PREFIX,),
)
'''


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with two installed packages: one that works, and one that cannot be imported."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "acme_echo.py").write_text(ECHO, "utf-8")
    (folder / "acme_broken.py").write_text("import acme_sdk_that_is_not_there\n", "utf-8")
    for name in ("echo", "broken"):
        info = folder / f"acme_{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: acme-{name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = acme_{name}:ADAPTER\n")
    return folder


def _run(packages: pathlib.Path, *argv: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(packages), str(ROOT)])
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *argv],
        env={**os.environ, "PYTHONPATH": path},
        cwd=packages,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_every_record_is_answered(packages: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A backend that this project does not know, with a flag of its own, answers every record."""
    rows = [{"id": str(number), "text": f"é {number}"} for number in range(30)]
    inputs = tmp_path / "in.jsonl"
    inputs.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    done = _run(
        packages, "--backend=echo", "--echo_prefix=Echo:", "--prompt=Say {{ text }}",
        f"--input_files={inputs}", f"--output_path={tmp_path}/out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = [
        json.loads(line)
        for path in (tmp_path / "out/results").glob("*.jsonl")
        for line in path.read_text("utf-8").splitlines()
    ]
    assert {row["record_id"]: row["output"] for row in results} == {
        row["id"]: f"Echo:Say {row['text']}" for row in rows
    }
    assert len(results) == len(rows)
    assert {(row["backend"], row["model"], row["cost_usd"]) for row in results} == {
        ("echo", "echo", None)
    }


def test_help_lists_it(packages: pathlib.Path) -> None:
    """``--help`` lists a package's backend and its flag."""
    done = _run(packages, "--help")
    assert done.returncode == 0, done.stderr
    assert "sentence_transformers|fake|broken|echo" in done.stdout
    assert "--echo_prefix TEXT" in done.stdout


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--backend=ecko"],
            (
                "error: --backend is 'ecko', but must be one of: gemini, vertex_endpoint, openai, "
                "vllm, sentence_transformers, fake, broken, echo; did you mean echo?\n"
            ),
        ),
        (
            ["--backend=fake", "--echo_prefix=x"],
            (
                "error: --echo_prefix is 'x', but backend fake does not take it: remove it, or use "
                "--backend=echo\n"
            ),
        ),
        (
            ["--backend=broken"],
            (
                "error: --backend is 'broken', but the package acme-broken, which adds it, cannot be "
                "used (ModuleNotFoundError: No module named 'acme_sdk_that_is_not_there'): repair or "
                "upgrade that package, or use another backend\n"
            ),
        ),
    ],
)
def test_wrong_use(packages: pathlib.Path, argv: list[str], message: str) -> None:
    """A package that cannot be imported is an error only for users who choose its backend."""
    done = _run(packages, "--input_files=a.jsonl", "--prompt=x", "--output_path=out", *argv)
    assert (done.returncode, done.stderr) == (2, message)


def _entry(name: str, value: str) -> importlib.metadata.EntryPoint:
    return importlib.metadata.EntryPoint(name, f"{__name__}:{value}", GROUP)


def _make(*_: object) -> None:
    raise AssertionError


FINE = BackendAdapter(
    name="fine", make=_make, flags=(ENDPOINT, Flag("fine_size", "Model", "Size.", TEXT))
)
RUDE = BackendAdapter(name="rude", make=_make, flags=(Flag("prompt", "Model", "Mine.", TEXT),))
TAKEN = BackendAdapter(name="fake", make=_make)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("fine", "FINE", FINE),
        (
            "other",
            "FINE",
            "ValueError: the adapter's name is 'fine', but the entry point's 'other'",
        ),
        ("text", "GROUP", "TypeError: str is not a BackendAdapter"),
        ("rude", "RUDE", "ValueError: the name of its flag 'prompt' must begin with 'rude_'"),
        ("gone", "GONE", f"AttributeError: module '{__name__}' has no attribute 'GONE'"),
    ],
)
def test_adapters_that_cannot_be_used(
    name: str, value: str, expected: BackendAdapter | str
) -> None:
    """A broken adapter is listed with the reason; built-in adapters work as before."""
    found = load([_entry(name, value)])
    if isinstance(expected, str):
        expected = Unusable(f"{__name__}:{value}", expected)
    assert found == {**{each.name: each for each in BUILT_IN}, name: expected}


def test_a_name_that_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    """No package replaces an existing backend; the log names the package that tried."""
    with caplog.at_level(logging.WARNING):
        found = load([_entry("fake", "TAKEN")])
    assert found == {each.name: each for each in BUILT_IN}
    assert caplog.messages == [f"{GROUP} 'fake' of package {__name__}:TAKEN ignored: name taken"]
