"""Answers and dead letters as rows, checked and encoded once for all sinks.

`WriteResults` and `WriteDeadLetters` encode each row once and pass it to every `Sink`. Both also
count the rows that the sinks have taken, for the reconciliation: one sum, or for unbounded input
sums by minute of reading (`transforms.accounting.minute_counts`).
"""

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeAlias

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput

from transforms.accounting import metrics
from transforms.accounting.counts import Counts
from transforms.accounting.minute_counts import BundleCounts, CountsByMinute, MinuteCounts
from transforms.accounting.sink_report import SinkReport
from transforms.records.errors import WriteRejected
from transforms.records.records import Answer, DeadLetter, Json
from transforms.results.prices import TokenPrices
from transforms.results.rows import (
    DEAD_LETTER_COLUMNS,
    MAX_LOADED_ROW_BYTES,
    RESULT_COLUMNS,
    Column,
    Price,
    Row,
    RunInfo,
    cut_payload,
    dead_letter_row,
    encode_row,
    result_row,
)
from transforms.results.validate import answered_dead_letter
from transforms.sinks.base import EncodedRow, RejectedRow, Rejection, Sink, Written

Counted: TypeAlias = (
    TaggedOutput[Literal["counts"], Counts] | TaggedOutput[Literal["minutes"], MinuteCounts]
)

_SHORT_TEXT, _SHORT_PAYLOAD = 4_000, 100_000


def encode_result(answer: Answer, run: RunInfo, price: Price) -> EncodedRow:
    """The row of one answer, with the answer as its context.

    Raises:
      WriteRejected: The columns cannot hold it.
    """
    return EncodedRow.of(result_row(answer, run, price), RESULT_COLUMNS, answer)


def encode_dead_letter(row: Row, counts: MinuteCounts | None = None) -> EncodedRow:
    """The row of a dead letter; never fails: it leaves out values that its columns cannot hold."""
    try:
        return EncodedRow.of(row, DEAD_LETTER_COLUMNS, counts)
    except WriteRejected as rejected:
        message = f"{row['error_message']} (row cut: {rejected})"
    short = cut_payload({**row, "error_message": message})
    fitting = {column.name: _fitting(column, short[column.name]) for column in DEAD_LETTER_COLUMNS}
    return EncodedRow.of(fitting, DEAD_LETTER_COLUMNS, counts)


def _fitting(column: Column, value: Json) -> Json:
    """The value if its column can hold it in a tenth of the longest row, else an empty one."""
    try:
        if len(encode_row({column.name: value}, (column,))) <= MAX_LOADED_ROW_BYTES // 10:
            return value
    except WriteRejected:
        pass
    return [] if column.mode == "REPEATED" else None


