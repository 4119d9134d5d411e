"""Whether one process or two find, keep and follow an unknown quota."""

import functools
import json
from pathlib import Path

from benchmarks.dispatch import picture
from benchmarks.dispatch.analysis import WINDOW_S, between, both_work, of_client, reached_s, shown
from benchmarks.dispatch.runs import Ours, simulator, write_records
from benchmarks.dispatch.scenarios import Check, Sizes, accounted, folder, ids, run_ours
from benchmarks.simulator.log import (
    Log,
    goodput,
    last_first_send_s,
    series,
    share_of_status,
    shares_of_success,
)

LATENCY = "lognormal:0.3,1"
NEAR = 0.1
CHANGING = 200
SHARED = 100
SVG = Path(__file__).resolve().parents[1] / "dispatch_quota.svg"


def quota(per_s: int, sizes: Sizes) -> list[Check]:
    """One quota in requests per second, with refusals without Retry-After."""
    records = ids(per_s * sizes.steady_s)
    with folder() as place, simulator(place, requests_per_s=per_s, latency=LATENCY) as server:
        ended, log = run_ours(server, place, records)
    settled_s = sizes.warm_up_s / 2
    end_s = last_first_send_s(log)
    good, later = (goodput(log, start, end_s) / per_s for start in (0.0, settled_s))
    late = share_of_status(between(log, settled_s, end_s), 429)
    refused = share_of_status(log, 429)
    return [
        Check(
            "goodput / quota",
            "≥ 0.95",
            f"{good:.3f} (after {settled_s:g} s: {later:.3f})",
            good >= 0.95,
        ),
        Check(
            "429s",
            "≤ 3 % of calls",
            f"{refused:.1%} (after {settled_s:g} s: {late:.1%})",
            refused <= 0.03,
        ),
        accounted(ended, records),
    ]


def changing(sizes: Sizes, svg: Path | None = SVG) -> list[Check]:
    """A quota that halves, then returns; draws the picture.

    Args:
        sizes: The length of each phase.
        svg: The file for the picture; None for no picture.
    """
    half, phase_s = CHANGING // 2, sizes.phase_s
    records = ids(phase_s * (2 * CHANGING + half))
    changes = [
        {"at_s": phase_s, "requests_per_s": half},
        {"at_s": 2 * phase_s, "requests_per_s": CHANGING},
    ]
    settings = {"requests_per_s": CHANGING, "schedule": json.dumps(changes), "latency": LATENCY}
    with folder() as place, simulator(place, **settings) as server:
        samples = place / "samples.jsonl"
        ended, log = run_ours(server, place, records, samples=samples)
        gauges = picture.read_samples(samples, server.origin_s())
    end_s = last_first_send_s(log)
    steps = [(0.0, CHANGING), (phase_s, half), (2 * phase_s, CHANGING)]
    if svg is not None:
        svg.write_text(picture.draw(series(log, 1.0), gauges, steps, end_s), encoding="utf-8")
    return [
        _level("halves", log, (phase_s, 2 * phase_s), half),
        _level("returns", log, (2 * phase_s, end_s), CHANGING),
        Check(
            "the whole run",
            "",
            f"goodput / quota {len(ended.results) / _offered(steps, end_s):.3f}, "
            f"429s {share_of_status(log, 429):.1%}",
        ),
        accounted(ended, records),
    ]


def _level(what: str, log: Log, span: tuple[float, float], level: int) -> Check:
    took_s = reached_s(log, *span, level, NEAR)
    settled = (span[0] + 15, span[1])
    after = goodput(log, *settled) / level if settled[1] > settled[0] else 0.0
    return Check(
        f"the quota {what} ({level}/s)",
        f"back within {NEAR:.0%} of it in 15 s, for good ({WINDOW_S:g}-s means)",
        f"{took_s:g} s (goodput / quota after 15 s: {after:.3f})",
        took_s <= 15,
    )


def _offered(steps: list[tuple[float, int]], end_s: float) -> float:
    """The number of calls that the quotas allow until the end."""
    ends = [start for start, _ in steps[1:]] + [end_s]
    return sum((end - start) * level for (start, level), end in zip(steps, ends, strict=True))


def shared(sizes: Sizes) -> list[Check]:
    """Two commands share one quota, each with its own records."""
    names = ("a", "b")
    inputs = {name: ids(SHARED / 2 * sizes.steady_s, name) for name in names}
    with folder() as place, simulator(place, requests_per_s=SHARED, latency=LATENCY) as server:
        runs = {}
        for name in names:
            source = place / f"{name}.jsonl"
            write_records(source, inputs[name])
            runs[name] = Ours.start(server.url, source, place / name, key=name)
        ended = {name: run.wait() for name, run in runs.items()}
        log = server.log()
    for name in names:
        print(f"process {name}\n{shown(series(of_client(log, name), 1.0), 2)}", flush=True)
    start_s, end_s = both_work(log, names)
    together = goodput(log, start_s, end_s) / SHARED
    shares = shares_of_success(log, start_s, end_s)
    refused = share_of_status(between(log, start_s, end_s), 429)
    return [
        Check(
            "goodput of both / quota",
            "≥ 0.9",
            f"{together:.3f} in {end_s - start_s:.0f} s (429s {refused:.1%})",
            together >= 0.9,
        ),
        Check(
            "shares",
            "none below 30 %",
            " and ".join(f"{shares[name]:.0%}" for name in names),
            min(shares.values()) >= 0.3,
        ),
        *(accounted(ended[name], inputs[name], what=f"records of {name}") for name in names),
    ]


quota_50 = functools.partial(quota, 50)
quota_500 = functools.partial(quota, 500)
