"""An update of a streaming job finds every step, coder, state and timer of the earlier job."""

import pytest

from pipeline.build import build
from pipeline.config import RunConfig
from pipeline.options.command_line import parse_flags
from tests.pipeline.streaming_steps import HERE, JOBS, steps
from tests.transforms.streams import described, streaming_pipeline


@pytest.mark.parametrize("name", JOBS)
def test_the_graph_is_the_one_that_is_kept(name: str) -> None:
    """The graph is the recorded one; a running job with another must be drained, not updated.

    If that is intended, say so in the changelog and run ``python -m
    tests.pipeline.streaming_steps``.
    """
    assert steps(*JOBS[name]) == (HERE / name).read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("name", JOBS)
def test_nothing_of_ours_is_kept_as_a_pickle(name: str) -> None:
    """Neither shuffles nor state hold pickles of ours; Beam's timestamps are its own."""
    kept = [line for line in steps(*JOBS[name]) if "/GroupByKey [" in line or " state " in line]
    assert len(kept) > 6
    for line in kept:
        assert "FastPrimitives" not in line.replace("NullableCoder[FastPrimitivesCoder]", ""), line
        assert "Pickle" not in line, line


def test_nothing_waits_for_the_end_of_a_stream() -> None:
    """A stream has no side input and no summary of the whole, since on Dataflow it never ends."""
    lines = steps()
    assert not [line for line in lines if "Summarise " in line or "CountTable" in line]
    assert not [line for line in lines if "FinishFiles" in line]


@pytest.mark.parametrize("more", [[], ["--output_table=p:d.t"]], ids=["files", "and tables"])
def test_each_file_of_a_stream_is_named_as_it_is_staged(more: list[str]) -> None:
    """Files of a stream are named as they are staged, those of a bounded input all at once."""

    def named(source: str) -> list[str]:
        flags = (source, "--prompt={{ text }}", "--backend=fake", "--output_path=out", *more)
        root = streaming_pipeline()
        build(root, RunConfig.from_options(parse_flags(flags)))
        return [line.partition(" [")[0] for line in described(root) if "PublishFiles [" in line]

    assert named("--input_subscription=projects/a-project/subscriptions/tickets") == [
        "WriteDeadLetters/WriteFiles/PublishFiles",
        "WriteResults/WriteFiles/PublishFiles",
        "WriteRunSummary/WriteFiles/PublishFiles",
    ]
    assert named("--input_files=a.jsonl") == []
