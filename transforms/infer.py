"""Inference: Beam's RunInference around any backend, one outcome per request, always.

`InferenceHandler` is a plain Beam `ModelHandler`: anybody's ``RunInference`` can use it.
`Infer` is what our pipeline uses: pre-batched input, typed outputs, a shuffle behind the paid call.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import apache_beam as beam
from apache_beam.ml.inference.base import ModelHandler, RunInference
from apache_beam.pvalue import TaggedOutput

from transforms import metrics
from transforms.backends.base import Backend
from transforms.dispatch import loop
from transforms.dispatch.dispatcher import Dispatcher, DispatchLimits, Failure
from transforms.records import Answer, DeadLetter, Request
from transforms.render import BYTES_PER_TOKEN


class InferenceHandler(ModelHandler[Request, Answer | DeadLetter, Dispatcher]):
    """A `ModelHandler` over a backend: one `Answer` or `DeadLetter` per request, in order.

    Calls are made at least once: a bundle that Beam retries pays again.

    Args:
      backend: The model and where it is served.
      limits: Concurrency, attempts and deadlines, per worker process.
      max_batch_size: When RunInference itself does the batching.

    Example::

        requests | RunInference(InferenceHandler(FakeBackend()))
    """

    def __init__(
        self,
        backend: Backend,
        limits: DispatchLimits = DispatchLimits(),  # noqa: B008 - frozen
        *,
        max_batch_size: int = 256,
    ) -> None:
        super().__init__(max_batch_size=max_batch_size)
        self._backend = backend
        self._limits = limits

    def load_model(self) -> Dispatcher:
        """Opens the backend, once per process.

        Raises:
          BackendUnusable: The model or the credentials cannot be had.
        """
        return Dispatcher(loop.run(self._backend.open()), self._limits)

    def run_inference(
        self,
        batch: Sequence[Request],
        model: Dispatcher,
        inference_args: dict[str, Any] | None = None,
    ) -> Iterable[Answer | DeadLetter]:
        """Exactly ``len(batch)`` outcomes, in order."""
        del inference_args
        batch = list(batch)
        outcomes: list[Answer | DeadLetter] = []
        for request, outcome in zip(batch, model.answer(batch), strict=True):
            if isinstance(outcome, Failure):
                outcomes.append(_dead_letter(request, outcome))
            else:
                outcomes.append(Answer(request.record, request.fingerprint, outcome))
        metrics.LIVE.add("asked", len(batch))
        return outcomes

    def get_num_bytes(self, batch: Sequence[Request]) -> int:
        """From the token estimates; Beam would pickle the batch to know."""
        return sum(request.estimated_tokens for request in batch) * BYTES_PER_TOKEN

    def get_metrics_namespace(self) -> str:
        """The namespace of RunInference's own metrics."""
        return metrics.NAMESPACE


def _dead_letter(request: Request, failure: Failure) -> DeadLetter:
    return DeadLetter.of(
        failure.error,
        stage="infer",
        record=request.record,
        fingerprint=request.fingerprint,
        attempts=failure.attempts,
        throttled_ms=failure.throttled_ms,
    )


class _SplitOutcomesDoFn(beam.DoFn):
    """Answers on, failures out; counts once a bundle, from Beam's thread."""

    def start_bundle(self) -> None:
        self._counts: dict[str, int] = {}

    def process(
        self, outcome: Answer | DeadLetter
    ) -> Iterator[Answer | TaggedOutput[Literal["unserved"], DeadLetter]]:
        counts = self._counts
        if isinstance(outcome, Answer):
            attempts, usage = outcome.completion.attempts, outcome.completion.usage
            yield outcome
        else:
            attempts, usage = outcome.attempts or 0, outcome.usage
            yield TaggedOutput("unserved", outcome)
        for name, amount in (
            ("attempts", attempts),
            ("input_tokens", usage.input_tokens),
            ("output_tokens", usage.output_tokens),
        ):
            if amount:
                counts[name] = counts.get(name, 0) + amount

    def finish_bundle(self) -> None:
        for name, amount in self._counts.items():
            metrics.beam_counter(name).inc(amount)


@dataclasses.dataclass(kw_only=True, eq=False)
class Infer(beam.PTransform):
    """Asks the model once for each request; one answer or dead letter each.

    Bounded and unbounded. At-least-once calls: a retried bundle calls again, but nothing that can
    fail is fused behind the call, because a shuffle stands directly behind it. Order is not kept.

    Args:
      backend: The model and where it is served.
      limits: Concurrency, attempts and deadlines, per worker process.
      resource_hints: Beam's resource hints for the step that calls the model.

    Returns:
      ``(answered, unserved)``: PCollections of `Answer` and of `DeadLetter` (stage ``infer``).
    """

    backend: Backend
    limits: DispatchLimits = DispatchLimits()
    resource_hints: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def expand(
        self, batches: beam.PCollection[list[Request]]
    ) -> tuple[beam.PCollection[Answer], beam.PCollection[DeadLetter]]:
        handler = InferenceHandler(self.backend, self.limits).with_no_batching()
        run = RunInference(handler)
        if self.resource_hints:
            run = run.with_resource_hints(**self.resource_hints)
        outcomes = batches | "CallModel" >> run
        split = outcomes | "SplitOutcomes" >> beam.ParDo(_SplitOutcomesDoFn()).with_outputs(
            "unserved", main="answered"
        )
        return (
            split.answered | "KeepAnswers" >> beam.Reshuffle(),
            split.unserved | "KeepFailures" >> beam.Reshuffle(),
        )
