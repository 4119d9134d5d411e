"""A runner for one stateful DoFn, small enough to kill: bundles whose state commits at their end.

Local runners do not repeat a bundle whose worker died. This one follows the Beam model: the
outputs, state and timers of such a bundle vanish together, and its elements return in any order and
in other bundles.
"""

import copy
import dataclasses
from collections.abc import Iterable
from typing import Any

from apache_beam.pvalue import TaggedOutput

from transforms.sinks.bigquery.exactly_once import _AppendInOrderDoFn
from transforms.sinks.bigquery.ordered_batches import Numbered

Element = tuple[str, Numbered]


@dataclasses.dataclass
class KeyState:
    """A runner's state of one key.

    Attributes:
      position: The value of the state cell of this name.
      waiting: The content of the bag of this name.
      due: Whether a timer is set.
    """

    position: Any = None
    waiting: list[Numbered] = dataclasses.field(default_factory=list)
    due: bool = False


class _Cell:
    def __init__(self, state: KeyState) -> None:
        self._state = state

    def read(self) -> Any:
        return self._state.position

    def write(self, value: Any) -> None:
        self._state.position = value

    def clear(self) -> None:
        self._state.position = None


class _Bag:
    def __init__(self, state: KeyState) -> None:
        self._state = state

    def read(self) -> list[Numbered]:
        return list(self._state.waiting)

    def add(self, value: Numbered) -> None:
        self._state.waiting.append(value)

    def clear(self) -> None:
        self._state.waiting.clear()


class _Timer:
    def __init__(self, state: KeyState) -> None:
        self._state = state

    def set(self, _: Any) -> None:
        self._state.due = True


@dataclasses.dataclass
class Committed:
    """The committed state, which outlives every worker.

    Attributes:
      keys: The state by key.
      written: Elements emitted as written.
      rejected: Elements emitted as rejected.
    """

    keys: dict[str, KeyState] = dataclasses.field(default_factory=dict)
    written: list[Any] = dataclasses.field(default_factory=list)
    rejected: list[Any] = dataclasses.field(default_factory=list)

    @property
    def due(self) -> list[str]:
        """The keys whose timers are set."""
        return [key for key, state in self.keys.items() if state.due]


def run_bundle(
    dofn: _AppendInOrderDoFn,
    committed: Committed,
    elements: Iterable[Element] = (),
    timers: Iterable[str] = (),
) -> Committed:
    """Runs one bundle; its return value counts only if the caller keeps it."""
    after = copy.deepcopy(committed)
    dofn.start_bundle()
    outputs: list[Any] = []
    for key, batch in elements:
        state = after.keys.setdefault(key, KeyState())
        outputs += dofn.process(
            (key, batch), _Cell(state), _Bag(state), _Timer(state), _Timer(state)
        )
    for key in timers:
        state = after.keys[key]
        state.due = False
        for fire in (dofn.go_on_soon, dofn.go_on_at_the_end):  # a runner may fire both at once
            outputs += fire(key, _Cell(state), _Bag(state), _Timer(state), _Timer(state))
    for output in outputs:
        if isinstance(output, TaggedOutput):
            after.rejected.append(output.value)
        else:
            after.written.append(output)
    return after
