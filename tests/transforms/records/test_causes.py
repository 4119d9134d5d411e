"""The one table from cause to consequence, which no other module decides by itself."""

import ast
import gc
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from transforms.clients import http
from transforms.records import causes
from transforms.records.causes import (
    CONSEQUENCES,
    Cause,
    EndpointState,
    NextCall,
    Verdict,
)

TABLE = {
    #                   retry, attempt, next call, verdict, fatal at start, server, fails over
    "REQUEST": (False, True, "BACKS_OFF", "SERVED", False, "WORKS", False),
    "CREDENTIALS": (False, True, "BACKS_OFF", "SERVED", True, "REFUSES", True),
    "ACCOUNT": (False, True, "BACKS_OFF", "SERVED", True, "REFUSES", True),
    "NOT_SERVED": (False, True, "BACKS_OFF", "SERVED", True, "REFUSES", True),
    "CONNECTION_REFUSED": (True, False, "BACKS_OFF", "BROKEN", True, "GONE", True),
    "LOST_BEFORE_ANSWER": (True, True, "FIRST_AT_ONCE", "BROKEN", True, "FAILS", False),
    "LOST_DURING_ANSWER": (True, True, "BACKS_OFF", "BROKEN", True, "FAILS", False),
    "STALE_CONNECTION": (True, True, "FIRST_AT_ONCE", "BROKEN", False, "FAILS", False),
    "SERVER_ERROR": (True, True, "BACKS_OFF", "BROKEN", False, "FAILS", False),
    "TIMEOUT": (True, True, "BACKS_OFF", "OVERLOADED", False, "FAILS", False),
    "RATE_LIMIT": (True, False, "BACKS_OFF", "LIMITED", False, "RESTS", False),
    "OVERLOADED": (True, False, "BACKS_OFF", "OVERLOADED", False, "RESTS", False),
    "RESTARTING": (True, False, "AT_ONCE", "RESTARTING", False, "RESTS", False),
}


def test_every_consequence_of_every_cause() -> None:
    """Every cause has the consequences of this table."""
    assert {
        cause.name: (
            row.retry,
            row.attempt,
            row.next_call.name,
            row.verdict.name,
            row.fatal_at_start,
            row.server.name,
            row.fails_over,
        )
        for cause, row in CONSEQUENCES.items()
    } == TABLE
    assert set(CONSEQUENCES) == set(Cause)


def test_a_model_that_is_still_served() -> None:
    """The cause for a served model is never fatal, and otherwise the same or milder."""
    instead = {cause: row.still_served for cause, row in CONSEQUENCES.items() if row.still_served}
    assert instead == {
        Cause.CONNECTION_REFUSED: Cause.OVERLOADED,
        Cause.LOST_BEFORE_ANSWER: Cause.STALE_CONNECTION,
        Cause.LOST_DURING_ANSWER: Cause.SERVER_ERROR,
    }
    for before, after in instead.items():
        assert not CONSEQUENCES[after].fatal_at_start
        assert CONSEQUENCES[after].attempt is CONSEQUENCES[before].attempt
        assert CONSEQUENCES[after].next_call is CONSEQUENCES[before].next_call


def test_the_docstring_has_the_table() -> None:
    """Each cause is a row of the docstring's table, in its own words."""
    assert causes.__doc__ is not None
    rows = re.findall(r"^([A-Z_]{7,}) +(.*)$", causes.__doc__, re.MULTILINE)
    found = {}
    for name, rest in rows:
        row = CONSEQUENCES[Cause[name]]
        said = [
            "yes" if row.retry else "",
            "yes" if row.attempt else "",
            row.next_call.value.replace("_", " ") if row.retry else "",
            row.verdict.name,
            "yes" if row.fatal_at_start else "",
            row.server.name,
        ]
        found[name] = " ".join(filter(None, said)) == " ".join(rest.split())
    assert found == dict.fromkeys(TABLE, True)


@pytest.mark.parametrize(
    "kind",
    [*http._BY_CODE.values(), *http._BY_STATUS.values(), *http._BY_CLASS.values()],
    ids=str,
)
def test_a_status_and_its_cause_agree(kind: http.ErrorKind) -> None:
    """A failure that is retried is a dead letter that may be replayed, and the reverse."""
    made = kind.error("why", cause=kind.cause)
    assert made.consequence.retry is made.retryable


def _decisions(tree: ast.AST) -> Iterator[ast.AST]:
    """The places where a cause decides: comparisons, conditions, matches and dictionary keys."""
    for node in ast.walk(tree):
        tests: list[ast.AST] = []
        if isinstance(node, (ast.Compare, ast.BoolOp, ast.MatchValue)):
            tests = [node]
        elif isinstance(node, (ast.If, ast.IfExp, ast.While)):
            tests = [node.test]
        elif isinstance(node, ast.Dict):
            tests = [key for key in node.keys if key is not None]
        yield from tests


def _names_a_cause(tree: ast.AST) -> bool:
    return any(
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "Cause"
        for node in ast.walk(tree)
    )


def _parsed(path: Path) -> ast.Module:
    """A module's tree; a garbage collection in the middle of it can fail in Python 3.11."""
    gc.disable()
    try:
        return ast.parse(path.read_text("utf-8"))
    finally:
        gc.enable()


def test_no_other_module_decides_by_causes() -> None:
    """Other modules read the table; they name a cause only where they make an error."""
    found = []
    for folder in ("transforms", "pipeline"):
        for path in sorted(Path(folder).rglob("*.py")):
            if path.as_posix() == "transforms/records/causes.py":
                continue
            tree = _parsed(path)
            found += [
                f"{path}:{getattr(node, 'lineno', '?')}"
                for node in _decisions(tree)
                if _names_a_cause(node)
            ]
    assert found == []


def test_enumerations_are_used() -> None:
    """Each word of the enumerations is in the table."""
    rows = CONSEQUENCES.values()
    assert {row.verdict for row in rows} == set(Verdict)
    assert {row.next_call for row in rows} == set(NextCall)
    assert {row.server for row in rows} == set(EndpointState)
