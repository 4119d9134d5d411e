"""A scenario: its sizes, its output, and the part that all scenarios share."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.dispatch.analysis import not_once, shown
from benchmarks.dispatch.runs import Ended, Ours, Simulator, write_records
from benchmarks.simulator.log import Log, series


@dataclass(frozen=True, slots=True)
class Sizes:
    """The lengths of all phases, in seconds; `QUICK` is for trying the benchmark itself.

    Attributes:
        steady_s: The time for which a backend is kept busy in a steady state.
        warm_up_s: The time at the start that some goals exclude.
        stock_s: The time for Beam's own handler.
        phase_s: The length of each phase of a changing quota.
        outage_s: The time for which the server is down.
        before_s: The time for which it works before that.
        faulty_records: Records of the scenario with faults.
    """

    steady_s: float = 90.0
    warm_up_s: float = 20.0
    stock_s: float = 60.0
    phase_s: float = 60.0
    outage_s: float = 60.0
    before_s: float = 15.0
    faulty_records: int = 20_000


QUICK = Sizes(
    steady_s=2.0,
    warm_up_s=0.5,
    stock_s=3.0,
    phase_s=3.0,
    outage_s=2.0,
    before_s=2.0,
    faulty_records=300,
)


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the table.

    Attributes:
        what: The measured quantity.
        goal: Its goal; empty without one.
        measured: Its value.
        kept: Whether the goal is met; None without one.
    """

    what: str
    goal: str
    measured: str
    kept: bool | None = None


Scenario = Callable[[Sizes], list[Check]]


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A temporary folder for the files of one scenario."""
    with tempfile.TemporaryDirectory(prefix="dispatch-") as name:
        yield Path(name)


def ids(count: float, prefix: str = "") -> list[str]:
    """The ids of that many records."""
    return [f"{prefix}{number}" for number in range(round(count))]


def run_ours(
    server: Simulator,
    place: Path,
    records: Sequence[str],
    *,
    flags: Sequence[str] = (),
    samples: Path | None = None,
) -> tuple[Ended, Log]:
    """Runs the pipeline on these records; prints the run, returns it with the simulator's log."""
    source = place / "records.jsonl"
    write_records(source, records)
    ended = Ours.start(server.url, source, place / "ours", flags=flags, samples=samples).wait()
    log = server.log()
    print(shown(series(log, 1.0), 2), flush=True)
    if ended.code:
        print(ended.output[-3000:], flush=True)
    return ended, log


def accounted(
    ended: Ended, records: Sequence[str], letters: Sequence[str] = (), what: str = "records"
) -> Check:
    """Whether every record ended once, with exactly these as dead letters."""
    wrong = not_once(records, [*ended.results, *ended.letters])
    strange = not_once(letters, ended.letters)
    reconciled = ended.code == 0 and bool(ended.summary.get("reconciled"))
    goal = "each once" + (", the poison ones as dead letters" if letters else ", no dead letters")
    return Check(
        what,
        goal,
        (
            f"{len(records):,} = {len(ended.results):,} + {len(ended.letters):,}"
            + (f"; not once: {len(wrong)}" if wrong else "")
            + (f"; not the right dead letters: {len(strange)}" if strange else "")
            + ("" if reconciled else f"; exit code {ended.code}")
        ),
        not wrong and not strange and reconciled,
    )
