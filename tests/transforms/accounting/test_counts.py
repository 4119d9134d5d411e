"""Counts of each stage, summed exactly, whatever a server reports."""

import collections
import decimal
from collections.abc import Callable
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.pvalue import TaggedOutput
from apache_beam.testing.util import assert_that
from apache_beam.transforms.window import GlobalWindow
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transforms import pipeline
from transforms.accounting.counts import (
    CountRecords,
    Counts,
    _CountRecordsDoFn,
    count_duplicates,
    emit_counts,
)
from transforms.records.records import DeadLetter, Record, Usage


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
    """Results count rows, calls, retries, waiting time, the ledger, tokens and cost."""
    counts = Counts()
    counts.add_result(
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
    counts.add_result(_result(from_ledger=True, attempts=0, input_tokens=5), throttled_ms=0)
    counts.add_result(_result(), throttled_ms=0)
    assert counts.by_name == {
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
    assert counts.error_types == {}
    assert counts.cost_usd == decimal.Decimal("0.000000120")


def test_dead_letters() -> None:
    """Failures are counted by type, with the calls and tokens that they cost."""
    counts = Counts()
    letter = DeadLetter(
        "infer", "truncated", "cut", attempts=2, throttled_ms=5, usage=Usage(10, 4, 2, 1)
    )
    counts.add_dead_letter({"cost_usd": "1.5"}, letter)
    counts.add_dead_letter({"cost_usd": "0.25"}, letter)
    counts.add_dead_letter({"cost_usd": None}, DeadLetter("read", "parse_error", "no JSON"))
    assert counts.by_name == {
        "dead_letters": 3,
        "requests_sent": 4,
        "retries": 2,
        "throttled_ms": 10,
        "input_tokens": 20,
        "cached_input_tokens": 8,
        "output_tokens": 4,
        "reasoning_tokens": 2,
    }
    assert counts.error_types == {"truncated": 2, "parse_error": 1}
    assert counts.cost_usd == decimal.Decimal("1.75")


def test_no_known_cost_is_none_and_not_zero() -> None:
    """A free call costs 0, and a call without a price has an unknown cost."""
    counts = Counts()
    counts.add_result(_result(), 0)
    assert counts.cost_usd is None
    assert Counts.total([counts, Counts()]).cost_usd is None
    counts.add_result(_result(cost_usd="0.000000000"), 0)
    assert counts.cost_usd == 0


@pytest.mark.parametrize("reported", ["12", 1.5, True, [1], {"a": 1}])
def test_tokens_that_are_not_counts(reported: Any) -> None:
    """Invalid token counts are ignored instead of failing every record of the bundle."""
    counts = Counts()
    letter = DeadLetter("infer", "truncated", "cut", usage=Usage(reported, 1, reported, None))
    counts.add_dead_letter({"cost_usd": None}, letter)
    assert counts.by_name["dead_letters"] == 1
    assert (counts.by_name["input_tokens"], counts.by_name["cached_input_tokens"]) == (0, 1)


TALLIES = st.builds(
    Counts,
    st.builds(dict, results=st.integers(0, 9), records=st.integers(0, 9)).map(collections.Counter),
    st.dictionaries(st.sampled_from(["internal", "timeout"]), st.integers(1, 9)).map(
        collections.Counter
    ),
    st.none() | st.decimals(0, 1000, places=9),
)


@settings(deadline=None)
@given(st.lists(TALLIES, max_size=6))
def test_total(counted: list[Counts]) -> None:
    """A total sums each count, each error type and the known costs, in any grouping."""
    total = Counts.total(counted)
    for name in ("results", "records"):
        assert total.by_name[name] == sum(counts.by_name[name] for counts in counted)
    for name in ("internal", "timeout"):
        assert total.error_types[name] == sum(counts.error_types[name] for counts in counted)
    known = [counts.cost_usd for counts in counted if counts.cost_usd is not None]
    assert total.cost_usd == (sum(known) if known else None)
    assert Counts.total([Counts.total(counted[:2]), Counts.total(counted[2:])]) == total


def test_total_does_not_change_its_parts() -> None:
    """A total leaves its parts unchanged, because Beam may pass them again."""
    counts = Counts()
    counts.add_result(_result(cost_usd="1"), 0)
    assert Counts.total([counts, counts]).by_name["results"] == 2
    assert counts.by_name["results"] == 1
    assert counts.cost_usd == 1


def test_emit_counts() -> None:
    """A bundle emits its sum as one tagged element at the end of the global window."""
    counts = Counts()
    tagged = emit_counts(counts)
    assert isinstance(tagged, TaggedOutput)
    assert tagged.tag == "counts"
    assert tagged.value.value is counts
    assert tagged.value.timestamp == GlobalWindow().max_timestamp()
    assert list(tagged.value.windows) == [GlobalWindow()]


@settings(deadline=None)
@given(st.lists(st.integers(0, 40).map(lambda n: n.to_bytes(8, "big")), max_size=60), st.data())
def test_count_duplicates(hashes: list[bytes], data: st.DataObject) -> None:
    """Duplicates equal a naive count, however the hashes are packed."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(hashes)), max_size=4)))
    edges = zip([0, *cuts], [*cuts, len(hashes)], strict=True)
    packed = [b"".join(hashes[start:end]) for start, end in edges]
    assert count_duplicates(packed) == len(hashes) - len(set(hashes))


def test_bundles_are_counted_separately() -> None:
    """A bundle's count and hashes leave with it, and the next one starts at zero."""
    dofn = _CountRecordsDoFn()
    hashes: list[tuple[int, bytes]] = []
    for ids, expected in ((["a", "b", "a"], 3), (["a"], 1), ([], 0)):
        dofn.start_bundle()
        for record_id in ids:
            dofn.process(Record(record_id, {}))
        finished: list[Any] = list(dofn.finish_bundle())
        counts, *rest = finished
        assert counts.tag == "counts"
        assert counts.value.value.by_name["records"] == expected
        assert sum(len(element.value[1]) for element in rest) == 8 * expected
        hashes += [element.value for element in rest]
    partitions = {partition for partition, _ in hashes}
    assert partitions <= set(range(64))
    assert count_duplicates([packed for _, packed in hashes]) == 2
    by_hash = {packed[at : at + 8]: n for n, packed in hashes for at in range(0, len(packed), 8)}
    assert len(by_hash) == 2


def _counts(counted: list[Counts]) -> dict[str, int]:
    return {name: count for name, count in Counts.total(counted).by_name.items() if count}


def _is(expected: dict[str, int]) -> Callable[[list[Counts]], None]:
    def check(counted: list[Counts]) -> None:
        assert _counts(counted) == expected

    return check


@pytest.mark.parametrize(
    "arguments", [(), ("--direct_num_workers=4", "--direct_running_mode=multi_threading")]
)
def test_counts_records(arguments: tuple[str, ...]) -> None:
    """Records are read plus unread ones; ids are compared across bundles."""
    ids = [str(n) for n in range(200)] + ["7"] * 3 + ["8", "é", "é", ""]
    letter = DeadLetter("read", "parse_error", "no JSON")
    with pipeline(*arguments) as root:
        records = root | "R" >> beam.Create([Record(n, {}) for n in ids]) | beam.Reshuffle()
        more = root | "M" >> beam.Create([Record("7", {}), Record("new", {})])
        unread = root | "U" >> beam.Create([letter] * 5)
        everything = (records, more) | beam.Flatten()
        counted = (everything, unread) | CountRecords()
        assert_that(counted, _is({"records": 214, "duplicate_ids": 6}))


def test_counts_records_without_input() -> None:
    """Without input all counts are zero."""
    with pipeline() as root:
        records = root | "R" >> beam.Create([]).with_output_types(Record)
        unread = root | "U" >> beam.Create([]).with_output_types(DeadLetter)
        assert_that((records, unread) | CountRecords(), _is({}))
