"""A loopback Dataflow API that records its requests: a thread of the owner.

It accepts a new job, a Flex Template's launch and requests for jobs, and answers as the service's
documentation says. Limits: it checks nothing, so a job that the service would reject is accepted
here.
"""

import contextlib
import dataclasses
import gzip
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Json = dict[str, Any]
JOB_ID = "2026-11-21_00_00_00-1"


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """One request.

    Attributes:
      method: The HTTP method.
      path: The path without its query.
      query: The query as sent.
      body: The parsed JSON; {} without a body.
    """

    method: str
    path: str
    query: str
    body: Json


@dataclasses.dataclass(slots=True)
class DataflowServer:
    """A running server.

    Attributes:
      url: Its address on ``localhost``, which keeps Beam from calling other services.
      calls: Its requests, in order.
      jobs: The jobs in its listing.
    """

    url: str
    calls: list[Call] = dataclasses.field(default_factory=list)
    jobs: list[Json] = dataclasses.field(default_factory=list)

    def posted(self, suffix: str) -> list[Json]:
        """The bodies of all POSTs to paths with this ending."""
        return [c.body for c in self.calls if c.method == "POST" and c.path.endswith(suffix)]


def answer(server: DataflowServer, call: Call) -> tuple[int, Json]:
    """The status and body of an answer."""
    parts = call.path.strip("/").split("/")  # v1b3 projects P locations R …
    if parts[0] == "v1b3" and call.method == "POST" and parts[-1] == "flexTemplates:launch":
        launch = call.body["launchParameter"]
        job = {"id": JOB_ID, "name": launch["jobName"], "projectId": parts[2]}
        return 200, {} if call.body.get("validateOnly") else {"job": job}
    if parts[0] == "v1b3" and call.method == "POST" and parts[-1] == "jobs":
        job = {"id": JOB_ID, "currentState": "JOB_STATE_PENDING", **_named(call.body)}
        return 200, job
    if parts[0] == "v1b3" and call.method == "PUT" and parts[-2] == "jobs":
        return 200, {"id": parts[-1], **call.body}
    if parts[0] == "v1b3" and call.method == "GET" and parts[-1].startswith("jobs"):
        return 200, {"jobs": server.jobs}
    if parts[0] == "v1b3" and call.method == "GET" and parts[-2] == "jobs":
        found = [job for job in server.jobs if job["id"] == parts[-1]]
        return (200, found[0]) if found else (404, _error(f"no job {parts[-1]}"))
    return 404, _error(f"no answer for {call.method} {call.path}")


def _named(job: Json) -> Json:
    return {name: job[name] for name in ("name", "projectId", "location", "type") if name in job}


def _error(message: str) -> Json:
    return {"error": {"code": 404, "message": message, "status": "NOT_FOUND"}}


@contextlib.contextmanager
def serve_dataflow() -> Iterator[DataflowServer]:
    """Serves until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Content-Encoding") == "gzip":
                raw = gzip.decompress(raw)
            path, _, query = self.path.partition("?")
            call = Call(self.command, path, query, json.loads(raw) if raw else {})
            running.calls.append(call)
            status, document = answer(running, call)
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self.do_POST()

        def do_PUT(self) -> None:
            self.do_POST()

        def log_message(self, format: str, *args: object) -> None:
            """Prints nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        running = DataflowServer(f"http://localhost:{http.server_address[1]}")
        thread = threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield running
        finally:
            http.shutdown()
            thread.join()
