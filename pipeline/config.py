"""The configuration of one run: frozen dataclasses, made from the flags and checked before launch.

Construction does no I/O beyond reading the files that flags name (prompt, schema). Checks that call
a service are in `pipeline.checks.all`.
"""

import dataclasses
from collections.abc import Mapping

from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

from pipeline import VERSION
from pipeline.backends import adapter_of
from pipeline.backends.base import BackendAdapter
from pipeline.options.command_line import parse_values, with_flags
from pipeline.options.gpu import resource_hints
from pipeline.options.mistakes import Mistakes
from pipeline.options.mode import Mode
from pipeline.options.model import BACKEND, make_backend
from pipeline.options.pace import BATCH_KEYS, Order, batch_limits, dispatch_limits, order_of
from pipeline.options.request import OUTPUT_SCHEMA, PREVIEW, id_rule, request_spec
from pipeline.options.run import WAIT, is_local, on_dataflow, run_id
from pipeline.options.sinks import (
    DEAD_LETTER_PATH,
    DEAD_LETTER_TABLE,
    DEAD_LETTER_TOPIC,
    OUTPUT_PATH,
    OUTPUT_TABLE,
    RECORD_FIELDS,
    Sinks,
    make_sinks,
    summary_path,
)
from pipeline.options.source import (
    INPUT_FILES,
    INPUT_SUBSCRIPTION,
    PUBSUB_ID_ATTRIBUTE,
    make_source,
)
from pipeline.options.values import Values
from transforms.accounting.reconcile import SummarySpec
from transforms.backends.base import Backend, capabilities_of
from transforms.dispatch.limits import DispatchLimits
from transforms.records.errors import ConfigurationError
from transforms.records.records import Json
from transforms.requests.batch import BatchLimits
from transforms.requests.render import RequestSpec
from transforms.results.prices import TokenPrices
from transforms.results.rows import RunInfo, now
from transforms.sources.base import IdRule, Source


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """Everything that `pipeline.build` needs; picklable."""

    run_id: str
    started_at: str
    source: Source
    id_rule: IdRule
    request: RequestSpec
    backend: Backend
    limits: DispatchLimits
    batch: BatchLimits
    batch_keys: int
    output_schema: Mapping[str, Json] | None
    prices: TokenPrices
    run: RunInfo
    sinks: Sinks
    summary: SummarySpec
    order: Order
    resource_hints: Mapping[str, str]
    preview: int | None
    wait: bool
    local: bool
    mode: Mode
    values: Values

    @property
    def adapter(self) -> BackendAdapter:
        """The adapter of the backend."""
        return adapter_of(self.values[BACKEND])

    @classmethod
    def from_options(cls, options: PipelineOptions) -> "RunConfig":
        """The configuration that the flags describe: the one place where they are parsed.

        Raises:
          ConfigurationError: Values or combinations are invalid; the message has each remedy.
        """
        try:
            return cls._from_values(parse_values(options), options)
        except ConfigurationError as error:
            raise ConfigurationError(with_flags(str(error))) from error

    @classmethod
    def _from_values(cls, values: Values, options: PipelineOptions) -> "RunConfig":
        mistakes = Mistakes()
        source_made = mistakes.attempt(lambda: make_source(values, options))
        backend_made = mistakes.attempt(lambda: make_backend(values, options))
        mistakes.check()
        source, backend = source_made.value, backend_made.value
        mode, preview, started_at = Mode.of(source), values[PREVIEW], now()
        name = run_id(values, options, mode)
        request_made = mistakes.attempt(lambda: request_spec(values, backend, source))
        sinks_made = mistakes.attempt(
            lambda: make_sinks(values, options, mode, name, needed=preview is None)
        )
        limits_made = mistakes.attempt(lambda: dispatch_limits(values, options, mode))
        order_made = mistakes.attempt(lambda: order_of(values, mode))
        hints_made = mistakes.attempt(
            lambda: resource_hints(values, adapter_of(values[BACKEND]).dataflow.gpu_driver, options)
        )
        with mistakes.collected():
            _check_reachable(values, options, mode)
        mistakes.check()
        sinks = sinks_made.value
        return cls(
            run_id=name,
            started_at=started_at,
            source=source,
            id_rule=id_rule(values),
            request=request_made.value,
            backend=backend,
            limits=limits_made.value,
            batch=batch_limits(values),
            batch_keys=values[BATCH_KEYS],
            output_schema=values[OUTPUT_SCHEMA],
            prices=TokenPrices(capabilities_of(backend).price_provider, backend.model),
            run=RunInfo(
                run_id=name,
                backend=backend.family,
                model=backend.model,
                record_fields=values[RECORD_FIELDS],
            ),
            sinks=sinks,
            summary=SummarySpec(
                run_id=name,
                started_at=started_at,
                pipeline_version=VERSION,
                config=values.without_secrets(),
                table=sinks.runs_table if mode.bounded else None,
                path=summary_path(sinks, options, mode, name),
                sinks=sinks.count,
            ),
            order=order_made.value,
            resource_hints=hints_made.value,
            preview=preview,
            wait=values[WAIT],
            local=is_local(options),
            mode=mode,
            values=values,
        )


def _check_reachable(values: Values, options: PipelineOptions, mode: Mode) -> None:
    """Dataflow's workers cannot read local files; a local runner cannot de-duplicate messages.

    A stream writes a file per bundle: on Dataflow these are too many and too small to be useful.
    """
    if is_local(options) and values.is_set(PUBSUB_ID_ATTRIBUTE):
        raise ConfigurationError(
            f"{PUBSUB_ID_ATTRIBUTE} is {values.text(PUBSUB_ID_ATTRIBUTE)!r}, but only Dataflow drops "
            "copies of messages, and this run is local: remove it"
        )
    if not on_dataflow(options):
        return
    runner = str(options.view_as(StandardOptions).runner)
    for flag in (INPUT_FILES, OUTPUT_PATH, DEAD_LETTER_PATH):
        path = values[flag]
        if path and "://" not in path:
            raise ConfigurationError(
                f"{flag} is {path!r}, a local path, but --runner is {runner!r}: set a gs:// one"
            )
        if path and mode.streaming and flag is not INPUT_FILES:
            raise ConfigurationError(
                f"{flag} is {path!r}, but {INPUT_SUBSCRIPTION} on Dataflow would write a small file "
                f"for each of its many bundles: use {OUTPUT_TABLE}, and for dead letters "
                f"{DEAD_LETTER_TABLE} or {DEAD_LETTER_TOPIC}"
            )
