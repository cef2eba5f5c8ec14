"""Amounts: text to pUSD and back, exactly."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.money import format_usd, parse_usd

pusd = st.integers(min_value=-(10**40), max_value=10**40)


@given(pusd)
def test_what_is_printed_reads_back(amount: int) -> None:
    assert parse_usd(format_usd(amount)) == amount
    assert Fraction(format_usd(amount)) * 10**12 == amount


@given(pusd)
def test_any_spelling_is_the_same_amount(amount: int) -> None:
    text = format_usd(abs(amount))
    spellings = (f"{text}usd", f"${text}", f" {text} USD ", f"{text}0000000000000")
    assert {parse_usd(spelling) for spelling in spellings} == {abs(amount)}


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("0.01usd", 10**10),
        ("$1.50", 1_500_000_000_000),
        ("1.5", 1_500_000_000_000),
        ("-2", -2 * 10**12),
        ("0.000000000001", 1),
        ("0", 0),
    ],
)
def test_examples(text: str, amount: int) -> None:
    assert parse_usd(text) == amount


@pytest.mark.parametrize(
    "text", ["", "usd", "1,50", "1e3", "one", "1.", ".5", "0.0000000000001", "1 eur", "--1", "٣", "NaN", "1_000"]
)
def test_what_is_not_an_amount_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="US dollar"):
        parse_usd(text)


def test_cents_are_always_shown() -> None:
    assert [format_usd(n) for n in (0, 10**12, 10**11, -1)] == ["0.00", "1.00", "0.10", "-0.000000000001"]
