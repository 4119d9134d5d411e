"""From flags to source and backend; nothing is guessed and nothing is silently global."""

from typing import Any

import pytest

from pipeline.options.command_line import parse_flags, parse_values
from pipeline.options.model import BACKEND, BACKENDS, make_backend
from pipeline.options.run import project_of
from pipeline.options.source import make_source
from transforms.backends.fake import FakeBackend
from transforms.backends.gemini import GeminiBackend
from transforms.backends.openai import OpenAIBackend
from transforms.backends.sentence_transformers import SentenceTransformersBackend
from transforms.backends.vertex_endpoint import VertexEndpointBackend
from transforms.backends.vllm.backend import VLLMBackend
from transforms.clients.bigquery import TableName
from transforms.records.errors import ConfigurationError
from transforms.sources.bigquery import QuerySource, TableSource
from transforms.sources.dead_letters import DeadLetterSource
from transforms.sources.files import FileSource

ENDPOINT = "projects/p/locations/europe-west4/endpoints/123"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the machine's own settings counts."""
    for name in ("GOOGLE_CLOUD_PROJECT", "GOOGLE_CLOUD_LOCATION", "GOOGLE_CLOUD_REGION"):
        monkeypatch.delenv(name, raising=False)


def _parsed(argv: tuple[str, ...]) -> Any:
    options = parse_flags(argv)
    return parse_values(options), options


def _source(*argv: str) -> Any:
    return make_source(*_parsed(argv))


def _backend(*argv: str) -> Any:
    return make_backend(*_parsed(argv))


def _refused(make: Any, *argv: str) -> str:
    with pytest.raises(ConfigurationError) as raised:
        make(*argv)
    return str(raised.value)


# Sources


def test_files() -> None:
    """Glob, format and limit."""
    assert _source("--input_files=a/*.x", "--input_format=csv", "--limit=3") == FileSource(
        pattern="a/*.x", format="csv", limit=3
    )
    assert _source("--input_files=gs://b/a.csv") == FileSource(pattern="gs://b/a.csv")


def test_table() -> None:
    """All of its flags; its project pays unless the job has one."""
    assert _source(
        "--input_table=p:d.t",
        "--input_fields=a,b",
        "--input_filter=a > 1",
        "--limit=2",
        "--temp_dataset=p:tmp",
        "--bigquery_location=EU",
        "--project=payer",
    ) == TableSource(
        table=TableName("p", "d", "t"),
        fields=("a", "b"),
        filter="a > 1",
        limit=2,
        job_project="payer",
        temp_dataset="p:tmp",
        location="EU",
    )
    assert _source("--input_table=p:d.t").job_project == "p"
    assert _source("--input_table=d.t", "--project=q").table == TableName("q", "d", "t")


def test_dead_letters() -> None:
    """A table or files, read as any other; each row gives its record back."""
    assert _source("--input_dead_letters=out/dead_letters/*.jsonl", "--limit=2") == (
        DeadLetterSource(rows=FileSource(pattern="out/dead_letters/*.jsonl", limit=2))
    )
    assert _source("--input_dead_letters=p:d.t_dead_letters", "--input_filter=retryable") == (
        DeadLetterSource(
            rows=TableSource(
                table=TableName("p", "d", "t_dead_letters"), filter="retryable", job_project="p"
            )
        )
    )


