"""``--backend=vllm`` from the command line to the sinks, with a stand-in for vLLM's server."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end import runs
from tests.transforms.backends.vllm.servers import FAKE_VLLM, ROOT, eventually, processes_of, starts

COUNT = 300
POISONED = {"7", "150", "299"}


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a test; its path is short, because the server's socket is in it."""
    folder = tmp_path_factory.mktemp("s")
    yield folder
    (folder / "release").touch()
    eventually(lambda: not processes_of(folder))


@dataclasses.dataclass(frozen=True)
class Command:
    """``python -m pipeline`` and the servers that it starts."""

    process: subprocess.Popen[str]
    folder: Path

    def server(self, generation: int) -> int:
        """The process of the server's n-th start, once it is ready."""

        def ready() -> int | None:
            assert self.process.poll() is None, self.process.communicate()
            try:
                state = json.loads((self.folder / "cpu/state.json").read_text())
            except OSError:
                return None
            there = (state["status"], state["generation"]) == ("ready", generation)
            return state["pid"] if there else None

        return eventually(ready, 60.0)

    def await_requests(self, server: int, count: int) -> None:
        """Returns once a server has received this many requests."""
        asked = self.folder / "asked"
        eventually(lambda: asked.exists() and asked.read_text().split().count(str(server)) >= count)

    def end(self) -> tuple[int, runs.Held]:
        """The exit code and the rows of the command, once it has ended."""
        said = self.process.communicate(timeout=120)
        assert self.process.returncode in (0, 1), said
        return self.process.returncode, runs.in_files(self.folder / "out")


def _start(folder: Path, records: list[dict[str, Any]], *flags: str) -> Command:
    (folder / "in.jsonl").write_text("\n".join(map(json.dumps, records)))
    names = {"FAKE_STARTS": "starts", "FAKE_RELEASE": "release", "FAKE_ASKED": "asked"}
    environment = {
        **os.environ,
        **{name: str(folder / file) for name, file in names.items()},
        "PYTHONPATH": FAKE_VLLM,
        "CUDA_VISIBLE_DEVICES": "",
        "VLLM_SERVER_FOLDER": str(folder),
    }
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "pipeline", f"--input_files={folder}/in.jsonl"),
            *("--backend=vllm", "--model=tiny", f"--output_path={folder}/out", *flags),
        ],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return Command(process, folder)


def test_two_kills_and_poison_cost_no_good_record(folder: Path) -> None:
    """Two killed servers and 1 % refused requests leave one outcome for each of 300 records."""
    texts = {str(n): "POISON" if str(n) in POISONED else f"SLOW {n}" for n in range(COUNT)}
    records = [{"id": record_id, "text": text} for record_id, text in texts.items()]
    command = _start(folder, records, "--prompt={{ text }}")
    for generation, in_flight in ((1, 30), (2, 1)):
        server = command.server(generation)
        command.await_requests(server, in_flight)
        os.kill(server, signal.SIGKILL)
    command.server(3)
    (folder / "release").touch()
    status, held = command.end()
    assert processes_of(folder) == []
    assert status == 0
    runs.check_summary(held)
    assert sorted(row["record_id"] for row in held.results) == sorted(texts.keys() - POISONED)
    assert sorted(row["record_id"] for row in held.letters) == sorted(POISONED)
    assert {row["error_type"] for row in held.letters} == {"invalid_request"}
    for row in held.results:
        assert f'"SLOW {row["record_id"]}"' in row["output"]
    assert starts(folder) == 3
    assert json.loads((folder / "cpu/state.json").read_text())["restarts"] == 2


def test_media_and_whole_requests(folder: Path) -> None:
    """An ``https`` image precedes the prompt; a ``gs://`` image fails only its record."""
    (folder / "release").touch()
    whole = {"prompt": "continue", "max_tokens": 7, "top_k": 3}
    status, held = _start(folder, [{"id": "w", "request": whole}], "--request_field=request").end()
    assert status == 0
    assert json.loads(held.results[0]["output"]) == {"model": "tiny", **whole}

    photos = ["https://example.com/a.webp", "gs://bucket/b.png"]
    records = [{"id": str(number), "photo": photo} for number, photo in enumerate(photos)]
    flags = ("--prompt=What is it?", "--media_fields=photo", "--write_mode=replace")
    status, held = _start(folder, records, *flags).end()
    assert status == 0
    (row,) = held.results
    sent = json.loads(row["output"].partition(" ")[2])
    assert sent["messages"][0]["content"] == [
        {"type": "image_url", "image_url": {"url": photos[0]}},
        {"type": "text", "text": "What is it?"},
    ]
    (letter,) = held.letters
    assert (letter["record_id"], letter["error_type"]) == ("1", "invalid_request")
    assert "cannot read gs:// objects" in letter["error_message"]