def shorten_dead_letter(row: EncodedRow, rejection: Rejection) -> EncodedRow:
    """The `Fallback` of dead letters: the row without values that a table may find too long.

    The message says why the table rejected the row. A row that is already short is returned
    unchanged: then its length is not the cause.
    """
    values = row.values
    short = {**values, "payload_bytes": None, "attributes": []}
    for column in DEAD_LETTER_COLUMNS:
        limit = _SHORT_PAYLOAD if column.name == "payload" else _SHORT_TEXT
        if column.type == "STRING" and type(values[column.name]) is str:
            short[column.name] = values[column.name][:limit]
    if short == values:
        return row
    kept = all(short[name] == values[name] for name in ("payload", "payload_bytes"))
    short["payload_truncated"] = values["payload_truncated"] or not kept
    message = short["error_message"][: _SHORT_TEXT // 2]
    short["error_message"] = f"{message} (row cut: {rejection.message[:1000]})"
    return EncodedRow.of(short, DEAD_LETTER_COLUMNS, row.context)


class _ResultRowsDoFn(beam.DoFn):
    def __init__(self, run: RunInfo, price: Price) -> None:
        self._run, self._price = run, price

    def process(
        self, answer: Answer
    ) -> Iterator[EncodedRow | TaggedOutput[Literal["unwritten"], DeadLetter]]:
        try:
            row = encode_result(answer, self._run, self._price)
        except Exception as error:  # an unforeseen error costs this record only: `internal`
            yield TaggedOutput("unwritten", answered_dead_letter(error, "write", answer))
        else:
            yield row


def rejected_dead_letter(rejected: RejectedRow) -> DeadLetter:
    """The dead letter of an answer whose row a sink has rejected."""
    answer = rejected.row.context
    assert isinstance(answer, Answer)
    return answered_dead_letter(rejected.rejection.error(), "write", answer)


class _CountRowsDoFn(beam.DoFn):
    """Counts the result rows that the sinks have taken."""

    def __init__(self, by_minute: bool) -> None:
        self._by_minute = by_minute

    def start_bundle(self) -> None:
        self._counted = BundleCounts(by_minute=self._by_minute)
        self._count = 0

    def process(self, row: EncodedRow) -> Iterator[Counted]:
        answer = row.context
        assert isinstance(answer, Answer)
        counts = self._counted.of(answer.record.read_minute)
        counts.add_result(row.values, answer.completion.throttled_ms)
        self._count += 1
        return iter(())

    def finish_bundle(self) -> Iterator[Any]:
        metrics.count("results", self._count)
        yield from self._counted.emit()


class _DeadLetterRowsDoFn(beam.DoFn):
    """The row of each dead letter, whole and cut for tables, with the counts of this one letter."""

    def __init__(self, run: RunInfo, price: Price) -> None:
        self._run, self._price = run, price

    def process(
        self, letter: DeadLetter
    ) -> Iterator[EncodedRow | TaggedOutput[Literal["short"], EncodedRow]]:
        row = dead_letter_row(letter, self._run, self._price)
        one = CountsByMinute()
        one.of(letter.read_minute).add_dead_letter(row, letter)
        (counts,) = one.take()
        whole = encode_dead_letter(row, counts)
        yield whole
        short = cut_payload(row)
        cut = whole if short == row else encode_dead_letter(short, counts)
        yield TaggedOutput("short", cut)


class _CountLettersDoFn(beam.DoFn):
    """Adds up the counts of the dead letters that the sinks have taken."""

    def __init__(self, by_minute: bool) -> None:
        self._by_minute = by_minute

    def start_bundle(self) -> None:
        self._counted = BundleCounts(by_minute=self._by_minute)
        self._error_types: collections.Counter[str] = collections.Counter()

    def process(self, row: EncodedRow) -> Iterator[Counted]:
        assert isinstance(row.context, tuple)
        minute, counts = row.context
        self._counted.of(minute).add(counts)
        self._error_types.update(counts.error_types)
        return iter(())

    def finish_bundle(self) -> Iterator[Any]:
        for error_type, amount in self._error_types.items():
            metrics.count(f"dead_letters_{error_type}", amount)
        yield from self._counted.emit()


def _counted(
    rows: beam.PCollection[EncodedRow], label: str, count: type[beam.DoFn]
) -> beam.PCollection[Counts] | beam.PCollection[MinuteCounts]:
    """A step's counts: by minute if the rows are unbounded. Two outputs, one coder each."""
    by_minute = not rows.is_bounded
    counted = rows | label >> beam.ParDo(count(by_minute)).with_outputs("counts", "minutes")
    return counted.minutes if by_minute else counted.counts


@dataclasses.dataclass(kw_only=True, eq=False)
class WriteResults(beam.PTransform):
    """Writes each answer as one row into every sink; all sinks hold the same bytes.

    Bounded and unbounded, as the sinks are. A row that the columns cannot hold, or that a sink
    rejects, is a dead letter of stage ``write``, and in no sink. Therefore the sink that can reject
    is written first and the others get only the rows that it holds; more than one such sink is
    refused, because a row that the second rejects is in the first already.

    Args:
      run: The values common to all rows.
      price: The list price of a usage.
      sinks: Label and transform of each sink.

    Returns:
      ``(unwritten, reports, counts)``: PCollections of `DeadLetter`, of `SinkReport`, and of the
      counts of the rows that every sink has taken: `Counts`, or `MinuteCounts` for unbounded input.
    """

    run: RunInfo
    price: TokenPrices
    sinks: Sequence[tuple[str, Sink]] = ()

    def __post_init__(self) -> None:
        super().__init__()
        rejecting = [label for label, sink in self.sinks if sink.can_reject]
        if len(rejecting) > 1:
            raise ValueError(
                f"sinks {' and '.join(rejecting)} can reject rows, but only one sink may: a row "
                "that the second rejects is in the first already; write the other by load jobs or "
                "into files"
            )

    def expand(
        self, answers: beam.PCollection[Answer]
    ) -> tuple[
        beam.PCollection[DeadLetter],
        beam.PCollection[SinkReport],
        beam.PCollection[Counts] | beam.PCollection[MinuteCounts],
    ]:
        made = answers | "MakeRows" >> beam.ParDo(
            _ResultRowsDoFn(self.run, self.price)
        ).with_outputs("unwritten", main="rows")
        rows, unwritten, reports = made.rows, made.unwritten, []
        for label, sink in sorted(self.sinks, key=lambda named: not named[1].can_reject):
            written: Written = rows | label >> sink
            rows = written.rows
            reports.append(written.reports)
            if sink.can_reject:
                letters = written.rejected | "RejectedRows" >> beam.Map(
                    rejected_dead_letter
                ).with_output_types(DeadLetter)
                unwritten = (unwritten, letters) | "Unwritten" >> beam.Flatten()
        counted = _counted(rows, "CountRows", _CountRowsDoFn)
        return unwritten, reports | "Reports" >> beam.Flatten(), counted


@dataclasses.dataclass(kw_only=True, eq=False)
class WriteDeadLetters(beam.PTransform):
    """Writes each dead letter as one row into every sink; none is lost.

    Bounded and unbounded, as the sinks are. Files and topics get payloads whole, tables get them cut
    to 1 MiB. A sink that can reject rows is refused: set its ``fallback`` to `shorten_dead_letter`.

    Args:
      run: The values common to all rows.
      price: The list price of a usage.
      sinks: Label and transform of each sink.

    Returns:
      ``(reports, counts)``: PCollections of `SinkReport`, and of the counts of the rows that every
      table has taken: `Counts`, or `MinuteCounts` for unbounded input.
    """

    run: RunInfo
    price: TokenPrices
    sinks: Sequence[tuple[str, Sink]] = ()

    def __post_init__(self) -> None:
        super().__init__()
        for label, sink in self.sinks:
            if sink.can_reject:
                raise ValueError(
                    f"sink {label} can reject dead letters, which would be lost: set its fallback "
                    "to shorten_dead_letter"
                )

    def expand(
        self, letters: beam.PCollection[DeadLetter]
    ) -> tuple[
        beam.PCollection[SinkReport],
        beam.PCollection[Counts] | beam.PCollection[MinuteCounts],
    ]:
        made = letters | "MakeRows" >> beam.ParDo(
            _DeadLetterRowsDoFn(self.run, self.price)
        ).with_outputs("short", main="whole")
        whole, short, reports = made.whole, made.short, []
        for label, sink in self.sinks:
            written: Written = (whole if sink.whole_payloads else short) | label >> sink
            reports.append(written.reports)
            if not sink.whole_payloads:
                short = written.rows
        counted = _counted(short, "CountLetters", _CountLettersDoFn)
        return reports | "Reports" >> beam.Flatten(), counted
