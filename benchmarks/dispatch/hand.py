"""A hand-tuned sliding window: ``python -m benchmarks.dispatch.hand URL CONCURRENCY RECORDS``.

The client of an engineer who knows how many calls the server takes at once: aiohttp, that many
workers, nothing else. It retries nothing.
"""

import asyncio
import json
import sys
from pathlib import Path

import aiohttp

from benchmarks.dispatch.runs import prompt_of


async def ask_all(url: str, concurrency: int, ids: list[str]) -> None:
    """Sends each record once, at most `concurrency` at a time."""
    waiting = iter(ids)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def worker() -> None:
            for record_id in waiting:
                messages = [{"role": "user", "content": prompt_of(record_id)}]
                body = {"model": "simulated", "messages": messages}
                async with session.post(f"{url}/v1/chat/completions", json=body) as response:
                    response.raise_for_status()
                    await response.json()

        await asyncio.gather(*(worker() for _ in range(concurrency)))


def main() -> None:
    url, concurrency, records = sys.argv[1:]
    lines = Path(records).read_bytes().splitlines()
    asyncio.run(ask_all(url, int(concurrency), [json.loads(line)["id"] for line in lines]))


if __name__ == "__main__":
    main()
