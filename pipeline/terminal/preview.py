"""``--preview N``: renders N records and prints their requests; sends and writes nothing."""

import json

from rich.console import Console

from pipeline.config import RunConfig
from transforms.records.records import DeadLetter, Record
from transforms.requests.render import Renderer


def print_preview(console: Console, config: RunConfig, count: int) -> None:
    """Prints each rendered request, then totals."""
    render = Renderer(config.request)
    tokens = requests = failures = 0
    for number, item in enumerate(config.source.first(config.id_rule, count), 1):
        outcome: Record | DeadLetter = item
        if isinstance(outcome, Record):
            try:
                request = render(outcome)
            except Exception as error:  # as in the pipeline: this record is a dead letter
                outcome = DeadLetter.of(error, stage="render", record=outcome)
            else:
                requests += 1
                tokens += request.estimated_tokens
                console.rule(f"{number} · {request.record.record_id}", align="left")
                shown = {"body": request.body, "params": dict(request.params)}
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
        f"({mean:,.0f} per request). Nothing was sent.",
        highlight=False,
        soft_wrap=True,
    )
