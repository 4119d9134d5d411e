"""List prices of tokens, from the maintained tables of ``genai-prices``.

They are list prices for online calls at the time of the run, for the service tier that was served,
without discounts, negotiated rates and taxes. A model or tier that the tables do not know has no
price, rather than a guessed one.
"""

import dataclasses
import datetime as dt
import decimal
import functools
from typing import Any

from transforms.records.records import NO_USAGE, Json, Usage

_PLACES = decimal.Decimal("0.000000001")
"""BigQuery's NUMERIC has nine decimal places."""
_STANDARD = "standard"
_TIERS = {
    None: _STANDARD,
    "default": _STANDARD,
    "auto": _STANDARD,
    "ON_DEMAND": _STANDARD,
    "TRAFFIC_TYPE_UNSPECIFIED": _STANDARD,
    "ON_DEMAND_FLEX": "flex",
    "ON_DEMAND_PRIORITY": "priority",
}
"""Servers' names of tiers and the tables' names of them; a tier without an entry keeps its name."""


@dataclasses.dataclass(frozen=True, slots=True)
class TokenPrices:
    """Prices the tokens of one model.

    Attributes:
      provider: The provider's name in ``genai-prices``; None if there is no list price.
      model: The model's name.
    """

    provider: str | None
    model: str

    def __call__(self, usage: Usage, service_tier: Json = None) -> str | None:
        """US dollars as a decimal string; None if the price is unknown.

        Args:
          usage: The tokens.
          service_tier: The tier that the server says it charged for; None is the standard tier.
            Tokens of provisioned throughput have no price: it is paid by the hour.
        """
        if service_tier is not None and not isinstance(service_tier, str):
            return None
        if self.provider is None or usage == NO_USAGE or not _is_countable(usage):
            return None
        if not _known(self.provider, self.model):
            return None
        tier = _TIERS.get(service_tier) or str(service_tier)
        return _price(self.provider, self.model, usage, tier)


def _is_countable(usage: Usage) -> bool:
    """Whether the values can be token counts at all: a server may report anything."""
    counts = (
        usage.input_tokens,
        usage.cached_input_tokens,
        usage.output_tokens,
        usage.reasoning_tokens,
    )
    return all(count is None or (type(count) is int and 0 <= count < 2**63) for count in counts)


@functools.cache
def _known(provider: str, model: str) -> bool:
    return _price(provider, model, Usage(1, 0, 1, 0), _STANDARD) is not None


@functools.lru_cache(maxsize=65_536)
def _price(provider: str, model: str, usage: Usage, tier: str) -> str | None:
    import genai_prices

    counts = genai_prices.Usage(
        input_tokens=usage.input_tokens or 0,
        cache_read_tokens=usage.cached_input_tokens or 0,
        output_tokens=(usage.output_tokens or 0) + (usage.reasoning_tokens or 0),
    )
    try:
        price = genai_prices.calc_price(
            counts,
            model_ref=model,
            provider_id=provider,
            genai_request_timestamp=dt.datetime.now(dt.timezone.utc),
            price_context=None if tier == _STANDARD else {"service_tier": tier},
        )
    except (LookupError, ValueError):
        return None
    dollars = price.total_price
    if tier != _STANDARD and not _has_price(price.model, tier):
        if (provider, tier) != ("google", "flex"):
            return None
        dollars /= 2  # cloud.google.com/vertex-ai/generative-ai/docs/flex-paygo: a 50% discount
    return format(dollars.quantize(_PLACES), "f")


def _has_price(model: Any, tier: str) -> bool:
    """Whether the tables price a tier of a model today; else they would use the standard price."""
    now = dt.datetime.now(dt.timezone.utc)
    return any(
        variant.when == {"service_tier": tier}
        and (variant.constraint is None or variant.constraint.active(now))
        for variant in model.price_variants or ()
    )
