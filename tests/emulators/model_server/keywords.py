"""Chooses the label that a text is about, by counting related words.

This does not prove anything about classification. It makes a demo look plausible and is
deterministic; a model would disagree with it.
"""

import functools
import re
import zlib
from collections.abc import Sequence

RELATED = {
    "billing": "invoice bill charg refund pay price card subscription overcharg receipt fee",
    "payment": "pay charg card declin transaction",
    "shipping": "deliver package parcel courier tracking shipp arriv shipment transit",
    "delivery": "deliver package parcel courier tracking shipp arriv",
    "technical": "error crash bug broken app website slow fail install update freez screen 500",
    "bug": "error crash broken fail wrong exception",
    "account": "password login log sign username profile locked 2fa email verif",
    "refund": "refund money return reimburs",
    "feature": "feature suggest wish add improv",
    "spam": "winner prize click viagra lottery free",
    "urgent": "urgent immediate asap emergency outage down production now critical",
    "critical": "urgent immediate emergency outage down production security breach",
    "high": "cannot can't blocked broken locked fail lost wrong crash",
    "low": "question wonder suggest curious whenever rush typo minor someday",
    "positive": "thank great love happy excellent perfect good wonderful amazing best",
    "negative": "angry terribl disappoint frustrat unacceptable wrong broken worst awful bad twice"
    " never cannot fail lost damag",
    "angry": "angry furious unacceptable ridiculous worst",
    "human": "human agent person call lawyer manager",
    "escalate": "lawyer manager urgent unacceptable complaint",
}
"""Beginnings of words that point to a label."""

STRONG = {"urgent": 3, "critical": 3}
"""Labels whose words outweigh several of a milder one."""

NEUTRAL = ("other", "normal", "medium", "neutral", "unknown", "none", "general", "misc")
"""Labels for a text that points to no other, in order of preference."""


def words(label: str) -> list[str]:
    """The lower-case words of a label: ``needsHuman`` and ``needs_human`` both have two."""
    spaced = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", label)
    return re.findall(r"[a-z0-9]+", spaced.lower())


@functools.lru_cache(maxsize=1024)
def _patterns(label: str) -> tuple[re.Pattern[str] | None, re.Pattern[str]]:
    parts = words(label)
    related = [stem for part in parts for stem in RELATED.get(part, "").split()]
    own = "|".join(map(re.escape, parts)) or r"(?!)"
    beginnings = "|".join(map(re.escape, related))
    pattern = re.compile(rf"\b(?:{beginnings})") if related else None
    return pattern, re.compile(rf"\b(?:{own})")


def score(label: str, text: str, *, by_name: bool = True) -> int:
    """Two points (or more, see STRONG) per different related word; the label itself counts 1.

    Args:
        label: A label such as ``billing`` or ``needs_human``.
        text: Text in lower case.
        by_name: Whether the label's own words count.
    """
    related, own = _patterns(label)
    weight = 2 * max(STRONG.get(part, 1) for part in words(label) or [""])
    hits = weight * len(set(related.findall(text))) if related else 0
    return hits + (1 if by_name and own.search(text) else 0)


def choose(labels: Sequence[str], text: str) -> str:
    """The label with the best score, else a neutral one, else one by a hash of the text.

    An instruction such as "one of billing, shipping, other" names every label and so points to
    none: if more than half of the labels are named, names do not count.

    Examples:
        >>> choose(["billing", "shipping"], "Where is my parcel?")
        'shipping'
    """
    lowered = text.lower()
    named = sum(1 for label in labels if _patterns(label)[1].search(lowered))
    by_name = len(labels) == 1 or named * 2 <= len(labels)
    scores = [score(label, lowered, by_name=by_name) for label in labels]
    if max(scores) > 0:
        return labels[scores.index(max(scores))]
    for neutral in NEUTRAL:
        for label in labels:
            if label.lower() == neutral:
                return label
    return labels[zlib.crc32(text.encode("utf-8", "surrogatepass")) % len(labels)]
