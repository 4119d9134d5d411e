"""Steps of the local stream: a DoFn lives as long as the run, and a reshuffle costs nothing."""

from collections.abc import Iterator
from typing import Any, ClassVar

import apache_beam as beam
import pytest
from apache_beam.coders import VarIntCoder
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing import test_stream
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec

from pipeline.local import runner as local_streaming
from pipeline.local.steps import NoReshuffle

Events = list[tuple[str, Any]]


class Heard:
    """Life-cycle events of a test's DoFns, which the runner unpickles."""

    events: ClassVar[Events] = []


@pytest.fixture(autouse=True)
def events() -> Events:
    """The events of this test."""
    Heard.events.clear()
    return Heard.events


class Life(beam.DoFn):
    """A DoFn that records its life cycle."""

    def setup(self) -> None:
        Heard.events.append(("setup", None))

    def start_bundle(self) -> None:
        Heard.events.append(("start", None))

    def process(self, item: Any) -> Iterator[Any]:
        Heard.events.append(("process", item))
        if item == "unlucky" and ("failed", item) not in Heard.events:
            Heard.events.append(("failed", item))
            raise ValueError(item)
        yield item

    def teardown(self) -> None:
        Heard.events.append(("teardown", None))


class Numbered(beam.DoFn):
    """A DoFn that numbers the elements of a key from 1."""

    COUNT = ReadModifyWriteStateSpec("count", VarIntCoder())

    def process(
        self,
        item: tuple[str, str],
        count: Any = beam.DoFn.StateParam(COUNT),  # noqa: B008
    ) -> Iterator[tuple[str, int]]:
        count.write((count.read() or 0) + 1)
        yield item[0], count.read()
        if item[1] == "unlucky" and ("failed", item) not in Heard.events:
            Heard.events.append(("failed", item))
            raise ValueError(item)


def run(*bundles: list[Any], step: beam.PTransform) -> beam.Pipeline:
    """Runs bundles through one step, with its output as events; returns the pipeline as run."""
    stream = test_stream.TestStream()
    for bundle in bundles:
        stream.add_elements(bundle)
    stream.advance_watermark_to_infinity()
    built = beam.Pipeline(local_streaming.RUNNER, options=PipelineOptions(["--streaming"]))
    _ = built | stream | "Step" >> step | beam.Map(lambda out: Heard.events.append(("out", out)))
    built.run(test_runner_api=False).wait_until_finish()  # the pipeline itself, not a copy
    return built


def labels(part: Any) -> list[str]:
    """The labels of a step and its parts."""
    return [part.full_label, *(label for inner in part.parts for label in labels(inner))]


def named(events: Events, *names: str) -> Events:
    """The events with these names."""
    return [event for event in events if event[0] in names]


def test_a_dofn_is_set_up_once(events: Events) -> None:
    """A DoFn is set up once, serves all bundles and is torn down when the run ends."""
    run(["a"], ["b", "c"], step=beam.ParDo(Life()))
    assert [name for name, _ in named(events, "setup", "process", "teardown")] == [
        "setup",
        *["process"] * 3,
        "teardown",
    ]
    assert len(named(events, "start")) == 2
    assert named(events, "out") == [("out", "a"), ("out", "b"), ("out", "c")]


def test_a_dofn_whose_bundle_failed_is_replaced(events: Events) -> None:
    """After a failed bundle a new DoFn processes it again; the first one's output is dropped."""
    run(["a"], ["b", "unlucky"], ["c"], step=beam.ParDo(Life()))
    assert [name for name, _ in named(events, "setup", "failed", "teardown")] == [
        "setup",
        "failed",
        "teardown",
        "setup",
        "teardown",
    ]
    assert [item for _, item in named(events, "out")] == ["a", "b", "unlucky", "c"]


def test_state_is_kept_between_bundles_and_not_from_failed_ones(events: Events) -> None:
    """State changes are committed with their bundle, and dropped if it fails."""
    step = beam.ParDo(Numbered()).with_input_types(tuple[str, str])
    run([("k", "a")], [("k", "b"), ("k", "unlucky")], [("l", "c")], step=step)
    assert [item for _, item in named(events, "out")] == [("k", 1), ("k", 2), ("k", 3), ("l", 1)]


def test_a_reshuffle_is_one_step(events: Events) -> None:
    """A reshuffle passes its elements unchanged and groups nothing."""
    built = run(["a", "b"], step=beam.Reshuffle())
    assert not [label for label in labels(built.transforms_stack[0]) if "GroupByKey" in label]
    assert named(events, "out") == [("out", "a"), ("out", "b")]


def test_only_reshuffles_are_replaced() -> None:
    """A GroupByKey stays as it is."""
    built = beam.Pipeline(options=PipelineOptions([]))
    pairs = built | beam.Create([(1, 2)])
    _ = pairs | "Group" >> beam.GroupByKey()
    _ = pairs | "Shuffle" >> beam.Reshuffle()
    parts = {part.full_label: part for part in built.transforms_stack[0].parts}
    matches = NoReshuffle().matches
    assert (matches(parts["Group"]), matches(parts["Shuffle"])) == (False, True)
