"""A request that crashes the server is found in a few crashes, whatever else is in flight."""

import asyncio
from collections.abc import Iterable

import pytest

from transforms.backends.vllm.poison_requests import PoisonRequests


class Server:
    """A server that crashes on some requests and then fails all requests in flight."""

    def __init__(self, killers: Iterable[str]) -> None:
        self.killers = set(killers)
        self.crashes = 0
        self.in_flight: dict[str, asyncio.Future[None]] = {}

    async def answer(self, request: str) -> None:
        """Raises if the server crashes."""
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
    """The poison requests."""
    suspects = PoisonRequests(lambda: True, lambda: None)
    poison = []

    async def ask(request: str) -> None:
        while True:
            while not suspects.admit(request):  # noqa: ASYNC110 - others end meanwhile
                await asyncio.sleep(0)
            try:
                await server.answer(request)
            except ConnectionError:
                if suspects.crashed(request):
                    poison.append(request)
                    return
            else:
                suspects.clear(request)
                return
            finally:
                suspects.done(request)

    await asyncio.gather(*map(ask, requests))
    return poison


@pytest.mark.parametrize(
    ("count", "crashes"), [(1, 5), (2, 5), (32, 5), (33, 6), (40, 6), (300, 6)]
)
def test_a_killer_is_found(count: int, crashes: int) -> None:
    """A killer is found in five crashes, or six among many requests; no other request is blamed."""
    server = Server(["0"])
    assert asyncio.run(_run(server, [str(n) for n in range(count)])) == ["0"]
    assert server.crashes == crashes


def test_two_killers_are_both_found() -> None:
    """Two killers are both found, and no other request is blamed."""
    server = Server(["3", "77"])
    assert sorted(asyncio.run(_run(server, [str(n) for n in range(100)]))) == ["3", "77"]


def _suspects(**counts: int) -> PoisonRequests:
    """Requests, each with its number of crashes; all took part in the first ones."""
    suspects = PoisonRequests(lambda: True, lambda: None)
    for crash in range(max(counts.values())):
        for request, crashes in counts.items():
            assert crash >= crashes or not suspects.crashed(request)
    return suspects


def _admitted(suspects: PoisonRequests, count: int) -> int:
    """The number of these requests that are admitted at the same time."""
    return sum(suspects.admit(f"r{n}") for n in range(count))


def test_crashes_without_a_poison_request() -> None:
    """A first crash changes nothing and a second halves the suspects; none is blamed."""
    everybody = {f"r{n}": 1 for n in range(320)}
    assert _admitted(_suspects(**everybody), 320) == 320
    suspects = _suspects(**dict.fromkeys(everybody, 2))
    assert suspects.admit("another")
    assert _admitted(suspects, 320) == 160
    for n in range(100):
        suspects.clear(f"r{n}")
        suspects.done(f"r{n}")
    assert sum(suspects.admit(f"r{n}") for n in range(160, 320)) == 100, "one for each"


def test_a_group_is_as_small_as_its_strongest_suspect_needs() -> None:
    """A suspect of three crashes runs with at most 15 others, one of four or more alone."""
    crashes = {f"r{n}": 2 for n in range(100)}
    assert _admitted(_suspects(**{**crashes, "r0": 3}), 100) == 16
    assert _admitted(_suspects(**{**crashes, "r99": 3}), 100) == 50
    suspects = _suspects(**{**crashes, "r0": 4})
    assert _admitted(suspects, 100) == 1
    suspects.done("r0")
    assert suspects.admit("r1")
    assert not suspects.admit("r0")


def test_the_right_to_run_alone() -> None:
    """Only one process may run a suspect alone; the right is released once."""
    given = []
    refusals = iter([False, True])
    suspects = PoisonRequests(lambda: next(refusals), lambda: given.append(1))
    for _ in range(4):
        suspects.crashed("a")
    assert not suspects.admit("a")
    suspects.done("a")
    assert not given
    assert suspects.admit("a")
    suspects.done("a")
    suspects.done("a")
    assert given == [1]


def test_an_answer_clears() -> None:
    """An answer clears a suspect, and a later crash starts a new count."""
    suspects = _suspects(a=4)
    suspects.clear("a")
    assert not suspects.crashed("a")
    assert suspects.admit("a")
