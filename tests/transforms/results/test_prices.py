"""List prices: linear in the tokens, absent if unknown, never a failure."""

import dataclasses
import decimal
import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transforms import JSON_VALUES
from transforms.records.records import NO_USAGE, Usage
from transforms.results.prices import TokenPrices
from transforms.results.rows import Column, encode_row

FLASH = TokenPrices("google", "gemini-2.5-flash")
ANYTHING = JSON_VALUES | st.floats() | st.text()


def _dollars(prices: TokenPrices, *counts: int | None) -> decimal.Decimal:
    price = prices(Usage(*counts))
    assert price is not None
    return decimal.Decimal(price)


def test_list_price() -> None:
    """Gemini 2.5 Flash costs 0.30 and 2.50 dollars per million tokens, 0.03 for cached ones."""
    assert FLASH(Usage(1_000_000, 0, 0, 0)) == "0.300000000"
    assert FLASH(Usage(0, 0, 1_000_000, 0)) == "2.500000000"
    assert FLASH(Usage(1_000_000, 1_000_000, 0, 0)) == "0.030000000"
    assert FLASH(Usage(1, 0, 0, 0)) == "0.000000300"


def test_reasoning_is_billed_as_output() -> None:
    """Thinking tokens cost the same as the answer's."""
    assert _dollars(FLASH, 0, 0, 10, 5) == _dollars(FLASH, 0, 0, 15, 0)
    assert _dollars(FLASH, 0, 0, None, 15) == _dollars(FLASH, 0, 0, 15, None)


def test_unknown_counts_cost_nothing() -> None:
    """Counts that the server omits, such as an embedding's output, are not billed."""
    assert _dollars(FLASH, 100) == _dollars(FLASH, 100, 0, 0, 0)
    assert _dollars(TokenPrices("google", "gemini-embedding-001"), 1_000) > 0


@pytest.mark.parametrize(
    "prices",
    [
        TokenPrices(None, "gemini-2.5-flash"),
        TokenPrices("google", "no-such-model-at-all"),
        TokenPrices("no-such-provider", "gemini-2.5-flash"),
        TokenPrices("google", ""),
    ],
)
def test_no_price(prices: TokenPrices) -> None:
    """Models that the tables lack have no price."""
    assert prices(Usage(1_000, 0, 1_000, 0)) is None


def test_no_usage_has_no_price() -> None:
    """Usage without counts has no price: the call may not have been free."""
    assert FLASH(NO_USAGE) is None
    assert FLASH(Usage(0, 0, 0, 0)) == "0.000000000"


@pytest.mark.parametrize(
    "usage",
    [
        Usage(-1),
        Usage(2**63),
        Usage(10**30),
        Usage(1, 0, 10**400),
        Usage(10, 100),
        Usage("12"),  # type: ignore[arg-type]
        Usage(1.5),  # type: ignore[arg-type]
        Usage(True),
        Usage([1]),  # type: ignore[arg-type]
        Usage(1, 0, {"a": 1}),  # type: ignore[arg-type]
    ],
)
def test_invalid_token_counts(usage: Usage) -> None:
    """Invalid token counts have no price and raise no error."""
    assert FLASH(usage) is None


@settings(deadline=None)
@given(
    st.builds(Usage, *[st.none() | st.integers(0, 10**7)] * 4),
    st.builds(Usage, ANYTHING, ANYTHING, ANYTHING, ANYTHING),
)
def test_a_price_always_fits_its_column(counted: Usage, reported: Usage) -> None:
    """Any price is None or a decimal string that every sink can hold."""
    for usage in (counted, reported):
        price = FLASH(usage)
        encode_row({"cost_usd": price}, (Column("cost_usd", "NUMERIC"),))
        assert price is None or decimal.Decimal(price) >= 0


@pytest.mark.parametrize(
    ("prices", "tier", "expected"),
    [
        (FLASH, None, "0.300000000"),
        (FLASH, "ON_DEMAND", "0.300000000"),
        (FLASH, "ON_DEMAND_FLEX", "0.150000000"),
        (FLASH, "ON_DEMAND_PRIORITY", None),
        (FLASH, "ON_DEMAND_OFFPEAK", None),
        (FLASH, "PROVISIONED_THROUGHPUT", None),
        (FLASH, {"tier": 1}, None),
        (TokenPrices("google", "no-such-model-at-all"), "ON_DEMAND_FLEX", None),
        (TokenPrices("openai", "gpt-5"), "default", "1.250000000"),
        (TokenPrices("openai", "gpt-5"), "flex", "0.625000000"),
        (TokenPrices("openai", "gpt-5"), "priority", "2.500000000"),
        (TokenPrices("openai", "gpt-5"), "scale", None),
        (TokenPrices("openai", "gpt-4.1"), "flex", None),
    ],
)
def test_service_tiers(prices: TokenPrices, tier: Any, expected: str | None) -> None:
    """The tier that served a call decides; one without a known price has none."""
    assert prices(Usage(1_000_000, 0, 0, 0), tier) == expected


def test_flex_halves_everything() -> None:
    """Flex halves the price of input, cached input, output and reasoning tokens."""
    whole = FLASH(Usage(2_000_000, 1_000_000, 400_000, 600_000), "ON_DEMAND")
    half = FLASH(Usage(2_000_000, 1_000_000, 400_000, 600_000), "ON_DEMAND_FLEX")
    assert (whole, half) == ("2.830000000", "1.415000000")


@pytest.mark.parametrize("count", [2**63 - 1, 10**18, 10**12])
def test_the_largest_counts_have_a_price(count: int) -> None:
    """Any INT64 can be priced within NUMERIC."""
    price = FLASH(Usage(count, 0, count, count))
    assert price is not None
    encode_row({"cost_usd": price}, (Column("cost_usd", "NUMERIC"),))


def test_frozen_and_picklable() -> None:
    """Prices can be pickled, as part of a DoFn."""
    twin: Any = pickle.loads(pickle.dumps(FLASH))
    assert twin == FLASH
    with pytest.raises(dataclasses.FrozenInstanceError):
        twin.model = "x"
