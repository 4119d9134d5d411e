"""Step execution for Beam's bundle-based runner, without its overhead per bundle.

For each bundle of each step Beam's evaluator unpickles the DoFn, inspects it, sets it up and tears
it down: a sink opens a connection per bundle. Here a DoFn lives as long as the run, as on every
other runner. Reshuffles are removed: this runner fuses nothing, so they have no effect.
"""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

import apache_beam as beam
from apache_beam import coders
from apache_beam.pipeline import PTransformOverride
from apache_beam.runners.common import DoFnRunner, Receiver
from apache_beam.runners.direct import transform_evaluator
from apache_beam.runners.direct.direct_userstate import DirectUserStateContext
from apache_beam.transforms.userstate import BagStateSpec, get_dofn_specs, is_stateful_dofn
from apache_beam.utils import counters


class NoReshuffle(PTransformOverride):
    """Replaces a reshuffle by a step that passes elements on.

    A reshuffle takes six steps, and the runner keeps state for every random key it has ever seen
    and searches all of it for timers after each step: every message would make it slower.
    """

    def matches(self, applied_ptransform: Any) -> bool:
        return type(applied_ptransform.transform) is beam.Reshuffle

    def get_replacement_transform_for_applied_ptransform(self, _: Any) -> Any:
        return beam.Map(_same)


def _same(element: Any) -> Any:
    return element


class _Output(Receiver):
    """Receives a DoFn's output into the current bundle."""

    bundle: Any

    def receive(self, element: Any) -> None:
        self.bundle.receive(element)


@dataclasses.dataclass(eq=False)
class _LiveDoFn:
    """A DoFn that was set up, and the runner that calls it."""

    runner: DoFnRunner
    outputs: Any
    state: DirectUserStateContext | None
    key_coder: Any
    timers: dict[str, Any]
    in_bundle: bool = False


class LongLivedDoFns(transform_evaluator._ParDoEvaluator):
    """Beam's ParDo evaluator with DoFns that are set up once; a subclass holds a run's `steps`.

    One thread runs all steps, so one DoFn per step suffices. A DoFn whose bundle failed is
    replaced. Beam itself evaluates steps with side inputs.
    """

    steps: dict[Any, _LiveDoFn]

    def start_bundle(self) -> None:
        if self._side_inputs:
            super().start_bundle()
            return
        step = self.steps.get(self._applied_ptransform)
        if step is not None and step.in_bundle:
            _tear_down(self.steps.pop(self._applied_ptransform))
            step = None
        if step is None:
            step = self._set_up()
            self.steps[self._applied_ptransform] = step
        for tag, output in step.outputs.items():
            pcollection = beam.pvalue.PCollection(None, tag=tag)
            pcollection.producer = self._applied_ptransform
            output.bundle = self._evaluation_context.create_bundle(pcollection)
            output.bundle.tag = tag
        self.runner, self.key_coder = step.runner, step.key_coder
        self.user_state_context, self.user_timer_map = step.state, step.timers
        if step.state is not None:
            step.state.step_context = self._step_context
            step.state.reset()
        step.in_bundle = True
        self.runner.start()

    def finish_bundle(self) -> Any:
        if self._side_inputs:
            return super().finish_bundle()
        self.runner.finish()
        if self.user_state_context is not None:
            self.user_state_context.commit()
            self.user_state_context.reset()
        step = self.steps[self._applied_ptransform]
        step.in_bundle = False
        bundles = [output.bundle for output in step.outputs.values()]
        return transform_evaluator.TransformResult(self, bundles, [], None, None)

    def _set_up(self) -> _LiveDoFn:
        applied, transform = self._applied_ptransform, self._applied_ptransform.transform
        dofn = transform_evaluator.pickler.roundtrip(transform.dofn)
        outputs = transform_evaluator._TaggedReceivers(self._evaluation_context)
        for tag in applied.outputs:
            outputs[tag] = _Output()
        state, key_coder, timers = None, None, {}
        if is_stateful_dofn(dofn):
            key_coder = coders.registry.get_coder(applied.inputs[0].element_type).key_coder()
            state = DirectUserStateContext(self._step_context, dofn, key_coder)
            timers = {f"user/{timer.name}": timer for timer in get_dofn_specs(dofn)[1]}
        runner = DoFnRunner(
            dofn,
            transform.args,
            transform.kwargs,
            (),
            applied.inputs[0].windowing,
            tagged_receivers=outputs,
            step_name=applied.full_label,
            state=transform_evaluator.DoFnState(counters.CounterFactory()),
            user_state_context=state,
        )
        runner.setup()
        return _LiveDoFn(runner, outputs, state, key_coder, timers)


def kept_elements(steps: Mapping[Any, _LiveDoFn]) -> dict[int, object]:
    """The first element of each nonempty bag state of the steps, by identity."""
    found = {}
    for step in steps.values():
        if step.state is not None:
            specs = step.state.all_state_specs
            bags = [step.state.state_tags[spec] for spec in specs if isinstance(spec, BagStateSpec)]
            for state in step.state.step_context.existing_keyed_state.values() if bags else ():
                for window in list(state.state):
                    for bag in bags:
                        for element in state.state[window].get(bag.tag, ())[:1]:
                            found[id(element)] = element
    return found


def tear_down(steps: dict[Any, _LiveDoFn]) -> None:
    """Tears down every DoFn of a run."""
    while steps:
        _tear_down(steps.popitem()[1])


def _tear_down(step: _LiveDoFn) -> None:
    with contextlib.suppress(Exception):  # the DoFn is not used any more
        step.runner.teardown()
