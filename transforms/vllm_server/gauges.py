"""What a server says of itself at ``/metrics``, as the few figures worth watching."""

import re
from collections.abc import Mapping

_LINE = re.compile(r"^((?:vllm|sglang):\w+)(?:\{[^}]*\})? (\S+)", re.MULTILINE)
_WANTED = {
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:prefix_cache_queries_total": "cache_queries",
    "vllm:prefix_cache_hits_total": "cache_hits",
    "vllm:generation_tokens_total": "output_tokens",
    "sglang:num_running_reqs": "running",
    "sglang:num_queue_reqs": "waiting",
    "sglang:generation_tokens_total": "output_tokens",
}
_QUEUE = 1.25
_LEAST = 32


def read_metrics(text: str) -> dict[str, float]:
    r"""The wanted figures of a page in Prometheus' format, engines of one server added up.

    >>> read_metrics('vllm:num_requests_running{engine="0"} 3.0\nother 1')
    {'running': 3.0}
    """
    found: dict[str, float] = {}
    for name, value in _LINE.findall(text):
        if (wanted := _WANTED.get(name)) is not None:
            found[wanted] = found.get(wanted, 0.0) + float(value)
    return found


def read_page(page: bytes) -> dict[str, float]:
    """`read_metrics` of a page as it came."""
    return read_metrics(page.decode("utf-8", "replace"))


def wanted_in_flight(now: Mapping[str, float], in_flight: int, before: int) -> int:
    """How many requests a server can use at once, as its queue says; 0 where nothing is known.

    A queue of a quarter of what runs keeps it full: what ends is replaced at once. While nothing
    waits, twice as many are tried; a server that preempts (its cache is full) runs fewer, and gets
    fewer.

    >>> wanted_in_flight({"running": 32.0, "waiting": 0.0}, in_flight=32, before=32)
    64
    >>> wanted_in_flight({"running": 256.0, "waiting": 44.0}, in_flight=300, before=512)
    320
    """
    running = now.get("running", 0.0)
    if now.get("waiting", 0.0) > 0:
        return max(_LEAST, round(_QUEUE * running))
    if not running:
        return before
    return max(before, _LEAST, 2 * in_flight)


def wanted_of_a_shared_server(now: Mapping[str, float], in_flight: int, before: int) -> int:
    """`wanted_in_flight`, where other processes and other users ask the same server.

    Each lengthens or shortens the queue by its share of what the server holds, so that all of them
    together get to the same queue, however many they are.

    >>> wanted_of_a_shared_server({"running": 256.0, "waiting": 256.0}, in_flight=256, before=512)
    160
    >>> wanted_of_a_shared_server({"running": 256.0, "waiting": 256.0}, in_flight=512, before=512)
    320
    """
    running, waiting = now.get("running", 0.0), now.get("waiting", 0.0)
    if waiting <= 0:
        return wanted_in_flight(now, in_flight, before)
    return max(_LEAST, round(_QUEUE * running * min(1.0, in_flight / (running + waiting))))


def gauges_between(
    before: Mapping[str, float], now: Mapping[str, float], seconds: float
) -> dict[str, int]:
    """Gauges from two readings so many seconds apart; empty readings are a server that was away.

    >>> gauges_between({"output_tokens": 10}, {"output_tokens": 110, "running": 4}, 10)
    {'vllm_running_requests': 4, 'vllm_waiting_requests': 0, 'vllm_output_tokens_per_s': 10}
    """
    gauges = {
        "vllm_running_requests": round(now.get("running", 0.0)),
        "vllm_waiting_requests": round(now.get("waiting", 0.0)),
    }
    made = now.get("output_tokens", 0.0) - before.get("output_tokens", 0.0)
    if seconds > 0:
        gauges["vllm_output_tokens_per_s"] = round(max(0.0, made) / seconds)
    queries = now.get("cache_queries", 0.0) - before.get("cache_queries", 0.0)
    hits = now.get("cache_hits", 0.0) - before.get("cache_hits", 0.0)
    if queries > 0:
        gauges["vllm_prefix_cache_hit_percent"] = round(100 * max(0.0, hits) / queries)
    return gauges
