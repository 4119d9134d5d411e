"""``python -m benchmarks.vllm``: the whole table, in less than an hour on two cores."""

import argparse
import contextlib
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from benchmarks.results import machine
from benchmarks.vllm import ends
from benchmarks.vllm.clients import SLOTS
from benchmarks.vllm.lines import Bench
from benchmarks.vllm.prompts import HEAD_TOKENS
from benchmarks.vllm.table import Table
from tests.vllm import environment
from transforms.backends.vllm.backend import VLLMBackend
from transforms.backends.vllm.lease import end_all
from transforms.dispatch import loop

GPUSHAPE = "60,0.1,0.15"
ARGS = ("--enforce-eager", f"--max-num-seqs={SLOTS}", "--max-model-len=2048")
BLOCKS, BLOCK_TOKENS = 512, 32
SMALL_CACHE = (f"--num-gpu-blocks-override={BLOCKS}", f"--block-size={BLOCK_TOKENS}")
ON_ONE_SERVER = {
    "natural": lambda bench: bench.full("natural"),
    "beam": lambda bench: bench.beam(tuned=True),
    "beam_defaults": lambda bench: bench.beam(tuned=False),
    "uniform": lambda bench: bench.full("uniform"),
    "poison": Bench.poison,
    "kill": Bench.kill,
}
LINES = (*ON_ONE_SERVER, "prefix", "worker", "end")


def main() -> None:
    """Runs the chosen lines; exits with status 1 if a fact is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=10_000)
    parser.add_argument("--lines", default="", help=f"some of {','.join(LINES)}; all by default")
    parser.add_argument("--dry", action="store_true", help="print, and leave RESULTS.md alone")
    given = parser.parse_args()
    wanted = given.lines.split(",") if given.lines else list(LINES)
    if unknown := set(wanted) - set(LINES):
        parser.error(f"--lines has {sorted(unknown)}, but there are {', '.join(LINES)}")
    title = "vLLM" if set(wanted) == set(LINES) else f"vLLM, in part: {', '.join(wanted)}"
    command = f"python -m benchmarks.vllm --prompts={given.prompts}"
    command += f" --lines={given.lines}" if given.lines else ""
    python = _python()
    with tempfile.TemporaryDirectory(prefix="vb") as folder:
        os.environ |= {
            "GPUSHAPE": GPUSHAPE,
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "HF_HUB_OFFLINE": "1",
            "VLLM_SERVER_FOLDER": folder,
        }
        model = environment.tiny_model(pathlib.Path(folder) / "tiny")
        table = Table(None if given.dry else title, command, _about(given.prompts))
        plain = VLLMBackend(model=model, python=python, args=ARGS, accept_truncated=True)
        small = VLLMBackend(
            model=model, python=python, args=(*ARGS, *SMALL_CACHE), accept_truncated=True
        )
        if asked := [name for name in ON_ONE_SERVER if name in wanted]:
            with _bench(table, plain, given.prompts) as bench:
                for name in asked:
                    with table.going_on(name):
                        ON_ONE_SERVER[name](bench)
        if "prefix" in wanted:
            with _bench(table, small, given.prompts) as bench, table.going_on("prefix"):
                bench.prefix()
        for name, end in (("worker", ends.killed), ("end", ends.ended)):
            if name in wanted:
                with table.going_on(name):
                    end(table, plain)
        sys.exit(table.close(os.getloadavg()[0]))


@contextlib.contextmanager
def _bench(table: Table, backend: VLLMBackend, count: int) -> Iterator[Bench]:
    """A warm server, which is ended afterwards."""
    client = loop.run(backend.open())
    try:
        bench = Bench(table, backend, client._servers[0].lease, count)
        bench.warm_up()
        yield bench
    finally:
        loop.run(client.close())
        end_all()


def _about(count: int) -> str:
    return (
        f"{machine()}; vLLM 0.32 on the CPU, GPUSHAPE={GPUSHAPE}, --max-num-seqs={SLOTS}, "
        f"{count:,} prompts per line unless it says otherwise. The prefixes have {HEAD_TOKENS} "
        f"tokens; the server of those lines has a cache of {BLOCKS * BLOCK_TOKENS:,} tokens, which "
        "running requests share."
    )


def _python() -> str:
    """The interpreter with vLLM and the plugin that gives a CPU the steps of a GPU."""
    python = environment.vllm_python()
    shape = str(pathlib.Path(__file__).parents[1] / "gpushape")
    if subprocess.run([python, "-c", "import vllm_gpushape"], capture_output=True).returncode:
        install = [python, "-m", "pip", "install", "--quiet", "--no-build-isolation", shape]
        subprocess.run(install, check=True)
    return python


if __name__ == "__main__":
    main()
