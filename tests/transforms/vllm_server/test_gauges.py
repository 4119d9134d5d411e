"""A server's own figures."""

from transforms.vllm_server.gauges import gauges_between, read_metrics, wanted_in_flight

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


def test_engines_are_added_up() -> None:
    """Other figures are left out."""
    assert read_metrics(PAGE) == {
        "running": 5.0,
        "waiting": 7.0,
        "cache_queries": 100.0,
        "cache_hits": 25.0,
        "output_tokens": 1000.0,
    }


def test_gauges() -> None:
    """Rates are of the time between two readings."""
    before = {"cache_queries": 50.0, "cache_hits": 5.0, "output_tokens": 500.0}
    assert gauges_between(before, read_metrics(PAGE), 5.0) == {
        "vllm_running_requests": 5,
        "vllm_waiting_requests": 7,
        "vllm_output_tokens_per_s": 100,
        "vllm_prefix_cache_hit_percent": 40,
    }


def test_a_restart_sets_counters_back() -> None:
    """No rate is negative."""
    gauges = gauges_between({"output_tokens": 500.0}, {"output_tokens": 1.0}, 5.0)
    assert gauges["vllm_output_tokens_per_s"] == 0


def test_the_queue_says_how_many_are_wanted() -> None:
    """It doubles until something waits, then a quarter waits; a quiet server changes nothing."""
    slots, wanted, seen = 256, 0, []
    for _ in range(6):
        in_flight = max(32, wanted)
        now = {"running": min(slots, in_flight), "waiting": max(0, in_flight - slots)}
        wanted = wanted_in_flight(now, in_flight, wanted)
        seen.append(wanted)
    assert seen == [64, 128, 256, 512, 320, 320]
    assert wanted_in_flight({}, 0, 320) == 320
    assert wanted_in_flight({"running": 100.0, "waiting": 220.0}, 320, 320) == 125
