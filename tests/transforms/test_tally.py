"""Tallies: what each stage counts, summed exactly, whatever a server reports."""

import collections
import decimal
from typing import Any

import pytest
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import GlobalWindow
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.records import DeadLetter, Usage
from transforms.tally import Tally, emit_tally


def _result(**known: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "attempts": 1,
        "from_ledger": False,
        "cost_usd": None,
        "input_tokens": None,
        "cached_input_tokens": None,
        "output_tokens": None,
        "reasoning_tokens": None,
    }
    return {**row, **known}


def test_results() -> None:
    """Rows, calls, retries, waiting, the ledger, tokens and cost."""
    tally = Tally()
    tally.add_result(
        _result(
            attempts=3,
            cost_usd="0.000000120",
            input_tokens=10,
            cached_input_tokens=4,
            output_tokens=2,
            reasoning_tokens=1,
        ),
        throttled_ms=250,
    )
    tally.add_result(_result(from_ledger=True, attempts=0, input_tokens=5), throttled_ms=0)
    tally.add_result(_result(), throttled_ms=0)
    assert tally.counts == {
        "results": 3,
        "from_ledger": 1,
        "requests_sent": 4,
        "retries": 2,
        "throttled_ms": 250,
        "input_tokens": 15,
        "cached_input_tokens": 4,
        "output_tokens": 2,
        "reasoning_tokens": 1,
    }
    assert tally.error_types == {}
    assert tally.cost_usd == decimal.Decimal("0.000000120")


def test_dead_letters() -> None:
    """Failures are counted by type, with the calls and tokens that they cost."""
    tally = Tally()
    letter = DeadLetter(
        "infer", "truncated", "cut", attempts=2, throttled_ms=5, usage=Usage(10, 4, 2, 1)
    )
    tally.add_dead_letter({"cost_usd": "1.5"}, letter)
    tally.add_dead_letter({"cost_usd": "0.25"}, letter)
    tally.add_dead_letter({"cost_usd": None}, DeadLetter("read", "parse_error", "no JSON"))
    assert tally.counts == {
        "dead_letters": 3,
        "requests_sent": 4,
        "retries": 2,
        "throttled_ms": 10,
        "input_tokens": 20,
        "cached_input_tokens": 8,
        "output_tokens": 4,
        "reasoning_tokens": 2,
    }
    assert tally.error_types == {"truncated": 2, "parse_error": 1}
    assert tally.cost_usd == decimal.Decimal("1.75")


def test_no_known_cost_is_none_and_not_zero() -> None:
    """A free call costs 0; a call without a price costs nobody knows what."""
    tally = Tally()
    tally.add_result(_result(), 0)
    assert tally.cost_usd is None
    assert Tally.total([tally, Tally()]).cost_usd is None
    tally.add_result(_result(cost_usd="0.000000000"), 0)
    assert tally.cost_usd == 0


@pytest.mark.parametrize("reported", ["12", 1.5, True, [1], {"a": 1}])
def test_tokens_that_are_no_count(reported: Any) -> None:
    """They are left out, rather than fail every record of the bundle."""
    tally = Tally()
    letter = DeadLetter("infer", "truncated", "cut", usage=Usage(reported, 1, reported, None))
    tally.add_dead_letter({"cost_usd": None}, letter)
    assert tally.counts["dead_letters"] == 1
    assert (tally.counts["input_tokens"], tally.counts["cached_input_tokens"]) == (0, 1)


TALLIES = st.builds(
    Tally,
    st.builds(dict, results=st.integers(0, 9), records=st.integers(0, 9)).map(collections.Counter),
    st.dictionaries(st.sampled_from(["internal", "timeout"]), st.integers(1, 9)).map(
        collections.Counter
    ),
    st.none() | st.decimals(0, 1000, places=9),
)


@settings(deadline=None)
@given(st.lists(TALLIES, max_size=6))
def test_total(tallies: list[Tally]) -> None:
    """The sum of each count, of each error type and of the known costs, in any grouping."""
    total = Tally.total(tallies)
    for name in ("results", "records"):
        assert total.counts[name] == sum(tally.counts[name] for tally in tallies)
    for name in ("internal", "timeout"):
        assert total.error_types[name] == sum(tally.error_types[name] for tally in tallies)
    known = [tally.cost_usd for tally in tallies if tally.cost_usd is not None]
    assert total.cost_usd == (sum(known) if known else None)
    assert Tally.total([Tally.total(tallies[:2]), Tally.total(tallies[2:])]) == total


def test_total_leaves_its_parts_alone() -> None:
    """Beam may hand the same tally out again."""
    tally = Tally()
    tally.add_result(_result(cost_usd="1"), 0)
    assert Tally.total([tally, tally]).counts["results"] == 2
    assert tally.counts["results"] == 1
    assert tally.cost_usd == 1


def test_emit_tally() -> None:
    """One tagged element, at the end of the global window: a bundle's own sum."""
    tally = Tally()
    tagged = emit_tally(tally)
    assert isinstance(tagged, TaggedOutput)
    assert tagged.tag == "tally"
    assert tagged.value.value is tally
    assert tagged.value.timestamp == GlobalWindow().max_timestamp()
    assert list(tagged.value.windows) == [GlobalWindow()]
