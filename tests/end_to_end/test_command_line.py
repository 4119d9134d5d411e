"""``python -m pipeline`` as a user sees it: exit codes, messages and files left behind."""

import concurrent.futures
import contextlib
import dataclasses
import errno
import json
import os
import pty
import re
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from google.cloud import bigquery

from pipeline.options.command_line import FLAGS
from pipeline.terminal import progress
from tests.emulators.environment import REPOSITORY
from tests.emulators.google_cloud import REMOVED_VARIABLES, LoopbackCloud
from tests.emulators.model_fixtures import SimulatedModelServer, running_model_server
from tests.end_to_end import runs

DEADLINE_S = 60.0
"""Far longer than anything here takes; a longer wait fails the test."""

COMMAND = [sys.executable, "-m", "pipeline"]
NO_CREDENTIALS = (
    "no Google credentials are found: run `gcloud auth application-default login`, or set "
    "GOOGLE_APPLICATION_CREDENTIALS to a service account's key file"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Ended:
    """An ended command."""

    code: int
    stdout: str
    stderr: str


def bare_environment(folder: Path, **more: str) -> dict[str, str]:
    """An environment without any credentials, whose temporary files go into this folder."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("GOOGLE_", "CLOUDSDK_", "OPENAI_"))
        and name not in REMOVED_VARIABLES
    }
    return {
        **kept,
        "HOME": str(folder),
        "TMPDIR": str(made(folder / "tmp")),
        "CLOUDSDK_CONFIG": str(folder / "gcloud"),
        "NO_GCE_CHECK": "true",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
        **more,
    }


def made(folder: Path) -> Path:
    """Creates a folder and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def start(environment: Mapping[str, str], *flags: str, **options: Any) -> subprocess.Popen[str]:
    """Starts the command in its own process."""
    return subprocess.Popen(
        [*COMMAND, *flags],
        cwd=REPOSITORY,
        env=environment,
        text=True,
        stdin=subprocess.DEVNULL,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


def end(process: subprocess.Popen[str]) -> Ended:
    """Waits for a started command to end."""
    try:
        stdout, stderr = process.communicate(timeout=DEADLINE_S)
    finally:
        process.kill()
    return Ended(process.returncode, stdout, stderr)


def call(environment: Mapping[str, str], *flags: str) -> Ended:
    """Runs the command to its end."""
    return end(start(environment, *flags))


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Polls a condition until it holds."""
    deadline = time.monotonic() + DEADLINE_S
    pause = selectors.DefaultSelector()
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"{what} has not happened within {DEADLINE_S:g} s")
        pause.select(0.02)


def files_below(folder: Path) -> list[str]:
    """The files and hidden folders below a folder, by their relative paths."""
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() or path.name.startswith(".")
    )


def write_records(path: Path, count: int, text: str = "hello") -> str:
    """Writes a file of records; returns its path."""
    lines = (json.dumps({"id": f"r-{n}", "text": f"{text} {n}"}) + "\n" for n in range(count))
    path.write_text("".join(lines))
    return str(path)


def unused_port() -> int:
    """A port on which no process listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# Usage errors, in a process of their own: one of each kind.


def _wrong_use(
    folder: Path, cloud: LoopbackCloud
) -> dict[str, tuple[dict[str, str], list[str], str]]:
    """Name → environment, flags, the only message."""
    records = write_records(folder / "in.jsonl", 3)
    bare = bare_environment(folder)
    google = cloud.subprocess_environment(TMPDIR=bare["TMPDIR"])
    fake = ["--backend=fake", "--prompt={{ text }}"]
    local = [*fake, f"--input_files={records}"]
    whole = [*local, f"--output_path={folder}/out"]
    table = f"{cloud.new_dataset()}.missing"
    gemini = ["--backend=gemini", "--model=m", "--model_project=p", "--model_location=us-central1"]
    return {
        "unknown flag": (
            bare,
            [*whole, "--input_flies=x"],
            "unknown flag --input_flies; did you mean --input_files?",
        ),
        "conflicting flags": (
            bare,
            [*whole, "--input_table=p.d.t"],
            (
                "exactly one input is needed, but --input_files and --input_table are set: set one "
                "of --input_files, --input_table, --input_query, --input_subscription, --input_dead_letters"
            ),
        ),
        "unreadable file": (
            bare,
            [
                *fake,
                "--input_files=/proc/self/mem",
                "--input_format=txt",
                f"--output_path={folder}/out",
            ],
            "--input_files: '/proc/self/mem' cannot be read: Input/output error",
        ),
        "missing table": (
            google,
            [*fake, f"--input_table={table}", f"--output_path={folder}/out"],
            f"--input_table {table} does not exist: check project, dataset and name",
        ),
        "bad template": (
            bare,
            [*whole, "--prompt={{ text | shout }}"],
            (
                "--prompt is not a valid template: line 1: No filter named 'shout': "
                "'{{ text | shout }}'"
            ),
        ),
        "unwritable output": (
            bare,
            [*local, f"--output_path={records}/out"],
            (
                f"--output_path '{records}/out' cannot be written: [Errno 20] Not a directory: "
                f"'{records}/out'; set a folder that can be written"
            ),
        ),
        "missing credentials of the backend": (
            bare,
            [*whole, *gemini],
            f"--backend gemini: {NO_CREDENTIALS}",
        ),
        "missing credentials of a sink": (
            bare,
            [*local, "--output_table=p:d.t"],
            f"--output_table: {NO_CREDENTIALS}",
        ),
        "unknown backend": (
            bare,
            [*whole, "--backend=gemeni"],
            (
                "--backend is 'gemeni', but must be one of: gemini, vertex_endpoint, openai, vllm, "
                "sentence_transformers, fake; did you mean gemini?"
            ),
        ),
    }


WRONG_USE = (
    "unknown flag",
    "conflicting flags",
    "unreadable file",
    "missing table",
    "bad template",
    "unwritable output",
    "missing credentials of the backend",
    "missing credentials of a sink",
    "unknown backend",
)


@dataclasses.dataclass(frozen=True, slots=True)
class WrongUse:
    """The ended commands of `_wrong_use`."""

    folder: Path
    ended: dict[str, tuple[Ended, str]]


@pytest.fixture(scope="module")
def wrong_use(tmp_path_factory: pytest.TempPathFactory, loopback_cloud: LoopbackCloud) -> WrongUse:
    """Runs them in parallel: each spends most of its time on Python's imports."""
    folder = tmp_path_factory.mktemp("wrong_use")
    commands = _wrong_use(folder, loopback_cloud)
    assert tuple(commands) == WRONG_USE
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        running = {
            name: (pool.submit(call, environment, *flags), message)
            for name, (environment, flags, message) in commands.items()
        }
        ended = {name: (future.result(), message) for name, (future, message) in running.items()}
    return WrongUse(folder, ended)


@pytest.mark.parametrize("name", WRONG_USE)
def test_wrong_use_ends_with_one_message(wrong_use: WrongUse, name: str) -> None:
    """A usage error returns 2 and prints one line with the value and the remedy, and no more."""
    ended, message = wrong_use.ended[name]
    assert ended == Ended(2, "", f"error: {message}\n")
    assert files_below(wrong_use.folder) == ["in.jsonl"]


# More usage errors, in this process.

_FILES = {
    "latin": b"caf\xe9",
    "broken.parquet": b"PAR1 and nothing more",
    "records.data": b"{}\n",
    "a.csv": b"id\n1\n",
    "schema.json": b'{"type": 5}',
    "used/run.json": b"{}",
}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["stray"], "'stray' is not a flag: write --name=value"),
        (["--model"], "--model has no value: write --model=…"),
        (["--max_batch_size=many"], "--max_batch_size is 'many', but must be a whole number"),
        (["--max_batch_size=0"], "--max_batch_size is 0, but must be at least 1"),
        (["--temperature=nan"], "--temperature is nan, but must be at least 0"),
        (["--wait=yes"], "--wait is 'yes', but must be one of: true, false"),
        (
            ["--run_id=a b"],
            "--run_id is 'a b', but may hold letters, digits, - and _ only (100 at most)",
        ),
        (
            ["--write_mode=merge"],
            "--write_mode is 'merge', but must be one of: append, replace, fail",
        ),
        (["--output_path="], "no output is set: set --output_path, --output_table or both"),
        (
            ["--output_path=out/*"],
            (
                "--output_path is 'out/*', which is not a folder to write into: *, ? and [ make it a "
                "pattern; set another"
            ),
        ),
        (
            ["--output_path=gs:///out"],
            (
                "--output_path is 'gs:///out', which is not a folder to write into: set one in a "
                "bucket"
            ),
        ),
        (
            ["--input_files="],
            (
                "exactly one input is needed, but none is set: set one of --input_files, "
                "--input_table, --input_query, --input_subscription, --input_dead_letters"
            ),
        ),
        (
            ["--input_files={folder}/*.avro"],
            (
                "--input_files '{folder}/*.avro' matches no file: check the path; quote the pattern, "
                "so that the shell does not expand it"
            ),
        ),
        (
            ["--input_files={folder}/broken.parquet"],
            (
                "--input_files: '{folder}/broken.parquet' cannot be read: Parquet magic bytes not "
                "found in footer. Either the file is corrupted or this is not a parquet file."
            ),
        ),
        (
            ["--input_files={folder}/records.data"],
            (
                "the name of '{folder}/records.data' does not tell its format: set --input_format, "
                "one of jsonl, csv, parquet, avro, txt, objects"
            ),
        ),
        (
            ["--input_fields=a"],
            "--input_fields is 'a', but goes with --input_table only: remove it",
        ),
        (
            ["--prompt_file={folder}/none"],
            "--prompt and --prompt_file are both set: remove one",
        ),
        (
            ["--prompt=", "--prompt_file={folder}/none"],
            "--prompt_file: cannot read '{folder}/none': No such file or directory",
        ),
        (
            ["--prompt=", "--prompt_file={folder}/latin"],
            "--prompt_file: '{folder}/latin' is not UTF-8 (byte 3)",
        ),
        (
            ["--messages_field=chat"],
            (
                "it is not clear what to send to the model: --prompt and --messages_field are set; set "
                "exactly one of --prompt, --prompt_file, --messages_field, --request_field, --instance_fields"
            ),
        ),
        (
            ["--prompt={% if a %}\n{{ b "],
            (
                "--prompt is not a valid template: line 2: unexpected end of template, expected 'end "
                "of print statement': '{{ b'"
            ),
        ),
        (
            ["--system_prompt={% include 'x' %}"],
            (
                "--system_prompt is not a valid template: line 1: a prompt cannot load another file: "
                "\"{% include 'x' %}\""
            ),
        ),
        (
            ["--output_schema={folder}/none"],
            "--output_schema: cannot read '{folder}/none': No such file or directory",
        ),
        (
            ["--output_schema={folder}/latin"],
            "--output_schema: '{folder}/latin' is not UTF-8 (byte 3)",
        ),
        (
            ["--output_schema={folder}/schema.json"],
            (
                "--output_schema is not a JSON Schema: at $.type: 5 is not valid under any of the "
                "given schemas"
            ),
        ),
        (
            ["--output_schema={folder}/a.csv"],
            (
                "--output_schema is not JSON: Expecting value: line 1 column 1 (char 0): "
                "'{folder}/a.csv'"
            ),
        ),
        (
            ["--generation_config={temperature: 1}"],
            (
                "--generation_config is not JSON: Expecting property name enclosed in double "
                "quotes: line 1 column 2 (char 1): '{temperature: 1}'"
            ),
        ),
        (
            ["--generation_config=[1]"],
            "--generation_config must be a JSON object, not '[1]'",
        ),
        (
            ["--temperature=1", '--generation_config={"temperature": 0}'],
            "--temperature is 1.0, but --generation_config says 0: set one of them",
        ),
        (
            ['--request_options={"speed": 1}'],
            (
                "--request_options has 'speed', but the fake backend's options are: latency_ms, faults, "
                "embedding_dimensions"
            ),
        ),
        (
            ["--backend=openai", "--endpoint=localhost:8000/v1", "--model=m"],
            (
                "--endpoint is 'localhost:8000/v1', but must be a URL that begins with http:// or "
                "https://"
            ),
        ),
        (
            ["--backend=openai", "--model=m"],
            (
                "--backend openai: OPENAI_API_KEY is not set: set it, or set --api_key_secret, or "
                "--endpoint for a server that needs no key"
            ),
        ),
        (
            [
                "--backend=gemini",
                "--model=m",
                "--model_project=p",
                "--model_location=us-central1",
            ],
            f"--backend gemini: {NO_CREDENTIALS}",
        ),
        (
            ["--output_path={folder}/used"],
            (
                "--output_path '{folder}/used' holds another run: set another folder, or "
                "--write_mode=append to add to it, or --write_mode=replace to replace what "
                "earlier runs wrote there"
            ),
        ),
        (
            ["--backend=openai"],
            "--model is missing: the name that the server knows the model by",
        ),
        (
            ["--backend=gemini", "--model=m", "--model_project=p"],
            (
                "--model_location is missing: set it (e.g. us-central1, or global), or --region, or "
                "GOOGLE_CLOUD_LOCATION in the environment"
            ),
        ),
        (
            ["--backend=gemini", "--model=m", "--model_location=us-central1"],
            (
                "--model_project is missing: set it, or --project, or GOOGLE_CLOUD_PROJECT in the "
                "environment"
            ),
        ),
        (
            ["--backend=vertex_endpoint", "--endpoint=somewhere"],
            (
                "--endpoint is 'somewhere', but must be projects/P/locations/L/endpoints/E, or an https "
                "URL that ends so"
            ),
        ),
        (
            ["--backend=sentence_transformers", "--model=m"],
            (
                "--task is 'generate', but backend sentence_transformers takes embed only: set "
                "--task=embed"
            ),
        ),
        (
            ["--output_table=tickets"],
            "'tickets' is not a table: write project:dataset.table",
        ),
    ],
)
def test_wrong_value(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    """A wrong value returns 2 and a message that names the value and the remedy."""
    for name in ("GOOGLE_CLOUD_PROJECT", "GOOGLE_CLOUD_LOCATION", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "no-such-key.json"))
    for name, content in _FILES.items():
        made((tmp_path / name).parent)
        (tmp_path / name).write_bytes(content)
    source = write_records(tmp_path / "in.jsonl", 3)

    code = runs.run(
        f"--input_files={source}",
        "--prompt={{ text }}",
        "--backend=fake",
        f"--output_path={tmp_path}/out",
        *(flag.replace("{folder}", str(tmp_path)) for flag in flags),
    )

    assert code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == f"error: {message.replace('{folder}', str(tmp_path))}\n"
    assert files_below(tmp_path) == sorted([*_FILES, "in.jsonl"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--input_table={dataset}.input", "--input_fields=id,body"],
            "--input_fields: {dataset}.input has no column 'body'; it has id, text",
        ),
        (
            ["--input_query=SELEKT 1", "--project=emu-proj"],
            "--input_query: ",
        ),
        (
            ["--input_files=gs://{bucket}/none/*.jsonl"],
            "--input_files 'gs://{bucket}/none/*.jsonl' matches no file: ",
        ),
        (
            ["--output_table={dataset}x.results"],
            "--output_table: dataset {dataset}x does not exist: create it with `bq mk -d {dataset}x`",
        ),
        (
            ["--output_table={dataset}.input"],
            (
                "--output_table: {dataset}.input has no column 'record_id': this pipeline did not "
                "make it; set another table"
            ),
        ),
        (
            ["--output_table={dataset}.seen"],
            "--output_table: {dataset}.seen is a VIEW, not a table",
        ),
    ],
)
def test_wrong_cloud_resource(
    tmp_path: Path,
    bigquery_dataset: str,
    bucket: str,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    """A cloud resource that is missing or has the wrong form is a usage error too."""
    with bigquery.Client() as client:
        client.query(f"CREATE TABLE `{bigquery_dataset}.input` (id STRING, text STRING)").result()
        client.query(f"CREATE VIEW `{bigquery_dataset}.seen` AS SELECT 1 AS n").result()
    names = {"{dataset}": bigquery_dataset, "{bucket}": bucket}

    def named(text: str) -> str:
        for mark, name in names.items():
            text = text.replace(mark, name)
        return text

    inputs = (
        []
        if "--input" in flags[0]
        else [f"--input_files={write_records(tmp_path / 'in.jsonl', 3)}"]
    )

    code = runs.run(
        *inputs,
        *map(named, flags),
        "--prompt={{ text }}",
        "--backend=fake",
        f"--output_path={tmp_path}/out",
    )

    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {named(message)}")
    assert files_below(tmp_path / "out") == []


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    """``--help`` prints every flag and returns 0; without flags the help returns 2."""
    assert runs.run("--help") == 0
    shown = capsys.readouterr().out
    for flag in FLAGS:
        assert f"  {flag} " in shown
    assert runs.run() == 2
    assert capsys.readouterr().out == shown


# How a run treats existing output.


def test_write_modes_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A used folder is rejected; append adds to it; replace leaves only the new run's files."""
    flags = [
        f"--input_files={write_records(tmp_path / 'in.jsonl', 3)}",
        "--prompt={{ text }}",
        "--backend=fake",
        f"--output_path={tmp_path}/out",
    ]

    def run_ids() -> list[str]:
        return sorted(row["run_id"] for row in runs.in_files(tmp_path / "out").results)

    assert runs.run(*flags, "--run_id=first") == 0
    assert run_ids() == ["first"] * 3
    assert runs.run(*flags, "--run_id=second") == 2
    assert runs.run(*flags, "--run_id=second", "--write_mode=fail") == 2
    assert run_ids() == ["first"] * 3
    assert runs.run(*flags, "--run_id=second", "--write_mode=append") == 0
    assert run_ids() == ["first"] * 3 + ["second"] * 3
    capsys.readouterr()
    assert runs.run(*flags, "--run_id=first", "--write_mode=append") == 2
    assert capsys.readouterr().err == (
        f"error: --run_id 'first' has written into '{tmp_path}/out' before: set another\n"
    )
    assert run_ids() == ["first"] * 3 + ["second"] * 3
    assert runs.run(*flags, "--run_id=third", "--write_mode=replace") == 0
    assert run_ids() == ["third"] * 3
    assert runs.in_files(tmp_path / "out").summary["run_id"] == "third"


def test_write_modes_of_a_table(
    tmp_path: Path,
    bigquery_dataset: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rows are appended by default; fail rejects a table with rows; replace empties it first."""
    temporary = made(tmp_path / "tmp")
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    table = f"{bigquery_dataset}.results"
    flags = [
        f"--input_files={write_records(tmp_path / 'in.jsonl', 3)}",
        "--prompt={{ text }}",
        "--backend=fake",
        f"--output_table={table}",
    ]

    def run_ids(suffix: str = "") -> list[str]:
        with bigquery.Client() as client:
            found = client.query(f"SELECT run_id FROM `{table}{suffix}` ORDER BY run_id").result()
            return [row[0] for row in found]

    assert runs.run(*flags, "--run_id=first") == 0
    assert runs.run(*flags, "--run_id=second") == 0
    assert run_ids() == ["first"] * 3 + ["second"] * 3
    capsys.readouterr()
    assert runs.run(*flags, "--run_id=third", "--write_mode=fail") == 2
    assert capsys.readouterr().err == (
        f"error: --output_table: {table} holds 6 rows and --write_mode is 'fail'\n"
    )
    assert runs.run(*flags, "--run_id=first") == 2
    assert (
        capsys.readouterr().err == f"error: --run_id 'first' is already in {table}: set another\n"
    )
    assert runs.run(*flags, "--run_id=third", "--write_mode=replace") == 0
    assert run_ids() == ["third"] * 3
    assert run_ids("_runs") == ["first", "second", "third"]
    assert [path.name for path in temporary.rglob("*")] == ["batch-inference"]


def test_a_run_that_fails_leaves_no_summary_that_reconciles(
    tmp_path: Path, bigquery_dataset: str
) -> None:
    """A failed run leaves the previous summary under its own name, never as the folder's."""
    table = f"{bigquery_dataset}.results"
    flags = [
        f"--input_files={write_records(tmp_path / 'in.jsonl', 20)}",
        "--prompt={{ text }}",
        f"--output_path={tmp_path}/out",
        f"--output_table={table}",
    ]
    assert runs.run(*flags, "--backend=fake", "--run_id=first") == 0
    before = runs.in_tables(table)

    code = runs.run(
        *flags,
        "--backend=openai",
        "--model=m",
        f"--endpoint=http://127.0.0.1:{unused_port()}/v1",
        "--write_mode=append",
    )

    assert code == 1
    left = files_below(tmp_path / "out")
    assert [name for name in left if name.endswith(".json")] == ["run-first.json"]
    assert all(name.startswith(("results/first-", "run-first")) for name in left)
    assert runs.in_tables(table) == before


def test_preview_sends_and_writes_nothing(
    tmp_path: Path, model_server: SimulatedModelServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """A preview prints requests and totals, calls no server and creates nothing."""
    source = write_records(tmp_path / "in.jsonl", 3)
    with Path(source).open("a") as file:
        file.write("broken\n")
    model_server.reset()

    code = runs.run(
        f"--input_files={source}",
        "--prompt=Say {{ text }}",
        "--backend=openai",
        "--model=m",
        f"--endpoint={model_server.openai_url}",
        f"--output_path={tmp_path}/out",
        "--preview=10",
    )

    assert code == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    for number in range(3):
        assert f'"content": "Say hello {number}"' in shown.out
    assert f"read: parse_error: {source}, line 4: not JSON:" in shown.out
    assert shown.out.endswith("Nothing was sent.\n")
    assert "3 requests, 1 dead letters" in shown.out
    assert model_server.stats()["calls"] == 0
    assert files_below(tmp_path) == ["in.jsonl"]


# Runs that fail.


def check_failed(ended: Ended, out: Path, message: str) -> None:
    """Checks exit code 1, one message, no traceback, and no output that looks complete."""
    assert ended.code == 1
    assert ended.stdout == ""
    run_line, failed, last = ended.stderr.splitlines()
    assert re.fullmatch(r"run [0-9]{8}-[0-9]{6}-[0-9a-f]{6}", run_line)
    assert re.fullmatch(re.escape(run_line) + " failed: " + message, failed)
    assert last == "the run has no summary; treat its output as incomplete"
    assert files_below(out) == []


def test_a_missing_server(tmp_path: Path) -> None:
    """A port without a server stops the run."""
    port = unused_port()
    ended = call(
        bare_environment(tmp_path),
        f"--input_files={write_records(tmp_path / 'in.jsonl', 500)}",
        "--prompt={{ text }}",
        "--backend=openai",
        "--model=m",
        f"--endpoint=http://127.0.0.1:{port}/v1",
        f"--output_path={tmp_path}/out",
    )

    place = re.escape(f"127.0.0.1:{port}")
    check_failed(ended, tmp_path / "out", f"no connection to {place}/v1/chat/completions: .*")


def test_a_wrong_key(tmp_path: Path) -> None:
    """A rejected API key stops the run after a few calls and is never shown."""
    with running_model_server(tmp_path, "--api_key=right") as server:
        ended = call(
            bare_environment(tmp_path, OPENAI_API_KEY="the-wrong-key"),
            f"--input_files={write_records(tmp_path / 'in.jsonl', 2000)}",
            "--prompt={{ text }}",
            "--backend=openai",
            "--model=m",
            f"--endpoint={server.openai_url}",
            f"--output_path={tmp_path}/out",
        )
        calls = server.stats()["calls"]

    place = re.escape(server.base_url.removeprefix("http://"))
    check_failed(
        ended,
        tmp_path / "out",
        f"HTTP 401 from {place}/v1/chat/completions: Incorrect API key provided\\.",
    )
    assert "the-wrong-key" not in ended.stderr
    assert 2 <= calls <= 300, calls


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A separate file system; skips the test if it cannot be mounted."""
    mount, umount = shutil.which("mount"), shutil.which("umount")
    disk = made(folder / "disk")
    command = [str(mount), "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
    if not mount or not umount or subprocess.run(command, capture_output=True).returncode:
        runs.missing_part("no file system may be mounted here: run as root")
    try:
        yield disk
    finally:
        subprocess.run([umount, "-l", str(disk)], check=True)


def test_a_full_disk(tmp_path: Path) -> None:
    """A full disk ends the run, which then frees the space that it used."""
    source = write_records(tmp_path / "in.jsonl", 3000, "a text " * 40)
    with small_disk(tmp_path, "256k") as disk:
        ended = call(
            bare_environment(tmp_path),
            f"--input_files={source}",
            "--prompt={{ text }}",
            "--backend=fake",
            f"--output_path={disk}/out",
        )

        reason = os.strerror(errno.ENOSPC)
        check_failed(ended, disk / "out", rf"\[Errno {errno.ENOSPC}\] {reason}")


def test_a_file_beyond_its_limit(tmp_path: Path) -> None:
    """The process's limit on file size ends the run like a full disk; this needs no privileges."""
    source = write_records(tmp_path / "in.jsonl", 3000, "a text " * 40)
    process = subprocess.Popen(
        [
            *("sh", "-c", 'ulimit -f 64; exec "$@"', "sh"),
            *COMMAND,
            f"--input_files={source}",
            "--prompt={{ text }}",
            "--backend=fake",
            f"--output_path={tmp_path}/out",
        ],
        cwd=REPOSITORY,
        env=bare_environment(tmp_path),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )

    reason = os.strerror(errno.EFBIG)
    check_failed(end(process), tmp_path / "out", rf"\[Errno {errno.EFBIG}\] {reason}")


# Runs that are stopped.

SLOW = "[[latency:600000]]"
"""Makes the model server wait for ten minutes."""


@contextlib.contextmanager
def asking(
    server: SimulatedModelServer, environment: Mapping[str, str], source: str, *flags: str
) -> Iterator[subprocess.Popen[str]]:
    """A run in which some records have answers and 20 are waiting for theirs."""
    server.reset()
    process = start(
        environment,
        f"--input_files={source}",
        "--prompt={{ text }}",
        "--backend=openai",
        "--model=m",
        f"--endpoint={server.openai_url}",
        *flags,
    )
    try:
        wait_until(
            lambda: process.poll() is not None or server.stats()["in_flight"] == 20, "20 calls"
        )
        assert process.poll() is None, process.communicate()
        yield process
    finally:
        process.kill()
        process.communicate()


def write_slow_records(path: Path) -> str:
    """Writes thirty records with immediate answers and twenty without."""
    lines = [json.dumps({"id": n, "text": f"{SLOW if n % 5 > 2 else ''} {n}"}) for n in range(50)]
    path.write_text("\n".join(lines))
    return str(path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_cleans_up(
    tmp_path: Path,
    model_server: SimulatedModelServer,
    loopback_cloud: LoopbackCloud,
    number: signal.Signals,
) -> None:
    """Ctrl-C ends the run with 130, cancels the calls and leaves neither files nor rows behind."""
    dataset = loopback_cloud.new_dataset()
    environment = loopback_cloud.subprocess_environment(TMPDIR=str(made(tmp_path / "tmp")))
    with asking(
        model_server,
        environment,
        write_slow_records(tmp_path / "in.jsonl"),
        f"--output_path={tmp_path}/out",
        f"--output_table={dataset}.results",
    ) as process:
        process.send_signal(number)
        ended = end(process)

    assert (ended.code, ended.stdout) == (130, "")
    message = ended.stderr.splitlines()[-1]  # on a slow machine, progress lines come first
    assert message == (
        "interrupted: 50 calls had been sent; the run has no summary; treat its output as "
        "incomplete"
    )
    assert files_below(tmp_path) == ["in.jsonl"]
    assert list((tmp_path / "tmp").rglob("*")) == []
    wait_until(lambda: model_server.stats()["in_flight"] == 0, "the end of all calls")
    with loopback_cloud.clients_redirected(), bigquery.Client() as client:
        assert list(client.list_tables(dataset)) == []


def test_a_killed_run_leaves_nothing_complete(
    tmp_path: Path, model_server: SimulatedModelServer
) -> None:
    """SIGKILL leaves neither run.json nor a result; the same run elsewhere reconciles."""
    source = write_slow_records(tmp_path / "in.jsonl")
    environment = bare_environment(tmp_path)
    with asking(model_server, environment, source, f"--output_path={tmp_path}/out") as process:
        process.kill()
        assert end(process).code == -signal.SIGKILL

    assert files_below(tmp_path / "out") == []
    again = runs.run(
        f"--input_files={source}",
        "--prompt={{ text | replace('latency', 'patience') }}",
        "--backend=openai",
        "--model=m",
        f"--endpoint={model_server.openai_url}",
        f"--output_path={tmp_path}/again",
    )
    assert again == 0
    held = runs.in_files(tmp_path / "again")
    assert sorted(row["record_id"] for row in held.results) == sorted(map(str, range(50)))
    runs.check_summary(held)


# Output of a run.

_PROGRESS = re.compile(
    r"[0-9]+:[0-9]{2}  read [0-9,]+ · completed [0-9,]+ · [0-9,.]+/s · written [0-9,]+"
)


def test_progress_is_plain_lines_without_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a terminal a run prints lines without control codes, then the table and locations."""
    monkeypatch.setattr(progress, "_PLAIN_EVERY_S", 0.1)

    code = runs.run(
        f"--input_files={write_records(tmp_path / 'in.jsonl', 400)}",
        "--prompt={{ text }}",
        "--backend=fake",
        '--request_options={"latency_ms": 200, "faults": {"blocked": 0.1}}',
        "--max_batch_size=20",
        f"--output_path={tmp_path}/out",
    )

    assert code == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "\x1b" not in shown.err
    first, *lines = shown.err.splitlines()
    assert first.startswith("run ")
    table = next(number for number, line in enumerate(lines) if line.startswith("╭"))
    assert table > 1
    assert all(map(_PROGRESS.match, lines[:table]))
    check_table(lines[table:], runs.in_files(tmp_path / "out").summary, tmp_path / "out")


def check_table(lines: list[str], summary: Mapping[str, Any], out: Path) -> None:
    """Checks that the closing table agrees with the summary and that the locations follow it."""
    run_id, text = summary["run_id"], "\n".join(lines)
    assert f"─ reconciled · run {run_id} ─" in lines[0]
    for name in ("records", "results", "dead letters"):
        amount = summary[name.replace(" ", "_")]
        assert re.search(rf"^│ {name} +{amount:,} ", text, re.MULTILINE)
    for error_type, amount in json.loads(summary["dead_letters_by_error_type"]).items():
        assert re.search(rf"^│   {error_type} +{amount:,} ", text, re.MULTILINE)
    assert [line.strip() for line in lines[-3:]] == [
        f"results  {out}/results/{run_id}-*.jsonl",
        f"dead letters  {out}/dead_letters/{run_id}-*.jsonl",
        f"summary  {out}/run.json",
    ]


def test_progress_is_a_live_line_on_a_terminal(tmp_path: Path) -> None:
    """On a terminal one line is redrawn, and removed before the table is printed."""
    ours, theirs = pty.openpty()
    environment = bare_environment(tmp_path, TERM="xterm-256color", COLUMNS="100", LINES="40")
    process = start(
        environment,
        f"--input_files={write_records(tmp_path / 'in.jsonl', 400)}",
        "--prompt={{ text }}",
        "--backend=fake",
        '--request_options={"latency_ms": 200}',
        "--max_batch_size=20",
        f"--output_path={tmp_path}/out",
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    try:
        shown = _read_all(ours).decode()
    finally:
        ended = end(process)

    assert ended.code == 0
    drawn = len(_PROGRESS.findall(shown))
    assert drawn > 3
    live, closing = shown[: shown.index("╭")], shown[shown.index("╭") :]
    assert len(_PROGRESS.findall(live)) == drawn
    assert "\x1b[?25l" in live  # the cursor is hidden while the live line is shown
    assert "\x1b[?25h" in live  # and shown again afterwards
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", closing).replace("\r\n", "\n")
    summary = runs.in_files(tmp_path / "out").summary
    check_table(plain.splitlines(), summary, tmp_path / "out")


def _read_all(terminal: int) -> bytes:
    """The output on a terminal until its last writer ends."""
    read = bytearray()
    deadline = time.monotonic() + DEADLINE_S
    with selectors.DefaultSelector() as selector:
        selector.register(terminal, selectors.EVENT_READ)
        while selector.select(max(0.0, deadline - time.monotonic())):
            try:
                block = os.read(terminal, 1 << 16)
            except OSError:  # Linux reports that the other end is closed
                break
            if not block:
                break
            read += block
    os.close(terminal)
    return bytes(read)
