"""How the command explains a failed run."""

import traceback

from pipeline.main import explain
from transforms.records.errors import RunError


def test_an_error_that_beam_passes_on_as_text_is_recognised() -> None:
    """Our error is recognised in a RuntimeError that holds only its traceback as text."""
    ours = "".join(traceback.format_exception(RunError("the run stopped early"))).rstrip()
    assert explain(RuntimeError(f"{ours} [while running 'WriteRunSummary']")) == (
        "the run stopped early",
        True,
    )


def test_an_error_of_others_keeps_its_type() -> None:
    """An unexpected error keeps its type, and the command offers its traceback."""
    assert explain(RuntimeError("Traceback\nKeyError: 'id'")) == (
        "RuntimeError: KeyError: 'id'",
        False,
    )
