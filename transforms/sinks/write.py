"""Answers and dead letters as rows, checked and encoded once for all sinks.

`WriteResults` and `WriteDeadLetters` build the rows and hand the same bytes to each sink; each also
gives a tally of what it saw, for the reconciliation: a sum, or of an input that never ends sums by
minute of reading (`transforms.accounting.minute_tally`). A sink that may refuse a row
(`transforms.sinks.bigquery.append.AppendRows`) comes first: what it refuses is a dead letter, the other
sinks get what it holds, and only that is counted.
"""

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeAlias

import apache_beam as beam
import orjson
from apache_beam.pvalue import TaggedOutput

from transforms.accounting import metrics
from transforms.accounting.minute_tally import BundleTallies, MinuteTallies, MinuteTally
from transforms.accounting.sink_report import SinkReport
from transforms.accounting.tally import Tally
from transforms.records.errors import WriteRejected
from transforms.records.records import Answer, DeadLetter, Json
from transforms.results.prices import TokenPrices
from transforms.results.rows import (
    DEAD_LETTER_COLUMNS,
    MAX_ROW_BYTES,
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
from transforms.sinks.bigquery.row_batches import Refusal

RowSink: TypeAlias = beam.PTransform
"""Takes a PCollection of encoded rows, gives one `SinkReport`."""

RefusingSink: TypeAlias = beam.PTransform
"""Takes ``(row, owner)``, gives ``(written, refused, reports)``: see `AppendRows`."""

Tallied: TypeAlias = (
    TaggedOutput[Literal["tally"], Tally] | TaggedOutput[Literal["minutes"], MinuteTally]
)

_SHORT_TEXT, _SHORT_PAYLOAD = 4_000, 100_000


def encode_result(answer: Answer, run: RunInfo, price: Price) -> tuple[Row, bytes]:
    """The row of one answer and its JSON line.

    Raises:
      WriteRejected: The columns cannot hold it.
    """
    row = result_row(answer, run, price)
    return row, encode_row(row, RESULT_COLUMNS)


def encode_dead_letter_row(row: Row) -> bytes:
    """The JSON line of a dead letter; what the columns cannot hold is left out, never the row."""
    try:
        return encode_row(row, DEAD_LETTER_COLUMNS)
    except WriteRejected as rejected:
        message = f"{row['error_message']} (row cut: {rejected})"
    short = cut_payload({**row, "error_message": message})
    fitting = {column.name: _fitting(column, short[column.name]) for column in DEAD_LETTER_COLUMNS}
    return encode_row(fitting, DEAD_LETTER_COLUMNS)


def _fitting(column: Column, value: Json) -> Json:
    """The value where its column can hold it, in a tenth of a row, else nothing."""
    try:
        if len(encode_row({column.name: value}, (column,))) <= MAX_ROW_BYTES // 10:
            return value
    except WriteRejected:
        pass
    return [] if column.mode == "REPEATED" else None


def shorten_dead_letter(line: bytes, refusal: Refusal) -> bytes:
    """The dead letter without what a table may find too long; the message says what was refused.

    One that is short already is left as it is: then it is not its content that is at fault.
    """
    row = orjson.loads(line)
    short = {**row, "payload_bytes": None, "attributes": []}
    for column in DEAD_LETTER_COLUMNS:
        limit = _SHORT_PAYLOAD if column.name == "payload" else _SHORT_TEXT
        if column.type == "STRING" and type(row[column.name]) is str:
            short[column.name] = row[column.name][:limit]
    if short == row:
        return line
    kept = (short["payload"], short["payload_bytes"]) == (row["payload"], row["payload_bytes"])
    short["payload_truncated"] = row["payload_truncated"] or not kept
    message = f"{short['error_message'][: _SHORT_TEXT // 2]} (row cut: {refusal.message[:1000]})"
    return encode_row({**short, "error_message": message}, DEAD_LETTER_COLUMNS)


class _OwnedRowsDoFn(beam.DoFn):
    """Each answer's row, with the answer: a dead letter is made of it when the row is refused."""

    def __init__(self, run: RunInfo, price: Price) -> None:
        self._run, self._price = run, price

    def process(
        self, answer: Answer
    ) -> Iterator[tuple[bytes, Answer] | TaggedOutput[Literal["unwritten"], DeadLetter]]:
        try:
            _, line = encode_result(answer, self._run, self._price)
        except Exception as error:  # what nobody foresaw is this record's `internal`
            yield TaggedOutput("unwritten", answered_dead_letter(error, "write", answer))
        else:
            yield line, answer


class _TallyWrittenDoFn(beam.DoFn):
    """Counts the rows that a table has acknowledged, and passes them on."""

    def __init__(self, by_minute: bool) -> None:
        self._by_minute = by_minute

    def start_bundle(self) -> None:
        self._tallies = BundleTallies(by_minute=self._by_minute)
        self._count = 0

    def process(self, row: tuple[bytes, Answer]) -> Iterator[bytes | Tallied]:
        line, answer = row
        tally = self._tallies.of(answer.record.read_minute)
        tally.add_result(orjson.loads(line), answer.completion.throttled_ms)
        self._count += 1
        yield line

    def finish_bundle(self) -> Iterator[Any]:
        metrics.count("results", self._count)
        yield from self._tallies.emit()


def refused_dead_letter(refused: tuple[tuple[bytes, Answer], Refusal]) -> DeadLetter:
    """The dead letter of an answer whose row a table does not take."""
    (_, answer), refusal = refused
    return answered_dead_letter(refusal.error(), "write", answer)


class _ResultRowsDoFn(beam.DoFn):
    def __init__(self, run: RunInfo, price: Price, by_minute: bool) -> None:
        self._run, self._price, self._by_minute = run, price, by_minute

    def start_bundle(self) -> None:
        self._tallies = BundleTallies(by_minute=self._by_minute)
        self._count = 0

    def process(
        self, answer: Answer
    ) -> Iterator[bytes | TaggedOutput[Literal["unwritten"], DeadLetter] | Tallied]:
        try:
            row, line = encode_result(answer, self._run, self._price)
        except Exception as error:  # what nobody foresaw is this record's `internal`
            yield TaggedOutput("unwritten", answered_dead_letter(error, "write", answer))
        else:
            tally = self._tallies.of(answer.record.read_minute)
            tally.add_result(row, answer.completion.throttled_ms)
            self._count += 1
            yield line

    def finish_bundle(self) -> Iterator[Any]:
        metrics.count("results", self._count)
        yield from self._tallies.emit()


class _DeadLetterRowsDoFn(beam.DoFn):
    """The rows of dead letters; a short one goes with the tally of this one letter."""

    def __init__(self, run: RunInfo, price: Price) -> None:
        self._run, self._price = run, price

    def process(
        self, letter: DeadLetter
    ) -> Iterator[bytes | TaggedOutput[Literal["short"], tuple[bytes, MinuteTally]]]:
        row = dead_letter_row(letter, self._run, self._price)
        one = MinuteTallies()
        one.of(letter.read_minute).add_dead_letter(row, letter)
        whole = encode_dead_letter_row(row)
        short = cut_payload(row)
        yield whole
        (tally,) = one.take()
        line = whole if short == row else encode_dead_letter_row(short)
        yield TaggedOutput("short", (line, tally))


class _TallyLettersDoFn(beam.DoFn):
    """Adds up the tallies of dead letters, and passes their rows on."""

    def __init__(self, by_minute: bool) -> None:
        self._by_minute = by_minute

    def start_bundle(self) -> None:
        self._tallies = BundleTallies(by_minute=self._by_minute)
        self._error_types: collections.Counter[str] = collections.Counter()

    def process(self, row: tuple[bytes, MinuteTally]) -> Iterator[bytes | Tallied]:
        line, (minute, tally) = row
        self._tallies.of(minute).add(tally)
        self._error_types.update(tally.error_types)
        yield line

    def finish_bundle(self) -> Iterator[Any]:
        for error_type, amount in self._error_types.items():
            metrics.count(f"dead_letters_{error_type}", amount)
        yield from self._tallies.emit()


def _tallies(counted: Any, *, by_minute: bool) -> beam.PCollection[Tally | MinuteTally]:
    """What a counting step gives: one of two outputs, each of one type, so that it has a coder."""
    return counted.minutes if by_minute else counted.tally


Written: TypeAlias = tuple[
    beam.PCollection[DeadLetter],
    beam.PCollection[SinkReport],
    beam.PCollection[Tally | MinuteTally],
]


@dataclasses.dataclass(kw_only=True, eq=False)
class WriteResults(beam.PTransform):
    """Writes each answer as one row into every sink; all sinks hold the same bytes.

    Bounded and unbounded, as the sinks are. A row that the columns cannot hold, or that the appender
    refuses, is a dead letter of stage ``write``.

    Args:
      run: What every row carries.
      price: The list price of a usage.
      sinks: Label and transform of each sink.
      appender: Label and transform of a sink that may refuse rows; the others get what it holds.

    Returns:
      ``(unwritten, reports, tallies)``: PCollections of `DeadLetter`, of `SinkReport`, and of `Tally`
      or, of unbounded input, `MinuteTally`. Tallies count what the appender has taken.
    """

    run: RunInfo
    price: TokenPrices
    sinks: Sequence[tuple[str, RowSink]] = ()
    appender: tuple[str, RefusingSink] | None = None

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, answers: beam.PCollection[Answer]) -> Written:
        if self.appender is not None:
            return self._append(answers, *self.appender)
        by_minute = not answers.is_bounded
        rows = answers | "MakeRows" >> beam.ParDo(
            _ResultRowsDoFn(self.run, self.price, by_minute)
        ).with_outputs("unwritten", "tally", "minutes", main="rows")
        reports = [rows.rows | label >> sink for label, sink in self.sinks]
        tallies = _tallies(rows, by_minute=by_minute)
        return rows.unwritten, reports | "Reports" >> beam.Flatten(), tallies

    def _append(
        self, answers: beam.PCollection[Answer], label: str, append: RefusingSink
    ) -> Written:
        owned = answers | "MakeRows" >> beam.ParDo(
            _OwnedRowsDoFn(self.run, self.price)
        ).with_outputs("unwritten", main="rows")
        written, refused, report = owned.rows | label >> append
        letters = refused | "RefusedRows" >> beam.Map(refused_dead_letter).with_output_types(
            DeadLetter
        )
        unwritten = (owned.unwritten, letters) | "Unwritten" >> beam.Flatten()
        by_minute = not answers.is_bounded
        rows = written | "TallyRows" >> beam.ParDo(_TallyWrittenDoFn(by_minute)).with_outputs(
            "tally", "minutes", main="rows"
        )
        reports = [report, *(rows.rows | label >> sink for label, sink in self.sinks)]
        tallies = _tallies(rows, by_minute=by_minute)
        return unwritten, reports | "Reports" >> beam.Flatten(), tallies


