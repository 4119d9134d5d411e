"""Answers and dead letters as rows, checked and encoded once for all sinks.

`WriteResults` and `WriteDeadLetters` build the rows and hand the same bytes to each sink; each also
gives a tally of what it saw, for the reconciliation. A sink that may refuse a row
(`transforms.sinks.storage_write.AppendRows`) comes first: what it refuses is a dead letter, and the
other sinks get what it holds.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeAlias

import apache_beam as beam
import orjson
from apache_beam.pvalue import TaggedOutput

from transforms import metrics
from transforms.errors import WriteRejected
from transforms.prices import TokenPrices
from transforms.records import Answer, DeadLetter, Json
from transforms.rows import (
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
from transforms.sinks.row_batches import Refusal
from transforms.sinks.staging import SinkReport
from transforms.tally import Tally, emit_tally
from transforms.validate import answered_dead_letter

RowSink: TypeAlias = beam.PTransform
"""Takes a PCollection of encoded rows, gives one `SinkReport`."""

RefusingSink: TypeAlias = beam.PTransform
"""Takes ``(row, owner)``, gives ``(written, refused, reports)``: see `AppendRows`."""

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

    def start_bundle(self) -> None:
        self._tally = Tally()

    def process(
        self, row: tuple[bytes, Answer]
    ) -> Iterator[bytes | TaggedOutput[Literal["tally"], Tally]]:
        line, answer = row
        self._tally.add_result(orjson.loads(line), answer.completion.throttled_ms)
        yield line

    def finish_bundle(self) -> Iterator[Any]:
        metrics.count("results", self._tally.counts["results"])
        yield emit_tally(self._tally)


def refused_dead_letter(refused: tuple[tuple[bytes, Answer], Refusal]) -> DeadLetter:
    """The dead letter of an answer whose row a table does not take."""
    (_, answer), refusal = refused
    return answered_dead_letter(refusal.error(), "write", answer)


def _without_owner(line: bytes) -> tuple[bytes, bytes]:
    return line, b""


class _ResultRowsDoFn(beam.DoFn):
    def __init__(self, run: RunInfo, price: Price) -> None:
        self._run, self._price = run, price

    def start_bundle(self) -> None:
        self._tally = Tally()

    def process(
        self, answer: Answer
    ) -> Iterator[
        bytes
        | TaggedOutput[Literal["unwritten"], DeadLetter]
        | TaggedOutput[Literal["tally"], Tally]
    ]:
        try:
            row, line = encode_result(answer, self._run, self._price)
        except Exception as error:  # what nobody foresaw is this record's `internal`
            yield TaggedOutput("unwritten", answered_dead_letter(error, "write", answer))
        else:
            self._tally.add_result(row, answer.completion.throttled_ms)
            yield line

    def finish_bundle(self) -> Iterator[Any]:
        metrics.count("results", self._tally.counts["results"])
        yield emit_tally(self._tally)


class _DeadLetterRowsDoFn(beam.DoFn):
    def __init__(self, run: RunInfo, price: Price) -> None:
        self._run, self._price = run, price

    def start_bundle(self) -> None:
        self._tally = Tally()

    def process(
        self, letter: DeadLetter
    ) -> Iterator[
        bytes | TaggedOutput[Literal["short"], bytes] | TaggedOutput[Literal["tally"], Tally]
    ]:
        row = dead_letter_row(letter, self._run, self._price)
        self._tally.add_dead_letter(row, letter)
        whole = encode_dead_letter_row(row)
        short = cut_payload(row)
        yield whole
        yield TaggedOutput("short", whole if short == row else encode_dead_letter_row(short))

    def finish_bundle(self) -> Iterator[Any]:
        for error_type, amount in self._tally.error_types.items():
            metrics.count(f"dead_letters_{error_type}", amount)
        yield emit_tally(self._tally)


@dataclasses.dataclass(kw_only=True, eq=False)
class WriteResults(beam.PTransform):
    """Writes each answer as one row into every sink; all sinks hold the same bytes.

    Bounded, but for `appender`. A row that the columns cannot hold, or that the appender refuses,
    is a dead letter of stage ``write``.

    Args:
      run: What every row carries.
      price: The list price of a usage.
      sinks: Label and transform of each sink.
      appender: Label and transform of a sink that may refuse rows; the others get what it holds.

    Returns:
      ``(unwritten, reports, tallies)``: PCollections of `DeadLetter`, `SinkReport` and `Tally`.
    """

    run: RunInfo
    price: TokenPrices
    sinks: Sequence[tuple[str, RowSink]] = ()
    appender: tuple[str, RefusingSink] | None = None

    def __post_init__(self) -> None:
        super().__init__()

    def expand(
        self, answers: beam.PCollection[Answer]
    ) -> tuple[beam.PCollection[DeadLetter], beam.PCollection[SinkReport], beam.PCollection[Tally]]:
        if self.appender is not None:
            return self._append(answers, *self.appender)
        rows = answers | "MakeRows" >> beam.ParDo(
            _ResultRowsDoFn(self.run, self.price)
        ).with_outputs("unwritten", "tally", main="rows")
        reports = [rows.rows | label >> sink for label, sink in self.sinks]
        return rows.unwritten, reports | "Reports" >> beam.Flatten(), rows.tally

    def _append(
        self, answers: beam.PCollection[Answer], label: str, append: RefusingSink
    ) -> tuple[beam.PCollection[DeadLetter], beam.PCollection[SinkReport], beam.PCollection[Tally]]:
        owned = answers | "MakeRows" >> beam.ParDo(
            _OwnedRowsDoFn(self.run, self.price)
        ).with_outputs("unwritten", main="rows")
        written, refused, report = owned.rows | label >> append
        letters = refused | "RefusedRows" >> beam.Map(refused_dead_letter).with_output_types(
            DeadLetter
        )
        unwritten = (owned.unwritten, letters) | "Unwritten" >> beam.Flatten()
        rows = written | "TallyRows" >> beam.ParDo(_TallyWrittenDoFn()).with_outputs(
            "tally", main="rows"
        )
        reports = [report, *(rows.rows | label >> sink for label, sink in self.sinks)]
        return unwritten, reports | "Reports" >> beam.Flatten(), rows.tally


@dataclasses.dataclass(kw_only=True, eq=False)
class WriteDeadLetters(beam.PTransform):
    """Writes each dead letter as one row into every sink; never refuses one.

    Args:
      run: What every row carries.
      price: The list price of a usage.
      sinks: Label and transform of each sink that holds payloads whole (files).
      short_sinks: Likewise, of each sink that holds payloads up to 1 MiB (tables).
      appender: Likewise, of a table that is appended to; its `refit` shall be
        `shorten_dead_letter`, so that it refuses none.

    Returns:
      ``(reports, tallies)``: PCollections of `SinkReport` and `Tally`.
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
    ) -> tuple[beam.PCollection[SinkReport], beam.PCollection[Tally]]:
        rows = letters | "MakeRows" >> beam.ParDo(
            _DeadLetterRowsDoFn(self.run, self.price)
        ).with_outputs("short", "tally", main="rows")
        reports = [rows.rows | label >> sink for label, sink in self.sinks]
        reports += [rows.short | label >> sink for label, sink in self.short_sinks]
        if self.appender is not None:
            label, append = self.appender
            owned = rows.short | "WithoutOwner" >> beam.Map(_without_owner).with_output_types(
                tuple[bytes, bytes]
            )
            reports.append((owned | label >> append)[2])
        return reports | "Reports" >> beam.Flatten(), rows.tally
