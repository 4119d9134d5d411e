"""When a keeper kills its server: a refused health check at once, silence after two minutes."""

import pytest

from transforms.backends.vllm import keeper


class Looked(keeper._Keeper):
    """A keeper of a ready server, without processes: it notes why it kills."""

    def __init__(self) -> None:
        self._silent = False
        self._answered_at = self._health_at = 0.0
        self.killed: list[str] = []

    def _kill(self, child: object, why: str) -> None:
        self.killed.append(why)


class Child:
    """A server whose health is as told."""

    def __init__(self) -> None:
        self.status: int | None = 200

    def health(self) -> int | None:
        return self.status


def test_what_a_health_check_leads_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each server is killed once, for its own reason; an answer ends a silence."""
    now = 0.0
    monkeypatch.setattr(keeper.time, "monotonic", lambda: now)
    looked, child = Looked(), Child()
    for now, child.status in [(5.0, 200), (10.0, None), (120.0, 200), (125.0, None), (240.0, None)]:  # noqa: B007
        looked._look(child)
    assert looked.killed == []
    now = 240.1
    looked._look(child)
    assert looked.killed == ["/health has not answered for 120 s"]
    for child.status in (503, 0):
        looked._look(child)
    assert looked.killed[1:] == ["/health answered 503", "/health answered nothing: no connection"]