@dataclasses.dataclass(kw_only=True, eq=False)
class WriteDeadLetters(beam.PTransform):
    """Writes each dead letter as one row into every sink; never refuses one.

    Args:
      run: What every row carries.
      price: The list price of a usage.
      sinks: Label and transform of each sink that holds payloads whole (files).
      short_sinks: Likewise, of each sink that holds payloads up to 1 MiB (tables).
      appender: Likewise, of a table that is appended to; its `refit` shall be
        `shorten_dead_letter`, so that it refuses none. Its rows' owners are `MinuteTally`.

    Returns:
      ``(reports, tallies)``: PCollections of `SinkReport`, and of `Tally` or, of unbounded input,
      `MinuteTally`. Tallies count what the appender has taken.
    """

    run: RunInfo
    price: TokenPrices
    sinks: Sequence[tuple[str, RowSink]] = ()
    short_sinks: Sequence[tuple[str, RowSink]] = ()
    appender: tuple[str, RefusingSink] | None = None

    def __post_init__(self) -> None:
        super().__init__()

    def expand(
        self, letters: beam.PCollection[DeadLetter]
    ) -> tuple[beam.PCollection[SinkReport], beam.PCollection[Tally | MinuteTally]]:
        rows = letters | "MakeRows" >> beam.ParDo(
            _DeadLetterRowsDoFn(self.run, self.price)
        ).with_outputs("short", main="rows")
        reports = [rows.rows | label >> sink for label, sink in self.sinks]
        short = rows.short
        if self.appender is not None:
            label, append = self.appender
            short, _, report = short | label >> append
            reports.append(report)
        by_minute = not letters.is_bounded
        counted = short | "TallyLetters" >> beam.ParDo(_TallyLettersDoFn(by_minute)).with_outputs(
            "tally", "minutes", main="rows"
        )
        reports += [counted.rows | label >> sink for label, sink in self.short_sinks]
        return reports | "Reports" >> beam.Flatten(), _tallies(counted, by_minute=by_minute)
