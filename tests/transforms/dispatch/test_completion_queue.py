"""The way of outcomes from the event loop to the thread that waits for them."""

from collections.abc import Callable

import pytest

from tests.transforms.dispatch.clients import make_requests
from transforms.dispatch import completion_queue as inbox_module
from transforms.dispatch.completion_queue import Ended, Inbox
from transforms.records.errors import BackendUnusable
from transforms.records.records import Completion


def filled(*items: BaseException | str | None) -> Inbox:
    """One that holds these: a string is an outcome's output."""
    inbox = Inbox()
    for item in items:
        if isinstance(item, str):
            inbox.outstanding += 1
            inbox.put(Ended(0, None, make_requests(1)[0], Completion(item)))
        else:
            inbox.put(item)
    return inbox


def taken(inbox: Inbox, enough: Callable[[bool], bool]) -> list[str | None]:
    """The outputs of all that ends until it is enough."""
    return [
        ended.outcome.output
        for ended in inbox.until(enough, lambda: None)
        if isinstance(ended.outcome, Completion)
    ]


def test_until_a_batch_is_let_in() -> None:
    """What ended before is given out; the rest stays for later."""
    inbox = filled("a", "b", None, "c")
    assert taken(inbox, lambda let_in: let_in) == ["a", "b"]
    assert (inbox.outstanding, inbox.abandoned) == (1, False)
    assert taken(inbox, lambda _: not inbox.outstanding) == ["c"]
    assert not inbox.abandoned


def test_a_batch_that_was_let_in_stays_so() -> None:
    """Also when outcomes come after it."""
    inbox = filled("a", None, "b")
    assert taken(inbox, lambda let_in: let_in and not inbox.outstanding) == ["a", "b"]


def test_nothing_is_waited_for_when_it_is_enough() -> None:
    """Nor is anything taken."""
    inbox = filled("a")
    assert taken(inbox, lambda _: True) == []
    assert inbox.outstanding == 1


def test_metrics_are_reported_while_nothing_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time that the thread wakes."""
    monkeypatch.setattr(inbox_module, "TICK_S", 0.0)
    inbox, woken = filled(), []

    def wake() -> None:
        woken.append(len(woken))
        if len(woken) == 3:
            inbox.put(None)

    assert list(inbox.until(lambda let_in: let_in, wake)) == []
    assert woken == [0, 1, 2]


@pytest.mark.parametrize("error", [BackendUnusable("no"), ZeroDivisionError("a bug")])
def test_what_stops_the_run_abandons_the_inbox(error: Exception) -> None:
    """After what had ended before it."""
    inbox = filled("a", error)
    until = inbox.until(lambda _: False, lambda: None)
    assert next(until).outcome == Completion("a")
    with pytest.raises(type(error), match=f"^{error}$"):
        next(until)
    assert inbox.abandoned


def test_a_thread_that_fails_while_it_waits_abandons_the_inbox() -> None:
    """Its bundle has failed."""
    inbox = filled("a")

    def fail() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(inbox.until(lambda _: False, fail))
    assert inbox.abandoned


def test_a_thread_that_leaves_earlier_abandons_the_inbox() -> None:
    """The step behind it has failed, and Beam closes what it did not read to the end."""
    inbox = filled("a", "b")
    ended = inbox.until(lambda _: False, lambda: None)
    next(ended)
    assert not inbox.abandoned
    ended.close()  # type: ignore[attr-defined]
    assert inbox.abandoned
