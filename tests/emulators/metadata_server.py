"""A fake Compute Engine metadata server: Application Default Credentials without an account.

Runs in a thread of the owner. With ``GCE_METADATA_HOST`` and ``GCE_METADATA_IP`` both set to its
address (google-auth probes one and reads the other) ``google.auth.default()`` returns credentials
with an invented token at once; without it Beam spends about 20 s on retries.

Limits: nothing checks the token, so a test that passes here says nothing
about permissions, scopes or service accounts.
"""

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

METADATA_PATH = "/computeMetadata/v1/"


def answer(path: str, project: str) -> tuple[int, str, str]:
    """Returns the status, content type and body for a GET of ``path``.

    The service account's "email" is not an address on purpose: google-auth then skips its
    look-up at iamcredentials.googleapis.com.
    """
    route = path.partition("?")[0]
    if route == "/":
        return 200, "text/plain", "ok"
    key = route.removeprefix(METADATA_PATH).rstrip("/")
    if key.endswith("/token"):
        token = {"access_token": "loopback", "expires_in": 3600, "token_type": "Bearer"}
        return 200, "application/json", json.dumps(token)
    if key.startswith("instance/service-accounts"):
        account = {
            "email": "loopback",
            "aliases": ["default"],
            "scopes": ["https://www.googleapis.com/auth/cloud-platform"],
        }
        return 200, "application/json", json.dumps(account)
    values = {
        "project/project-id": project,
        "project/numeric-project-id": "1234",
        "instance/zone": "projects/1234/zones/us-central1-a",
        "universe/universe-domain": "googleapis.com",
    }
    if key in values:
        return 200, "text/plain", values[key]
    return 404, "text/plain", ""


@contextlib.contextmanager
def serve_metadata(project: str) -> Iterator[str]:
    """Serves until the block ends; yields the address as ``host:port``."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, content_type, text = answer(self.path, project)
            body = text.encode()
            self.send_response(status)
            self.send_header("Metadata-Flavor", "Google")
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Prints nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
