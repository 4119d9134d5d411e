"""Starts the simulated model server: ``python -m tests.emulators.model_server --port 0``.

Limits: see the package. It is written from captures and vendor documentation; no
real endpoint was called; it always listens on 127.0.0.1 and nothing else.
"""

import argparse
import asyncio
import signal
import sys
from pathlib import Path

if not __package__:  # run by path: this folder's openai.py must not hide the package of that name
    sys.path[0] = str(Path(__file__).resolve().parents[3])


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="model_server", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--ready_file", type=Path, help="gets the base URL once it listens")
    parser.add_argument("--latency_ms", type=float, default=0.0, help="wait before each answer")
    parser.add_argument("--answer", choices=("canned", "schema"), default="canned")
    parser.add_argument("--api_key", help="the OpenAI dialect wants this key; none: any or no key")
    parser.add_argument("--strict", action="store_true", help="no fields that break SDK types")
    parser.add_argument(
        "--max_texts",
        type=int,
        help="texts of an embedding request, OpenAI dialect; none: OpenAI's",
    )
    parser.add_argument(
        "--owned",
        action="store_true",
        help="announce the URL as JSON and end when standard input does (see processes.py)",
    )
    return parser.parse_args(argv)


async def serve(options: argparse.Namespace) -> None:
    """Serves until SIGINT, SIGTERM or, if owned, the owner's end; announces when it listens."""
    from tests.emulators.model_server import app
    from tests.emulators.owner_link import OwnerLink

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    settings = app.Settings(
        latency_s=options.latency_ms / 1000,
        answer_mode=options.answer,
        api_key=options.api_key,
        strict=options.strict,
        max_texts=options.max_texts,
    )
    async with app.running(settings, options.port) as url:
        if options.owned:
            link = OwnerLink()
            link.announce(base=url)
            link.end_with_owner()
        else:
            print(f"SIMULATED model server (not a real model) on {url}", flush=True)
        if options.ready_file:
            part = options.ready_file.with_name(options.ready_file.name + ".part")
            part.write_text(url + "\n")
            part.replace(options.ready_file)
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(serve(parse()))
