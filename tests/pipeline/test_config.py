"""The configuration: every flag takes effect, conflicts name the remedy, and no secret is kept."""

import json
import pathlib
import pickle
import re
import tempfile
from typing import Any

import pytest

from pipeline import VERSION
from pipeline.config import RunConfig
from pipeline.options.command_line import parse_flags
from pipeline.options.run import LOCAL_RUNNER, is_local
from transforms.backends.fake import FakeBackend
from transforms.backends.gemini import GeminiBackend
from transforms.clients.bigquery import TableName
from transforms.dispatch.dispatcher import DispatchLimits
from transforms.records.errors import ConfigurationError
from transforms.requests.batch import BatchLimits
from transforms.requests.render import RequestSpec
from transforms.results.prices import TokenPrices
from transforms.results.rows import DEAD_LETTER_COLUMNS, RESULT_COLUMNS, SUMMARY_COLUMNS, RunInfo
from transforms.sources.base import IdRule
from transforms.sources.files import FileSource

IN, ASK, OUT = "--input_files=a.jsonl", "--prompt=Hello {{ name }}", "--output_path=/out"
FAKE = "--backend=fake"
BASE = (IN, ASK, OUT, FAKE)
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clears the machine's own settings."""
    for name in ("GOOGLE_CLOUD_PROJECT", "GOOGLE_CLOUD_LOCATION"):
        monkeypatch.delenv(name, raising=False)


def _config(*argv: str) -> RunConfig:
    return RunConfig.from_options(parse_flags(argv))


def _refused(*argv: str) -> str:
    with pytest.raises(ConfigurationError) as raised:
        _config(*argv)
    return str(raised.value)


def _with(*argv: str) -> RunConfig:
    return _config(*BASE, *argv)


# The whole configuration


def test_defaults() -> None:
    """A run with only the required flags has these defaults."""
    config = _config(*BASE)
    assert config.source == FileSource(pattern="a.jsonl")
    assert config.id_rule == IdRule("id", required=False)
    assert config.request == RequestSpec(
        prompt="Hello {{ name }}", backend="fake", model="fake", task="generate", params={}
    )
    assert config.backend == FakeBackend()
    assert config.limits == DispatchLimits(
        max_concurrency=2048, max_attempts=5, request_timeout_s=120, record_deadline_s=3600
    )
    assert config.batch == BatchLimits(max_batch_size=256)
    assert config.output_schema is None
    assert config.prices == TokenPrices(None, "fake")
    assert config.run == RunInfo(
        run_id=config.run_id, backend="fake", model="fake", record_fields=None
    )
    assert (config.preview, config.wait, config.local) == (None, False, True)
    sinks = config.sinks
    assert (sinks.output_path, sinks.output_format) == ("/out", "jsonl")
    assert (sinks.results_path, sinks.dead_letter_path) == ("/out/results", "/out/dead_letters")
    assert sinks.summary_path == "/out/run.json"
    assert (sinks.output_table, sinks.dead_letter_table, sinks.runs_table) == (None, None, None)
    assert (sinks.write_mode, sinks.replace, sinks.staging) == (None, False, None)
    assert config.summary.run_id == config.run_id
    assert (config.summary.path, config.summary.table) == ("/out/run.json", None)
    assert config.summary.pipeline_version == VERSION
    assert config.summary.started_at == config.started_at


def test_picklable() -> None:
    """A configuration with any flags can be pickled for workers."""
    config = _config(
        "--input_table=p:d.in",
        ASK,
        "--backend=gemini",
        "--model=gemini-2.5-flash",
        "--project=p",
        "--region=us-central1",
        "--output_table=p:d.out",
        f"--output_schema={json.dumps(SCHEMA)}",
        '--generation_config={"top_p": 0.5}',
    )
    assert pickle.loads(pickle.dumps(config)) == config
    assert pickle.loads(pickle.dumps(_config(*BASE))).backend == FakeBackend()


