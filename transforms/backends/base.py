"""The whole contract between a model server and the pipeline.

A `Backend` is a frozen, picklable description; `Backend.open` gives a live `Client` in the worker.
A client answers one request, or raises a classified `transforms.records.errors.RecordError`. A client that
is faster with many at once (a model in the worker) is a `BatchClient` as well, one that knows how busy
its server is a `MeasuredClient`, one that knows when a request has to wait a `HoldingClient`.

Clients never retry, pace or batch: `transforms.dispatch` does. They run on one event loop per
process and need no locks.
"""

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from transforms.records.errors import RecordError
from transforms.records.records import Completion, Request


class Client(Protocol):
    """A live connection to a model, made and used on one event loop."""

    async def generate(self, request: Request) -> Completion:
        """Answers one request.

        Raises:
          RecordError: The classified failure of this request. Anything else that is raised is
            taken as ``internal`` and costs this record alone.
        """
        ...

    async def close(self) -> None:
        """Releases connections and memory; called once."""
        ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CallLimits:
    """How many requests one call of a `BatchClient` may carry.

    Attributes:
      max_requests: The most requests in one call; None for a whole workload batch.
      max_tokens: The most input tokens in one call, as estimated; None for no limit. A single
        request may exceed it.
      max_bytes: The most bytes of one call's body, estimated from its texts; None for no limit. A
        single request may exceed it.
      in_process: The model computes in this process: such a call has no timeout and no pace.
    """

    max_requests: int | None = 1
    max_tokens: int | None = None
    max_bytes: int | None = None
    in_process: bool = False


@runtime_checkable
class BatchClient(Client, Protocol):
    """A client that answers many requests at once more cheaply than one by one.

    Attributes:
      call_limits: How many requests one call may carry.
    """

    @property
    def call_limits(self) -> CallLimits: ...

    async def generate_many(
        self, requests: Sequence[Request]
    ) -> Sequence[Completion | RecordError]:
        """One outcome per request, in order. If it raises, each request is tried alone.

        For models that compute in this process: such a call has no timeout and no pace.
        """
        ...


@runtime_checkable
class MeasuredClient(Client, Protocol):
    """A client that knows how busy its server is."""

    def wanted_in_flight(self) -> int:
        """How many requests the server can use at once; 0 while that is not known.

        The pace then sends so many, if ``max_concurrency`` allows, without finding out by itself.
        """
        ...

    def gauges(self) -> dict[str, int]:
        """Figures of the moment, by name with their unit; they become metrics."""
        ...


@runtime_checkable
class HoldingClient(Client, Protocol):
    """A client that knows when a request has to wait, whatever the pace: its server starts again."""

    def held(self, request: Request) -> "asyncio.Future[None] | None":
        """None: `generate` is called at once. Else what to wait for before this is asked again.

        A request that is held has no place among the calls in flight and no timeout that runs, and
        it costs no attempt. It never fails so: this raises only what ends the run.

        Raises:
          RunError: There is nothing to wait for any more.
        """
        ...


class Backend(Protocol):
    """A frozen, picklable description of a model and where it is served.

    Attributes:
      family: The backend's registered name; part of every fingerprint.
      model: The model's name as the user gave it; part of every fingerprint.
    """

    @property
    def family(self) -> str: ...

    @property
    def model(self) -> str: ...

    async def open(self) -> Client:
        """A live client. Imports the SDK it needs, and names the extra when that is missing.

        Raises:
          BackendUnusable: The model cannot be loaded or the credentials cannot be had.
        """
        ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a backend can do, as data: the application asks for these, never for a backend's name.

    The defaults are those of a backend that does not state its capabilities.

    Attributes:
      tasks: The tasks it serves: ``generate``, ``embed``.
      media_schemes: The URI schemes from which the model reads media by itself, such as ``gs``.
        Empty: requests have no media.
      instances: A request holds an instance of a custom model (``{"instance": …}``), not messages
        or a text.
      request_options: Requests carry the provider's own fields, ``params["request_options"]``.
      price_provider: The provider, by its name in genai-prices, whose list prices apply; None where
        there are none.
    """

    tasks: tuple[str, ...] = ("generate", "embed")
    media_schemes: tuple[str, ...] = ("gs", "https")
    instances: bool = False
    request_options: bool = True
    price_provider: str | None = None


@runtime_checkable
class CapableBackend(Backend, Protocol):
    """A backend that states its capabilities."""

    @property
    def capabilities(self) -> Capabilities: ...


def capabilities_of(backend: Backend) -> Capabilities:
    """A backend's capabilities; `Capabilities()` for one that does not state them."""
    return backend.capabilities if isinstance(backend, CapableBackend) else Capabilities()
