"""Measures the dispatch: ``python -m benchmarks.dispatch [scenario ...]``; all by default.

Prints each goal with the measured value and writes both to ``benchmarks/RESULTS.md``. All scenarios
take about half an hour. ``--quick`` takes minutes and proves only that everything runs.
"""

import argparse
import contextlib
import datetime as dt
import functools
import os

from benchmarks.dispatch import failures, quotas, saturation, table
from benchmarks.dispatch.runs import allow_connections
from benchmarks.dispatch.scenarios import QUICK, Scenario, Sizes
from benchmarks.results import RESULTS, machine, write_section

SCENARIOS: dict[str, Scenario] = {
    "slots_64": functools.partial(saturation.slots, 64),
    "slots_256": functools.partial(saturation.slots, 256),
    "slots_1024": functools.partial(saturation.slots, 1024),
    "quota_50": quotas.quota_50,
    "quota_500": quotas.quota_500,
    "quota_change": quotas.changing,
    "two_processes": quotas.shared,
    "faults": failures.faults,
    "outage_503": functools.partial(failures.outage, "503"),
    "outage_refuse": functools.partial(failures.outage, "refuse"),
    "outage_reset": functools.partial(failures.outage, "reset"),
    "outage_hang": functools.partial(failures.outage, "hang"),
    "wrong_key": failures.wrong_key,
    "wrong_model": failures.wrong_model,
}
ELSEWHERE = [
    (
        "| forbidden media | one object among 1,000 records | one dead letter | tested by "
        "`tests/end_to_end/test_media.py` | | |"
    ),
    (
        "| CPU per request | compared with an SDK and bare aiohttp | | see "
        "[CPU per request](#cpu-per-request) | | |"
    ),
]


def main() -> None:
    """Runs the scenarios one after the other."""
    parser = argparse.ArgumentParser(prog="benchmarks.dispatch", description=__doc__)
    parser.add_argument("scenarios", nargs="*", help=", ".join(SCENARIOS))
    parser.add_argument("--quick", action="store_true", help="small sizes; implies --no_write")
    parser.add_argument("--no_write", action="store_true", help="leave RESULTS.md as it is")
    options = parser.parse_args()
    if unknown := set(options.scenarios) - SCENARIOS.keys():
        parser.error(
            f"no such scenario: {', '.join(sorted(unknown))}; choose from {', '.join(SCENARIOS)}"
        )
    sizes = QUICK if options.quick else Sizes()
    write = not (options.quick or options.no_write)
    allow_connections()
    made: dict[str, list[str]] = {}
    for name in options.scenarios or SCENARIOS:
        print(f"== {name}", flush=True)
        run = SCENARIOS[name]
        if name == "quota_change" and not write:
            run = functools.partial(quotas.changing, svg=None)
        day = dt.datetime.now(dt.timezone.utc).date().isoformat()
        made[name] = table.rows(name, run(sizes), day)
        print("\n".join(made[name]), flush=True)
        if write:
            _write(made)
    print("\n".join(["", *table.HEAD, *table.merged([], made, list(SCENARIOS))]))


def _write(made: dict[str, list[str]]) -> None:
    """Replaces the lines of these scenarios and keeps others; called after each slow scenario."""
    earlier = table.section_of(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []
    lines = [
        (
            "The whole command at its default flags, with no pace flag, against the "
            f"simulated model server on the same cores ({machine()}). The scenarios are described "
            "in `benchmarks/dispatch/`. Busy slots are means from second "
            f"{Sizes().warm_up_s:g} until the last record was first sent. The hand-tuned window is "
            "bare aiohttp with as many workers as there are slots. Beam's own handler is "
            "`GeminiModelHandler` with batches of one, because it sends a larger batch as one prompt."
        ),
        "",
        *table.HEAD,
        *table.merged(earlier, made, list(SCENARIOS)),
        *ELSEWHERE,
        "",
        "![The quota that halves and returns](dispatch_quota.svg)",
    ]
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        write_section(table.TITLE, "python -m benchmarks.dispatch", lines)


if __name__ == "__main__":
    main()
