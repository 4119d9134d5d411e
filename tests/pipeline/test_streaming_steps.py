"""An update of a streaming job finds every step, coder, state and timer of the job before."""

import pytest

from tests.pipeline.streaming_steps import HERE, JOBS, steps


@pytest.mark.parametrize("name", JOBS)
def test_the_graph_is_the_one_that_is_kept(name: str) -> None:
    """A difference here is one that a running job notices: it has to be drained, not updated.

    If that is meant, say so in the changelog and run ``python -m tests.pipeline.streaming_steps``.
    """
    assert steps(*JOBS[name]) == (HERE / name).read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("name", JOBS)
def test_nothing_of_ours_is_kept_as_a_pickle(name: str) -> None:
    """Neither in a shuffle nor in state; the timestamps that Beam adds are its own."""
    kept = [line for line in steps(*JOBS[name]) if "/GroupByKey [" in line or " state " in line]
    assert len(kept) > 6
    for line in kept:
        assert "FastPrimitives" not in line.replace("NullableCoder[FastPrimitivesCoder]", ""), line
        assert "Pickle" not in line, line


def test_nothing_waits_for_the_end_of_a_stream() -> None:
    """No side input and no summary of the whole: on Dataflow there is no end."""
    lines = steps()
    assert not [line for line in lines if "Summarise " in line or "CountTable" in line]
    assert not [line for line in lines if "FinishFiles" in line]
