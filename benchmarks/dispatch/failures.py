"""The cost of failures: faults of single calls, outages, and causes that fail every call."""

import math

from benchmarks.dispatch.analysis import WINDOW_S, expected_calls, unavoidable_calls
from benchmarks.dispatch.runs import simulator
from benchmarks.dispatch.scenarios import Check, Sizes, accounted, folder, ids, run_ours
from benchmarks.simulator import luck
from benchmarks.simulator.log import (
    Log,
    busy_slots,
    calls_per_record,
    counts_by_cause,
    end_s,
    goodput,
    last_first_send_s,
    wasted_calls,
)
from benchmarks.simulator.settings import Settings

LATENCY = "lognormal:0.3,1"
FAULTS = "503:0.05,reset:0.02,hang:0.01,malformed:0.005,poison:0.002"
SLOTS = 128
OUTAGE_RATE = 100
TIMEOUT = "--request_timeout_s=10"


def faults(sizes: Sizes) -> list[Check]:
    """Every kind of fault at once."""
    records = ids(sizes.faulty_records)
    settings = Settings.parse({"faults": FAULTS})
    poison = [one for one in records if luck.is_poison(settings, one)]
    given = {"slots": SLOTS, "latency": LATENCY, "faults": FAULTS}
    with folder() as place, simulator(place, **given) as server:
        ended, log = run_ours(server, place, records, flags=[TIMEOUT])
    calls, least = calls_per_record(log), unavoidable_calls(settings, records) / len(records)
    expected = expected_calls(settings)
    sent_s = max(last_first_send_s(log), sizes.warm_up_s + 1e-3)
    return [
        Check(
            "calls per record",
            "≤ 1.01 × 1/(1−p)",
            (
                f"{calls:.4f}; 1/(1−p) is {expected:.4f}: {calls / expected:.4f} "
                f"(by the faults that these calls met: {calls / least:.4f})"
            ),
            calls <= 1.01 * expected,
        ),
        accounted(ended, records, poison),
        Check(
            "mean busy slots",
            "",
            (
                f"{busy_slots(log, 0, sizes.warm_up_s):.1f} of {SLOTS} until second "
                f"{sizes.warm_up_s:g}, then {busy_slots(log, sizes.warm_up_s, sent_s):.1f}"
            ),
        ),
    ]


def outage(kind: str, sizes: Sizes) -> list[Check]:
    """The server is down for a while."""
    flags = [TIMEOUT] if kind == "hang" else []
    records = ids(OUTAGE_RATE * 3 * sizes.before_s)
    given = {
        "requests_per_s": OUTAGE_RATE,
        "latency": LATENCY,
        "outage": f"{sizes.before_s:g},{sizes.outage_s:g}",
        "outage_kind": kind,
    }
    with folder() as place, simulator(place, **given) as server:
        ended, log = run_ours(server, place, records, flags=flags)
    back_s = sizes.before_s + sizes.outage_s
    good_s = _good_again_s(log, back_s, 0.9 * OUTAGE_RATE)
    lost = counts_by_cause(log).get("outage", 0)
    return [
        accounted(ended, records),
        Check(
            "back at nine tenths of the quota",
            "",
            (
                f"{good_s:g} s after the outage; calls lost to it: {lost} "
                f"(with refusals: {wasted_calls(log):,})"
            ),
        ),
    ]


def _good_again_s(log: Log, back_s: float, level: float) -> float:
    """Seconds from a moment until a window's successes reach this rate; infinite if never."""
    for second in range(math.ceil(max(0.0, end_s(log) - back_s))):
        start_s = back_s + second
        if goodput(log, start_s, start_s + WINDOW_S) >= level:
            return float(second)
    return math.inf


def wrong_key(sizes: Sizes) -> list[Check]:
    """Credentials that the server rejects: 401."""
    return _hopeless(sizes, "api_key", "right")


def wrong_model(sizes: Sizes) -> list[Check]:
    """A model that the server lacks: 404."""
    return _hopeless(sizes, "models", "another")


def _hopeless(_: Sizes, setting: str, value: str) -> list[Check]:
    with folder() as place, simulator(place, latency=LATENCY, **{setting: value}) as server:
        ended, log = run_ours(server, place, ids(2000))
    said = [line for line in ended.output.splitlines() if "failed" in line or "error" in line]
    print("\n".join(said), flush=True)
    return [
        Check(
            "end",
            "an exit code, ≤ 10 s from the start of the process",
            f"code {ended.code} after {ended.wall_s:.1f} s",
            ended.code != 0 and ended.wall_s <= 10,
        ),
        Check(
            "messages and calls",
            "one, fewer than 100",
            f"{len(said)}, {len(log)}",
            len(said) == 1 and len(log) < 100,
        ),
    ]