def test_pace() -> None:
    """Each flag of the pace reaches the setting that it controls."""
    config = _with(
        "--max_concurrency=7", "--max_attempts=2", "--request_timeout_s=1.5",
        "--record_deadline_s=60", "--max_batch_size=9", "--max_requests_per_minute=600",
        "--max_tokens_per_minute=9000", "--max_dead_letter_ratio=0",
    )  # fmt: skip
    assert config.limits == DispatchLimits(
        max_concurrency=7,
        max_attempts=2,
        request_timeout_s=1.5,
        record_deadline_s=60,
        requests_per_minute=600,
        tokens_per_minute=9000,
        max_dead_letter_ratio=0.0,
    )
    assert config.batch == BatchLimits(max_batch_size=9)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--max_concurrency=0", "--max_concurrency is 0, but must be at least 1"),
        ("--max_attempts=0", "--max_attempts is 0, but must be at least 1"),
        ("--max_batch_size=-1", "--max_batch_size is -1, but must be at least 1"),
        ("--request_timeout_s=0", "--request_timeout_s is 0, but must be at least 0.001"),
        ("--record_deadline_s=x", "--record_deadline_s is 'x', but must be a number"),
        ("--preview=0", "--preview is 0, but must be at least 1"),
        ("--max_output_tokens=0", "--max_output_tokens is 0, but must be at least 1"),
        ("--temperature=hot", "--temperature is 'hot', but must be a number"),
    ],
)
def test_values_out_of_range(flag: str, message: str) -> None:
    """A value out of range is rejected with the value and the bound."""
    assert _refused(*BASE, flag) == message


def test_id_field() -> None:
    """An id field that is set is required, also when it has the default's name."""
    assert _with("--id_field=key").id_rule == IdRule("key", required=True)
    assert _with("--id_field=id").id_rule == IdRule("id", required=True)
    assert _with("--id_field=").id_rule == IdRule("id", required=False)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("all", None), ("", None), ("none", ()), ("a, b", ("a", "b")), ("a", ("a",))],
)
def test_record_fields(value: str, expected: tuple[str, ...] | None) -> None:
    """Record fields are all, none or a list."""
    assert _with(f"--record_fields={value}").run.record_fields == expected


# The run's name


def test_run_id_by_default() -> None:
    """Run ids hold time and a random part: no two are equal, and each is valid in every name."""
    first, second = (_config(*BASE).run_id for _ in range(2))
    assert first != second
    assert re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{6}", first)


def test_run_id() -> None:
    """A run id that is set is used in every name."""
    config = _with("--run_id=My_run-7")
    assert config.run_id == config.run.run_id == config.summary.run_id == "My_run-7"
    assert _with("--run_id=" + "a" * 100).run_id == "a" * 100


@pytest.mark.parametrize("run_id", ["a b", "a/b", "-a", "é", "a.b", "a" * 101, "_a", "a\nb"])
def test_bad_run_id(run_id: str) -> None:
    """A bad run id is rejected, because file and job names contain it."""
    assert _refused(*BASE, f"--run_id={run_id}") == (
        f"--run_id is {run_id!r}, but may hold letters, digits, - and _ only (100 at most)"
    )


# The request


def _nothing_asked(given: str) -> str:
    return (
        f"it is not clear what to send to the model: {given}; set exactly one of --prompt, --prompt_file, "
        "--messages_field, --request_field, --instance_fields"
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], _nothing_asked("none is set")),
        (["--prompt=  "], _nothing_asked("none is set")),
        (
            [ASK, "--messages_field=m"],
            _nothing_asked("--prompt and --messages_field are set"),
        ),
        (
            ["--request_field=r", "--messages_field=m"],
            _nothing_asked("--messages_field and --request_field are set"),
        ),
        (
            [ASK, "--prompt_file=p.txt"],
            "--prompt and --prompt_file are both set: remove one",
        ),
        (
            [ASK, "--system_prompt=s", "--system_prompt_file=p.txt"],
            "--system_prompt and --system_prompt_file are both set: remove one",
        ),
        (
            ["--prompt_file=nowhere.txt"],
            "--prompt_file: cannot read 'nowhere.txt': No such file or directory",
        ),
        (
            ["--prompt=Hello {{ name"],
            (
                "--prompt is not a valid template: line 1: unexpected end of template, expected 'end "
                "of print statement': 'Hello {{ name'"
            ),
        ),
    ],
)
def test_exactly_one_kind_of_request(argv: list[str], message: str) -> None:
    """Exactly one kind of request must be set."""
    assert _refused(IN, OUT, FAKE, *argv) == message


