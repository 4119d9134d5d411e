"""The closing table: the counts of a run, its cost and the location of its output."""

import datetime as dt
import itertools
import json
from typing import Any

from apache_beam.io.filesystems import FileSystems
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from pipeline.config import RunConfig
from transforms.results.rows import Row


def read_summary(config: RunConfig) -> Row | None:
    """The run's summary, from its file or the runs table; None if the run wrote none."""
    sinks, path = config.sinks, config.summary.path
    if path is not None:
        if not FileSystems.exists(path):
            return None
        with FileSystems.open(path) as file:
            row: Row = json.loads(file.read())
        return row if row["run_id"] == config.run_id else None
    if sinks.runs_table is None or config.mode.streaming:  # a stream's table has a row per minute
        return None
    from google.cloud import bigquery

    job = sinks.runs_table.client().query(
        f"SELECT * FROM `{sinks.runs_table.name}` WHERE run_id = @run_id",
        job_config=bigquery.QueryJobConfig(
            query_parameters=[bigquery.ScalarQueryParameter("run_id", "STRING", config.run_id)]
        ),
    )
    rows = [dict(found) for found in job.result()]
    return rows[0] if rows else None


def _moment(value: Any) -> dt.datetime:
    if isinstance(value, dt.datetime):
        return value
    return dt.datetime.fromisoformat(str(value).replace("Z", "+00:00"))


def summary_panel(config: RunConfig, row: Row) -> Panel:
    """The closing table of a run; its title says how the run ended."""
    seconds = max((_moment(row["finished_at"]) - _moment(row["started_at"])).total_seconds(), 1e-3)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column()

    def line(name: str, value: Any, note: str = "") -> None:
        shown = f"{value:,}" if isinstance(value, int) else str(value)
        table.add_row(name, shown, note)

    duplicates = row["duplicate_ids"]
    line("records", row["records"], f"{duplicates:,} duplicate ids" if duplicates else "")
    line("results", row["results"])
    line("dead letters", row["dead_letters"])
    for error_type, amount in json.loads(row["dead_letters_by_error_type"]).items():
        table.add_row(f"  {error_type}", f"{amount:,}", "", style="yellow")
    line("time", f"{seconds:,.1f} s", f"{row['records'] / seconds:,.1f} records/s")
    retries = row["retries"]
    line("requests", row["requests_sent"], f"{retries:,} retries included" if retries else "")
    if row["throttled_ms"]:
        line("throttled", f"{row['throttled_ms'] / 1000:,.1f} s", "summed over records")
    tokens = [f"{row['output_tokens']:,} out"] if row["output_tokens"] else []
    if row["reasoning_tokens"]:
        tokens.append(f"{row['reasoning_tokens']:,} reasoning")
    if row["cached_input_tokens"]:
        tokens.append(f"{row['cached_input_tokens']:,} cached")
    if row["input_tokens"]:
        line("tokens", f"{row['input_tokens']:,} in", ", ".join(tokens))
    cost = row["cost_usd"]
    if cost is not None:
        line("cost", f"${float(cost):,.4f}", "at list price")
    elif config.prices.provider is not None:
        line("cost", "unknown", f"no list price for {config.backend.model}")
    if not row["reconciled"]:
        title, style = "NOT RECONCILED", "red"
    elif "not_attempted" in json.loads(row["dead_letters_by_error_type"]):
        title, style = "reconciled, but stopped early", "yellow"
    elif row["dead_letters"] and not row["results"]:
        title, style = "reconciled, but every record is a dead letter", "yellow"
    else:
        title, style = "reconciled", "green"
    return Panel(
        table,
        title=f"[bold {style}]{title}[/] · run {config.run_id}",
        border_style=style,
        expand=False,
    )


def most_common_failure(config: RunConfig, row: Row) -> str | None:
    """A message of the most common error type; None unless dead letters are in JSON lines files."""
    folder = config.sinks.dead_letter_path
    if folder is None or config.sinks.output_format != "jsonl":
        return None
    by_type = json.loads(row["dead_letters_by_error_type"])
    most_common = max(by_type, key=by_type.__getitem__)
    for found in FileSystems.match([f"{folder}/{config.run_id}-*"])[0].metadata_list:
        with FileSystems.open(found.path) as file:
            for line in itertools.islice(file, 1000):
                letter = json.loads(line)
                if letter["error_type"] == most_common:
                    return f"{letter['stage']}: {most_common}: {letter['error_message']}"
    return None


def locations(config: RunConfig) -> list[tuple[str, str]]:
    """Where the run's output is: pairs of a name and a path or table."""
    sinks, run_id = config.sinks, config.run_id
    found: list[tuple[str, str]] = []
    if sinks.results_path:
        found.append(("results", f"{sinks.results_path}/{run_id}-*.{sinks.output_format}"))
    if sinks.output_table:
        found.append(("results", str(sinks.output_table.name)))
        found.append(("latest results", str(sinks.output_table.name.sibling("_latest"))))
    if sinks.dead_letter_path:
        found.append(("dead letters", f"{sinks.dead_letter_path}/{run_id}-*.{sinks.output_format}"))
    if sinks.dead_letter_table:
        found.append(("dead letters", str(sinks.dead_letter_table.name)))
    if sinks.summary_path:
        found.append(("summary", sinks.summary_path))
    if config.mode.streaming and sinks.runs_path:
        found.append(("by minute", f"{sinks.runs_path}/{run_id}-*.{sinks.output_format}"))
    if sinks.runs_table:
        found.append(("summary", str(sinks.runs_table.name)))
    return found


def print_report(console: Console, config: RunConfig, row: Row) -> None:
    """Prints the closing table and where the run's output is."""
    console.print(summary_panel(config, row), highlight=False)
    if row["dead_letters"] and not row["results"]:
        message = most_common_failure(config, row)
        if message:
            console.print(f"most common failure: {message}", highlight=False, markup=False)
    print_locations(console, config)


def print_locations(console: Console, config: RunConfig) -> None:
    """Prints where the run's output is: one location per line, never wrapped."""
    for name, location in locations(config):
        console.print(f"{name:>14}  {location}", highlight=False, markup=False, soft_wrap=True)
