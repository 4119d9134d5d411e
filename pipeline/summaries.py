"""The summary of a run: one row when a bounded input has ended, one per minute of a stream."""

import dataclasses
import logging

import apache_beam as beam
from apache_beam.metrics import Metrics

from pipeline.config import RunConfig
from pipeline.sinks import minute_sinks
from transforms.accounting import metrics
from transforms.accounting.counts import Counts
from transforms.accounting.minute_counts import MinuteCounts
from transforms.accounting.minute_summary import SummariseMinutes
from transforms.accounting.reconcile import WriteRunSummary
from transforms.accounting.sink_report import SinkReport
from transforms.sinks.base import EncodedRow, RejectedRow, Written

_LOGGER = logging.getLogger(__name__)


def write_summary(config: RunConfig) -> beam.PTransform:
    """The last step of `pipeline.build`: one summary of a batch run, one per minute of a stream.

    It takes ``(counts, reports)``.
    """
    if config.mode.bounded:
        return WriteRunSummary(spec=config.summary)
    return WriteMinutes(config=config)


def _counts(counted: MinuteCounts) -> Counts:
    return counted[1]


class _LogRejectedDoFn(beam.DoFn):
    """Logs a summary that a table rejects, which must not stop a stream."""

    _rejected = Metrics.counter(metrics.NAMESPACE, "rejected_summaries")

    def process(self, rejected: RejectedRow) -> None:
        self._rejected.inc()
        minute = rejected.row.values["read_minute"]
        _LOGGER.error("the summary of %s was not written: %s", minute, rejected.rejection.message)


@dataclasses.dataclass(kw_only=True, eq=False)
class WriteMinutes(beam.PTransform):
    """Writes a stream's summary rows as they arrive; a local stream's whole summary when it ends.

    Takes ``(counts, reports)``: PCollections of `MinuteCounts` and of `SinkReport`.

    Args:
      config: The run.
    """

    config: RunConfig

    def __post_init__(self) -> None:
        super().__init__()

    def expand(
        self, counted: tuple[beam.PCollection[MinuteCounts], beam.PCollection[SinkReport]]
    ) -> None:
        counted, reports = counted
        lines = counted | "SummariseMinutes" >> SummariseMinutes(spec=self.config.summary)
        rows = lines | "EncodedRows" >> beam.Map(EncodedRow).with_output_types(EncodedRow)
        for label, sink in minute_sinks(self.config):
            written: Written = rows | label >> sink
            if sink.can_reject:
                _ = written.rejected | "LogRejected" >> beam.ParDo(_LogRejectedDoFn())
        if self.config.local:  # elsewhere a stream has no end
            whole = counted | "WithoutMinute" >> beam.Map(_counts).with_output_types(Counts)
            _ = (whole, reports) | "WholeRun" >> WriteRunSummary(spec=self.config.summary)
