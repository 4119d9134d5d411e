"""A loopback Secret Manager: one thread of the owner, one REST method.

This does not prove anything about permissions; the test sets the status for each name.
"""

import base64
import contextlib
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Scripted = Mapping[str, Sequence[int | str]]
"""Answers by a version's name, in turn: a status or a value. The last one repeats."""


@contextlib.contextmanager
def serve_secrets(scripted: Scripted) -> Iterator[tuple[str, list[str]]]:
    """Serves until the block ends; yields the base URL, and the list of requested paths."""
    waiting = {name: list(steps) for name, steps in scripted.items()}
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            steps = waiting.get(self.path.removeprefix("/v1/").removesuffix(":access"), [404])
            step = steps.pop(0) if len(steps) > 1 else steps[0]
            if isinstance(step, str):
                status, document = 200, {"payload": {"data": base64.b64encode(step.encode())}}
                body = json.dumps(document, default=bytes.decode).encode()
            else:
                status = step
                body = json.dumps({"error": {"code": step, "message": f"said {step}"}}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Prints nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_address[1]}", asked
        finally:
            http.shutdown()
            thread.join()
