"""Dead letters of earlier runs as a source: a table or files.

Each row becomes its record again, with its old id. A row whose payload is not a record (a raw line
that could not be parsed, a payload cut for a table) becomes a dead letter again, with its payload.
"""

import base64
import binascii
import dataclasses
from collections.abc import Iterator
from typing import Literal

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput

from transforms.records import json_values
from transforms.records.errors import ConfigurationError, ParseError, RecordError
from transforms.records.records import DeadLetter, Json, Record
from transforms.sources.base import IdRule, ReadResult, make_record
from transforms.sources.bigquery import TableSource
from transforms.sources.files import FileSource


def revive(row: dict[str, Json], source: str, id_rule: IdRule) -> Record | DeadLetter:
    """The record of a dead-letter row, or a dead letter again if its payload is not a record.

    Args:
      row: A row in the form that all sinks write.
      source: The record's ``source``.
      id_rule: Its field holds the id if it is required; else the row's own ``record_id`` does.
    """
    payload = row.get("payload")
    raw = row.get("payload_bytes")
    try:
        if "error_type" not in row or "payload" not in row:
            raise ParseError("the row is not a dead letter: it lacks error_type or payload")
        if row.get("payload_truncated"):
            raise ParseError(
                "the payload was cut for the table: read the dead letters from files, which hold "
                "all of it"
            )
        if not isinstance(payload, str):
            raise ParseError("the payload is not text")
        fields = _object(payload)
    except RecordError as error:
        if not isinstance(payload, str) and not isinstance(raw, str):
            payload = json_values.dumps(row).decode("utf-8")
        return DeadLetter.of(
            error,
            stage="read",
            record_id=row.get("record_id"),
            payload=payload if isinstance(payload, str) else None,
            payload_bytes=_bytes(raw),
            attributes=_attributes(row),
        )
    record = make_record(fields, source, id_rule)
    if isinstance(record, DeadLetter):
        return record
    own_id = row.get("record_id")
    if isinstance(own_id, str) and not id_rule.required:
        record = dataclasses.replace(record, record_id=own_id)
    return dataclasses.replace(record, attributes=_attributes(row))


def _object(payload: str) -> dict[str, Json]:
    try:
        fields = json_values.loads(payload)
    except ValueError as error:
        raise ParseError(f"the payload is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ParseError("the payload is not a JSON object")
    return fields


def _bytes(text: Json) -> bytes | None:
    if not isinstance(text, str):
        return None
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return text.encode("utf-8")


def _attributes(row: dict[str, Json]) -> dict[str, str]:
    pairs = row.get("attributes")
    if not isinstance(pairs, list):
        return {}
    return {str(p["key"]): str(p["value"]) for p in pairs if isinstance(p, dict) and "key" in p}


class _ReviveDoFn(beam.DoFn):
    def __init__(self, id_rule: IdRule) -> None:
        self._id_rule = id_rule

    def process(
        self, row: Record
    ) -> Iterator[Record | TaggedOutput[Literal["unread"], DeadLetter]]:
        item = revive(dict(row.fields), row.source, self._id_rule)
        yield item if isinstance(item, Record) else TaggedOutput("unread", item)


@dataclasses.dataclass(kw_only=True, eq=False)
class ReadDeadLetters(beam.PTransform):
    """Reads dead letters back as records; bounded, every row once, in no order.

    Args:
      rows: The source of the rows.
      id_rule: The field that holds a record's id; by default each record keeps its id.

    Returns:
      ``(records, unread)``: PCollections of `Record` and of `DeadLetter` (stage ``read``).
    """

    rows: FileSource | TableSource
    id_rule: IdRule = IdRule()

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, root: beam.Pipeline) -> ReadResult:
        rows, unread = root | "ReadRows" >> self.rows.transform(IdRule())
        revived = rows | "Revive" >> beam.ParDo(_ReviveDoFn(self.id_rule)).with_outputs(
            "unread", main="records"
        )
        return revived.records, (unread, revived.unread) | "Unread" >> beam.Flatten()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterSource:
    """Dead letters to retry: see `ReadDeadLetters`.

    Attributes:
      rows: The source of the rows: files, or a table with a filter.
    """

    rows: FileSource | TableSource

    @property
    def bounded(self) -> bool:
        """Whether the rows end."""
        return self.rows.bounded

    def transform(self, id_rule: IdRule) -> beam.PTransform:
        """The transform that reads the dead letters."""
        return ReadDeadLetters(rows=self.rows, id_rule=id_rule)

    def first(self, id_rule: IdRule, count: int) -> Iterator[Record | DeadLetter]:
        """The first inputs, read in this process."""
        for row in self.rows.first(IdRule(), count):
            if isinstance(row, Record):
                yield revive(dict(row.fields), row.source, id_rule)
            else:
                yield row


def is_table(text: str) -> bool:
    """Whether a value names a table, not files.

    >>> is_table("my-project:sales.tickets_dead_letters"), is_table("out/dead_letters/*.jsonl")
    (True, False)
    """
    if "/" in text or "*" in text or text.endswith((".jsonl", ".parquet", ".gz")):
        return False
    if text.replace(":", ".").count(".") < 1:
        raise ConfigurationError(
            f"{text!r} is neither a table (project:dataset.table) nor files (a path or glob)"
        )
    return True
