"""The whole contract between model servers and the pipeline.

A `Backend` is a frozen, picklable description; `Backend.open` returns a live `Client` in the
worker. A client answers one request, or raises a classified
`transforms.records.errors.RecordError`. A client that takes several requests in one call is a
`BatchClient` as well; one that knows how busy its server is, a `MeasuredClient`; one that knows
when a request has to wait, a `HoldingClient`.

Clients never retry, pace or batch: `transforms.dispatch` does. They run on one event loop per
process and need no locks.
"""

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from transforms.records.errors import RecordError
from transforms.records.records import Completion, Request

ACCEPT_TRUNCATED = False
"""The default of backends that generate text: an answer cut at a token limit is a failure."""


class Client(Protocol):
    """A live connection to a model, created and used on one event loop."""

    async def generate(self, request: Request) -> Completion:
        """Answers one request.

        Raises:
          RecordError: The classified failure of this request. Any other exception counts as
            ``internal`` and fails only this record.
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
      in_process: Whether the model computes in this process: such calls have no timeout and no
        pace.
    """

    max_requests: int | None = 1
    max_tokens: int | None = None
    max_bytes: int | None = None
    in_process: bool = False


@runtime_checkable
class BatchClient(Client, Protocol):
    """A client that answers many requests together more cheaply than one by one.

    Attributes:
      call_limits: How many requests one call may carry.
    """

    @property
    def call_limits(self) -> CallLimits: ...

    async def generate_many(
        self, requests: Sequence[Request]
    ) -> Sequence[Completion | RecordError]:
        """Sends several requests in one call; returns one outcome per request, in order.

        A single request is sent with `generate` instead.

        Raises:
          RecordError: The call failed as a whole. If its cause is transient, the call is
            retried; otherwise, as after any other exception, its halves are sent, until the bad
            request is alone.
        """
        ...


@runtime_checkable
class MeasuredClient(Client, Protocol):
    """A client that knows how busy its server is."""

    def wanted_in_flight(self) -> int:
        """How many requests the server can process at a time; 0 while unknown.

        The pace then sends that many, if ``max_concurrency`` allows, without probing for it.
        """
        ...

    def gauges(self) -> dict[str, int]:
        """Current values by name, which includes the unit; they become metrics."""
        ...


@runtime_checkable
class HoldingClient(Client, Protocol):
    """A client that knows when a request must wait, whatever the pace: its server is restarting."""

    def held(self, request: Request) -> "asyncio.Future[None] | None":
        """None if the request may be sent; else a future to wait for before calling this again.

        A held request does not count as in flight, its timeout does not run, and it costs no
        attempt. It does not fail while held: this raises only errors that end the run.

        Raises:
          RunError: There is nothing left to wait for.
        """
        ...


class Backend(Protocol):
    """A frozen, picklable description of a model, and where it is served.

    Attributes:
      family: The backend's registered name; part of every fingerprint.
      model: The model's name as configured; part of every fingerprint.
    """

    @property
    def family(self) -> str: ...

    @property
    def model(self) -> str: ...

    async def open(self) -> Client:
        """Opens a live client; imports the SDK it needs, or names the extra to install.

        Raises:
          BackendUnusable: The model cannot be loaded, or the credentials are not available.
        """
        ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a backend can do, as data: the application checks these, never a backend's name.

    The defaults are those of a backend that does not state its capabilities.

    Attributes:
      tasks: The tasks it serves: ``generate``, ``embed``.
      media_schemes: The URI schemes from which the model reads media by itself, such as ``gs``.
        Empty if requests cannot have media.
      instances: Whether a request holds an instance of a custom model (``{"instance": …}``), not
        messages or a text.
      request_options: Whether requests carry the provider's own fields,
        ``params["request_options"]``.
      price_provider: The provider whose list prices apply, by its name in genai-prices; None if
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
