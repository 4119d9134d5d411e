"""What a sink reports when everything is written."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class SinkReport:
    """What one sink really holds of a run.

    Attributes:
      kind: ``results`` or ``dead_letters``.
      sink: ``files`` or ``bigquery``.
      location: A folder or a table.
      rows: Rows counted in the sink itself, when everything was written.
    """

    kind: str
    sink: str
    location: str
    rows: int