def test_query(monkeypatch: pytest.MonkeyPatch) -> None:
    """The project, by flag or environment, pays for it."""
    query = "--input_query=SELECT 1"
    assert _refused(_source, query) == "--input_query needs --project: who pays for the query"
    assert _source(query, "--project=p") == QuerySource(query="SELECT 1", job_project="p")
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "e")
    assert _source(query) == QuerySource(query="SELECT 1", job_project="e")
    assert _source(query, "--project=p").job_project == "p"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            [],
            (
                "exactly one input is needed, but none is set: use one of --input_files, "
                "--input_table, --input_query, --input_subscription, --input_dead_letters"
            ),
        ),
        (
            ["--input_files=a", "--input_query=b"],
            (
                "exactly one input is needed, but --input_files and --input_query are set: use one "
                "of --input_files, --input_table, --input_query, --input_subscription, --input_dead_letters"
            ),
        ),
        (
            ["--input_files=a", "--input_table=p:d.t", "--input_query=b"],
            (
                "exactly one input is needed, but --input_files and --input_table and --input_query "
                "are set: use one of --input_files, --input_table, --input_query, --input_subscription, --input_dead_letters"
            ),
        ),
        (
            ["--input_table=p:d.t", "--input_format=csv"],
            "--input_format is 'csv', but goes with --input_files only: remove it",
        ),
        (
            ["--input_files=a", "--input_fields=x"],
            "--input_fields is 'x', but goes with --input_table only: remove it",
        ),
        (
            ["--input_query=a", "--project=p", "--input_filter=x"],
            (
                "--input_filter is 'x', but goes with --input_table or --input_dead_letters only: "
                "remove it"
            ),
        ),
        (
            ["--input_files=a", "--temp_dataset=p:d"],
            (
                "--temp_dataset is 'p:d', but goes with --input_table, --input_query or "
                "--input_dead_letters only: remove it"
            ),
        ),
        (["--input_table=t"], "'t' is not a table: write project:dataset.table"),
        (["--input_files=a", "--limit=0"], "--limit is 0, but must be at least 1"),
    ],
)
def test_source_conflicts(argv: list[str], message: str) -> None:
    """Each names what is wrong and what to do."""
    assert _refused(_source, *argv) == message


# Project and location


def test_project_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """The flag, else the environment, else none."""
    assert project_of(parse_flags([])) is None
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "e")
    assert project_of(parse_flags([])) == "e"
    assert project_of(parse_flags(["--project=p"])) == "p"
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "")
    assert project_of(parse_flags([])) is None


def test_gemini_is_never_silently_global(monkeypatch: pytest.MonkeyPatch) -> None:
    """Model flags before the job's, these before the environment's, else an error."""
    argv = ["--model=m", "--model_project=mp", "--model_location=us-east1"]
    job = ["--project=jp", "--region=europe-west1"]
    assert _backend(*argv, *job) == GeminiBackend(model="m", project="mp", location="us-east1")
    assert _backend(argv[0], *job) == GeminiBackend(
        model="m", project="jp", location="europe-west1"
    )
    assert _refused(_backend, argv[0], "--project=p") == (
        "--model_location is missing: give it (e.g. us-central1, or global), or --region, or set "
        "GOOGLE_CLOUD_LOCATION"
    )
    assert _refused(_backend, argv[0], argv[2]) == (
        "--model_project is missing: give it, or --project, or set GOOGLE_CLOUD_PROJECT"
    )
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "ep")
    monkeypatch.setenv("GOOGLE_CLOUD_LOCATION", "asia-east1")
    assert _backend(argv[0]) == GeminiBackend(model="m", project="ep", location="asia-east1")
    assert _backend(argv[0], *job) == GeminiBackend(
        model="m", project="jp", location="europe-west1"
    )
    monkeypatch.setenv("GOOGLE_CLOUD_LOCATION", "")
    assert _refused(_backend, argv[0]).startswith("--model_location is missing: ")
    assert _backend(argv[0], "--model_location=global").location == "global"


# Backends


def test_every_backend_of_the_flag() -> None:
    """The choices of ``--backend`` are the backends that can be made."""
    assert BACKEND.kind.choices == tuple(BACKENDS)


def test_gemini() -> None:
    """All of its flags; gemini is the default, also for an empty value."""
    place = ["--model=m", "--project=p", "--region=r"]
    assert _backend(*place, "--backend=") == _backend(*place, "--backend=gemini")
    assert _backend(
        *place, "--task=embed", "--endpoint=http://x", "--accept_truncated=true"
    ) == GeminiBackend(
        model="m",
        project="p",
        location="r",
        task="embed",
        endpoint="http://x",
        accept_truncated=True,
    )
    for tier in ("standard", "flex", "priority", "provisioned"):
        assert _backend(*place, f"--service_tier={tier}").service_tier == tier
    assert _backend(*place).service_tier is None
    assert _refused(_backend, *place[1:]) == (
        "--model is missing: which Gemini model, e.g. --model=gemini-2.5-flash"
    )


