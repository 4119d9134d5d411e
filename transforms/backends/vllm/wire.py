"""What the keeper and its users tell each other: lines of JSON over a Unix socket.

.. code-block:: text

    user → keeper    {"hello": identity}          first of all: which server it wants
                     {"check": generation}        a request failed: is that server well?
                     {"bye": true}                no more requests; the last one out stops the server
    keeper → user    {"refused": why}             another server has this accelerator group
                     {"state": {…}}               at once, and whenever it changes
                     {"checked": generation}      the answer to a check, behind any change of state
                     {"log": line}                the server's own log, to one of the users
"""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any, Literal

Status = Literal["starting", "ready", "restarting", "failed", "stopping", "lost"]
"""``restarting``: it crashed, and waits for its next start. ``lost``: the keeper is gone; only its
users say so."""


@dataclasses.dataclass(frozen=True)
class ServerState:
    """A server at one moment.

    Attributes:
      status: What it is doing.
      generation: How many times a server has been started in this folder: a request that was
        sent to an earlier one has no answer to wait for.
      url: Where it listens, such as ``http://127.0.0.1:41234``.
      pid: Its process.
      keeper_pid: The process that looks after it.
      restarts: Starts after the first one; a keeper that replaces a killed one counts on.
      load_s: How long the last start took until the server was ready, in seconds.
      error: Why it failed for good, with the end of its log.
    """

    status: Status
    generation: int = 0
    url: str = ""
    pid: int = 0
    keeper_pid: int = 0
    restarts: int = 0
    load_s: float = 0.0
    error: str = ""

    @classmethod
    def of(cls, values: dict[str, Any]) -> "ServerState":
        """Reads what `dataclasses.asdict` wrote; unknown names are another version's."""
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})


def line(message: dict[str, Any]) -> bytes:
    """A message as it travels."""
    return json.dumps(message).encode() + b"\n"


class Lines:
    r"""Cuts what arrives into messages; what is no message is left out.

    >>> lines = Lines()
    >>> list(lines.feed(b'{"bye": true}\n{"che')), list(lines.feed(b'ck": 1}\n'))
    ([{'bye': True}], [{'check': 1}])
    """

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, received: bytes) -> Iterator[dict[str, Any]]:
        """The messages that are complete now."""
        *whole, self._rest = (self._rest + received).split(b"\n")
        for text in whole:
            try:
                message = json.loads(text)
            except ValueError:
                continue
            if isinstance(message, dict):
                yield message
