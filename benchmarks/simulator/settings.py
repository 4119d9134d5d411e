"""The simulator's settings: at the start, by a schedule, or while it runs.

Every setting can be written as on the command line (``"503:0.05"``) or as JSON
(``{"503": 0.05}``); one table, ``_PARSERS``, reads both.
"""

import functools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

_NORMAL = NormalDist()
_P99 = _NORMAL.inv_cdf(0.99)

SOFT_FAULTS = ("reset", "hang", "malformed", "poison")
"""Faults that are not a status; every other name in ``faults`` is an HTTP status of 400 to 599."""

OUTAGE_KINDS = ("refuse", "503", "reset", "hang")


@dataclass(frozen=True, slots=True)
class Distribution:
    """A distribution of one number, defined by its inverse.

    Attributes:
        kind: ``constant``, ``uniform`` or ``lognormal``.
        low: The constant, the lower end, or the median.
        high: The constant, the upper end, or the 99th percentile.

    Examples:
        >>> Distribution.parse("constant:0.2").at(0.9)
        0.2
        >>> Distribution.parse("uniform:1,3").at(0.25)
        1.5
        >>> spread = Distribution.parse("lognormal:2,10")
        >>> round(spread.at(0.5), 6), round(spread.at(0.99), 6)
        (2.0, 10.0)
    """

    kind: str = "constant"
    low: float = 0.0
    high: float = 0.0

    def __post_init__(self) -> None:
        """Rejects a distribution without an inverse."""
        least = 0.0 if self.kind != "lognormal" else math.ulp(0.0)
        if not least <= self.low <= self.high < math.inf:
            raise ValueError(f"{self}: expected 0 <= low <= high, above 0 for a lognormal")

    @classmethod
    def parse(cls, given: Any) -> "Distribution":
        """A distribution from ``KIND:NUMBERS``, or a constant from a number.

        Raises:
            ValueError: Another kind, or another number of parameters.
        """
        if isinstance(given, Distribution):
            return given
        kind, _, rest = str(given).rpartition(":")
        numbers = [float(number) for number in rest.split(",")]
        if kind in ("", "constant") and len(numbers) == 1:
            return cls("constant", numbers[0], numbers[0])
        if kind in ("uniform", "lognormal") and len(numbers) == 2:
            return cls(kind, *numbers)
        raise ValueError(f"{given!r}: expected constant:X, uniform:A,B or lognormal:MEDIAN,P99")

    def at(self, u: float) -> float:
        """The value below which the share ``u`` lies; ``u`` is above 0 and below 1."""
        if self.low == self.high:
            return self.low
        if self.kind == "uniform":
            return self.low + u * (self.high - self.low)
        return float(self.low * (self.high / self.low) ** (_NORMAL.inv_cdf(u) / _P99))


