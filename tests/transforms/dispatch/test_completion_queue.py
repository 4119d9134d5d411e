"""Outcomes pass from the event loop to the thread that waits for them."""

from collections.abc import Callable

import pytest

from tests.transforms.dispatch.clients import make_requests
from transforms.dispatch import completion_queue
from transforms.dispatch.completion_queue import CompletionQueue, Ended
from transforms.records.errors import BackendUnusable
from transforms.records.records import Completion


def filled(*items: BaseException | str | None) -> CompletionQueue:
    """A queue with these items: a string is an outcome's output."""
    completions = CompletionQueue()
    for item in items:
        if isinstance(item, str):
            completions.outstanding += 1
            completions.put(Ended(0, None, make_requests(1)[0], Completion(item)))
        else:
            completions.put(item)
    return completions


def taken(completions: CompletionQueue, enough: Callable[[bool], bool]) -> list[str | None]:
    """The outputs that end until a batch is admitted."""
    return [
        ended.outcome.output
        for ended in completions.until(enough, lambda: None)
        if isinstance(ended.outcome, Completion)
    ]


def test_until_a_batch_is_admitted() -> None:
    """Outcomes from before the admission are returned; the rest stays for later."""
    completions = filled("a", "b", None, "c")
    assert taken(completions, lambda admitted: admitted) == ["a", "b"]
    assert (completions.outstanding, completions.abandoned) == (1, False)
    assert taken(completions, lambda _: not completions.outstanding) == ["c"]
    assert not completions.abandoned


def test_a_batch_that_was_admitted_stays_so() -> None:
    """An admitted batch stays admitted when outcomes follow."""
    completions = filled("a", None, "b")
    assert taken(completions, lambda admitted: admitted and not completions.outstanding) == [
        "a",
        "b",
    ]


def test_nothing_is_waited_for_when_it_is_enough() -> None:
    """A thread that has enough neither waits nor takes outcomes."""
    completions = filled("a")
    assert taken(completions, lambda _: True) == []
    assert completions.outstanding == 1


def test_metrics_are_reported_while_nothing_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics are reported each time the thread wakes, also while nothing ends."""
    monkeypatch.setattr(completion_queue, "TICK_S", 0.0)
    completions, woken = filled(), []

    def wake() -> None:
        woken.append(len(woken))
        if len(woken) == 3:
            completions.put(None)

    assert list(completions.until(lambda admitted: admitted, wake)) == []
    assert woken == [0, 1, 2]


@pytest.mark.parametrize("error", [BackendUnusable("no"), ZeroDivisionError("a bug")])
def test_an_error_that_stops_the_run_abandons_the_queue(error: Exception) -> None:
    """An error that stops the run abandons the queue after the outcomes that came before it."""
    completions = filled("a", error)
    until = completions.until(lambda _: False, lambda: None)
    assert next(until).outcome == Completion("a")
    with pytest.raises(type(error), match=f"^{error}$"):
        next(until)
    assert completions.abandoned


def test_a_thread_that_fails_while_it_waits_abandons_the_queue() -> None:
    """A thread that fails while it waits abandons the queue, since its bundle has failed."""
    completions = filled("a")

    def fail() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(completions.until(lambda _: False, fail))
    assert completions.abandoned


def test_a_thread_that_leaves_earlier_abandons_the_queue() -> None:
    """A thread that stops early, because a later step failed, abandons the queue."""
    completions = filled("a", "b")
    ended = completions.until(lambda _: False, lambda: None)
    next(ended)
    assert not completions.abandoned
    ended.close()  # type: ignore[attr-defined]
    assert completions.abandoned