def test_prompt_file(tmp_path: pathlib.Path) -> None:
    """Errors in a prompt file name the file."""
    path = tmp_path / "p.txt"
    path.write_text("Hello\n{{ name }}")
    request = _config(IN, OUT, FAKE, f"--prompt_file={path}").request
    assert (request.prompt, request.prompt_name) == ("Hello\n{{ name }}", str(path))
    path.write_text("Hello\n{% for %}")
    assert _refused(IN, OUT, FAKE, f"--prompt_file={path}").startswith(
        f"{path} is not a valid template: line 2: "
    )


def test_empty_prompt_file(tmp_path: pathlib.Path) -> None:
    """An empty prompt is rejected before any request is paid for."""
    path = tmp_path / "p.txt"
    path.write_text("")
    assert _refused(IN, OUT, FAKE, f"--prompt_file={path}") == (
        f"--prompt_file: {str(path)!r} is empty"
    )


def test_fields_as_requests() -> None:
    """Messages, whole requests and instances are the other kinds of request."""
    assert _config(IN, OUT, FAKE, "--messages_field=m").request.messages_field == "m"
    assert _config(IN, OUT, FAKE, "--request_field=r").request.request_field == "r"
    endpoint = ["--backend=vertex_endpoint", "--endpoint=projects/p/locations/l/endpoints/1"]
    request = _config(IN, OUT, *endpoint, "--instance_fields=a,b").request
    assert (request.instance_fields, request.instance) == (("a", "b"), True)
    assert _refused(IN, OUT, *endpoint, "--instance_fields=a", "--system_prompt=s") == (
        "--system_prompt is 's', but backend vertex_endpoint sends instances, which have no "
        "messages: remove it"
    )


# Parameters


def test_generation_flags() -> None:
    """Generation flags and JSON are merged into one configuration."""
    config = _config(
        IN, ASK, OUT, "--backend=openai", "--model=m", "--max_output_tokens=9", "--temperature=0",
        '--generation_config={"top_p": 0.5, "stop": ["x"]}', '--request_options={"user": "u"}',
        f"--output_schema={json.dumps(SCHEMA)}", "--system_prompt=Be brief.",
    )  # fmt: skip
    assert config.request.params == {
        "generation_config": {
            "top_p": 0.5,
            "stop": ["x"],
            "max_output_tokens": 9,
            "temperature": 0.0,
        },
        "request_options": {"user": "u"},
        "output_schema": SCHEMA,
    }
    assert config.request.system_prompt == "Be brief."
    assert config.output_schema == SCHEMA


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--temperature=0.5", '--generation_config={"temperature": 1}'],
            "--temperature is 0.5, but --generation_config says 1: set one of them",
        ),
        (
            ["--max_output_tokens=5", '--generation_config={"max_output_tokens": 6}'],
            "--max_output_tokens is 5, but --generation_config says 6: set one of them",
        ),
    ],
)
def test_parameters_set_twice(argv: list[str], message: str) -> None:
    """Two values for one parameter are rejected; equal values are one."""
    assert _refused(*BASE, *argv) == message
    same = _with("--temperature=1", '--generation_config={"temperature": 1}')
    assert same.request.params == {"generation_config": {"temperature": 1.0}}


