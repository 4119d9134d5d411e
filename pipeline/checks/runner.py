"""Runs checks concurrently, each within five seconds."""

import concurrent.futures
import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Sequence

from pipeline.options.messages import reason
from transforms.records.errors import BackendUnusable, ConfigurationError

CHECK_TIMEOUT_S = 5.0
"""How long a service may take to answer one check."""
ALL_CHECKS_TIMEOUT_S = 20.0


Check = Callable[[], None]


@dataclasses.dataclass(frozen=True, slots=True)
class Warned:
    """A check without a result.

    Attributes:
      what: Its subject.
      why: Why there is no result.
    """

    what: str
    why: str


def run_checks(checks: Sequence[tuple[str, Check]]) -> list[Warned]:
    """Runs checks concurrently; returns those without a result.

    Raises:
      ConfigurationError: The first definite problem, in the order of the checks.
    """
    outcomes: dict[int, BaseException | None] = {}
    done: queue.Queue[tuple[int, BaseException | None]] = queue.Queue()

    def run(number: int, check: Check) -> None:
        try:
            check()
        except Exception as error:  # every outcome is sorted below
            done.put((number, error))
        else:
            done.put((number, None))

    waiting = list(enumerate(checks))
    deadline = time.monotonic() + min(ALL_CHECKS_TIMEOUT_S, CHECK_TIMEOUT_S * len(checks))
    running: dict[int, float] = {}
    while len(outcomes) < len(checks):
        while waiting and len(running) < 4:
            number, (_, check) = waiting.pop(0)
            running[number] = time.monotonic() + CHECK_TIMEOUT_S
            threading.Thread(target=run, args=(number, check), daemon=True).start()
        left = min([deadline, *running.values()]) - time.monotonic()
        try:
            number, outcome = done.get(timeout=max(left, 0.01))
        except queue.Empty:
            late = time.monotonic()
            for number in [n for n, end in running.items() if end <= late]:
                running.pop(number)
                outcomes.setdefault(number, concurrent.futures.TimeoutError("no answer in time"))
            if late >= deadline:
                for number in range(len(checks)):
                    outcomes.setdefault(number, concurrent.futures.TimeoutError("not checked"))
        else:
            running.pop(number, None)
            outcomes.setdefault(number, outcome)
    return _sorted_out(checks, outcomes)


def _sorted_out(
    checks: Sequence[tuple[str, Check]], outcomes: dict[int, BaseException | None]
) -> list[Warned]:
    warned = []
    for number, (what, _) in enumerate(checks):
        error = outcomes[number]
        if isinstance(error, ConfigurationError):
            raise error
        if isinstance(error, BackendUnusable):
            raise ConfigurationError(str(error)) from None
        if error is not None:
            warned.append(Warned(what, reason(error)))
    return warned
