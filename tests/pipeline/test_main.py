"""How the command explains a failed run."""

import traceback

from pipeline.main import explain
from transforms.records.errors import RunError


def test_an_error_that_beam_passes_on_as_text_is_recognised() -> None:
    """A runner may raise a RuntimeError that holds only the traceback of our error."""
    ours = "".join(traceback.format_exception(RunError("the run stopped early"))).rstrip()
    assert explain(RuntimeError(f"{ours} [while running 'WriteRunSummary']")) == (
        "the run stopped early",
        True,
    )


def test_an_error_of_others_keeps_its_type() -> None:
    """Nobody foresaw it, so the command offers its traceback."""
    assert explain(RuntimeError("Traceback\nKeyError: 'id'")) == (
        "RuntimeError: KeyError: 'id'",
        False,
    )
