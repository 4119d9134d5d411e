"""The rows of the table: the prompts, the client, and the facts to check afterwards."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

from benchmarks.vllm.clients import SLOTS, Ran, Requests, Stopwatch, Watch, ours, stock, window
from benchmarks.vllm.prompts import is_poison, prefixed, requests_of
from benchmarks.vllm.table import Line, Table
from transforms.backends.vllm.backend import VLLMBackend
from transforms.backends.vllm.lease import ServerLease

STOCK_SHARE = 10
"""Stock Beam with defaults gets one prompt in this many, since it takes several times as long."""
PREFIX_SHARE = 2
HEADS = (10, 100)
"""Numbers of prefixes: the first fit into the cache in any order, the second do not."""
KILLS = 2


class Bench:
    """Lines that share one server.

    Args:
      table: The table for the rows.
      backend: The backend of that server.
      lease: Keeps it alive.
      count: Prompts in each line, unless the line says otherwise.
    """

    def __init__(self, table: Table, backend: VLLMBackend, lease: ServerLease, count: int) -> None:
        self._table, self._backend, self._lease, self._count = table, backend, lease, count
        self._limits: dict[str, float] = {}
        self._plain = 0.0

    def warm_up(self) -> None:
        """Sends the first requests of a server, which are slow."""
        window(self._url, self._backend.model, requests_of("warm", 64, "natural"))

    def full(self, lengths: str) -> None:
        """The window and our command."""
        asked = requests_of(f"w {lengths}", self._count, lengths)
        limit, _ = self._timed(
            f"window of {SLOTS}, {lengths} lengths",
            lambda: window(self._url, self._backend.model, asked),
        )
        self._limits[lengths] = limit
        asked = requests_of(f"o {lengths}", self._count, lengths)
        seconds, _ = self._ours(f"ours, default flags, {lengths} lengths", asked, limit=limit)
        if lengths == "natural":
            self._plain = seconds

    def beam(self, *, tuned: bool) -> None:
        """Stock Beam, with batches as large as the server's slots, or at its defaults."""
        share = 1 if tuned else STOCK_SHARE
        count = max(1, self._count // share)
        name = f"stock Beam, {'256 at once × 4 threads' if tuned else 'defaults'}, natural lengths"
        asked = requests_of(f"b {tuned}", count, "natural")
        self._timed(
            name if tuned else f"{name}: {count:,} prompts, time × {share}",
            lambda: stock(self._url, self._backend.model, asked, tuned=tuned),
            limit=self._limits.get("natural"),
            scale=share,
        )

    def poison(self) -> None:
        """One prompt in a hundred is a poison request."""
        asked = requests_of("p", self._count, "natural", poison=0.01)
        bad = {str(number) for number, request in enumerate(asked) if is_poison(request)}
        seconds, ran = self._ours("ours, 1 % poison prompts", asked, poison=bad)
        if self._plain:
            self._table.remark(f"{seconds / self._plain:.2f} of the time without")
        exact = sorted(ran.letters) == sorted(bad)
        text = "exactly the poisoned ones" if exact else f"not the {len(bad)} poisoned ones"
        self._table.expect(exact, text)

    def kill(self) -> None:
        """Kills the server after a third and after two thirds of the answers."""
        before = self._lease.state.restarts
        asked = requests_of("k", self._count, "natural")
        watch = Stopwatch()
        marks = [self._count * (n + 1) // (KILLS + 1) for n in range(KILLS)]
        with killing(self._lease, watch, marks):
            self._ours("ours, SIGKILL to the server twice", asked, watch=watch)
        restarts = self._lease.state.restarts - before
        self._table.expect(restarts == KILLS, f"{restarts} restarts")

    def prefix(self) -> None:
        """The same shuffled requests, with each value of the flag."""
        count = max(1, self._count // PREFIX_SHARE)
        for heads in HEADS:
            shuffled = 0.0
            for order in ("", "batch", "data_set"):
                flags = [f"--order_by_prefix={order}"] if order else []
                name = f"ours, {count:,} prompts with {heads} prefixes, {' '.join(flags) or 'shuffled'}"
                asked = prefixed(f"x{order}", count, heads)
                with Watch(self._lease) as watch:
                    seconds, _ = self._ours(name, asked, *flags, limit=None)
                shuffled = shuffled or seconds
                self._table.remark(f"{seconds / shuffled:.2f} of shuffled")
                self._table.remark(f"{watch.cache_hits():.1%} from the cache")

    @property
    def _url(self) -> str:
        return self._lease.state.url

    def _ours(
        self,
        name: str,
        asked: Requests,
        *flags: str,
        watch: Stopwatch | None = None,
        poison: set[str] | None = None,
        limit: float | None = None,
    ) -> tuple[float, Ran]:
        """Runs our command, and checks that every record ended once."""

        def run() -> float:
            nonlocal ran
            seconds, ran = ours(self._backend, asked, *flags, watch=watch or Stopwatch())
            return seconds

        ran = Ran(1, False, [], [])
        seconds, _ = self._timed(name, run, limit=limit)
        self._table.remark(f"{len(ran.results):,} results, {len(ran.letters):,} dead letters")
        wrong = ran.wrong(len(asked), poison or set())
        if wrong:
            self._table.expect(False, wrong)
        return seconds, ran

    def _timed(
        self, name: str, run: Callable[[], float], *, limit: float | None = None, scale: int = 1
    ) -> tuple[float, Watch]:
        with Watch(self._lease) as watch:
            seconds = run() * scale
        note = f"{seconds / limit:.2f} of the window" if limit else ""
        self._table.add(Line(name, seconds, watch.tokens * scale, watch.running, note))
        return seconds, watch


@contextlib.contextmanager
def killing(lease: ServerLease, watch: Stopwatch, marks: list[int]) -> Iterator[None]:
    """Sends SIGKILL to the ready server each time this many answers have arrived."""
    over = threading.Event()

    def kill() -> None:
        for mark in marks:
            while watch.answered < mark or lease.state.status != "ready":
                if over.wait(0.02):
                    return
            killed = lease.state
            os.kill(killed.pid, signal.SIGKILL)
            while lease.state.generation == killed.generation:
                if over.wait(0.02):
                    return

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