def test_openai() -> None:
    """The real service unless there is an endpoint; the name of the model is needed."""
    assert _backend("--backend=openai", "--model=m") == OpenAIBackend(
        model="m", endpoint="https://api.openai.com/v1"
    )
    assert _backend(
        "--backend=openai", "--model=m", "--endpoint=http://h/v1", "--task=embed",
        "--accept_truncated=true",
    ) == OpenAIBackend(
        model="m", endpoint="http://h/v1", task="embed", accept_truncated=True
    )  # fmt: skip
    assert _refused(_backend, "--backend=openai") == (
        "--model is missing: the name that the server knows the model by"
    )


def test_vertex_endpoint() -> None:
    """The endpoint's resource name and how it is called."""
    argv = ["--backend=vertex_endpoint", f"--endpoint={ENDPOINT}"]
    assert _backend(*argv) == VertexEndpointBackend(endpoint=ENDPOINT)
    assert _backend(*argv, "--predict_method=raw_predict", "--model=m") == VertexEndpointBackend(
        endpoint=ENDPOINT, method="raw_predict", model="m"
    )
    assert _refused(_backend, argv[0]) == (
        "--endpoint is missing: which endpoint, e.g. projects/P/locations/L/endpoints/123"
    )
    assert _refused(_backend, *argv, "--task=embed") == (
        "--task is 'embed', but backend vertex_endpoint has predictions only: remove it; a "
        "prediction that is a list is in output_json"
    )


def test_vllm() -> None:
    """The server's arguments are those of a shell."""
    argv = [
        "--backend=vllm",
        "--model=Qwen/Qwen3-8B",
        "--task=embed",
        "--vllm_python=/v/bin/python",
    ]
    assert _backend(
        *argv, "--vllm_args=--max-model-len 8192 --override='{\"a b\": 1}'"
    ) == VLLMBackend(
        model="Qwen/Qwen3-8B",
        task="embed",
        python="/v/bin/python",
        args=("--max-model-len", "8192", '--override={"a b": 1}'),
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--model is missing: a name on the Hugging Face hub, a folder, or gs://…"),
        (
            ["--model=m", "--vllm_args=--served_model_name=x"],
            "--vllm_args has --served-model-name, which the pipeline sets itself: remove it",
        ),
        (
            ["--model=m", "--vllm_args='"],
            '--vllm_args is "\'": No closing quotation',
        ),
        (
            ["--model=m", '--request_options={"guided_json": {}}'],
            (
                "--request_options has 'guided_json', which vLLM ignores without a word: use "
                "--output_schema, or structured_outputs in --request_options"
            ),
        ),
        (
            ["--model=m", "--endpoint=http://x/v1"],
            "--endpoint is 'http://x/v1', but goes with a backend that is a server only: remove it",
        ),
    ],
)
def test_vllm_refuses(flags: list[str], message: str) -> None:
    """Before anything is launched."""
    assert _refused(_backend, "--backend=vllm", *flags) == message


@pytest.mark.parametrize("flag", ["vllm_args", "vllm_python"])
def test_flags_of_vllm_go_with_it_alone(flag: str) -> None:
    """Elsewhere they would do nothing."""
    message = _refused(_backend, "--backend=openai", "--model=m", f"--{flag}=x")
    assert message == f"--{flag} is 'x', but goes with --backend=vllm only: remove it"


def test_sentence_transformers() -> None:
    """Embeddings only."""
    argv = ["--backend=sentence_transformers", "--model=all-MiniLM-L6-v2"]
    assert _backend(*argv, "--task=embed") == SentenceTransformersBackend(model="all-MiniLM-L6-v2")
    assert _refused(_backend, *argv) == (
        "backend sentence_transformers embeds only: give --task=embed"
    )
    assert _refused(_backend, argv[0], "--task=embed") == (
        "--model is missing: a model's name or path, e.g. all-MiniLM-L6-v2"
    )