@pytest.mark.parametrize(
    ("flag", "named"),
    [
        ("--temperature=1", "generation_config"),
        ("--max_output_tokens=5", "generation_config"),
        ('--generation_config={"top_p": 1}', "generation_config"),
        ('--request_options={"user": "u"}', "request_options"),
        ("--system_prompt=s", "system_prompt"),
    ],
)
def test_whole_requests_take_no_parameters(flag: str, named: str) -> None:
    """Whole requests reject parameters, which they would ignore."""
    argv = [IN, OUT, "--backend=openai", "--model=m", "--request_field=r"]
    assert _refused(*argv, flag) == (
        f"--request_field sends each request unchanged: remove --{named} "
        "(or --max_output_tokens, --temperature)"
    )
    assert _config(*argv, f"--output_schema={json.dumps(SCHEMA)}").output_schema == SCHEMA


def test_embeddings_take_no_schema() -> None:
    """Embeddings reject a schema, since a vector is not JSON."""
    assert _refused(*BASE, "--task=embed", f"--output_schema={json.dumps(SCHEMA)}") == (
        f"--output_schema is {json.dumps(SCHEMA)!r}, but goes with --task=generate only: remove it"
    )
    assert _with("--task=embed").request.task == "embed"


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (
            '{"type": "strin"}',
            (
                "--output_schema is not a JSON Schema: at $.type: 'strin' is not valid under any of "
                "the given schemas"
            ),
        ),
        ("nowhere.json", "--output_schema: cannot read 'nowhere.json': No such file or directory"),
    ],
)
def test_bad_schema(schema: str, message: str) -> None:
    """A bad schema is rejected before a launch, with the position of the error."""
    assert _refused(*BASE, f"--output_schema={schema}") == message


def test_request_options_of_the_fake_are_its_own() -> None:
    """Request options of the fake backend configure the fake and are no part of a request."""
    config = _with('--request_options={"latency_ms": 5}')
    assert config.backend == FakeBackend(latency_ms=5)
    assert config.request.params == {}


# Prices


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (
            ["--backend=gemini", "--model=m", "--project=p", "--region=r"],
            TokenPrices("google", "m"),
        ),
        (["--backend=openai", "--model=m"], TokenPrices("openai", "m")),
        (
            ["--backend=openai", "--model=m", "--endpoint=https://api.openai.com/v1"],
            TokenPrices("openai", "m"),
        ),
        (["--backend=openai", "--model=m", "--endpoint=http://h/v1"], TokenPrices(None, "m")),
        ([FAKE], TokenPrices(None, "fake")),
    ],
)
def test_prices(argv: list[str], expected: TokenPrices) -> None:
    """List prices apply only to the server that publishes the list."""
    assert _config(IN, ASK, OUT, *argv).prices == expected


# Sinks


def test_no_output() -> None:
    """A run needs an output; a preview needs none."""
    argv = [IN, ASK, FAKE]
    message = "no output is set: set --output_path, --output_table or both"
    assert _refused(*argv) == message
    assert _refused(*argv, "--dead_letter_path=/d") == message
    assert _refused(*argv, "--dead_letter_table=p:d.t") == message
    assert _config(*argv, "--preview=3").preview == 3


def test_tables() -> None:
    """The three tables have their names, layout and prices."""
    sinks = _config(
        IN, ASK, FAKE, "--output_table=p:d.t", "--project=payer", "--bigquery_location=EU"
    ).sinks
    tables = (sinks.output_table, sinks.dead_letter_table, sinks.runs_table)
    assert [(t.name, t.columns, t.partition_by, t.cluster_by) for t in tables if t] == [
        (TableName("p", "d", "t"), RESULT_COLUMNS, "created_at", ("run_id", "record_id")),
        (
            TableName("p", "d", "t_dead_letters"),
            DEAD_LETTER_COLUMNS,
            "timestamp",
            ("run_id", "error_type"),
        ),
        (TableName("p", "d", "t_runs"), SUMMARY_COLUMNS, "started_at", ("run_id",)),
    ]
    assert {(t.job_project, t.location) for t in tables if t} == {("payer", "EU")}
    assert (sinks.output_path, sinks.results_path, sinks.summary_path) == (None, None, None)


