"""``--preview N``: renders N records and prints the requests; nothing is sent or written."""

import itertools
import json
from collections.abc import Iterator

from rich.console import Console

from pipeline.config import RunConfig
from transforms import json_values
from transforms.errors import ConfigurationError
from transforms.records import DeadLetter, Record
from transforms.render import Renderer
from transforms.sinks.bigquery import make_client
from transforms.sources.base import make_record
from transforms.sources.bigquery import QuerySource, TableSource
from transforms.sources.files import FileSource, read_first


def first_records(config: RunConfig, count: int) -> Iterator[Record | DeadLetter]:
    """The first inputs of the source, read in this process."""
    source = config.source
    if isinstance(source, FileSource):
        limit = min(count, source.limit or count)
        yield from read_first(source.pattern, source.format, config.id_rule, limit)
    elif isinstance(source, (TableSource, QuerySource)):
        client = make_client(source.job_project or "", source.location)
        sql = f"SELECT * FROM (\n{source.sql()}\n) LIMIT {count}"
        for row in itertools.islice(client.query(sql).result(), count):
            fields = json_values.to_json_value(dict(row))
            yield make_record(fields, "preview", config.id_rule)
    else:
        raise ConfigurationError("--preview: this source cannot be previewed: remove it")


def print_preview(console: Console, config: RunConfig, count: int) -> None:
    """Prints each rendered request, then totals."""
    render = Renderer(config.request)
    tokens = requests = failures = 0
    for number, item in enumerate(first_records(config, count), 1):
        outcome: Record | DeadLetter = item
        if isinstance(outcome, Record):
            try:
                request = render(outcome)
            except Exception as error:  # as in the pipeline: it costs this record
                outcome = DeadLetter.of(error, stage="render", record=outcome)
            else:
                requests += 1
                tokens += request.estimated_tokens
                console.rule(f"{number} · {request.record.record_id}", align="left")
                shown = {"body": request.body, "params": request.params}
                text = json.dumps(shown, ensure_ascii=False, indent=2)
                console.print(text, markup=False, highlight=False, soft_wrap=True)
                continue
        failures += 1
        console.rule(f"{number} · dead letter", align="left", style="yellow")
        message = f"{outcome.stage}: {outcome.error_type}: {outcome.error_message}"
        console.print(message, markup=False, highlight=False, soft_wrap=True)
    console.rule()
    mean = tokens / requests if requests else 0
    console.print(
        f"{requests:,} requests, {failures:,} dead letters; about {tokens:,} input tokens "
        f"({mean:,.0f} a request). Nothing was sent.",
        highlight=False,
        soft_wrap=True,
    )
