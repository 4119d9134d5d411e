"""Markers inside a prompt that select a failure for each record.

A marker is ``[[name]]``, ``[[name:value]]`` or either with a count: ``[[http:503x2]]`` fires on the
first two attempts of this prompt only. Several markers of one prompt are a script that is played in
order: ``[[http:429x1]][[resetx1]]`` is a 429, then a closed connection, then success. Attempts are
counted per text, so two records with the same text share one count.

=====================  ===========================================================================
``http:CODE``          an error with this status in the dialect's format
``retry-after:S``      adds ``Retry-After: S`` to the error of the same prompt
``google-error``       the OpenAI dialect words its error the way Google does
``vllm-error``         the OpenAI dialect words its error the way vLLM does (``code`` a number)
``latency:MS``         waits before it does anything else
``reset``              closes the connection without an answer
``hang``               never answers, until the client goes away
``malformed``          200 with a body that is not JSON
``wrong-shape``        200 with JSON of another shape
others                 see SOFT and ``answers.compose``: 200 with an unusual answer
=====================  ===========================================================================

This does not prove how often, or in which order, a real service fails. It is written from captures
and vendor documentation; no real endpoint was called.
"""

import re
from collections import Counter
from dataclasses import dataclass

HARD = frozenset({"http", "reset", "hang", "malformed", "wrong-shape"})
"""Faults that fail the whole request, whatever else is in it."""

SOFT = frozenset(
    {
        "blocked",
        "prompt-blocked",
        "empty",
        "no-candidates",
        "truncated",
        "thoughts-only",
        "fenced",
        "chatty",
        "two-json",
        "not-json",
        "schema-wrong",
        "nan-json",
        "unknown-finish",
        "surrogate",
    }
)
"""Faults inside a 200 answer."""

STYLES = {"google-error": "google", "vllm-error": "vllm"}

_MARKER = re.compile(r"\[\[([a-z]+(?:-[a-z]+)*?)(?::([0-9]+(?:\.[0-9]+)?))?(?:x([0-9]+))?\]\]")


@dataclass(frozen=True, slots=True)
class Plan:
    """The faults that one text requests on this attempt.

    Attributes:
        fault: A name of HARD or SOFT, or None.
        status: Status of ``http``, else 200.
        retry_after: Seconds, as written, for the header of an error.
        latency_s: Wait before anything else, in seconds.
        style: ``google`` or ``vllm`` error wording, or None for the dialect's own.
        unknown: Well-formed markers without a meaning: counted, otherwise ignored.
    """

    fault: str | None = None
    status: int = 200
    retry_after: str | None = None
    latency_s: float = 0.0
    style: str | None = None
    unknown: tuple[str, ...] = ()

    @property
    def label(self) -> str | None:
        """The fault's name in the statistics, such as ``http:503`` or ``blocked``."""
        return f"http:{self.status}" if self.fault == "http" else self.fault

    @property
    def hard(self) -> bool:
        """Whether the whole request fails."""
        return self.fault in HARD


NO_PLAN = Plan()


class FaultBook:
    """Reads plans and counts the attempts of each prompt with a counted marker."""

    def __init__(self) -> None:
        """Starts with no attempts."""
        self._attempts: Counter[str] = Counter()

    def clear(self) -> None:
        """Forgets all attempts."""
        self._attempts.clear()

    def plan(self, text: str) -> Plan:
        """The plan for this attempt of ``text``; counts the attempt if a marker has a count.

        Examples:
            >>> book = FaultBook()
            >>> [book.plan("a [[http:503x1]]").label for _ in range(2)]
            ['http:503', None]
        """
        if "[[" not in text:
            return NO_PLAN
        markers = _MARKER.findall(text)
        attempt = 0
        if any(count for _, _, count in markers):
            attempt = self._attempts[text]
            self._attempts[text] = attempt + 1
        fault, status, retry_after, latency_s, style = None, 200, None, 0.0, None
        unknown = []
        for name, value, count in markers:
            if name in HARD or name in SOFT:
                if fault is None and (not count or attempt < int(count)):
                    fault = name
                    status = int(float(value or 500)) if name == "http" else 200
                elif fault is None:
                    attempt -= int(count)
            elif name == "retry-after":
                retry_after = value
            elif name == "latency":
                latency_s = float(value or 0) / 1000
            elif name in STYLES:
                style = STYLES[name]
            else:
                unknown.append(name)
        return Plan(fault, status, retry_after, latency_s, style, tuple(unknown))


def deciding(plans: tuple[Plan, ...]) -> Plan:
    """The plan of a whole request: its first hard fault, else a plan without one."""
    return next((plan for plan in plans if plan.hard), NO_PLAN)
