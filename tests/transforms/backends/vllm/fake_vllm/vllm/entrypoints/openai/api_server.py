"""A server with vLLM's paths and process tree that is ready immediately.

Words in a prompt select the behaviour: ``DIE`` kills the server, ``SLOW`` waits until the file
named by ``FAKE_RELEASE`` exists, ``POISON`` is refused, ``FAIL`` is a 500, ``HANG-ENGINE`` makes
/health answer 503. The server appends a line with its arguments to the file named by
``FAKE_STARTS`` at each start, and its process number to the one named by ``FAKE_ASKED`` at each
request; while the file named by ``FAKE_BROKEN`` exists, a start fails.
"""

import http.server
import json
import os
import signal
import subprocess
import sys
import time


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers like vLLM, as far as its clients look."""

    protocol_version = "HTTP/1.1"
    ill = False

    def do_GET(self) -> None:
        """/health and /metrics."""
        if self.path == "/metrics":
            text = 'vllm:num_requests_running{engine="0"} 3.0\nvllm:num_requests_waiting{engine="0"} 2.0\n'
            self._answer(200, text.encode())
        else:
            self._answer(503 if Handler.ill else 200, b"{}")

    def do_POST(self) -> None:
        """All model calls; the answer repeats the request."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = json.dumps(body)
        if name := os.environ.get("FAKE_ASKED"):
            with open(name, "a", encoding="utf-8") as asked:
                asked.write(f"{os.getpid()}\n")
        if "DIE" in text:
            os.kill(os.getpid(), signal.SIGKILL)
        while "SLOW" in text and not os.path.exists(os.environ["FAKE_RELEASE"]):
            time.sleep(0.01)
        if "HANG-ENGINE" in text:
            Handler.ill = True
        if "HANG-ENGINE" in text or "FAIL" in text:
            self._answer(500, b'{"error": {"message": "failed", "code": 500}}')
            return
        if "POISON" in text:
            self._answer(
                400, b'{"error": {"message": "no", "type": "BadRequestError", "code": 400}}'
            )
            return
        message = {"role": "assistant", "content": f"{os.getpid()} {text}"}
        choice = {"index": 0, "message": message, "text": text, "finish_reason": "stop"}
        answer = {"model": body.get("model"), "choices": [choice], "usage": {"prompt_tokens": 1}}
        if self.path.endswith("/embeddings"):
            texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
            answer["data"] = [
                {"index": place, "embedding": [0.5, float(len(text))]}
                for place, text in enumerate(texts)
            ]
        self._answer(200, json.dumps(answer).encode())

    def log_message(self, *_: object) -> None:
        """Logs nothing."""

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    """Serves until it is killed; starts an engine below it, like vLLM."""
    if name := os.environ.get("FAKE_STARTS"):
        with open(name, "a", encoding="utf-8") as starts:
            starts.write(json.dumps(sys.argv[1:]) + "\n")
    if os.path.exists(os.environ.get("FAKE_BROKEN", "")):
        sys.exit("ValueError: there is no such model")
    engine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1e6)"])
    print(f"WARNING engine {engine.pid}", flush=True)
    port = int(sys.argv[sys.argv.index("--port") + 1])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.request_queue_size = 512
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server.serve_forever()


if __name__ == "__main__":
    main()
