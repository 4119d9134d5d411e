"""A plain Beam `ModelHandler` over our dispatcher, for use with ``RunInference``.

A separate module, because Beam's module loads torch if it is installed, which takes seconds.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from apache_beam.ml.inference.base import ModelHandler

from transforms.accounting import metrics
from transforms.accounting.metrics import CallMetrics
from transforms.backends.base import Backend
from transforms.dispatch.dispatcher import Dispatcher, DispatchLimits
from transforms.inference.infer import open_dispatcher, outcome_of
from transforms.records.records import Answer, DeadLetter, Json, Params, Request
from transforms.requests.render import BYTES_PER_TOKEN


class InferenceHandler(ModelHandler[Request, Answer | DeadLetter, Dispatcher]):
    """A `ModelHandler` over a backend: one `Answer` or `DeadLetter` per request, in order.

    Calls are made at least once: a bundle that Beam retries is paid for again.

    Args:
      backend: The model, and where it is served.
      limits: Concurrency, attempts and deadlines, per worker process.
      max_batch_size: The most requests in a batch that RunInference itself forms.
      params: The ``params`` of the `RequestSpec` that rendered the requests, which travel without
        them; None for none. A request with other params raises a `RunError`.
      allow_earlier_params: Whether requests with other params are sent with `params` instead:
        those in flight when a streaming job is updated with new params.

    Example::

        requests | RunInference(InferenceHandler(FakeBackend()))
    """

    def __init__(
        self,
        backend: Backend,
        limits: DispatchLimits = DispatchLimits(),  # noqa: B008 - frozen
        *,
        max_batch_size: int = 256,
        params: Mapping[str, Json] | None = None,
        allow_earlier_params: bool = False,
    ) -> None:
        super().__init__(max_batch_size=max_batch_size)
        self._backend = backend
        self._limits = limits
        self._params = Params.of(params or {})
        self._allow_earlier_params = allow_earlier_params

    def load_model(self) -> Dispatcher:
        """Opens the backend; called once per process.

        Raises:
          BackendUnusable: The model or the credentials are not available.
        """
        return open_dispatcher(self._backend, self._limits)

    def run_inference(
        self,
        batch: Sequence[Request],
        model: Dispatcher,
        inference_args: dict[str, Any] | None = None,
    ) -> Iterable[Answer | DeadLetter]:
        """Exactly ``len(batch)`` outcomes, in order.

        Raises:
          RunError: A request was rendered with different params.
        """
        del inference_args
        batch = self._params.restore(batch, allow_earlier=self._allow_earlier_params)
        calls = CallMetrics(model)
        outcomes = model.answer(batch, calls.report_when_due)
        for outcome in outcomes:
            calls.count(outcome)
        calls.report()
        return [
            outcome_of(request, outcome) for request, outcome in zip(batch, outcomes, strict=True)
        ]

    def get_num_bytes(self, batch: Sequence[Request]) -> int:
        """The size from the token estimates; Beam would pickle the batch to measure it."""
        return sum(request.estimated_tokens for request in batch) * BYTES_PER_TOKEN

    def get_metrics_namespace(self) -> str:
        """The namespace of RunInference's own metrics."""
        return metrics.NAMESPACE
