"""Common to all sources: how fields become a `Record`, and the transform that reads any source."""

import dataclasses
import hashlib
from collections.abc import Iterator
from typing import Protocol

import apache_beam as beam

from transforms.accounting.counts import CountRecords, Counts
from transforms.accounting.minute_counts import CountReadMinutes, MinuteCounts
from transforms.records import json_values
from transforms.records.errors import MissingField
from transforms.records.records import DeadLetter, Json, Record

DEFAULT_ID_FIELD = "id"


@dataclasses.dataclass(frozen=True, slots=True)
class IdRule:
    """The field that holds a record's id.

    Attributes:
      field: The field's name.
      required: True if the user named the field: a record without it is a dead letter. False for
        the default field: a record without it gets a hash of its canonical JSON as its id.
    """

    field: str = DEFAULT_ID_FIELD
    required: bool = False

    def record_id(self, fields: dict[str, Json]) -> str:
        """The record's id: the field's value as text, else the hash.

        Raises:
          MissingField: The field is required and absent, NULL or empty.
        """
        value = fields.get(self.field)
        if value is None or value == "":
            if self.required:
                state = "missing" if self.field not in fields else "NULL or empty"
                raise MissingField(f"id field {self.field!r} is {state}")
            return hashlib.sha256(json_values.canonical(fields)).hexdigest()[:32]
        if type(value) is str:
            return value
        return json_values.canonical(value).decode("utf-8")


def make_record(fields: dict[str, Json], source: str, id_rule: IdRule) -> Record | DeadLetter:
    """A record, or a ``missing_field`` dead letter if it lacks a required id."""
    try:
        return Record(id_rule.record_id(fields), fields, {}, source)
    except MissingField as error:
        return DeadLetter.of(error, stage="read", fields=fields)


ReadResult = tuple["beam.PCollection[Record]", "beam.PCollection[DeadLetter]"]
"""The output of a source's transform: ``(records, unread)``."""


class Source(Protocol):
    """A frozen description of a source; `transform` returns the Beam read."""

    @property
    def bounded(self) -> bool:
        """Whether the input ends, as Beam says of the PCollections of `transform`."""
        ...

    def transform(self, id_rule: IdRule) -> beam.PTransform:
        """A root transform that returns ``(records, unread)``; its construction does no I/O."""
        ...

    def first(self, id_rule: IdRule, count: int) -> Iterator[Record | DeadLetter]:
        """The first inputs, read in this process for a preview."""
        ...


@dataclasses.dataclass(kw_only=True, eq=False)
class ReadRecords(beam.PTransform):
    """Reads every record of a source; unreadable input becomes dead letters.

    A reshuffle follows the read: without it, one compressed file would stay on one worker, and a
    message would not be acknowledged before the model's answer. Records are counted before the
    reshuffle, so that the reconciliation notices if a shuffle loses one. Order is not kept.

    Args:
      source: The source to read.
      id_rule: The field that holds a record's id.

    Returns:
      ``(records, unread, counts)``: PCollections of `Record`, of `DeadLetter` (stage ``read``) and
      of `Counts` with the numbers of records and of repeated ids. An unbounded source has
      `MinuteCounts` instead, with the number of records per minute.
    """

    source: Source
    id_rule: IdRule = IdRule()

    def __post_init__(self) -> None:
        super().__init__()

    def expand(
        self, root: beam.Pipeline
    ) -> tuple[
        beam.PCollection[Record],
        beam.PCollection[DeadLetter],
        beam.PCollection[Counts | MinuteCounts],
    ]:
        records, unread = root | "Read" >> self.source.transform(self.id_rule)
        if records.is_bounded:
            counted = (records, unread) | "CountRecords" >> CountRecords()
        else:
            counted = (records, unread) | "CountReadMinutes" >> CountReadMinutes()
        return records | "SpreadRecords" >> beam.Reshuffle(), unread, counted
