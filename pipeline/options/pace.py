"""The flags of pace, batching and order, and the limits that they set for each worker process."""

import dataclasses
import re
from typing import Any, Literal

from apache_beam.options.pipeline_options import DebugOptions, PipelineOptions, WorkerOptions

from pipeline.backends import adapter_of
from pipeline.options.flag import BATCH_ONLY, STREAMING_ONLY, Flag, Place
from pipeline.options.gpu import has_one_process
from pipeline.options.kinds import COUNT, RATE, SECONDS, SHARE, WAIT_SECONDS, one_of
from pipeline.options.mode import Mode
from pipeline.options.model import BACKEND
from pipeline.options.run import is_local
from pipeline.options.values import Values
from transforms.dispatch.limits import DispatchLimits
from transforms.records.errors import ConfigurationError
from transforms.requests.batch import BatchLimits, BatchRequests
from transforms.requests.order import OrderByPrefix

GROUP = "Pace"

OrderBy = Literal["batch", "data_set"]
"""Requests that begin alike are grouped within each workload batch, or across the data set."""

MAX_REQUESTS_PER_MINUTE: Flag[float | None] = Flag(
    "max_requests_per_minute",
    GROUP,
    "A quota for the whole job, in requests per minute; each process takes its share. On Dataflow, "
    "set --max_num_workers too.",
    RATE,
    of=DispatchLimits,
    field="requests_per_minute",
)
MAX_TOKENS_PER_MINUTE: Flag[float | None] = Flag(
    "max_tokens_per_minute",
    GROUP,
    "The same for input and output tokens per minute.",
    RATE,
    of=DispatchLimits,
    field="tokens_per_minute",
)
MAX_CONCURRENCY: Flag[int] = Flag(
    "max_concurrency",
    GROUP,
    "The most calls in flight at once, per process; below it the pace adapts by itself.",
    COUNT,
    of=DispatchLimits,
)
MAX_ATTEMPTS: Flag[int] = Flag(
    "max_attempts",
    GROUP,
    "How many calls for a record may fail before it becomes a dead letter.",
    COUNT,
    of=DispatchLimits,
)
REQUEST_TIMEOUT_S: Flag[float] = Flag(
    "request_timeout_s", GROUP, "How many seconds one call may take.", SECONDS, of=DispatchLimits
)
RECORD_DEADLINE_S: Flag[float] = Flag(
    "record_deadline_s",
    GROUP,
    "How many seconds a record may take from its first call, retries included.",
    SECONDS,
    of=DispatchLimits,
)
MAX_DEAD_LETTER_RATIO: Flag[float] = Flag(
    "max_dead_letter_ratio",
    GROUP,
    "Stop the run when more than this share of at least 1,000 records has failed at the model; the "
    "remaining records become not_attempted dead letters. 1 never stops.",
    SHARE,
    of=DispatchLimits,
)
MAX_BATCH_SIZE: Flag[int] = Flag(
    "max_batch_size", GROUP, "The most requests in a workload batch.", COUNT, of=BatchLimits
)
MAX_BATCH_WAIT_S: Flag[float] = Flag(
    "max_batch_wait_s",
    GROUP,
    "Streaming: how many seconds a workload batch that is not full waits for more requests.",
    WAIT_SECONDS,
    of=BatchLimits,
    place=Place(templates=STREAMING_ONLY),
)
BATCH_KEYS: Flag[int] = Flag(
    "batch_keys",
    GROUP,
    "Streaming: how many workload batches fill at a time. One core does the work of one key; more "
    "keys need more requests per second to fill their batches in time.",
    COUNT,
    of=BatchRequests,
    field="keys",
    place=Place(templates=STREAMING_ONLY),
)
ORDER_BY_PREFIX: Flag[OrderBy | None] = Flag(
    "order_by_prefix",
    GROUP,
    "Send requests that begin alike one after the other, for servers with a prefix cache: within "
    "each workload batch, or across the whole data set by a shuffle. Default: neither.",
    one_of(OrderBy),
)
PREFIX_CHARS: Flag[int] = Flag(
    "prefix_chars",
    GROUP,
    "With --order_by_prefix=data_set: how many first characters of two prompts must be equal to "
    "bring them together.",
    COUNT,
    of=OrderByPrefix,
    place=Place(templates=BATCH_ONLY, parent="order_by_prefix", triggers=("data_set",)),
)

