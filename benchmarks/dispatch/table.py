"""The section of ``RESULTS.md``; a run of some scenarios keeps the lines of the others."""

from collections.abc import Mapping, Sequence

from benchmarks.dispatch.scenarios import Check

HEAD = ["| Scenario | | Goal | Measured | | Day |", "|---|---|---|---|---|---|"]
TITLE = "Dispatch"


def rows(name: str, checks: Sequence[Check], day: str) -> list[str]:
    """The lines of one scenario.

    Examples:
        >>> rows("quota_50", [Check("429s", "≤ 3 %", "1 %", True)], "2026-11-21")
        ['| `quota_50` | 429s | ≤ 3 % | 1 % | met | 2026-11-21 |']
    """
    verdicts = {True: "met", False: "**missed**", None: ""}
    return [
        f"| `{name}` | {check.what} | {check.goal} | {check.measured} | {verdicts[check.kept]} "
        f"| {day} |"
        for check in checks
    ]


def section_of(text: str) -> list[str]:
    """The lines of this section in a whole ``RESULTS.md``; empty without the section."""
    lines = text.splitlines()
    if f"## {TITLE}" not in lines:
        return []
    after = lines[lines.index(f"## {TITLE}") + 1 :]
    ends = (number for number, line in enumerate(after) if line.startswith("## "))
    return after[: next(ends, len(after))]


def merged(
    earlier: Sequence[str], made: Mapping[str, Sequence[str]], order: Sequence[str]
) -> list[str]:
    """All lines of the table: the new ones, and earlier ones of other scenarios.

    Examples:
        >>> merged(["| `a` | 1 |", "| `b` | 1 |"], {"b": ["| `b` | 2 |"]}, ["a", "b", "c"])
        ['| `a` | 1 |', '| `b` | 2 |']
    """
    kept: list[str] = []
    for name in order:
        if name in made:
            kept += made[name]
        else:
            kept += [line for line in earlier if line.startswith(f"| `{name}` |")]
    return kept
