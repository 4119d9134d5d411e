"""The counts of a sink's bundle, as a whole or by minute."""

from transforms.accounting.minute_counts import BundleCounts


def _outputs(counted: BundleCounts) -> list[tuple[str, int | None, int]]:
    found = []
    for output in counted.emit():
        value = output.value.value
        minute, counts = (None, value) if output.tag == "counts" else value
        found.append((output.tag, minute, counts.by_name["results"]))
    return found


def test_one_sum_of_a_bounded_input() -> None:
    """A bounded input has one sum, whatever the minutes."""
    counted = BundleCounts(by_minute=False)
    for minute in (None, 7, 8):
        counted.of(minute).by_name["results"] += 1
    assert _outputs(counted) == [("counts", None, 3)]


def test_one_sum_per_minute_of_a_stream() -> None:
    """A record without a minute counts under 0; a bundle without records emits nothing."""
    counted = BundleCounts(by_minute=True)
    assert _outputs(counted) == []
    for minute in (None, 7, 8, 7):
        counted.of(minute).by_name["results"] += 1
    assert _outputs(counted) == [("minutes", 0, 1), ("minutes", 7, 2), ("minutes", 8, 1)]
    assert _outputs(counted) == []
