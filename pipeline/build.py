"""The pipeline, from records to the summary: the README's diagram as code."""

import apache_beam as beam

from pipeline.config import RunConfig
from pipeline.sinks import write_dead_letters, write_results
from pipeline.summaries import write_summary
from transforms.inference.infer import Infer
from transforms.records.errors import ConfigurationError
from transforms.requests.batch import BatchRequests
from transforms.requests.order import OrderByPrefix
from transforms.requests.render import RenderRequests
from transforms.results.validate import ValidateOutputs
from transforms.sources.base import ReadRecords


def build(root: beam.Pipeline, config: RunConfig) -> None:
    """Adds every step to a pipeline. Labels are stable: updates of streaming jobs need them.

    Raises:
      ConfigurationError: The source's ``bounded`` and Beam disagree.
    """
    records, unread, read_counts = root | "ReadRecords" >> ReadRecords(
        source=config.source, id_rule=config.id_rule
    )
    bounded = config.mode.bounded
    if records.is_bounded is not bounded:
        raise ConfigurationError(
            f"{type(config.source).__name__}.bounded is {bounded}, but Beam reads it as "
            f"{'bounded' if records.is_bounded else 'unbounded'}: correct the source"
        )
    requests, unrendered = records | "RenderRequests" >> RenderRequests(spec=config.request)
    if config.order.prefix_chars is not None:
        requests = requests | "OrderByPrefix" >> OrderByPrefix(
            prefix_chars=config.order.prefix_chars
        )
    batches = requests | "BatchRequests" >> BatchRequests(
        limits=config.batch, keys=config.batch_keys, order_by_prefix=config.order.in_batch
    )
    answered, unserved = batches | "Infer" >> Infer(
        backend=config.backend,
        limits=config.limits,
        params=config.request.params,
        allow_earlier_params=not bounded,
        resource_hints=config.resource_hints,
    )
    failures = [unread, unrendered, unserved]
    if config.output_schema is not None:
        answered, invalid = answered | "ValidateOutputs" >> ValidateOutputs(
            schema=config.output_schema
        )
        failures.append(invalid)
    unwritten, results, result_counts = answered | "WriteResults" >> write_results(config)
    letters, letter_counts = (
        (*failures, unwritten)
        | "AllDeadLetters" >> beam.Flatten()
        | "WriteDeadLetters" >> write_dead_letters(config)
    )
    counts = (read_counts, result_counts, letter_counts) | "Counts" >> beam.Flatten()
    reports = (results, letters) | "Reports" >> beam.Flatten()
    _ = (counts, reports) | "WriteRunSummary" >> write_summary(config)
