"""The flags of a run as a whole: its name, where it runs, and its resources."""

import datetime as dt
import os
import re
import secrets
from collections.abc import Mapping
from typing import Any

from apache_beam.options.pipeline_options import (
    GoogleCloudOptions,
    PipelineOptions,
    StandardOptions,
)

from pipeline.options.flag import BATCH_ONLY, Flag, Form, Kind, Place
from pipeline.options.kinds import BOOLEAN, DATASET, LABELS, TEXT, as_text
from pipeline.options.mode import Mode
from pipeline.options.values import Values
from transforms.clients.bigquery import TableSpec
from transforms.records.errors import ConfigurationError
from transforms.sources.bigquery import QuerySource

GROUP = "Run"

LOCAL_RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
_LOCAL_RUNNERS = (
    "FnApiRunner",
    "DirectRunner",
    "BundleBasedDirectRunner",
    "LocalStreamingRunner",
    "PrismRunner",
)
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")


def _run_id(text: str, flag: str) -> str:
    if not _RUN_ID.fullmatch(text):
        raise ConfigurationError(
            f"{flag} is {text!r}, but may hold letters, digits, - and _ only (100 at most)"
        )
    return as_text(text, flag)


RUN_ID: Flag[str | None] = Flag(
    "run_id",
    GROUP,
    "The run's name. Default: the time and a random suffix; for a stream, the job's name, so that "
    "an update of the job keeps it.",
    Kind(_run_id, form=Form("TEXT", f"^{_RUN_ID.pattern}$", "backfill-2026")),
    place=Place(label="Run ID"),
)
WAIT: Flag[bool] = Flag(
    "wait",
    GROUP,
    "Wait until a remote job has ended.",
    BOOLEAN,
    default=False,
    place=Place(templates=()),  # a launcher never waits
)
TEMP_DATASET: Flag[str | None] = Flag(
    "temp_dataset",
    GROUP,
    "The dataset for temporary query results.",
    DATASET,
    of=QuerySource,
    place=Place(templates=BATCH_ONLY),
)
BIGQUERY_LOCATION: Flag[str | None] = Flag(
    "bigquery_location",
    GROUP,
    "The location of BigQuery jobs. Default: the dataset's.",
    TEXT,
    of=TableSpec,
    field="location",
)
RESOURCE_LABELS: Flag[Mapping[str, str]] = Flag(
    "resource_labels",
    GROUP,
    "Labels for the cloud resources of the run.",
    LABELS,
    of=TableSpec,
    field="labels",
)

RUN_FLAGS: tuple[Flag[Any], ...] = (
    RUN_ID,
    WAIT,
    TEMP_DATASET,
    BIGQUERY_LOCATION,
    RESOURCE_LABELS,
)


def is_local(options: PipelineOptions) -> bool:
    """Whether the pipeline runs in this process."""
    runner = options.view_as(StandardOptions).runner
    return runner is None or str(runner).rpartition(".")[2] in _LOCAL_RUNNERS


def on_dataflow(options: PipelineOptions) -> bool:
    """Whether the job runs on Dataflow."""
    return "Dataflow" in str(options.view_as(StandardOptions).runner)


def project_of(options: PipelineOptions) -> str | None:
    """The job's project, else the environment's."""
    project = options.view_as(GoogleCloudOptions).project
    return project or os.environ.get("GOOGLE_CLOUD_PROJECT") or None


def region_of(options: PipelineOptions) -> str | None:
    """The job's region, else the environment's."""
    region = options.view_as(GoogleCloudOptions).region
    return region or os.environ.get("GOOGLE_CLOUD_LOCATION") or None


def run_id(values: Values, options: PipelineOptions, mode: Mode) -> str:
    """The run's name: the one that is set; else, for a stream, its job's, which an update keeps.

    Raises:
      ConfigurationError: The job's name is not valid for a run.
    """
    name = values[RUN_ID]
    job_name = options.view_as(GoogleCloudOptions).job_name
    if name is None and mode.streaming and job_name is not None:
        return _run_id(job_name, "--job_name")
    if name is None:
        moment = dt.datetime.now(dt.timezone.utc)
        name = f"{moment:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
        return f"inference-{name}" if mode.streaming and not is_local(options) else name
    return name
