"""The pace of each worker process and its batches, from flags that are about the whole job."""

import re

from apache_beam.options.pipeline_options import DebugOptions, PipelineOptions, WorkerOptions

from pipeline.backends import adapter_of
from pipeline.options.command_line import Values
from pipeline.options.gpu import has_one_process
from transforms.dispatch.limits import DispatchLimits
from transforms.records.errors import ConfigurationError
from transforms.requests.batch import BatchLimits

_QUOTAS = ("max_requests_per_minute", "max_tokens_per_minute")


def batch_limits(values: Values) -> BatchLimits:
    """The most that a workload batch holds, and how long it may wait."""
    default = BatchLimits()
    wait_s = values.number("max_batch_wait_s")
    return BatchLimits(
        max_batch_size=values.integer("max_batch_size") or default.max_batch_size,
        max_batch_wait_s=default.max_batch_wait_s if wait_s is None else wait_s,
    )


def dispatch_limits(
    values: Values, options: PipelineOptions, *, local: bool, streaming: bool = False
) -> DispatchLimits:
    """The limits of one process; job-wide quotas are divided by the most processes there can be.

    A streaming run never stops by itself: it holds its messages through an outage.

    Raises:
      ConfigurationError: A quota on Dataflow, and the number of processes is not known.
    """
    default = DispatchLimits()
    quotas = {name: values.number(name, 0.001) for name in _QUOTAS}
    processes = 1
    if not local and (given := [name for name, quota in quotas.items() if quota]):
        processes = _most_processes(given[0], values, options)
    requests, tokens = (quota and quota / processes for quota in quotas.values())
    ratio = values.number("max_dead_letter_ratio")
    if ratio is not None and ratio > 1:
        raise ConfigurationError(
            f"--max_dead_letter_ratio is {ratio:g}, but must be at most 1: 0.2 is one in five"
        )
    return DispatchLimits(
        max_concurrency=values.integer("max_concurrency") or default.max_concurrency,
        requests_per_minute=requests,
        tokens_per_minute=tokens,
        max_attempts=values.integer("max_attempts") or default.max_attempts,
        request_timeout_s=values.number("request_timeout_s", 0.001) or default.request_timeout_s,
        record_deadline_s=values.number("record_deadline_s", 0.001) or default.record_deadline_s,
        max_dead_letter_ratio=default.max_dead_letter_ratio if ratio is None else ratio,
        hold=streaming,
    )


def _most_processes(flag: str, values: Values, options: PipelineOptions) -> int:
    """Workers times SDK processes of each: one per vCPU, unless the experiment says one."""
    worker = options.view_as(WorkerOptions)
    if not worker.max_num_workers:
        raise ConfigurationError(
            f"--{flag} is of the whole job and divided among its workers: give --max_num_workers"
        )
    needs = adapter_of(values.given["backend"]).dataflow
    if has_one_process(needs, options.view_as(DebugOptions).experiments):
        return int(worker.max_num_workers)
    machine = worker.machine_type or ""
    found = re.search(r"-(\d+)(?:-\d+)?$", machine)  # n2-standard-8, n2-custom-4-16384
    if found is None:
        raise ConfigurationError(
            f"--{flag} is divided among all processes, one per vCPU, and --machine_type is "
            f"{machine!r}: give one that ends in its vCPUs, such as n2-standard-4, or "
            "--experiments=no_use_multiple_sdk_containers"
        )
    return int(worker.max_num_workers) * int(found[1])
