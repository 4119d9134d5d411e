"""The counts of a sink's bundle, as a whole or by minute."""

from transforms.accounting.minute_counts import BundleCounts


def _outputs(tallies: BundleCounts) -> list[tuple[str, int | None, int]]:
    found = []
    for output in tallies.emit():
        value = output.value.value
        minute, tally = (None, value) if output.tag == "tally" else value
        found.append((output.tag, minute, tally.counts["results"]))
    return found


def test_one_sum_of_a_bounded_input() -> None:
    """Minutes do not matter."""
    tallies = BundleCounts(by_minute=False)
    for minute in (None, 7, 8):
        tallies.of(minute).counts["results"] += 1
    assert _outputs(tallies) == [("tally", None, 3)]


def test_one_sum_per_minute_of_a_stream() -> None:
    """A record without a minute counts under 0; a bundle without records emits nothing."""
    tallies = BundleCounts(by_minute=True)
    assert _outputs(tallies) == []
    for minute in (None, 7, 8, 7):
        tallies.of(minute).counts["results"] += 1
    assert _outputs(tallies) == [("minutes", 0, 1), ("minutes", 7, 2), ("minutes", 8, 1)]
    assert _outputs(tallies) == []
