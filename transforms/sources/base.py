"""What every source shares: how fields become a `Record`, and the transform around any source."""

import dataclasses
import hashlib
from collections.abc import Iterator
from typing import Protocol

import apache_beam as beam

from transforms.accounting.minute_tally import MinuteTally, TallyReadMinutes
from transforms.accounting.tally import Tally, TallyRecords
from transforms.records import json_values
from transforms.records.errors import MissingField
from transforms.records.records import DeadLetter, Json, Record

DEFAULT_ID_FIELD = "id"


@dataclasses.dataclass(frozen=True, slots=True)
class IdRule:
    """Which field names a record.

    Attributes:
      field: The field's name.
      required: True when the user named it: a record without it is then a dead letter. False for
        the default, which falls back to a hash of the record's canonical JSON.
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
    """A record, or the ``missing_field`` dead letter of one that lacks its required id."""
    try:
        return Record(id_rule.record_id(fields), fields, {}, source)
    except MissingField as error:
        return DeadLetter.of(error, stage="read", fields=fields)


ReadResult = tuple["beam.PCollection[Record]", "beam.PCollection[DeadLetter]"]
"""What a source's transform gives: ``(records, unread)``."""


class Source(Protocol):
    """A frozen description of a source; `transform` makes the Beam read."""

    @property
    def bounded(self) -> bool:
        """Whether the input ends, as Beam says of the PCollections of `transform`."""
        ...

    def transform(self, id_rule: IdRule) -> beam.PTransform:
        """A root transform that gives ``(records, unread)``; construction does no I/O."""
        ...

    def first(self, id_rule: IdRule, count: int) -> Iterator[Record | DeadLetter]:
        """The first inputs, read in this process: for a preview."""
        ...


@dataclasses.dataclass(kw_only=True, eq=False)
class ReadRecords(beam.PTransform):
    """Reads every record of a source; what cannot be read is a dead letter.

    A shuffle stands behind the read: one compressed file would else be one worker, and a message is
    not acknowledged before the model has answered. What was read is counted in front of the shuffle,
    so that the reconciliation sees a record that a shuffle loses. Order is not kept.

    Args:
      source: What to read.
      id_rule: Which field names a record.

    Returns:
      ``(records, unread, tallies)``: PCollections of `Record`, of `DeadLetter` (stage ``read``) and
      of `Tally`: how many were read, and how many ids occur again. Of a source that never ends
      `MinuteTally` instead: how many were read in which minute.
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
        beam.PCollection[Tally | MinuteTally],
    ]:
        records, unread = root | "Read" >> self.source.transform(self.id_rule)
        if records.is_bounded:
            tallies = (records, unread) | "TallyRecords" >> TallyRecords()
        else:
            tallies = (records, unread) | "TallyReadMinutes" >> TallyReadMinutes()
        return records | "SpreadRecords" >> beam.Reshuffle(), unread, tallies
