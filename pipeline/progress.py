"""What a run shows while it works: a live bar on a terminal, plain lines otherwise."""

import time
from collections.abc import Callable

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

Counts = Callable[[], dict[str, int]]
"""The counts of the moment: ``read``, ``asked``, ``results``, ``dead_letters_…``."""

_PLAIN_EVERY_S = 10.0


class Progress:
    """Shows counts until it is closed; use as a context manager, and call `tick` often.

    Args:
      console: Where to; its being a terminal decides the form.
      counts: The counts of the moment.
      total: How many inputs there are, when that is known.
    """

    def __init__(self, console: Console, counts: Counts, total: int | None = None) -> None:
        self._console = console
        self._counts = counts
        self._total = total
        self._started = self._said = time.monotonic()
        self._spinner = Spinner("dots")
        self._live = (
            Live(console=console, refresh_per_second=8, transient=True, get_renderable=self._bar)
            if console.is_terminal
            else None
        )

    def __enter__(self) -> "Progress":
        if self._live:
            self._live.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.__exit__(None, None, None)

    def tick(self) -> None:
        """Prints a plain line when one is due; the live bar draws itself."""
        moment = time.monotonic()
        if self._live is None and moment - self._said >= _PLAIN_EVERY_S:
            self._said = moment
            self._console.print(self._line(), highlight=False)

    def _line(self) -> str:
        return describe(self._counts(), time.monotonic() - self._started, self._total)

    def _bar(self) -> Table:
        grid = Table.grid(padding=(0, 1))
        grid.add_row(self._spinner, Text(self._line()))
        return grid


def describe(counts: dict[str, int], elapsed_s: float, total: int | None = None) -> str:
    """One line: what was read, asked and written, and how fast.

    >>> describe({"read": 500, "asked": 250}, 10.0)
    '0:10  read 500 · asked 250 · 25/s · written 0'
    """
    asked = counts.get("asked", 0)
    of = f" of {total:,}" if total else ""
    letters = sum(n for name, n in counts.items() if name.startswith("dead_letters_"))
    minutes, seconds = divmod(int(elapsed_s), 60)
    parts = [
        f"read {max(counts.get('read', 0), asked):,}{of}",
        f"asked {asked:,}",
        f"{asked / elapsed_s:,.0f}/s" if elapsed_s > 0 else "0/s",
        f"written {counts.get('results', 0):,}",
    ]
    if letters:
        parts.append(f"dead letters {letters:,}")
    return f"{minutes}:{seconds:02d}  " + " · ".join(parts)