def test_fake() -> None:
    """Its request options are its own."""
    assert _backend("--backend=fake") == FakeBackend()
    assert _backend(
        "--backend=fake", "--model=m", "--task=embed",
        '--request_options={"latency_ms": 5, "faults": {"blocked": 0.5}}',
    ) == FakeBackend(
        model="m", task="embed", latency_ms=5, faults={"blocked": 0.5}
    )  # fmt: skip
    assert _refused(_backend, "--backend=fake", '--request_options={"labels": {}}') == (
        "the fake backend has no option 'labels'; known: latency_ms, faults, embedding_dimensions"
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--backend=fake", "--endpoint=http://h"],
            "--endpoint is 'http://h', but goes with a backend that is a server only: remove it",
        ),
        (
            ["--backend=sentence_transformers", "--task=embed", "--model=m", "--endpoint=x"],
            "--endpoint is 'x', but goes with a backend that is a server only: remove it",
        ),
        (
            ["--backend=fake", "--instance_fields=a"],
            "--instance_fields is 'a', but goes with --backend=vertex_endpoint only: remove it",
        ),
        (
            ["--backend=fake", "--service_tier=flex"],
            "--service_tier is 'flex', but goes with --backend=gemini only: remove it",
        ),
        (
            ["--backend=openai", "--model=m", "--service_tier=priority"],
            "--service_tier is 'priority', but goes with --backend=gemini only: remove it",
        ),
        (
            ["--backend=fake", "--task=embed", "--output_schema={}"],
            "--output_schema is '{}', but goes with --task=generate only: remove it",
        ),
        (
            ["--backend=fake", "--task=embed", "--system_prompt=s"],
            "--system_prompt is 's', but goes with --task=generate only: remove it",
        ),
        (
            ["--backend=fake", "--task=embed", "--system_prompt_file=s.txt"],
            "--system_prompt_file is 's.txt', but goes with --task=generate only: remove it",
        ),
        (
            ["--backend=fake", "--task=embed", "--messages_field=chat"],
            "--messages_field is 'chat', but goes with --task=generate only: remove it",
        ),
    ],
)
def test_backend_conflicts(argv: list[str], message: str) -> None:
    """Each names the flag, its value and what it goes with."""
    assert _refused(_backend, *argv) == message


def test_several_endpoints() -> None:
    """Commas separate them; one is what it always was."""
    both = _backend("--backend=openai", "--model=m", "--endpoint=http://a/v1, http://b/v1")
    assert both == OpenAIBackend(model="m", endpoint=("http://a/v1", "http://b/v1"))
    one = _backend("--backend=openai", "--model=m", "--endpoint=http://a/v1,")
    assert one == OpenAIBackend(model="m", endpoint="http://a/v1")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--backend=openai", "--endpoint=http://a/v1,b/v1"],
            "--endpoint is 'b/v1', but must be a URL",
        ),
        (
            ["--backend=openai", "--endpoint=http://a/v1,http://a/v1/"],
            "--endpoint names a server twice: http://a/v1, http://a/v1/",
        ),
        (
            ["--backend=openai", "--endpoint=https://api.openai.com/v1,http://a/v1"],
            "--endpoint is https://api.openai.com/v1, http://a/v1, but several must serve the same",
        ),
        (
            ["--backend=gemini", "--model_location=l", "--endpoint=http://a,http://b"],
            "--endpoint is 'http://a,http://b', but only --backend=openai takes several: give one",
        ),
        (
            ["--backend=fake", "--generate_api=completions"],
            "--generate_api is 'completions', but goes with --backend=openai or vllm only: remove it",
        ),
        (
            ["--backend=vllm", "--generate_api=completions", "--task=embed"],
            "--generate_api is 'completions', but goes with --task=generate only: remove it",
        ),
    ],
)
def test_endpoints_and_apis_that_cannot_be(argv: list[str], message: str) -> None:
    """Each with its value and the remedy."""
    assert _refused(_backend, "--model=m", *argv).startswith(message)


def test_base_models() -> None:
    """The completions API by a flag, with both backends that have one."""
    argv = ("--model=m", "--generate_api=completions")
    assert _backend("--backend=vllm", *argv) == VLLMBackend(model="m", api="completions")
    asked = _backend("--backend=openai", "--endpoint=http://a/v1", *argv)
    assert asked == OpenAIBackend(model="m", endpoint="http://a/v1", api="completions")