@dataclass(frozen=True, slots=True)
class Change:
    """Settings that take effect at a time after the first call.

    Attributes:
        at_s: Seconds since the first call.
        values: Parsed settings by name; ``outage`` among them is its length in seconds.
    """

    at_s: float
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings; ``parse`` builds one from text.

    Attributes:
        seed: Another seed changes the fate of every record.
        latency: Seconds that a call takes once it is being served.
        slots: Calls served at once, while others wait first in, first out; 0 is no limit.
        max_queue: Calls that may wait; -1 is no limit.
        overflow: The status that refuses a call beyond ``max_queue``: 429 or 503.
        requests_per_s: Quota of requests; 0 is none.
        tokens_per_minute: Quota of prompt and answer tokens; 0 is none.
        burst_s: Seconds of quota that an idle server saves up; the buckets begin full.
        reject_latency_s: Seconds before a refusal or an error is answered.
        retry_after: Seconds that ``Retry-After`` names on 429 and 503; ``auto`` until quota is
            there again, in whole seconds; None omits the header.
        schedule: Changes by time since the first call.
        outage_kind: What happens to calls in an outage; see ``OUTAGE_KINDS``.
        faults: Probability by name of fault; ``poison`` is drawn per record, others per call.
        api_key: The key every call must carry; None accepts any or none.
        models: The models served; empty serves every name.
        output_tokens: Tokens that an answer reports; its text does not grow with them.
        answer: Text of every answer; ``{id}`` stands for the record's id.
    """

    seed: int = 0
    latency: Distribution = Distribution()
    slots: int = 0
    max_queue: int = -1
    overflow: int = 429
    requests_per_s: float = 0.0
    tokens_per_minute: float = 0.0
    burst_s: float = 1.0
    reject_latency_s: float = 0.005
    retry_after: float | str | None = None
    schedule: tuple[Change, ...] = ()
    outage_kind: str = "503"
    faults: tuple[tuple[str, float], ...] = ()
    api_key: str | None = None
    models: tuple[str, ...] = ()
    output_tokens: Distribution = Distribution("constant", 8.0, 8.0)
    answer: str = "answer to record {id}"

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> "Settings":
        """Settings from text or JSON values by name; others have their defaults.

        ``outage`` is here ``START,DURATION``, in seconds since the first call.

        Raises:
            ValueError: An unknown name or an invalid value; the message holds it.

        Examples:
            >>> Settings.parse({"slots": "4", "faults": "503:0.05"}).faults
            (('503', 0.05),)
        """
        values = dict(given)
        outage, changes = values.pop("outage", None), _schedule(values.pop("schedule", None))
        if outage is not None:
            start_s, duration_s = (float(number) for number in str(outage).split(","))
            changes = (*changes, Change(start_s, parse_change({"outage": duration_s})))
        ordered = tuple(sorted(changes, key=lambda change: change.at_s))
        return cls(schedule=ordered, **{name: _parse(name, values[name]) for name in values})

    def changed(self, values: Mapping[str, Any]) -> "Settings":
        """These settings with some parsed ones replaced; ``outage`` is not a setting."""
        return replace(self, **{name: values[name] for name in values if name != "outage"})


def parse_change(given: Mapping[str, Any]) -> dict[str, Any]:
    """Reads settings that may change while the server runs.

    Args:
        given: Text or JSON values by name. ``outage`` is the length in seconds of an outage that
            begins now; 0 ends one.

    Raises:
        ValueError: A name that may not change, or an invalid value.
    """
    fixed = [name for name in given if name not in _PARSERS or name == "seed"]
    if fixed:
        raise ValueError(f"{fixed[0]!r} cannot change: {', '.join(sorted(_PARSERS))} can")
    return {name: _parse(name, value) for name, value in given.items()}


def _parse(name: str, value: Any) -> Any:
    if name not in _PARSERS:
        raise ValueError(f"{name!r} is not a setting")
    try:
        return _PARSERS[name](value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}={value!r}: {error}") from None


def _schedule(given: Any) -> tuple[Change, ...]:
    rows = json.loads(given) if isinstance(given, str) else given or ()
    changes = []
    for row in rows:
        if isinstance(row, Change):
            changes.append(row)
        else:
            values = {name: value for name, value in row.items() if name != "at_s"}
            changes.append(Change(_number(row["at_s"]), parse_change(values)))
    return tuple(changes)


def _number(value: Any) -> float:
    number = float(value)
    if not 0 <= number < math.inf:
        raise ValueError("expected a number, at least 0")
    return number


def _whole(value: Any, least: int = 0) -> int:
    if int(value) != float(value) or int(value) < least:
        raise ValueError(f"expected a whole number, at least {least}")
    return int(value)


def _one_of(names: tuple[Any, ...], value: Any) -> Any:
    """The name that is spelled like the value."""
    for name in names:
        if str(name) == str(value):
            return name
    raise ValueError(f"expected one of {', '.join(map(str, names))}")


def _retry_after(value: Any) -> float | str | None:
    return value if value in (None, "auto") else _number(value)


def _faults(value: Any) -> tuple[tuple[str, float], ...]:
    if isinstance(value, str):
        value = dict(part.split(":", 1) for part in value.split(",") if part)
    rates = {str(name).strip(): _number(rate) for name, rate in dict(value).items()}
    for name in rates:
        if name not in SOFT_FAULTS and not (name.isdecimal() and 400 <= int(name) <= 599):
            raise ValueError(f"{name!r} is not a fault: use a status, or {', '.join(SOFT_FAULTS)}")
    if sum(rate for name, rate in rates.items() if name != "poison") > 1:
        raise ValueError("the probabilities of faults exceed 1")
    return tuple(sorted(rates.items()))


def _models(value: Any) -> tuple[str, ...]:
    return tuple(value.split(",")) if isinstance(value, str) else tuple(value or ())


_PARSERS: dict[str, Callable[[Any], Any]] = {
    "seed": int,
    "latency": Distribution.parse,
    "slots": _whole,
    "max_queue": functools.partial(_whole, least=-1),
    "overflow": functools.partial(_one_of, (429, 503)),
    "requests_per_s": _number,
    "tokens_per_minute": _number,
    "burst_s": _number,
    "reject_latency_s": _number,
    "retry_after": _retry_after,
    "outage": _number,
    "outage_kind": functools.partial(_one_of, OUTAGE_KINDS),
    "faults": _faults,
    "api_key": lambda value: None if value is None else str(value),
    "models": _models,
    "output_tokens": Distribution.parse,
    "answer": str,
}
