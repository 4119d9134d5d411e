"""The fate of a call: pure functions of the settings, the record's id and the attempt.

Nothing here depends on time, on the order of calls or on the client, so a benchmark can find out
beforehand which fault each record will meet.
"""

import hashlib

from benchmarks.simulator.settings import Settings


def uniform(seed: int, *parts: object) -> float:
    """A number above 0 and below 1, determined by the seed and the parts.

    Examples:
        >>> uniform(1, "7", "latency") == uniform(1, "7", "latency")
        True
        >>> uniform(1, "7", "latency") == uniform(2, "7", "latency")
        False
    """
    text = "\0".join(map(str, (seed, *parts)))
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=6).digest()
    return (int.from_bytes(digest, "big") + 0.5) / (1 << 48)


def service_time_s(settings: Settings, record_id: str) -> float:
    """Seconds that any call of a record takes once it is being served."""
    latency = settings.latency
    if latency.low == latency.high:
        return latency.low
    return latency.at(uniform(settings.seed, record_id, "latency"))


def output_tokens(settings: Settings, record_id: str) -> int:
    """The reported number of tokens of a record's answer: at least 1."""
    length = settings.output_tokens
    if length.low == length.high:
        return max(1, round(length.low))
    return max(1, round(length.at(uniform(settings.seed, record_id, "output_tokens"))))


def is_poison(settings: Settings, record_id: str) -> bool:
    """Whether every call of a record is answered 400.

    A record that is poison at one rate is poison at every higher one.
    """
    for name, rate in settings.faults:
        if name == "poison":
            return uniform(settings.seed, record_id, "poison") < rate
    return False


def fault_of(settings: Settings, record_id: str, attempt: int) -> str | None:
    """The fault of one call.

    Args:
        settings: Their ``faults`` are exact probabilities: a call has at most one.
        record_id: The record.
        attempt: 1 for the first call of the record.

    Returns:
        ``poison`` whatever the attempt, else ``reset``, ``hang``, ``malformed``, an HTTP status as
        text, or None.
    """
    if not settings.faults:
        return None
    if is_poison(settings, record_id):
        return "poison"
    u = uniform(settings.seed, record_id, attempt, "fault")
    for name, rate in settings.faults:
        if name == "poison":
            continue
        if u < rate:
            return name
        u -= rate
    return None
