"""A model server's ``/metrics`` page, reduced to the few metrics worth watching."""

import math
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
Page = Mapping[str, float]
"""The wanted metrics of one server."""
READ_EVERY_S = 1.0
_GROWING_SHARE = 0.25
"""The interval is this share of it while a server can use more and more requests."""
_QUEUE = 1.25
_LEAST = 32


def read_metrics(text: str) -> dict[str, float]:
    r"""The wanted metrics of a page in Prometheus' format, summed over a server's engines.

    >>> read_metrics('vllm:num_requests_running{engine="0"} 3.0\nother 1')
    {'running': 3.0}
    """
    found: dict[str, float] = {}
    for name, value in _LINE.findall(text):
        if (wanted := _WANTED.get(name)) is not None:
            found[wanted] = found.get(wanted, 0.0) + float(value)
    return found


def read_page(page: bytes) -> dict[str, float]:
    """`read_metrics` of a page's bytes."""
    return read_metrics(page.decode("utf-8", "replace"))


def wanted_in_flight(now: Mapping[str, float], in_flight: int, before: int) -> int:
    """How many requests a server can process at once from this process; 0 if unknown.

    A queue of a quarter of the running requests keeps it full: a request that ends is replaced
    immediately. Other clients of the server lengthen or shorten the queue as well, each by its
    share of the server's requests, so that together they arrive at that queue, however many they
    are. While none waits, twice as many are tried, provided that those in flight do run: else
    something before the server delays them, and would delay more. A server that preempts (its cache
    is full) runs fewer, and gets fewer.

    Args:
      now: The server's metrics.
      in_flight: The server's requests from this process.
      before: The last result of this function.

    >>> wanted_in_flight({"running": 32.0, "waiting": 0.0}, in_flight=32, before=0)
    64
    >>> wanted_in_flight({"running": 256.0, "waiting": 256.0}, in_flight=512, before=512)
    320
    >>> wanted_in_flight({"running": 256.0, "waiting": 256.0}, in_flight=256, before=512)
    160
    >>> wanted_in_flight({"running": 100.0, "waiting": 0.0}, in_flight=1000, before=1000)
    1000
    """
    running, waiting = now.get("running", 0.0), now.get("waiting", 0.0)
    if waiting > 0:
        share = min(1.0, in_flight / (running + waiting))
        return max(_LEAST, round(_QUEUE * running * share))
    if not running or in_flight > _QUEUE * running:
        return before
    return max(before, _LEAST, 2 * in_flight)


class ServerMetrics:
    """The metrics of one or several servers, read at intervals.

    Attributes:
      wanted: How many requests they can process at once from this process; 0 while unknown.
      gauges: Their current gauges; empty while no server has any.
      again_s: The time until the next reading, in seconds.
    """

    def __init__(self) -> None:
        self.wanted = 0
        self.gauges: dict[str, int] = {}
        self.again_s = READ_EVERY_S
        self._pages: Mapping[str, Page] = {}
        self._read_at = 0.0

    def read(self, pages: Mapping[str, Page], in_flight: int, now: float) -> None:
        """Adds the pages of all servers that have one, by server.

        Args:
          pages: The servers' metrics.
          in_flight: Their requests from this process.
          now: The time, in seconds of any monotonic clock.
        """
        before, self._pages = self._pages, pages
        seconds, self._read_at = now - self._read_at, now
        if not pages:
            self.wanted, self.gauges, self.again_s = 0, {}, READ_EVERY_S
            return
        wanted, self.wanted = self.wanted, wanted_in_flight(added(pages), in_flight, self.wanted)
        grows = in_flight > 0 and (self.wanted > wanted or not wanted)
        self.again_s = _GROWING_SHARE * READ_EVERY_S if grows else READ_EVERY_S
        self.gauges = gauges_between(before, pages, seconds)


def added(pages: Mapping[str, Page]) -> dict[str, float]:
    """The metrics of several servers, summed."""
    names = {name for page in pages.values() for name in page}
    return {name: sum(page.get(name, 0.0) for page in pages.values()) for name in names}


def gauges_between(
    before: Mapping[str, Page], now: Mapping[str, Page], seconds: float
) -> dict[str, int]:
    """Gauges from two readings of some servers, ``seconds`` apart.

    A counter's value at its server's first reading, or after a restart, does not count as growth.

    >>> before, now = {"output_tokens": 10.0}, {"output_tokens": 110.0, "running": 4.0}
    >>> gauges_between({"a": before}, {"a": now, "b": {"output_tokens": 1e9}}, 10)
    {'vllm_running_requests': 4, 'vllm_waiting_requests': 0, 'vllm_output_tokens_per_s': 10}
    """
    state = added(now)
    made = added({name: _growth(before.get(name, {}), page) for name, page in now.items()})
    gauges = {
        "vllm_running_requests": round(state.get("running", 0.0)),
        "vllm_waiting_requests": round(state.get("waiting", 0.0)),
    }
    if seconds > 0:
        gauges["vllm_output_tokens_per_s"] = round(made.get("output_tokens", 0.0) / seconds)
    if queries := made.get("cache_queries"):
        gauges["vllm_prefix_cache_hit_percent"] = round(100 * made.get("cache_hits", 0.0) / queries)
    return gauges


def _growth(before: Page, now: Page) -> dict[str, float]:
    """The growth of each metric of one server that both readings have."""
    return {
        name: now[name] - before[name] for name in now if before.get(name, math.inf) < now[name]
    }
