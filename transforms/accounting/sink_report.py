"""A sink's own count of a run's rows."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class SinkReport:
    """One sink's count of a run's rows. Reports of one sink add up: some sinks report each bundle.

    Attributes:
      kind: ``results``, ``dead_letters`` or ``runs``.
      sink: ``files``, ``bigquery`` or ``pubsub``.
      location: A folder, a table or a topic.
      rows: How many rows: counted by a query (tables), as files got their final names (files), or
        as the service acknowledged them (Pub/Sub).
    """

    kind: str
    sink: str
    location: str
    rows: int
