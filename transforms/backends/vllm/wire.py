"""The messages between the keeper and its users: lines of JSON over a Unix socket.

.. code-block:: text

    user → keeper    {"hello": identity}          first message: the server it wants
                     {"check": generation}        a request failed: is that server healthy?
                     {"bye": true}                no more requests; the last user stops the server
    keeper → user    {"refused": why}             another server has this accelerator group
                     {"state": {…}}               right after hello, and at each change
                     {"checked": generation}      the reply to a check, after any change of state
                     {"log": line}                a line of the server's log, to one of the users
"""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any, Literal

Status = Literal["starting", "ready", "restarting", "failed", "stopping", "lost"]
"""``restarting``: the server crashed and waits for its next start. ``lost``: the keeper is gone;
only its users set this."""


@dataclasses.dataclass(frozen=True)
class ServerState:
    """A snapshot of a server.

    Attributes:
      status: The phase of its life.
      generation: How many servers have been started in this folder; a request that was sent to an
        earlier one never gets an answer.
      url: The server's address, such as ``http://127.0.0.1:41234``.
      pid: The server's process number.
      keeper_pid: The keeper's process number.
      restarts: Starts after the first one; the successor of a killed keeper continues the count.
      load_s: How long the last start took until the server was ready, in seconds.
      error: Why the server failed for good, with the end of its log.
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
        """Reads the output of `dataclasses.asdict`; ignores names of another version."""
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})


def line(message: dict[str, Any]) -> bytes:
    """A message as a line of bytes."""
    return json.dumps(message).encode() + b"\n"


class Lines:
    r"""Splits received bytes into messages; drops lines that are not messages.

    >>> lines = Lines()
    >>> list(lines.feed(b'{"bye": true}\n{"che')), list(lines.feed(b'ck": 1}\n'))
    ([{'bye': True}], [{'check': 1}])
    """

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, received: bytes) -> Iterator[dict[str, Any]]:
        """The messages completed by these bytes."""
        *whole, self._rest = (self._rest + received).split(b"\n")
        for text in whole:
            try:
                message = json.loads(text)
            except ValueError:
                continue
            if isinstance(message, dict):
                yield message