def test_tables_of_the_environments_project(monkeypatch: pytest.MonkeyPatch) -> None:
    """The project of a table may come from the environment."""
    argv = [IN, ASK, FAKE, "--output_table=d.t"]
    assert _refused(*argv) == "'d.t' is not a table: write project:dataset.table"
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "e")
    table = _config(*argv).sinks.output_table
    assert table is not None
    assert table.name == TableName("e", "d", "t")


def test_dead_letter_table() -> None:
    """The dead-letter table has its own name and is never the output table."""
    table = _with("--dead_letter_table=p:d.dead").sinks.dead_letter_table
    assert table is not None
    assert table.name == TableName("p", "d", "dead")
    for name in ("p:d.t", "p.d.t"):
        assert _refused(IN, ASK, FAKE, "--output_table=p:d.t", f"--dead_letter_table={name}") == (
            f"--dead_letter_table is {name!r}, which this run uses for other rows: "
            "set another table"
        )


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/out/", "/out"),
        ("/out//", "/out"),
        ("out", "out"),
        ("gs://b/c/", "gs://b/c"),
        ("gs://b", "gs://b"),
    ],
)
def test_folders(path: str, expected: str) -> None:
    """A folder may end with a slash or not."""
    sinks = _config(IN, ASK, FAKE, f"--output_path={path}").sinks
    assert sinks.output_path == expected
    assert sinks.results_path == f"{expected}/results"
    assert sinks.dead_letter_path == f"{expected}/dead_letters"
    assert sinks.summary_path == f"{expected}/run.json"
    assert _with(f"--dead_letter_path={path}").sinks.dead_letter_path == expected


@pytest.mark.parametrize("path", ["/", "//", "gs://", "gs:///", "gs:///b"])
def test_no_folders(path: str) -> None:
    """The root of a file system is rejected as a folder."""
    assert _refused(IN, ASK, FAKE, f"--output_path={path}") == (
        f"--output_path is {path!r}, which is not a folder to write into: set one in a bucket"
    )


@pytest.mark.parametrize(
    ("mode", "disposition", "replace"),
    [
        ("", "WRITE_APPEND", False),
        ("append", "WRITE_APPEND", False),
        ("replace", "WRITE_TRUNCATE", True),
        ("fail", "WRITE_EMPTY", False),
    ],
)
def test_write_mode(mode: str, disposition: str, replace: bool) -> None:
    """Tables append by default; folders have their own default."""
    sinks = _with(f"--write_mode={mode}").sinks
    assert sinks.write_mode == (mode or None)
    assert (sinks.write_disposition, sinks.replace) == (disposition, replace)


def test_staging() -> None:
    """Rows are staged below the temp location; only a local run has another place."""
    argv = [IN, ASK, FAKE, "--output_table=p:d.t", "--run_id=r"]
    assert _config(*argv, "--temp_location=gs://b/t/").sinks.staging == ("gs://b/t/bigquery_load/r")
    assert _config(*argv).sinks.staging == f"{tempfile.gettempdir()}/batch-inference/r"
    dataflow = ["--runner=DataflowRunner", "--project=p", "--region=us-central1"]
    assert _refused("--input_files=gs://b/a.jsonl", *argv[1:], *dataflow) == (
        "--temp_location is missing: rows wait there until BigQuery loads them"
    )


_SHARES = [
    (["--max_num_workers=5", "--machine_type=n2-standard-4"], 20),
    (["--max_num_workers=5", "--machine_type=n2-custom-8-16384"], 40),
    (["--max_num_workers=5", "--experiments=no_use_multiple_sdk_containers"], 5),
]
_DATAFLOW = [
    "--input_files=gs://b/i.jsonl", ASK, FAKE, "--output_path=gs://b/o",
    "--runner=DataflowRunner", "--project=p", "--region=us-central1", "--temp_location=gs://b/t",
]  # fmt: skip


