"""A model server's own metrics."""

import pytest

from transforms.clients.server_metrics import (
    ServerMetrics,
    gauges_between,
    read_metrics,
    wanted_in_flight,
)

PAGE = """# HELP vllm:num_requests_running …
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 2.0
vllm:num_requests_waiting{engine="0",model_name="m"} 7.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 7.0
vllm:prefix_cache_queries_total{engine="0"} 100.0
vllm:prefix_cache_hits_total{engine="0"} 25.0
vllm:generation_tokens_total{engine="0"} 1e3
process_open_fds 34.0
"""


def test_engines_are_summed() -> None:
    """Metrics of several engines are added up, and unknown ones are ignored."""
    assert read_metrics(PAGE) == {
        "running": 5.0,
        "waiting": 7.0,
        "cache_queries": 100.0,
        "cache_hits": 25.0,
        "output_tokens": 1000.0,
    }


def test_gauges() -> None:
    """Rates cover the time between two readings."""
    before = {"cache_queries": 50.0, "cache_hits": 5.0, "output_tokens": 500.0}
    assert gauges_between({"a": before}, {"a": read_metrics(PAGE)}, 5.0) == {
        "vllm_running_requests": 5,
        "vllm_waiting_requests": 7,
        "vllm_output_tokens_per_s": 100,
        "vllm_prefix_cache_hit_percent": 40,
    }


@pytest.mark.parametrize("before", [{}, {"a": {}}, {"a": {"output_tokens": 2e9}}])
def test_a_counters_first_value_is_not_growth(before: dict[str, dict[str, float]]) -> None:
    """A first value is not growth, initially or after a failed reading or a restart."""
    now = {"output_tokens": 1e9, "cache_queries": 1e6, "cache_hits": 1e5}
    assert gauges_between(before, {"a": now}, 1.0) == {
        "vllm_running_requests": 0,
        "vllm_waiting_requests": 0,
        "vllm_output_tokens_per_s": 0,
    }


def test_servers_are_separate() -> None:
    """A restarted server does not hide the growth of another one."""
    before = {"a": {"output_tokens": 1e9}, "b": {"output_tokens": 100.0}}
    now = {"a": {"output_tokens": 5.0}, "b": {"output_tokens": 150.0}}
    assert gauges_between(before, now, 5.0)["vllm_output_tokens_per_s"] == 10


def test_figures() -> None:
    """Readings are frequent while the suggestion grows; without pages nothing is known."""
    figures = ServerMetrics()
    seen = []
    for second, (in_flight, page) in enumerate(
        [
            (0, {"running": 0.0}),
            (32, {"running": 32.0, "waiting": 0.0, "output_tokens": 70.0}),
            (64, {"running": 40.0, "waiting": 24.0, "output_tokens": 90.0}),
        ]
    ):
        figures.read({"a": page}, in_flight, float(second))
        seen.append((figures.wanted, figures.again_s))
    assert seen == [(0, 1.0), (64, 0.25), (50, 1.0)]
    assert figures.gauges["vllm_output_tokens_per_s"] == 20
    figures.read({}, 64, 3.0)
    assert (figures.wanted, figures.gauges, figures.again_s) == (0, {}, 1.0)


def _wanted(slots: int, processes: int, readings: int) -> list[list[int]]:
    """The suggestion to each process that shares a server, reading by reading."""
    wanted, seen = [0] * processes, []
    for _ in range(readings):
        in_flight = [max(32, each) for each in wanted]
        running = min(slots, sum(in_flight))
        now = {"running": float(running), "waiting": float(sum(in_flight) - running)}
        wanted = [wanted_in_flight(now, *each) for each in zip(in_flight, wanted, strict=True)]
        seen.append(wanted)
    return seen


def test_the_queue_determines_how_many_are_wanted() -> None:
    """The suggestion doubles until a queue forms, then keeps a quarter waiting."""
    assert [*zip(*_wanted(256, 1, 6), strict=True)] == [(64, 128, 256, 512, 320, 320)]
    assert wanted_in_flight({}, 0, 320) == 320
    assert wanted_in_flight({"running": 100.0, "waiting": 220.0}, 320, 320) == 125


def test_processes_that_share_a_server() -> None:
    """Processes that share a server together reach the queue that a single one would have."""
    assert _wanted(256, 4, 8)[-1] == [80] * 4


@pytest.mark.parametrize(("in_flight", "wanted"), [(100, 200), (125, 250), (126, 150), (1000, 150)])
def test_requests_that_do_not_run_are_not_doubled(in_flight: int, wanted: int) -> None:
    """If other limits keep requests from running, their number is not doubled."""
    assert wanted_in_flight({"running": 100.0, "waiting": 0.0}, in_flight, 150) == wanted
