"""Checks of where data is stored, against the emulated services."""

from collections.abc import Iterator

import pytest
from google.cloud import bigquery

from pipeline.checks.all import all_checks
from pipeline.checks.placement import check_dataset, placement_checks, workers_region
from pipeline.checks.runner import run_checks
from pipeline.config import RunConfig
from pipeline.options.command_line import parse_flags
from tests.emulators.google_cloud import LoopbackCloud
from transforms.clients.bigquery import TableName
from transforms.records.errors import ConfigurationError


@pytest.fixture
def in_europe(redirected_clients: LoopbackCloud) -> Iterator[TableName]:
    """A table of a dataset in europe-west4."""
    with bigquery.Client() as client:
        dataset = bigquery.Dataset(redirected_clients.new_dataset() + "_eu")
        dataset.location = "europe-west4"
        client.create_dataset(dataset)
        yield TableName(dataset.project, dataset.dataset_id, "t")


def _refused(table: TableName, location: str | None, region: str) -> str:
    with pytest.raises(ConfigurationError) as raised:
        check_dataset("--output_table", table, location, region)
    return str(raised.value)


def test_dataset_elsewhere(in_europe: TableName) -> None:
    """A dataset elsewhere is rejected with both places, unless a flag names its location."""
    name = f"{in_europe.project}.{in_europe.dataset}"
    check_dataset("--output_table", in_europe, None, "europe-west4")
    check_dataset("--output_table", in_europe, "europe-west4", "us-central1")
    assert _refused(in_europe, None, "us-central1") == (
        f"the workers are in 'us-central1' (--region), but --output_table's dataset {name} is in "
        "europe-west4: run the job there, or set --bigquery_location=europe-west4 if the data may leave"
    )
    assert _refused(in_europe, "US", "us-central1") == (
        f"--bigquery_location is 'US', but --output_table's dataset {name} is in europe-west4: "
        "set it to that, or remove it"
    )


def test_dataset_that_is_not_there(in_europe: TableName) -> None:
    """A missing dataset is left to another check."""
    check_dataset("--output_table", TableName(in_europe.project, "none", "t"), None, "us-east1")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], ("--region", "us-east1")),
        (["--worker_region=europe-west4"], ("--worker_region", "europe-west4")),
        (["--worker_zone=asia-northeast1-a"], ("--worker_zone", "asia-northeast1")),
        (["--zone=us-central1-f"], ("--zone", "us-central1")),
    ],
)
def test_where_the_workers_are(flags: list[str], expected: tuple[str, str]) -> None:
    """The workers' location counts, not the job's: the data goes to the workers."""
    assert workers_region(parse_flags(["--region=us-east1", *flags])) == expected


def _checks(*argv: str) -> list[str]:
    options = parse_flags(
        ["--prompt=x", "--backend=fake", "--project=emu-proj", "--region=us-east1", *argv]
    )
    return [what for what, _ in placement_checks(options, RunConfig.from_options(options))]


def test_checks_of_a_run(bucket: str, bigquery_dataset: str) -> None:
    """Each dataset and the temporary folder are checked once; a local run checks nothing."""
    table = bigquery_dataset.replace(".", ":") + ".t"
    tables = [f"--input_table={table}", f"--output_table={table}"]
    dataflow = ["--runner=DataflowRunner", f"--temp_location=gs://{bucket}/tmp/"]
    assert _checks(*tables, *dataflow) == [
        f"--temp_location gs://{bucket}/tmp",
        f"--input_table {bigquery_dataset}.t beside --region us-east1",
    ]
    elsewhere = [*dataflow, "--worker_zone=us-west1-b"]
    assert _checks(*tables, *elsewhere)[1].endswith(" beside --worker_zone us-west1")
    assert _checks(*tables, f"--temp_location=gs://{bucket}/tmp") == []


def test_they_run_with_the_others(bucket: str, in_europe: TableName) -> None:
    """These checks run with the others before a launch and raise a definite failure."""
    options = parse_flags([
        "--runner=DataflowRunner", "--project=emu-proj", "--region=us-central1",
        f"--temp_location=gs://{bucket}/tmp", "--input_query=SELECT 1 AS id", "--prompt=x",
        "--backend=fake", f"--output_table={in_europe.project}:{in_europe.dataset}.t",
    ])  # fmt: skip
    config = RunConfig.from_options(options)
    with pytest.raises(ConfigurationError, match="is in europe-west4: run the job there"):
        run_checks([*all_checks(config), *placement_checks(options, config)])


def test_a_bucket_that_is_not_there(bucket: str) -> None:
    """A temporary folder that cannot be written is rejected."""
    options = parse_flags([
        "--runner=DataflowRunner", "--project=emu-proj", "--region=us-central1",
        f"--temp_location=gs://{bucket}-none/tmp", "--input_query=SELECT 1 AS id", "--prompt=x",
        "--backend=fake", f"--output_path=gs://{bucket}/out",
    ])  # fmt: skip
    config = RunConfig.from_options(options)
    with pytest.raises(ConfigurationError, match=r"--temp_location 'gs://.*-none/tmp'"):
        run_checks([*all_checks(config), *placement_checks(options, config)])
