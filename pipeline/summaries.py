"""What a run says of itself: one summary of an input that ends, one per minute of a stream."""

import dataclasses
import logging

import apache_beam as beam
import orjson
from apache_beam.metrics import Metrics

from pipeline.config import RunConfig
from pipeline.sinks import minute_sinks
from transforms.accounting import metrics
from transforms.accounting.minute_summary import SummariseMinutes
from transforms.accounting.minute_tally import MinuteTally
from transforms.accounting.reconcile import WriteRunSummary
from transforms.accounting.sink_report import SinkReport
from transforms.accounting.tally import Tally
from transforms.sinks.bigquery.append import AppendRows, OwnedRow
from transforms.sinks.bigquery.row_batches import Refusal

_LOGGER = logging.getLogger(__name__)


def write_summary(config: RunConfig) -> beam.PTransform:
    """The end of `pipeline.build`: one summary of a batch run, one per minute of a stream.

    It takes ``(tallies, reports)``.
    """
    if config.mode.bounded:
        return WriteRunSummary(spec=config.summary)
    return WriteMinutes(config=config)


def _owned(row: bytes) -> OwnedRow:
    return row, b""


def _tally(counted: MinuteTally) -> Tally:
    return counted[1]


class _LogRefusedDoFn(beam.DoFn):
    """A summary that a table does not take is no reason to stop a stream."""

    _refused = Metrics.counter(metrics.NAMESPACE, "refused_summaries")

    def process(self, refused: tuple[OwnedRow, Refusal]) -> None:
        (row, _), refusal = refused
        self._refused.inc()
        minute = orjson.loads(row)["read_minute"]
        _LOGGER.error("the summary of %s was not written: %s", minute, refusal.message)


@dataclasses.dataclass(kw_only=True, eq=False)
class WriteMinutes(beam.PTransform):
    """Writes a stream's summary rows as they come and, of a local one, the whole when it ends.

    Takes ``(tallies, reports)``: PCollections of `MinuteTally` and of `SinkReport`.

    Args:
      config: The run.
    """

    config: RunConfig

    def __post_init__(self) -> None:
        super().__init__()

    def expand(
        self, counted: tuple[beam.PCollection[MinuteTally], beam.PCollection[SinkReport]]
    ) -> None:
        tallies, reports = counted
        rows = tallies | "SummariseMinutes" >> SummariseMinutes(spec=self.config.summary)
        for label, sink in minute_sinks(self.config):
            if not isinstance(sink, AppendRows):
                _ = rows | label >> sink
                continue
            owned = rows | "Owned" >> beam.Map(_owned).with_output_types(tuple[bytes, bytes])
            _, refused, _ = owned | label >> sink
            _ = refused | "LogRefused" >> beam.ParDo(_LogRefusedDoFn())
        if self.config.local:  # elsewhere a stream has no end
            whole = tallies | "WithoutMinute" >> beam.Map(_tally).with_output_types(Tally)
            _ = (whole, reports) | "WholeRun" >> WriteRunSummary(spec=self.config.summary)
