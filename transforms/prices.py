"""List prices of tokens, from the maintained tables of ``genai-prices``.

They are list prices for online calls at the time of the run: no discounts, no negotiated rates, no
tax. A model that the tables do not know has no price, rather than a guessed one.
"""

import dataclasses
import datetime as dt
import decimal
import functools

from transforms.records import NO_USAGE, Usage

_PLACES = decimal.Decimal("0.000000001")
"""BigQuery's NUMERIC has nine decimal places."""


@dataclasses.dataclass(frozen=True, slots=True)
class TokenPrices:
    """Prices the tokens of one model.

    Attributes:
      provider: ``genai-prices``' name of the provider; None when there is no list price.
      model: The model's name.
    """

    provider: str | None
    model: str

    def __call__(self, usage: Usage) -> str | None:
        """US dollars as a decimal string; None when the price is not known."""
        if self.provider is None or usage == NO_USAGE or not _is_countable(usage):
            return None
        if not _known(self.provider, self.model):
            return None
        return _price(self.provider, self.model, usage)


def _is_countable(usage: Usage) -> bool:
    """Whether the figures can be tokens at all: a server may report anything."""
    counts = (
        usage.input_tokens,
        usage.cached_input_tokens,
        usage.output_tokens,
        usage.reasoning_tokens,
    )
    return all(count is None or (type(count) is int and 0 <= count < 2**63) for count in counts)


@functools.cache
def _known(provider: str, model: str) -> bool:
    return _price(provider, model, Usage(1, 0, 1, 0)) is not None


@functools.lru_cache(maxsize=65_536)
def _price(provider: str, model: str, usage: Usage) -> str | None:
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
        )
    except (LookupError, ValueError):
        return None
    return format(price.total_price.quantize(_PLACES), "f")
