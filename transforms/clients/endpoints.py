"""Several servers of one model as one: calls go to the least loaded one, dead ones are left out.

.. code-block:: text

    GONE     nothing listens            left out immediately; the request goes to another
    REFUSES  401 403 404 405            left out once another serves the request
    FAILS    lost, timeout, other 5xx   left out after three in a row
    RESTS    429 503                    left out for its Retry-After, or a second, while others can

A server that is left out is probed (``GET …/models``, at growing intervals), and is used again as
soon as it answers with a status below 500. A request that a server may have worked on is not sent
to another one here: `transforms.dispatch` retries, and counts a record's attempts. While all
servers are out, the least loaded one is called as if it were the only one.

Servers that expose their queue at ``/metrics`` (vLLM, SGLang) are read once a second, so that the
pace can follow it; other servers are tried only once.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from transforms.clients import server_metrics
from transforms.clients.http import JsonClient, Reply, place
from transforms.records.causes import EndpointState
from transforms.records.errors import RecordError, Unavailable

_FAILURES = 3
_FIRST_PROBE_S = 0.5
_LONGEST_PROBE_S = 30.0
_PROBE_TIMEOUT_S = 5.0
_REST_S = 1.0
_LONGEST_REST_S = 120.0
_METRICS_AGAIN_S = 30.0
"""How soon the metrics of a server that could not be reached are requested again."""

_log = logging.getLogger(__name__)


class Endpoint:
    """One server, as this process sees it.

    Attributes:
      url: Its base URL, without a slash at the end.
      in_flight: Model requests that it is processing for us; a call carries one or more.
      asked: Calls in total; of equally loaded servers, the one with fewer calls is next.
      down: Whether it is left out.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.in_flight = 0
        self.asked = 0
        self.down = False
        self.failures = 0
        self.probe_s = _FIRST_PROBE_S
        self.rests_until = 0.0
        self.look_at = 0.0
        self.metrics: dict[str, float] = {}

    @property
    def metrics_url(self) -> str:
        """Where vLLM and SGLang expose their metrics: next to ``/v1``."""
        return self.url.removesuffix("/v1") + "/metrics"


