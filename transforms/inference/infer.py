"""Inference: always one outcome per request, and a backend that is kept busy.

The pipeline uses `Infer`: pre-batched input, typed outputs, a shuffle after the paid call.
A bundle submits one batch after another to the process's dispatcher and yields the outcomes that
arrive in the meantime; it waits for the slowest call only once, at its end. (RunInference waits at
the end of every batch: with 256 requests and a language model's latencies, seven of eight slots
would idle.)

`transforms.inference.handler` has a plain Beam `ModelHandler` over the same dispatcher.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, TypeAlias

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.shared import Shared
from apache_beam.utils.windowed_value import WindowedValue

from transforms.accounting.metrics import CallMetrics
from transforms.backends.base import Backend
from transforms.dispatch import loop
from transforms.dispatch.completion_queue import CompletionQueue
from transforms.dispatch.dispatcher import Dispatcher, DispatchLimits, Failure, Outcome
from transforms.records.records import Answer, DeadLetter, Json, Params, Request


def open_dispatcher(backend: Backend, limits: DispatchLimits) -> Dispatcher:
    """Opens a live dispatcher over a backend; called once per process.

    Raises:
      BackendUnusable: The model or the credentials are not available.
    """
    return Dispatcher(loop.run(backend.open()), limits)


def outcome_of(request: Request, outcome: Outcome) -> Answer | DeadLetter:
    """A dispatcher's outcome as an element of the pipeline."""
    if not isinstance(outcome, Failure):
        return Answer(request.record, request.fingerprint, outcome)
    return DeadLetter.of(
        outcome.error,
        stage="infer",
        record=request.record,
        fingerprint=request.fingerprint,
        attempts=outcome.attempts,
        throttled_ms=outcome.throttled_ms,
    )


Outcomes: TypeAlias = Answer | TaggedOutput[Literal["unserved"], DeadLetter]


class _CallModelDoFn(beam.DoFn):
    """Submits batches and yields outcomes, each with the window of its batch."""

    def __init__(
        self, open_: Callable[[], Dispatcher], params: Params, allow_earlier_params: bool
    ) -> None:
        self._open = open_
        self._params = params
        self._allow_earlier_params = allow_earlier_params
        self._shared = Shared()

    def setup(self) -> None:
        self._dispatcher: Dispatcher | None = self._shared.acquire(self._open)
        self._completions = CompletionQueue()

    def start_bundle(self) -> None:
        assert self._dispatcher is not None
        self._completions.abandoned = True  # from a bundle that failed elsewhere
        self._completions = CompletionQueue()
        self._calls = CallMetrics(self._dispatcher)

    def process(
        self,
        batch: list[Request],
        timestamp: Any = beam.DoFn.TimestampParam,
        window: Any = beam.DoFn.WindowParam,
    ) -> Iterator[Outcomes]:
        assert self._dispatcher is not None
        batch = self._params.restore(batch, allow_earlier=self._allow_earlier_params)
        self._dispatcher.submit(batch, self._completions, (timestamp, window))
        return self._ended(lambda admitted: admitted)

    def finish_bundle(self) -> Iterator[Outcomes]:
        yield from self._ended(lambda _: not self._completions.outstanding)
        self._calls.report()

    def teardown(self) -> None:
        self._completions.abandoned = True
        self._dispatcher = None

    def _ended(self, enough: Callable[[bool], bool]) -> Iterator[Outcomes]:
        """Yields outcomes until `enough`, called with whether the batch is admitted, is true."""
        for ended in self._completions.until(enough, self._calls.report_when_due):
            self._calls.count(ended.outcome)
            yield _placed(outcome_of(ended.request, ended.outcome), *ended.batch)


def _placed(outcome: Answer | DeadLetter, timestamp: Any, window: Any) -> Any:
    """An outcome for its output, with the timestamp and window of its batch."""
    placed = WindowedValue(outcome, timestamp, (window or GlobalWindow(),))
    return TaggedOutput("unserved", placed) if isinstance(outcome, DeadLetter) else placed


@dataclasses.dataclass(kw_only=True, eq=False)
class Infer(beam.PTransform):
    """Calls the model for each request; one answer or dead letter each.

    Bounded and unbounded. Calls are made at least once: a retried bundle calls again, but no later
    step can cause a retry, because a shuffle follows the call directly. Each outcome keeps the
    window and timestamp of its batch; order is not kept.

    Args:
      backend: The model, and where it is served.
      limits: Concurrency, attempts and deadlines, per worker process.
      params: The ``params`` of the `RequestSpec` that rendered the requests, which travel without
        them. A request with other params raises a `RunError`.
      allow_earlier_params: Whether requests with other params are sent with `params` instead:
        those in flight when a streaming job is updated with new params.
      resource_hints: Beam's resource hints for the step that calls the model.

    Returns:
      ``(answered, unserved)``: PCollections of `Answer` and of `DeadLetter` (stage ``infer``).
    """

    backend: Backend
    limits: DispatchLimits = DispatchLimits()
    params: Mapping[str, Json] = dataclasses.field(default_factory=Params)
    allow_earlier_params: bool = False
    resource_hints: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def expand(
        self, batches: beam.PCollection[list[Request]]
    ) -> tuple[beam.PCollection[Answer], beam.PCollection[DeadLetter]]:
        open_ = functools.partial(open_dispatcher, self.backend, self.limits)
        params = Params.of(self.params)
        call = beam.ParDo(_CallModelDoFn(open_, params, self.allow_earlier_params))
        if self.resource_hints:
            call = call.with_resource_hints(**self.resource_hints)
        ended = batches | "CallModel" >> call.with_outputs("unserved", main="answered")
        return (
            ended.answered | "KeepAnswers" >> beam.Reshuffle(),
            ended.unserved | "KeepFailures" >> beam.Reshuffle(),
        )
