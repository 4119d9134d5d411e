"""The server's counts and its memory of calls.

This does not prove how a real service counts or bills. No real endpoint was called.
"""

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from aiohttp import web

from tests.emulators.model_server.faults import Plan
from tests.emulators.model_server.wire import Json, Refused, load

_SECRET = frozenset({"authorization", "proxy-authorization", "x-goog-api-key", "api-key", "cookie"})


@dataclass(slots=True)
class Stats:
    """Counts since the start or the last reset.

    Attributes:
        calls: Model calls received: HTTP requests.
        texts: Texts in them: an embedding request holds one or more. A request rejected for its
            form or its size has none.
        served: Answers with status 200, unusual ones included.
        in_flight: Calls being served now.
        in_flight_max: The most calls served at the same time.
        by_path: Calls by path.
        by_status: Answers by status; a closed connection counts as 499.
        by_fault: Faults that were played, by name, such as ``http:503``.
        unknown_markers: Well-formed markers without a meaning, so that a test's typo shows.
    """

    calls: int = 0
    texts: int = 0
    served: int = 0
    in_flight: int = 0
    in_flight_max: int = 0
    by_path: Counter[str] = field(default_factory=Counter)
    by_status: Counter[str] = field(default_factory=Counter)
    by_fault: Counter[str] = field(default_factory=Counter)
    unknown_markers: Counter[str] = field(default_factory=Counter)

    def began(self, path: str) -> None:
        """Counts a call that arrived."""
        self.calls += 1
        self.by_path[path] += 1
        self.in_flight += 1
        self.in_flight_max = max(self.in_flight_max, self.in_flight)

    def played(self, plans: tuple[Plan, ...]) -> None:
        """Counts the faults of a call: its first hard one alone, else every soft one."""
        hard = next((plan for plan in plans if plan.hard), None)
        for plan in plans if hard is None else (hard,):
            if plan.label:
                self.by_fault[plan.label] += 1
        for plan in plans:
            self.unknown_markers.update(plan.unknown)

    def answered(self, status: int) -> None:
        """Counts an answer."""
        self.served += status == 200
        self.by_status[str(status)] += 1

    def as_json(self) -> Json:
        """The body of ``GET /_stats``."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class _Seen:
    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    raw: bytes

    def as_json(self) -> Json:
        try:
            body: object = load(self.raw)
        except Refused:
            body = self.raw.decode("utf-8", "replace")
        headers = {
            name.lower(): "(hidden)" if name.lower() in _SECRET else value
            for name, value in self.headers.items()
        }
        return {
            "method": self.method,
            "path": self.path,
            "query": self.query,
            "headers": headers,
            "body": body,
        }


class Journal:
    """The last 1,000 model calls, oldest first; values of secret headers are never shown."""

    def __init__(self) -> None:
        """Starts empty."""
        self._seen: deque[_Seen] = deque(maxlen=1000)

    def add(self, request: web.Request, raw: bytes) -> None:
        """Remembers one call."""
        self._seen.append(
            _Seen(request.method, request.path, request.query_string, request.headers, raw)
        )

    def clear(self) -> None:
        """Forgets all calls."""
        self._seen.clear()

    def as_json(self) -> Json:
        """The body of ``GET /_requests``."""
        return {"requests": [seen.as_json() for seen in self._seen]}
