"""How Beam's bundle-based runner executes steps, without what it spends on every bundle.

For each bundle of each step Beam's own unpickles the DoFn, inspects it, sets it up and tears it down:
a sink that opens a connection opens one per bundle. Here a DoFn lives as long as the run, as it does
on every other runner. And shuffles, which mean nothing where nothing is fused, are left out.
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
    """A step that does nothing, in the place of a shuffle.

    A shuffle would cost six steps, and the runner keeps a state for every random key it ever saw and
    searches all of them for timers after every step: each message would make it slower.
    """

    def matches(self, applied_ptransform: Any) -> bool:
        return type(applied_ptransform.transform) is beam.Reshuffle

    def get_replacement_transform_for_applied_ptransform(self, _: Any) -> Any:
        return beam.Map(_same)


def _same(element: Any) -> Any:
    return element


class _Output(Receiver):
    """Where a DoFn's output goes: into whichever bundle is being made."""

    bundle: Any

    def receive(self, element: Any) -> None:
        self.bundle.receive(element)


@dataclasses.dataclass(eq=False)
class _Step:
    """A DoFn that was set up, and what calls it."""

    runner: DoFnRunner
    outputs: Any
    state: DirectUserStateContext | None
    key_coder: Any
    timers: dict[str, Any]
    in_bundle: bool = False


class LongLivedDoFns(transform_evaluator._ParDoEvaluator):
    """Beam's evaluator of a ParDo, whose DoFn is set up once; a subclass names the `steps` of a run.

    One thread works, so that one DoFn per step is enough. A DoFn whose bundle failed is replaced. A
    step with side inputs is left to Beam.
    """

    steps: dict[Any, _Step]

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

    def _set_up(self) -> _Step:
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
        return _Step(runner, outputs, state, key_coder, timers)


def kept_elements(steps: Mapping[Any, _Step]) -> dict[int, object]:
    """The first element of each bag in which a step keeps some, by identity."""
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


def tear_down(steps: dict[Any, _Step]) -> None:
    """Ends every DoFn of a run."""
    while steps:
        _tear_down(steps.popitem()[1])


def _tear_down(step: _Step) -> None:
    with contextlib.suppress(Exception):  # of a DoFn that is not used any more
        step.runner.teardown()
