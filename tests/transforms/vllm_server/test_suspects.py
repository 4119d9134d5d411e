"""Which request crashes the server is found in five crashes, whatever else is in flight."""

import asyncio
from collections.abc import Iterable

import pytest

from transforms.vllm_server.suspects import Suspects


class Server:
    """Crashes on some requests, and then takes everything in flight with it."""

    def __init__(self, killers: Iterable[str]) -> None:
        self.killers = set(killers)
        self.crashes = 0
        self.in_flight: dict[str, asyncio.Future[None]] = {}
        self.most_suspects = 0

    async def answer(self, request: str) -> None:
        """Raises for a crash."""
        mine = self.in_flight[request] = asyncio.get_running_loop().create_future()
        await asyncio.sleep(0)
        if request in self.killers and not mine.done():
            self.crashes += 1
            for future in self.in_flight.values():
                if not future.done():
                    future.set_exception(ConnectionError())
        elif not mine.done():
            for _ in range(3):
                await asyncio.sleep(0)
            if not mine.done():
                mine.set_result(None)
        try:
            await mine
        finally:
            self.in_flight.pop(request)


async def _run(server: Server, requests: list[str]) -> list[str]:
    """The guilty ones."""
    suspects = Suspects(lambda: True, lambda: None)
    guilty = []

    async def ask(request: str) -> None:
        while True:
            async with suspects.turn(request):
                try:
                    await server.answer(request)
                except ConnectionError:
                    if suspects.crashed(request):
                        guilty.append(request)
                        return
                else:
                    suspects.cleared(request)
                    return

    await asyncio.gather(*map(ask, requests))
    return guilty


@pytest.mark.parametrize("count", [1, 2, 40, 300])
def test_a_killer_is_found_in_five_crashes(count: int) -> None:
    """And nobody else is blamed."""
    server = Server(["0"])
    assert asyncio.run(_run(server, [str(n) for n in range(count)])) == ["0"]
    assert server.crashes == 5


def test_two_killers_are_both_found() -> None:
    """Nobody else is blamed."""
    server = Server(["3", "77"])
    assert sorted(asyncio.run(_run(server, [str(n) for n in range(100)]))) == ["3", "77"]


def test_a_crash_or_two_that_nobody_caused() -> None:
    """Everybody is answered."""

    async def run() -> list[str]:
        suspects = Suspects(lambda: True, lambda: None)
        return [n for n in "abc" for _ in range(2) if suspects.crashed(n)]

    assert asyncio.run(run()) == []


def test_the_right_to_be_alone_is_waited_for() -> None:
    """Another process may have it."""
    given = []
    refusals = iter([False, False, True])

    async def run() -> None:
        suspects = Suspects(lambda: next(refusals), lambda: given.append(1))
        for _ in range(3):
            suspects.crashed("a")
        async with suspects.turn("a"):
            assert given == []

    asyncio.run(run())
    assert given == [1]