class Endpoints:
    """The servers of one model; created inside a running event loop and used only on that loop.

    Args:
      urls: Their base URLs.
      headers: Sent with every call.
      measured: Whether to read ``/metrics``.
    """

    def __init__(
        self, urls: Sequence[str], headers: Mapping[str, str], *, measured: bool = True
    ) -> None:
        self.all = [Endpoint(url) for url in urls]
        self._headers = headers
        self._http = JsonClient()
        self._loop = asyncio.get_running_loop()
        self._server_metrics = server_metrics.ServerMetrics()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        if measured:
            self._start(self._watch_metrics())

    async def post(self, path: str, body: Any, *, requests: int = 1) -> Reply:
        """Posts to one server, and to another if the first cannot have worked on the request.

        Args:
          path: The path below the base URL.
          body: Any JSON value.
          requests: How many model requests the body carries, as the server counts them.

        Raises:
          RecordError: Like `JsonClient.post`. While another server still serves the model, the
            cause neither ends the run nor delays all calls.
        """
        refused: list[Endpoint] = []
        tried: list[Endpoint] = []
        while True:
            endpoint = self._least_loaded(tried)
            tried.append(endpoint)
            try:
                reply = await self._ask(endpoint, path, body, requests)
            except RecordError as error:
                others = [one for one in self.all if not one.down and one not in tried]
                if others and error.consequence.fails_over:
                    if error.consequence.server is EndpointState.REFUSES:
                        refused.append(endpoint)
                    continue
                raise self._seen_by_all(endpoint, error) from error.__cause__
            for one in refused:
                self._leave_out(one, "it refuses a request that another server serves")
            return reply

    def wanted_in_flight(self) -> int:
        """How many requests the servers can use from this process; 0 while unknown."""
        return self._server_metrics.wanted

    def gauges(self) -> dict[str, int]:
        """The servers' own metrics, if they expose any, and how many servers are left out."""
        if len(self.all) == 1:
            return self._server_metrics.gauges
        return {**self._server_metrics.gauges, "endpoints_down": sum(one.down for one in self.all)}

    async def close(self) -> None:
        """Ends the background tasks; no call may be in flight."""
        self._closing = True  # a probe may swallow its cancellation: `wait_for` before Python 3.12
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._http.close()

    def _least_loaded(self, tried: Sequence[Endpoint]) -> Endpoint:
        now = self._loop.time()
        return min(
            (one for one in self.all if one not in tried),
            key=lambda one: (one.down, one.rests_until > now, one.in_flight, one.asked),
        )

    async def _ask(self, endpoint: Endpoint, path: str, body: Any, requests: int) -> Reply:
        endpoint.in_flight += requests
        endpoint.asked += 1
        try:
            reply = await self._http.post(f"{endpoint.url}/{path}", body, self._headers)
        except RecordError as error:
            self._failed(endpoint, error)
            raise
        except asyncio.CancelledError:  # most likely a timeout
            self._count_failure(endpoint, "no answer in time")
            raise
        finally:
            endpoint.in_flight -= requests
        endpoint.failures = 0
        endpoint.probe_s = _FIRST_PROBE_S
        self._take_back(endpoint)
        return reply

    def _failed(self, endpoint: Endpoint, error: RecordError) -> None:
        match error.consequence.server:
            case EndpointState.WORKS:
                endpoint.failures = 0
            case EndpointState.REFUSES:
                pass  # left out once another serves the request
            case EndpointState.FAILS:
                self._count_failure(endpoint, str(error))
            case EndpointState.GONE:
                self._leave_out(endpoint, str(error))
            case EndpointState.RESTS:
                rest_s = min(error.retry_after_s or _REST_S, _LONGEST_REST_S)
                endpoint.rests_until = max(endpoint.rests_until, self._loop.time() + rest_s)

    def _count_failure(self, endpoint: Endpoint, why: str) -> None:
        endpoint.failures += 1
        if endpoint.failures >= _FAILURES:
            self._leave_out(endpoint, why)

    def _seen_by_all(self, endpoint: Endpoint, error: RecordError) -> RecordError:
        """One server's failure, as a failure of all of them."""
        others = [one for one in self.all if one is not endpoint and not one.down]
        if not (others and error.consequence.retry):
            return error
        now = self._loop.time()
        all_rest = all(one.rests_until > now for one in others)
        return error.replaced(
            cause=error.consequence.still_served or error.cause,
            retry_after_s=error.retry_after_s if all_rest else None,
        )

    def _leave_out(self, endpoint: Endpoint, why: str) -> None:
        if endpoint.down or len(self.all) == 1:
            return
        endpoint.down = True
        _log.warning("%s is left out until it answers again: %s", place(endpoint.url), why)
        self._start(self._probe(endpoint))

    def _take_back(self, endpoint: Endpoint) -> None:
        if endpoint.down:
            endpoint.down = False
            endpoint.failures = 0
            _log.warning("%s is back", place(endpoint.url))

    async def _probe(self, endpoint: Endpoint) -> None:
        """Probes until there is an answer; a server that fails again is probed less often."""
        while endpoint.down and not self._closing:
            await asyncio.sleep(endpoint.probe_s)
            endpoint.probe_s = min(2 * endpoint.probe_s, _LONGEST_PROBE_S)
            try:
                looked = self._http.get(f"{endpoint.url}/models", self._headers, parse=len)
                await asyncio.wait_for(looked, _PROBE_TIMEOUT_S)
            except (Unavailable, asyncio.TimeoutError):
                continue
            except RecordError:
                pass  # it answers, even if only with a refusal
            self._take_back(endpoint)

    async def _watch_metrics(self) -> None:
        while True:
            await asyncio.sleep(self._server_metrics.again_s)
            await asyncio.gather(*map(self._look, self.all))
            told = [one for one in self.all if one.metrics]
            pages = {one.url: one.metrics for one in told}
            in_flight = sum(one.in_flight for one in told)
            self._server_metrics.read(pages, in_flight, self._loop.time())

    async def _look(self, endpoint: Endpoint) -> None:
        """Reads one server's metrics, if it has any; sets `look_at` for the next time."""
        if self._loop.time() < endpoint.look_at:
            return
        endpoint.metrics = {}
        endpoint.look_at = float("inf")
        try:
            read = server_metrics.read_page
            page = self._http.get(endpoint.metrics_url, self._headers, parse=read)
            reply = await asyncio.wait_for(page, _PROBE_TIMEOUT_S)
        except (Unavailable, asyncio.TimeoutError):
            endpoint.look_at = self._loop.time() + _METRICS_AGAIN_S
        except RecordError:
            return  # it exposes none
        else:
            if "running" in reply.data:
                endpoint.metrics = reply.data
                endpoint.look_at = 0.0

    def _start(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
