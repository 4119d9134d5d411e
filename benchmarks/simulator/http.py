"""HTTP/1.1 as far as a load test needs it: one request after another on kept-alive connections.

Bodies come with a Content-Length or in chunks; ``Expect: 100-continue`` is honoured. There is no
TLS, no HTTP/2, no compression and no limit on idle time, and a request sent before the previous
answer waits for it.
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import cast

MAX_BODY_BYTES = 64 << 20
_MAX_HEAD_BYTES = 64 << 10
_LINGER_0 = struct.pack("ii", 1, 0)
_STARTS = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Length: ".encode()
    for status in HTTPStatus
}
_JSON = "application/json"


@dataclass(slots=True)
class Request:
    """One request, complete.

    Attributes:
        method: The method in capitals.
        target: The path and query as sent.
        headers: The values by lower-case name; of equal names the last.
        body: The whole body, without chunking.
    """

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


Handler = Callable[["Connection", Request], None]


class Connection(asyncio.Protocol):
    """One client's connection; calls the handler with each request.

    The handler, or code to which it passes the connection, calls ``respond``, ``reset`` or neither.
    ``on_gone`` is called once if the client disconnects before.

    Attributes:
        on_gone: Set by the request's handler; cleared by ``respond`` and ``reset``.
    """

    __slots__ = ("_asked", "_buffer", "_handler", "_open", "_parsing", "_transport", "on_gone")

    def __init__(self, handler: Handler, open_connections: "set[Connection]") -> None:
        """Registers itself as an open connection for as long as it is one."""
        self._handler = handler
        self._open = open_connections
        self._buffer = bytearray()
        self._asked: Request | None = None
        self._parsing = False
        self._transport: asyncio.Transport | None = None
        self.on_gone: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._open.discard(self)
        gone, self.on_gone = self.on_gone, None
        if gone is not None:
            gone()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._parse()

    def respond(
        self, status: int, body: bytes, headers: bytes = b"", content_type: str = _JSON
    ) -> None:
        """Answers the request.

        Args:
            status: HTTP status.
            body: The whole body.
            headers: Further header lines, each ended by CR LF.
            content_type: The body's type.
        """
        request, self._asked, self.on_gone = self._asked, None, None
        if self._transport is None or request is None:
            return
        head = b"%s%d\r\nContent-Type: %s\r\n%s\r\n" % (
            _STARTS[status],
            len(body),
            content_type.encode(),
            headers,
        )
        self._transport.write(head + body)
        if request.headers.get("connection", "").lower() == "close":
            self._transport.close()
        elif self._buffer:
            self._parse()

    def reset(self) -> None:
        """Ends the connection with RST, which drops unsent data."""
        self._asked = self.on_gone = None
        self._buffer.clear()
        if self._transport is not None:
            end = self._transport.get_extra_info("socket")
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_0)
            self._transport.abort()

    def close(self) -> None:
        """Ends the connection after the data written has been sent."""
        if self._transport is not None:
            self._transport.close()

    def _parse(self) -> None:
        """Passes on requests one after the other while each is answered at once."""
        if self._parsing:
            return
        self._parsing = True
        try:
            while self._asked is None and self._buffer and self._transport is not None:
                self._asked = self._next()
                if self._asked is None:
                    break
                self._handler(self, self._asked)
        except ValueError as error:
            self._asked = Request("", "", {"connection": "close"}, b"")
            self.respond(400, str(error).encode(), content_type="text/plain")
        finally:
            self._parsing = False

    def _next(self) -> Request | None:
        """The next complete request, removed from the buffer, or None."""
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > _MAX_HEAD_BYTES:
                raise ValueError("the request's head is too long")
            return None
        first, *lines = bytes(self._buffer[:end]).decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ", 2)
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        start = end + 4
        if "transfer-encoding" in headers:
            body, stop = _chunked(self._buffer, start)
        else:
            stop = start + int(headers.get("content-length", 0))
            body = bytes(self._buffer[start:stop]) if stop <= len(self._buffer) else None
        if max(stop, len(self._buffer)) > start + MAX_BODY_BYTES:
            raise ValueError("the request is too long")
        if body is None:
            self._continue(headers, waiting=len(self._buffer) == start)
            return None
        del self._buffer[:stop]
        return Request(method, target, headers, body)

    def _continue(self, headers: dict[str, str], *, waiting: bool) -> None:
        """Requests the body if the client waits for ``100 Continue``."""
        if waiting and self._transport and headers.get("expect", "").lower() == "100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def _chunked(buffer: bytearray, start: int) -> tuple[bytes | None, int]:
    """The body whose chunks begin at ``start`` and where it ends; None until it is complete."""
    parts: list[bytes] = []
    while True:
        line = buffer.find(b"\r\n", start)
        if line < 0:
            return None, start
        size = int(bytes(buffer[start:line]).partition(b";")[0], 16)
        end = line + 2 + size
        if len(buffer) < end + 2:
            return None, start
        if size == 0:
            if buffer[end : end + 2] == b"\r\n":
                return b"".join(parts), end + 2
            trailer = buffer.find(b"\r\n\r\n", line)
            return (None, start) if trailer < 0 else (b"".join(parts), trailer + 4)
        parts.append(bytes(buffer[line + 2 : end]))
        start = end + 2