@pytest.mark.parametrize(("workers", "processes"), _SHARES)
def test_share_of_a_quota(workers: list[str], processes: int) -> None:
    """A job-wide quota is divided by the largest possible number of processes."""
    limits = _config(*_DATAFLOW, *workers, "--max_requests_per_minute=600").limits
    assert limits.requests_per_minute == 600 / processes
    assert limits.tokens_per_minute is None


def test_share_of_a_quota_that_is_not_known() -> None:
    """A quota is rejected if the number of processes is unknown, because it could not be kept."""
    quota = "--max_tokens_per_minute=600"
    assert _refused(*_DATAFLOW, quota) == (
        "--max_tokens_per_minute is a job-wide quota, divided among workers: set --max_num_workers"
    )
    assert _refused(*_DATAFLOW, quota, "--max_num_workers=3").startswith(
        "--max_tokens_per_minute is a job-wide quota, divided among processes, one per vCPU, and the "
        "name of --machine_type '' does not end in its vCPUs: set one that does"
    )
    assert _refused(*_DATAFLOW, "--max_dead_letter_ratio=20").startswith(
        "--max_dead_letter_ratio is 20, but must be at most 1"
    )


# The runner


@pytest.mark.parametrize(
    ("runner", "local"),
    [
        (None, True),
        ("DirectRunner", True),
        (LOCAL_RUNNER, True),
        ("apache_beam.runners.direct.direct_runner.BundleBasedDirectRunner", True),
        ("PrismRunner", True),
        ("DataflowRunner", False),
        ("FlinkRunner", False),
    ],
)
def test_is_local(runner: str | None, local: bool) -> None:
    """A run is local if the pipeline runs in this process."""
    assert is_local(parse_flags([f"--runner={runner}"] if runner else [])) is local
    assert LOCAL_RUNNER == "apache_beam.runners.portability.fn_api_runner.FnApiRunner"


# The summary


def test_summary_holds_the_flags_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """The summary holds all flags, set or default, and nothing from the environment."""
    secret = "sk-" + "s" * 20
    for name in ("OPENAI_API_KEY", "GOOGLE_API_KEY", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.setenv(name, secret)
    config = _config(
        IN, ASK, OUT, "--backend=openai", "--model=m", "--temperature=0", "--run_id=r", "--limit="
    )
    assert config.summary.config == {
        "input_files": "a.jsonl",
        "prompt": "Hello {{ name }}",
        "accept_truncated": "false",
        "task": "generate",
        "backend": "openai",
        "model": "m",
        "generate_api": "chat",
        "predict_method": "predict",
        "max_concurrency": "2048",
        "max_attempts": "5",
        "request_timeout_s": "120",
        "record_deadline_s": "3600",
        "max_dead_letter_ratio": "0.2",
        "max_batch_size": "256",
        "max_batch_wait_s": "1",
        "batch_keys": "1",
        "prefix_chars": "1000",
        "output_path": "/out",
        "output_format": "jsonl",
        "record_fields": "all",
        "wait": "false",
        "temperature": "0",
        "run_id": "r",
    }
    assert secret.encode() not in pickle.dumps(config)


def test_gemini_config() -> None:
    """The default backend has this whole configuration."""
    config = _config(
        IN, ASK, OUT, "--model=gemini-2.5-flash", "--project=p", "--region=us-central1"
    )
    assert config.backend == GeminiBackend(
        model="gemini-2.5-flash", project="p", location="us-central1"
    )
    assert (config.request.backend, config.request.model) == ("gemini", "gemini-2.5-flash")


def test_equal_flags_make_equal_requests() -> None:
    """The run's name and time are no part of a request, so equal flags have equal fingerprints."""
    first, second = _config(*BASE), _config(*BASE)
    unlike: Any = (first.run_id, first.started_at)
    assert unlike != (second.run_id, second.started_at)
    assert first.request == second.request
