"""Amounts in other currencies: by integers, at a dated rate that is said, while the ledger stays as it is."""

import csv
import io
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncEngine

from billing import accounts, ledger
from billing.currency import (
    IN_DOLLARS,
    Rate,
    UnknownRate,
    convert,
    parse_rate,
    rate_at,
    rates,
    set_currency,
    set_rate,
    show,
)
from billing.db import reading, writing
from billing.invoices import as_csv, as_pdf, invoice, month_bounds_ns
from tests.billing.test_invoices import END_NS, START_NS, USD, check_structure, ship

EURO = Rate("EUR", parse_rate("0.912345678"), START_NS, "ECB")


@given(st.integers(-(10**30), 10**30), st.integers(1, 10**18), st.integers(0, 6))
def test_conversion_is_the_nearest_and_a_half_goes_to_the_even_one(pusd: int, nano: int, digits: int) -> None:
    exact = Fraction(pusd * nano, 10 ** (21 - digits))
    assert convert(pusd, Rate("EUR", nano, 0, ""), digits) == round(exact)  # Python rounds a half to the even one.


@pytest.mark.parametrize(
    ("pusd", "rate", "text"),
    [
        (10 * USD, EURO, "9.12"),
        (-10 * USD, EURO, "-9.12"),
        (-(10**9), EURO, "0.00"),
        (USD, Rate("JPY", parse_rate("151.5"), 0, ""), "152"),
        (3 * USD, Rate("JPY", parse_rate("0.5"), 0, ""), "2"),
        (USD, Rate("KWD", parse_rate("0.3071"), 0, ""), "0.307"),
        (12_345_678_901_234, IN_DOLLARS, "12.35"),
        (2**80, IN_DOLLARS, "1208925819614.63"),
    ],
)
def test_what_people_read(pusd: int, rate: Rate, text: str) -> None:
    assert show(pusd, rate) == text


@pytest.mark.parametrize("bad", ["", "0", "-1", "1e3", "0.0000000001", "abc", "99999999999", "1,5", "0.000000000"])
def test_what_is_no_rate(bad: str) -> None:
    with pytest.raises(ValueError):
        parse_rate(bad)


async def test_rates_hold_from_their_day_on_and_never_change(fresh_engine: AsyncEngine) -> None:
    async with writing(fresh_engine) as db:
        for at_ns, text in ((START_NS, "0.9"), (END_NS, "0.8")):
            await set_rate(db, "EUR", parse_rate(text), effective_from_ns=at_ns, source="ECB", at_ns=1)
        await set_rate(db, "EUR", parse_rate("0.9"), effective_from_ns=START_NS, source="again", at_ns=2)
        for currency, text in (("EUR", "0.95"), ("USD", "1"), ("eur", "1"), ("EURO", "1")):
            with pytest.raises(ValueError):
                await set_rate(db, currency, parse_rate(text), effective_from_ns=START_NS, source="", at_ns=3)
    async with reading(fresh_engine) as db:
        assert [(await rate_at(db, "EUR", at)).per_usd for at in (START_NS, END_NS - 1, END_NS)] == [
            "0.9",
            "0.9",
            "0.8",
        ]
        assert await rate_at(db, "USD", 0) == IN_DOLLARS
        with pytest.raises(UnknownRate, match="2026-10-31"):
            await rate_at(db, "EUR", START_NS - 1)
        assert [rate.per_usd for rate in await rates(db)] == ["0.8", "0.9"]


async def test_an_invoice_in_the_accounts_currency_names_its_rate(fresh_engine: AsyncEngine, tmp_path: object) -> None:
    from pathlib import Path

    assert isinstance(tmp_path, Path)
    async with writing(fresh_engine) as db:
        await accounts.create_organisation(db, "org_1", "One", at_ns=0)
        await ledger.top_up(db, "org_1", 10 * USD, "p1", at_ns=START_NS + 5)
        assert await set_currency(db, "org_1", "EUR")
        assert not await set_currency(db, "org_2", "EUR")
        with pytest.raises(ValueError):
            await set_currency(db, "org_1", "euro")
    await ship(fresh_engine, tmp_path, START_NS, END_NS - 1)
    async with reading(fresh_engine) as db:
        with pytest.raises(UnknownRate):
            await invoice(db, "org_1", "2026-11")
    async with writing(fresh_engine) as db:
        for month, text in (("2026-11", "0.912345678"), ("2026-12", "0.5")):
            start_ns, _ = month_bounds_ns(month)
            await set_rate(db, "EUR", parse_rate(text), effective_from_ns=start_ns, source="ECB", at_ns=1)
    async with reading(fresh_engine) as db:
        bill = await invoice(db, "org_1", "2026-11")
    assert (bill.closing_pusd, bill.rate) == (10 * USD - 1_140_000_000, EURO)
    rows = list(csv.DictReader(io.StringIO(as_csv(bill))))
    assert [(row["kind"], row["amount_usd"], row["amount"]) for row in rows] == [
        ("opening", "0.00", "0.000000"),
        ("usage", "-0.00114", "-0.001040"),
        ("topup", "10.00", "9.123457"),
        ("closing", "9.99886", "9.122417"),
    ]
    assert {(row["currency"], row["usd_rate"], row["rate_day"]) for row in rows} == {
        ("EUR", "0.912345678", "2026-11-01")
    }
    pdf = as_pdf(bill)
    check_structure(pdf)
    assert b"1 USD = 0.912345678 EUR, of 2026-11-01 \\(ECB\\)." in pdf
    assert b"Credit left, EUR" in pdf
    assert b"9.12)" in pdf
    assert b"9.99886)" in pdf


async def test_corrections_by_hand_have_a_reason_and_two_sides(fresh_engine: AsyncEngine) -> None:
    async with writing(fresh_engine) as db:
        assert await ledger.adjust(db, "org_1", 5 * USD, "a1", at_ns=1, note="goodwill")
        assert not await ledger.adjust(db, "org_1", 5 * USD, "a1", at_ns=1, note="goodwill")
        assert await ledger.adjust(db, "org_1", -2 * USD, "a2", at_ns=1, note="booked twice")
        with pytest.raises(ValueError, match="reason"):
            await ledger.adjust(db, "org_1", 1, "a3", at_ns=1, note=" ")
        assert await ledger.credit_left(db, "org_1") == 3 * USD
        assert (await ledger.trial_balance(db)).sound


async def test_balances_are_wider_than_64_bits(fresh_engine: AsyncEngine) -> None:
    top = 2**63 - 1
    async with writing(fresh_engine) as db:
        for number in range(40):
            await ledger.top_up(db, "org_1", top, f"p{number}", at_ns=START_NS)
        await accounts.create_organisation(db, "org_1", "One", at_ns=0)
    async with reading(fresh_engine) as db:
        assert await ledger.credit_left(db, "org_1") == 40 * top
        assert (await ledger.trial_balance(db)).sound
        bill = await invoice(db, "org_1", "2026-11")
    assert bill.closing_pusd == 40 * top
    check_structure(as_pdf(bill))
