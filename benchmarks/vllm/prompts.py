"""The requests to the server."""

import random
from typing import Any

POISON_TOKENS = 4000
NATURAL: dict[str, Any] = {"max_tokens": 128, "min_tokens": 8, "logit_bias": {"2": 3.9}}
"""One token in sixteen is part of a character: a few of those only would be an answer without text."""
HEAD_TOKENS = 256
_WORDS = ("product", "review", "price", "total", "name", "city", "label", "date")


def requests_of(tag: str, count: int, lengths: str, poison: float = 0.0) -> list[dict[str, Any]]:
    """Whole requests; ``natural`` ones end by themselves, ``uniform`` ones after 4 to 128 tokens.

    A model of random weights would hardly ever end: a bias makes it end after 40 tokens on average.
    """
    chance = random.Random(0)
    made: list[dict[str, Any]] = []
    for number in range(count):
        prompt = f"{tag} {number}: classify the review of product {chance.randrange(10**6)}"
        request: dict[str, Any] = {"prompt": prompt, **NATURAL}
        if lengths == "uniform":
            request = {"prompt": prompt, "max_tokens": chance.randint(4, 128), "ignore_eos": True}
        if chance.random() < poison:
            request["prompt"] = "word " * POISON_TOKENS if number % 2 else ""
        made.append(request)
    return made


def is_poison(request: dict[str, Any]) -> bool:
    """Whether it is empty, or longer than the model's context."""
    return not request["prompt"] or len(request["prompt"]) > POISON_TOKENS


def prefixed(tag: str, count: int, heads: int) -> list[dict[str, Any]]:
    """So many beginnings of about `HEAD_TOKENS`, shuffled; the same for every tag but for the tag."""
    chance = random.Random(1)
    begins = [f"{tag} {n} " + " ".join(chance.choices(_WORDS, k=HEAD_TOKENS)) for n in range(heads)]
    asks = [f"{begins[n % heads]} question {n}" for n in range(count)]
    chance.shuffle(asks)
    return [{"prompt": ask, "max_tokens": 8, "ignore_eos": True} for ask in asks]
