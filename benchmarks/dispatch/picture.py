"""A run on a changing quota as an SVG, drawn by hand: two panels over one axis of time."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.simulator.log import Step

WIDTH, LEFT, RIGHT = 960, 70, 20
TOPS = (70, 350)
HEIGHT = 220
TOTAL = 620
FONT = "font-family='Helvetica,Arial,sans-serif'"

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Sample:
    """The pipeline's own gauges at one moment.

    Attributes:
        at_s: Seconds since the simulator's first call.
        limit: Calls that may be in flight.
        rate_per_s: Calls per second, as learnt from refusals; None before the first.
    """

    at_s: float
    limit: int
    rate_per_s: float | None


@dataclass(frozen=True, slots=True)
class Line:
    """One curve of a panel."""

    name: str
    color: str
    points: Points
    dashes: str = ""


def read_samples(path: Path, origin_s: float) -> list[Sample]:
    """The samples that ``sampled`` wrote, from the simulator's first call on."""
    samples = []
    for text in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(text)
        if row["at_s"] < origin_s or "concurrency_limit" not in row:
            continue
        rate = row.get("rate_limit_per_minute")
        limit = row["concurrency_limit"]
        samples.append(Sample(row["at_s"] - origin_s, limit, rate / 60 if rate else None))
    return samples


def draw(
    steps: Sequence[Step],
    samples: Sequence[Sample],
    quotas: Sequence[tuple[float, float]],
    end_s: float,
) -> str:
    """The picture.

    Args:
        steps: The simulator's log in steps of a second.
        samples: The pipeline's gauges.
        quotas: The start of each quota, and the quota.
        end_s: The end of the axis, from which the quota is no longer used up.
    """
    steps = [step for step in steps if step.at_s + 1 <= end_s]
    samples = [sample for sample in samples if sample.at_s <= end_s]
    held = [(start, float(level)) for start, level in quotas]
    corners = [
        p
        for (s, a), (e, _) in zip(held, [*held[1:], (end_s, 0.0)], strict=True)
        for p in ((s, a), (e, a))
    ]
    middle = [(step.at_s + 0.5, step) for step in steps]
    rates = [(s.at_s, s.rate_per_s) for s in samples if s.rate_per_s is not None]
    above = [
        Line("quota of the server", "#888888", corners, "7 4"),
        Line("rate limit, as learnt", "#d98200", rates),
        Line("goodput", "#1b7f3b", [(at, float(step.successes)) for at, step in middle]),
        Line("429s", "#c62828", [(at, float(step.refused)) for at, step in middle]),
    ]
    below = [
        Line("limit of calls in flight", "#5e35b1", [(s.at_s, float(s.limit)) for s in samples]),
        Line("in flight", "#1565c0", [(at, step.in_service + step.queued) for at, step in middle]),
    ]
    most = 1.5 * max(level for _, level in held)
    parts = [
        (
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {TOTAL}' "
            f"width='{WIDTH}' height='{TOTAL}'>"
        ),
        f"<rect width='{WIDTH}' height='{TOTAL}' fill='#ffffff'/>",
        _text(LEFT, 26, "A quota that halves and returns, unknown to the pipeline", 17),
        *_panel(TOPS[0], "calls per second", above, most, end_s),
        *_panel(TOPS[1], "calls", below, _most(below), end_s),
        _text((LEFT + WIDTH - RIGHT) / 2, TOTAL - 8, "seconds since the first call", 13, "middle"),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def ticks(most: float, about: int = 5) -> list[float]:
    """Round numbers from 0 to at most `most`.

    Examples:
        >>> ticks(300)
        [0.0, 50.0, 100.0, 150.0, 200.0, 250.0, 300.0]
        >>> ticks(0.9)
        [0.0, 0.2, 0.4, 0.6, 0.8]
    """
    size = 10.0 ** math.floor(math.log10(most / about))
    step = min(
        (size * factor for factor in (1, 2, 5, 10)), key=lambda step: abs(most / step - about)
    )
    return [round(step * n, 10) for n in range(math.floor(most / step + 1e-9) + 1)]


def _most(lines: Iterable[Line]) -> float:
    return 1.1 * max((y for line in lines for _, y in line.points), default=1.0)


def _panel(top: int, unit: str, lines: Sequence[Line], most: float, end_s: float) -> list[str]:
    def x(at_s: float) -> float:
        return LEFT + at_s / end_s * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return top + HEIGHT * (1 - min(value, most) / most)

    parts = []
    for tick in ticks(most):
        parts.append(_rule(LEFT, y(tick), WIDTH - RIGHT, y(tick)))
        parts.append(_text(LEFT - 8, y(tick) + 4, f"{tick:g}", 12, "end"))
    for tick in ticks(end_s, 9):
        parts.append(_rule(x(tick), top, x(tick), top + HEIGHT))
        parts.append(_text(x(tick), top + HEIGHT + 17, f"{tick:g}", 12, "middle"))
    for line in lines:
        drawn = " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in line.points)
        parts.append(f"<polyline points='{drawn}' {_stroke(line)}/>")
    parts.append(_text(LEFT, top - 10, unit, 13))
    at = float(LEFT + 140)
    for line in lines:
        parts.append(
            f"<line x1='{at:.0f}' y1='{top - 14}' x2='{at + 26:.0f}' y2='{top - 14}' "
            f"{_stroke(line)}/>"
        )
        parts.append(_text(at + 32, top - 10, line.name, 13))
        at += 60 + 7.5 * len(line.name)
    return parts


def _stroke(line: Line) -> str:
    dashes = f" stroke-dasharray='{line.dashes}'" if line.dashes else ""
    return f"fill='none' stroke='{line.color}' stroke-width='1.8'{dashes}"


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return (
        f"<line x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}' stroke='#dddddd' "
        "stroke-width='1'/>"
    )


def _text(x: float, y: float, text: str, size: int, anchor: str = "start") -> str:
    return (
        f"<text x='{x:.0f}' y='{y:.0f}' {FONT} font-size='{size}' fill='#222222' "
        f"text-anchor='{anchor}'>{text}</text>"
    )
