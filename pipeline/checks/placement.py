"""Checks that a job runs where its data is; they query BigQuery and Cloud Storage.

Data that leaves its region costs egress, is slow, and may not be allowed to leave; BigQuery refuses
a job in another location than its dataset's.
"""

import functools
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from apache_beam.options.pipeline_options import (
    GoogleCloudOptions,
    PipelineOptions,
    WorkerOptions,
)

from pipeline.checks.files import check_writable
from pipeline.checks.runner import CHECK_TIMEOUT_S, Check
from pipeline.config import RunConfig
from pipeline.options.run import on_dataflow
from transforms.clients.bigquery import TableName, make_client
from transforms.records.errors import ConfigurationError
from transforms.sources.bigquery import TableSource

if TYPE_CHECKING:
    from google.cloud import bigquery

_MULTI_REGIONS = {"us": "us-", "eu": "europe-"}


def placement_checks(options: PipelineOptions, config: RunConfig) -> Iterator[tuple[str, Check]]:
    """The checks of a job on Dataflow, each with its subject; none for other runners."""
    if not on_dataflow(options):
        return
    cloud = options.view_as(GoogleCloudOptions)
    temp = str(cloud.temp_location).rstrip("/")
    yield f"--temp_location {temp}", lambda: check_writable(temp, "--temp_location")
    region_flag, region = workers_region(options)
    tables: list[tuple[str, TableName, str | None]] = []
    if isinstance(config.source, TableSource):
        tables.append(("--input_table", config.source.table, config.source.location))
    for flag, spec in (
        ("--output_table", config.sinks.output_table),
        ("--dead_letter_table", config.sinks.dead_letter_table),
    ):
        if spec is not None:
            tables.append((flag, spec.name, spec.location))
    seen = set()
    for flag, table, location in tables:
        if region and (table.project, table.dataset) not in seen:
            seen.add((table.project, table.dataset))
            check = functools.partial(check_dataset, flag, table, location, region, region_flag)
            yield f"{flag} {table} beside {region_flag} {region}", check


def workers_region(options: PipelineOptions) -> tuple[str, str]:
    """The flag that places the workers, and their region, which may differ from the job's.

    >>> workers_region(PipelineOptions(["--region=us-east1", "--worker_zone=europe-west4-b"]))
    ('--worker_zone', 'europe-west4')
    """
    worker = options.view_as(WorkerOptions)
    for flag, zone in (("--worker_zone", worker.worker_zone), ("--zone", worker.zone)):
        if zone:
            return flag, re.sub(r"-[a-z]$", "", str(zone))
    if worker.worker_region:
        return "--worker_region", str(worker.worker_region)
    return "--region", str(options.view_as(GoogleCloudOptions).region or "")


def check_dataset(
    flag: str,
    table: TableName,
    location: str | None,
    region: str,
    region_flag: str = "--region",
) -> None:
    """The job runs in the dataset's location.

    ``--bigquery_location`` set to the dataset's location allows it to run elsewhere.

    Raises:
      ConfigurationError: It runs elsewhere, or --bigquery_location is not the dataset's.
    """
    from google.api_core.exceptions import NotFound

    client: bigquery.Client = make_client(table.project)
    try:
        dataset = client.get_dataset(
            f"{table.project}.{table.dataset}", retry=None, timeout=CHECK_TIMEOUT_S
        )
    except NotFound:
        return  # another check reports it
    where = str(dataset.location or "US")
    name = f"{table.project}.{table.dataset}"
    if location and location.lower() != where.lower():
        raise ConfigurationError(
            f"--bigquery_location is {location!r}, but {flag}'s dataset {name} is in {where}: "
            "set it to that, or remove it"
        )
    if not location and not holds(where, region):
        raise ConfigurationError(
            f"the workers are in {region!r} ({region_flag}), but {flag}'s dataset {name} is in {where}: "
            f"run the job there, or set --bigquery_location={where} if the data may leave"
        )


def holds(location: str, region: str) -> bool:
    """Whether a location of BigQuery holds a region.

    >>> holds("EU", "europe-west4"), holds("us-central1", "us-central1"), holds("US", "asia-east1")
    (True, True, False)
    """
    location = location.lower()
    return location == region or region.startswith(_MULTI_REGIONS.get(location, "\n"))