PACE_FLAGS: tuple[Flag[Any], ...] = (
    MAX_REQUESTS_PER_MINUTE,
    MAX_TOKENS_PER_MINUTE,
    MAX_CONCURRENCY,
    MAX_ATTEMPTS,
    REQUEST_TIMEOUT_S,
    RECORD_DEADLINE_S,
    MAX_DEAD_LETTER_RATIO,
    MAX_BATCH_SIZE,
    MAX_BATCH_WAIT_S,
    BATCH_KEYS,
    ORDER_BY_PREFIX,
    PREFIX_CHARS,
)


@dataclasses.dataclass(frozen=True, slots=True)
class Order:
    """How requests that begin alike are grouped.

    Attributes:
      in_batch: Whether to group them within each workload batch.
      prefix_chars: How many equal first characters group requests across the whole data set; None
        to not group them.
    """

    in_batch: bool = False
    prefix_chars: int | None = None


def order_of(values: Values, mode: Mode) -> Order:
    """The order that the flags request.

    Raises:
      ConfigurationError: --prefix_chars needs --order_by_prefix=data_set, which needs an input
        that ends.
    """
    where = values[ORDER_BY_PREFIX]
    if where != "data_set":
        if values.is_set(PREFIX_CHARS):
            raise ConfigurationError(
                f"{PREFIX_CHARS} is {values.text(PREFIX_CHARS)}, but goes with "
                f"{ORDER_BY_PREFIX}=data_set only: remove it"
            )
        return Order(in_batch=where is not None)
    if mode.streaming:
        raise ConfigurationError(
            f"{ORDER_BY_PREFIX} is 'data_set', but the input never ends: use batch"
        )
    return Order(in_batch=True, prefix_chars=values[PREFIX_CHARS])


def batch_limits(values: Values) -> BatchLimits:
    """The limits of a workload batch."""
    return BatchLimits(
        max_batch_size=values[MAX_BATCH_SIZE], max_batch_wait_s=values[MAX_BATCH_WAIT_S]
    )


def dispatch_limits(values: Values, options: PipelineOptions, mode: Mode) -> DispatchLimits:
    """The limits of one process; job-wide quotas are divided by the maximum number of processes.

    A streaming run never stops by itself: it holds its messages through an outage.

    Raises:
      ConfigurationError: A quota is set on Dataflow and the number of processes is unknown.
    """
    processes = 1
    quotas = [f for f in (MAX_REQUESTS_PER_MINUTE, MAX_TOKENS_PER_MINUTE) if values[f]]
    if quotas and not is_local(options):
        processes = _most_processes(quotas[0], values, options)
    requests, tokens = values[MAX_REQUESTS_PER_MINUTE], values[MAX_TOKENS_PER_MINUTE]
    return DispatchLimits(
        max_concurrency=values[MAX_CONCURRENCY],
        requests_per_minute=requests and requests / processes,
        tokens_per_minute=tokens and tokens / processes,
        max_attempts=values[MAX_ATTEMPTS],
        request_timeout_s=values[REQUEST_TIMEOUT_S],
        record_deadline_s=values[RECORD_DEADLINE_S],
        max_dead_letter_ratio=values[MAX_DEAD_LETTER_RATIO],
        hold=mode.streaming,
    )


def _most_processes(quota: Flag[Any], values: Values, options: PipelineOptions) -> int:
    """Workers times SDK processes per worker: one per vCPU, or one with the experiment."""
    worker = options.view_as(WorkerOptions)
    if not worker.max_num_workers:
        raise ConfigurationError(
            f"{quota} is a job-wide quota, divided among workers: set --max_num_workers"
        )
    if has_one_process(
        adapter_of(values[BACKEND]).dataflow, options.view_as(DebugOptions).experiments
    ):
        return int(worker.max_num_workers)
    machine = worker.machine_type or ""
    found = re.search(r"-(\d+)(?:-\d+)?$", machine)  # n2-standard-8, n2-custom-4-16384
    if found is None:
        raise ConfigurationError(
            f"{quota} is a job-wide quota, divided among processes, one per vCPU, and the name of "
            f"--machine_type {machine!r} does not end in its vCPUs: set one that does, such as "
            "n2-standard-4, or --experiments=no_use_multiple_sdk_containers"
        )
    return int(worker.max_num_workers) * int(found[1])
