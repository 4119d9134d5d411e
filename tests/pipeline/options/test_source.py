"""From flags to the one source that they name."""

from typing import Any

import pytest

from pipeline.options.command_line import parse_flags, parse_values
from pipeline.options.source import make_source
from transforms.clients.bigquery import TableName
from transforms.records.errors import ConfigurationError
from transforms.sources.bigquery import QuerySource, TableSource
from transforms.sources.dead_letters import DeadLetterSource
from transforms.sources.files import FileSource


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clears the machine's own settings."""
    for name in ("GOOGLE_CLOUD_PROJECT", "GOOGLE_CLOUD_LOCATION", "GOOGLE_CLOUD_REGION"):
        monkeypatch.delenv(name, raising=False)


def _parsed(argv: tuple[str, ...]) -> Any:
    options = parse_flags(argv)
    return parse_values(options), options


def _source(*argv: str) -> Any:
    return make_source(*_parsed(argv))


def _refused(make: Any, *argv: str) -> str:
    with pytest.raises(ConfigurationError) as raised:
        make(*argv)
    return str(raised.value)


# Sources


def test_files() -> None:
    """A glob, a format and a limit make a source of files."""
    assert _source("--input_files=a/*.x", "--input_format=csv", "--limit=3") == FileSource(
        pattern="a/*.x", format="csv", limit=3
    )
    assert _source("--input_files=gs://b/a.csv") == FileSource(pattern="gs://b/a.csv")


def test_table() -> None:
    """Every flag of a table reaches its source; its project pays unless the job has one."""
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
    """Dead letters are read from a table or files, and each row becomes its record again."""
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
    """The project of the flag or the environment pays for a query."""
    query = "--input_query=SELECT 1"
    assert _refused(_source, query) == "--input_query needs a project to bill: set --project"
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
                "exactly one input is needed, but none is set: set one of --input_files, "
                "--input_table, --input_query, --input_subscription, --input_dead_letters"
            ),
        ),
        (
            ["--input_files=a", "--input_query=b"],
            (
                "exactly one input is needed, but --input_files and --input_query are set: set one "
                "of --input_files, --input_table, --input_query, --input_subscription, --input_dead_letters"
            ),
        ),
        (
            ["--input_files=a", "--input_table=p:d.t", "--input_query=b"],
            (
                "exactly one input is needed, but --input_files and --input_table and --input_query "
                "are set: set one of --input_files, --input_table, --input_query, --input_subscription, --input_dead_letters"
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
    """A conflict names the problem and the remedy."""
    assert _refused(_source, *argv) == message
