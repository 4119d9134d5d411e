"""Whether the pipeline keeps a backend with a number of slots as busy as a hand-tuned client does."""

from pathlib import Path

from benchmarks.dispatch.runs import run_module, simulator, write_records
from benchmarks.dispatch.scenarios import Check, Sizes, accounted, folder, ids, run_ours
from benchmarks.simulator import luck
from benchmarks.simulator.log import Log, busy_slots, last_first_send_s
from benchmarks.simulator.settings import Settings
from pipeline.defaults import LOCAL_THREADS

LATENCY = "lognormal:1,8"


def slots(count: int, sizes: Sizes) -> list[Check]:
    """Our pipeline, a hand-tuned window and Beam's own handler, each on its own simulator.

    Args:
        count: Calls that the server serves at once.
        sizes: The lengths of the phases.
    """
    mean_s = mean_service_s()
    records = ids(count * (sizes.warm_up_s + sizes.steady_s) / mean_s)
    stock_records = records[: round(LOCAL_THREADS * sizes.stock_s / mean_s)]
    with folder() as place:
        with simulator(place, slots=count, latency=LATENCY) as server:
            ended, log = run_ours(server, place, records)
        ours = _busy(log, sizes)
        source = place / "records.jsonl"
        with simulator(place, slots=count, latency=LATENCY) as server:
            run_module("hand", server.url, count, source)
            hand = _busy(server.log(), sizes)
        stock = _stock(count, stock_records, place, sizes)
    return [
        Check(
            "mean busy slots",
            "≥ 0.95 of a hand-tuned window's",
            f"{ours:,.1f} of {count:,}; hand-tuned {hand:,.1f}: {ours / hand:.3f}",
            ours >= 0.95 * hand,
        ),
        Check(
            "the same, Beam's own handler",
            "",
            f"{stock:,.1f} ({len(stock_records):,} requests of the {len(records):,})",
        ),
        accounted(ended, records),
    ]


def _stock(count: int, records: list[str], place: Path, sizes: Sizes) -> float:
    source = place / "stock.jsonl"
    write_records(source, records)
    with simulator(place, slots=count, latency=LATENCY) as server:
        run_module("stock", server.url, source)
        return _busy(server.log(), sizes)


def mean_service_s(samples: int = 20_000) -> float:
    """The mean service time, as the simulator draws it."""
    settings = Settings.parse({"latency": LATENCY})
    return sum(luck.service_time_s(settings, str(n)) for n in range(samples)) / samples


def _busy(log: Log, sizes: Sizes) -> float:
    """Mean busy slots from the warm-up until the last record was first sent."""
    return busy_slots(log, sizes.warm_up_s, max(last_first_send_s(log), sizes.warm_up_s + 1e-3))
