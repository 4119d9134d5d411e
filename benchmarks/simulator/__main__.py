"""Starts the simulator: ``python -m benchmarks.simulator --slots 64 --latency lognormal:1,5``.

It always listens on 127.0.0.1 only, and ends with SIGINT or SIGTERM. Its limits are those of the
package.
"""

import argparse
import asyncio
import resource
import signal
from pathlib import Path

from benchmarks.simulator import log
from benchmarks.simulator.server import running
from benchmarks.simulator.settings import Settings

_FLAGS = {
    "seed": "another seed is another fate for every record (default 0)",
    "latency": "service time: constant:S, lognormal:MEDIAN_S,P99_S or uniform:A,B (constant:0)",
    "slots": "calls served at once; 0 is no limit (default)",
    "max_queue": "calls that may wait for a slot; -1 is no limit (default)",
    "overflow": "status beyond max_queue: 429 (default) or 503",
    "requests_per_s": "quota; 0 is none (default)",
    "tokens_per_minute": "quota of prompt and answer tokens; 0 is none (default)",
    "burst_s": "seconds of quota that are saved up (default 1)",
    "reject_latency_s": "seconds before a refusal is answered (default 0.005)",
    "retry_after": "seconds, or auto: send Retry-After with 429 and 503 (default: no header)",
    "schedule": 'changes: [{"at_s": 10, "requests_per_s": 50}, {"at_s": 20, "outage": 5}, …]',
    "outage": "START,DURATION in seconds since the first call",
    "outage_kind": "refuse, 503 (default), reset or hang",
    "faults": "probabilities: 503:0.05,reset:0.02,hang:0.01,malformed:0.005,poison:0.002",
    "api_key": "another key is answered 401",
    "models": "A,B: another model is answered 404",
    "output_tokens": "as latency (default constant:8)",
    "answer": "text of every answer; {id} is the record's id",
}


def parse(arguments: list[str] | None = None) -> tuple[Settings, argparse.Namespace]:
    """The settings, and ``port``, ``ready_file`` and ``log``."""
    parser = argparse.ArgumentParser(prog="benchmarks.simulator", description=__doc__)
    for name, text in _FLAGS.items():
        parser.add_argument(f"--{name}", help=text, default=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--ready_file", type=Path, help="file for the base URL, once it listens")
    parser.add_argument("--log", type=Path, help="file for the log as JSON lines, written on exit")
    options = parser.parse_args(arguments)
    try:
        given = {name: value for name, value in vars(options).items() if name in _FLAGS}
        return Settings.parse(given), options
    except (KeyError, ValueError) as error:
        parser.error(str(error))


async def serve(settings: Settings, options: argparse.Namespace) -> None:
    """Serves until SIGINT or SIGTERM; then writes the log."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with running(settings, options.port) as server:
        print(f"SIMULATED model server (not a real model) on {server.url}", flush=True)
        if options.ready_file:
            part = options.ready_file.with_name(options.ready_file.name + ".part")
            part.write_text(server.url + "\n")
            part.replace(options.ready_file)
        await stop.wait()
        if options.log:
            options.log.write_bytes(log.dump(server.log))


def main() -> None:
    """Raises the limit of connections to the system's maximum, and serves."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    settings, options = parse()
    asyncio.run(serve(settings, options))


if __name__ == "__main__":
    main()
