"""Quantities times prices: exact, and complete or refused."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.errors import UnknownPrice
from billing.prices import Rates, Tier, make_sheet
from billing.rating import charge, rate
from billing.usage import INPUT_METERS, OUTPUT_METERS, Meter, input_tokens_total, output_tokens_total

meters = st.sampled_from(list(Meter))
quantities = st.dictionaries(meters, st.integers(0, 10**9))
prices = st.fixed_dictionaries({meter: st.integers(0, 10**12) for meter in Meter})


@given(quantities, prices)
def test_an_amount_is_the_sum_of_its_parts(used: dict[Meter, int], sheet: dict[Meter, int]) -> None:
    assert rate(used, sheet) == sum(rate({meter: n}, sheet) for meter, n in used.items())
    assert rate(used, sheet) == sum(Fraction(n) * sheet[meter] for meter, n in used.items())


@given(quantities, quantities, prices)
def test_two_halves_cost_what_the_whole_does(a: dict[Meter, int], b: dict[Meter, int], sheet: dict[Meter, int]) -> None:
    whole = {meter: a.get(meter, 0) + b.get(meter, 0) for meter in Meter}
    assert rate(a, sheet) + rate(b, sheet) == rate(whole, sheet)


@given(quantities, st.sets(meters))
def test_whatever_was_counted_needs_a_price(used: dict[Meter, int], priced: set[Meter]) -> None:
    unpriced = {meter for meter, n in used.items() if n and meter not in priced}
    if not unpriced:
        assert rate(used, dict.fromkeys(priced, 0)) == 0
        return
    with pytest.raises(UnknownPrice) as caught:
        rate(used, dict.fromkeys(priced, 0), "acme/m")
    assert caught.value.meter in unpriced
    assert caught.value.what == "acme/m"


def test_usage_is_never_negative() -> None:
    with pytest.raises(ValueError, match="-1 output_tokens"):
        rate({Meter.OUTPUT_TOKENS: -1}, {Meter.OUTPUT_TOKENS: 5})


@given(quantities)
def test_a_token_went_in_or_came_out(used: dict[Meter, int]) -> None:
    assert not INPUT_METERS & OUTPUT_METERS
    tokens = {meter: n for meter, n in used.items() if meter.endswith("_tokens")}
    assert input_tokens_total(used) + output_tokens_total(used) == sum(tokens.values())


def test_a_finer_kind_of_token_costs_what_the_coarser_does_unless_listed() -> None:
    listed = {Meter.INPUT_TOKENS: 10, Meter.OUTPUT_TOKENS: 100, Meter.CACHE_WRITE_5M_TOKENS: 12}
    sheet = make_sheet("p", "acme", "m", 0, Rates(listed, listed), "test")
    assert sheet.sale[Meter.CACHE_WRITE_1H_TOKENS] == 12
    assert sheet.sale[Meter.CACHE_READ_IMAGE_TOKENS] == 10
    assert sheet.sale[Meter.REASONING_TOKENS] == 100
    assert sheet.sale[Meter.REQUESTS] == 0
    assert Meter.SEARCHES not in sheet.sale


def test_a_context_tier_holds_for_the_whole_request() -> None:
    sale = {Meter.INPUT_TOKENS: 10, Meter.OUTPUT_TOKENS: 100}
    dear = {Meter.INPUT_TOKENS: 20}
    sheet = make_sheet("p", "acme", "m", 0, Rates(sale, sale, (Tier(1000, dear, dear),)), "test")
    assert charge({Meter.INPUT_TOKENS: 1000, Meter.OUTPUT_TOKENS: 1}, sheet).sale_pusd == 10_100
    assert charge({Meter.INPUT_TOKENS: 1001, Meter.OUTPUT_TOKENS: 1}, sheet).sale_pusd == 20_120
    # Cached tokens count towards the tier, and their price follows it.
    assert charge({Meter.INPUT_TOKENS: 1, Meter.CACHE_READ_TOKENS: 1000}, sheet).sale_pusd == 20_020


def test_sale_and_cost_are_rated_apart() -> None:
    sheet = make_sheet("p", "acme", "m", 0, Rates({Meter.INPUT_TOKENS: 10}, {Meter.INPUT_TOKENS: 7}), "test")
    both = charge({Meter.INPUT_TOKENS: 3}, sheet)
    assert (both.sale_pusd, both.cost_pusd) == (30, 21)
