"""Invoices add up to the ledger; payments are believed only when signed, and booked once; grants end."""

import csv
import hashlib
import hmac
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from billing import accounts, ledger, pdf
from billing.db import reading, writing
from billing.invoices import as_csv, as_pdf, invoice, month_bounds_ns
from billing.journal import Journal
from billing.payments import BadSignature, NotUnderstood, Payment, StripeWebhook, book, expire_grants, grant_until
from billing.worker import Worker
from tests.billing.make import BOOK, RECORD_SALE_PUSD, record

START_NS, END_NS = month_bounds_ns("2026-11")
DAY_NS = 86_400 * 10**9
USD = 10**12
SECRET = "whsec_" + "t" * 32


async def ship(engine: AsyncEngine, folder: Path, *times_ns: int, **changes: Any) -> None:
    journal = Journal.open(folder / "journal", "gw")
    for number, at_ns in enumerate(times_ns):
        await journal.settle(record(f"{changes.get('model', '')}{at_ns}-{number}", at_ns=at_ns, **changes))
    await journal.close()
    await Worker(folder / "journal", engine, BOOK).ship_once()


@pytest.fixture
async def customer(fresh_engine: AsyncEngine) -> AsyncEngine:
    async with writing(fresh_engine) as db:
        await accounts.create_organisation(db, "org_1", "Ωrg (One)", at_ns=0)
    return fresh_engine


async def test_a_month_begins_and_ends_where_its_neighbours_do(customer: AsyncEngine, tmp_path: Path) -> None:
    await ship(customer, tmp_path, START_NS - 1, START_NS, END_NS - 1, END_NS, hold_pusd=100 * 10**6)
    async with writing(customer) as db:
        await ledger.top_up(db, "org_1", 10 * USD, "p1", at_ns=START_NS - 5)
        await ledger.top_up(db, "org_1", 5 * USD, "p2", at_ns=START_NS + 5, note="=cmd()")
        await ledger.refund(db, "org_1", 7, "r1", at_ns=END_NS - 5)
        await ledger.pay_out(db, "org_1", 3, "o1", at_ns=END_NS - 4)
    async with reading(customer) as db:
        months = [await invoice(db, "org_1", month) for month in ("2026-10", "2026-11", "2026-12")]
        left = await ledger.credit_left(db, "org_1")
        with pytest.raises(ValueError, match="no organisation"):
            await invoice(db, "org_2", "2026-11")
    november = months[1]
    assert [month.usage_pusd for month in months] == [RECORD_SALE_PUSD, 2 * RECORD_SALE_PUSD, RECORD_SALE_PUSD]
    assert [month.closing_pusd for month in months[:2]] == [month.opening_pusd for month in months[1:]]
    assert (months[0].opening_pusd, months[2].closing_pusd) == (0, left)
    assert all(month.differing_pusd == 0 for month in months)
    assert [(m.kind, m.amount_pusd) for m in november.movements] == [("topup", 5 * USD), ("refund", 7), ("payout", -3)]
    rows = list(csv.DictReader(io.StringIO(as_csv(november))))
    assert [row["kind"] for row in rows] == ["opening", "usage", "topup", "refund", "payout", "closing"]
    assert rows[2]["note"] == "'=cmd()", "a spreadsheet must not run a note"
    assert rows[1]["amount_usd"] == "-0.00114"


@pytest.mark.parametrize("month", ["2026-13", "2026-1", "26-01", "2026-11-01"])
def test_what_is_no_month(month: str) -> None:
    with pytest.raises(ValueError, match="month"):
        month_bounds_ns(month)


async def test_a_pdf_has_its_objects_where_it_says(customer: AsyncEngine, tmp_path: Path) -> None:
    await ship(customer, tmp_path, START_NS, model="gpt-test")
    async with reading(customer) as db:
        data = as_pdf(await invoice(db, "org_1", "2026-11"))
    check_structure(data)
    assert b"(For:     ?rg \\(One\\) \\(org_1\\)) Tj" in data
    many = pdf.document([f"line {n}" for n in range(200)] + ["x" * 1000], title="t")
    check_structure(many)
    assert many.count(b"/Type /Page ") == 4


def check_structure(data: bytes) -> None:
    assert data.startswith(b"%PDF-1.4")
    start = int(re.search(rb"startxref\n(\d+)\n%%EOF\n$", data)[1])  # type: ignore[index]
    assert data[start:].startswith(b"xref\n")
    entries = re.findall(rb"(\d{10}) 00000 n \n", data[start:])
    for number, offset in enumerate(entries, 1):
        assert data[int(offset) :].startswith(b"%d 0 obj\n" % number)
    for length, body in re.findall(rb"/Length (\d+) >>\nstream\n(.*?)\nendstream", data, re.DOTALL):
        assert int(length) == len(body)


def event(kind: str = "checkout.session.completed", **changes: Any) -> bytes:
    session = {"id": "cs_1", "client_reference_id": "org_1", "amount_total": 2550, "currency": "usd",
               "payment_status": "paid", "object": "checkout.session"} | changes  # fmt: skip
    return json.dumps({"id": "evt_1", "type": kind, "created": 1_795_000_000, "data": {"object": session}}).encode()


def signed(payload: bytes, at_s: int = 1_795_000_000, secret: str = SECRET) -> str:
    v1 = hmac.new(secret.encode(), f"{at_s}.".encode() + payload, hashlib.sha256).hexdigest()
    return f"t={at_s},v1={'0' * 64},v1={v1},v0=old"


async def test_a_signed_payment_is_booked_once_however_often_it_is_said(customer: AsyncEngine) -> None:
    webhook = StripeWebhook(SECRET)
    payment = webhook.receive(event(), signed(event()), 1_795_000_100)
    assert payment == Payment("cs_1", "org_1", 25_500_000_000_000, 1_795_000_000 * 10**9)
    again = event("checkout.session.async_payment_succeeded")
    assert webhook.receive(again, signed(again), 1_795_000_000) == payment
    async with writing(customer) as db:
        assert [await book(db, payment), await book(db, payment)] == [True, False]
        assert await ledger.credit_left(db, "org_1") == 25_500_000_000_000
        with pytest.raises(NotUnderstood):
            await book(db, Payment("cs_2", "org_nobody", 1, 1))
    for payload in (event("customer.created"), event(payment_status="unpaid")):
        assert webhook.receive(payload, signed(payload), 1_795_000_000) is None


def test_nothing_unsigned_old_or_unclear_is_believed() -> None:
    webhook = StripeWebhook(SECRET)
    good = event()
    for payload, signature, now_s in (
        (good, signed(good, secret="whsec_" + "x" * 32), 1_795_000_000),
        (good + b" ", signed(good), 1_795_000_000),
        (good, signed(good), 1_795_000_301),
        (good, signed(good), 1_794_999_699),
        (good, "", 1_795_000_000),
        (good, "v1=é,t=x", 1_795_000_000),
        (good, f"t={'9' * 30},v1=0", 1_795_000_000),
        (good, signed(good) + ",t=1795000001", 1_795_000_000),
    ):
        with pytest.raises(BadSignature):
            webhook.receive(payload, signature, now_s)
    for payload in (event(currency="eur"), event(client_reference_id=None), event(amount_total=0), b"{}"):
        with pytest.raises(NotUnderstood):
            webhook.receive(payload, signed(payload), 1_795_000_000)
    for secret in ("", "short"):
        with pytest.raises(ValueError, match="secret"):
            StripeWebhook(secret)
    assert SECRET not in repr(webhook)


async def test_grants_go_first_the_soonest_to_expire_before_others(customer: AsyncEngine, tmp_path: Path) -> None:
    sale = RECORD_SALE_PUSD
    async with writing(customer) as db:
        await ledger.top_up(db, "org_1", 10 * sale, "own", at_ns=START_NS)
        assert await grant_until(db, "org_1", 5 * sale, "late", START_NS + 9 * DAY_NS, at_ns=START_NS)
        await grant_until(db, "org_1", 2 * sale, "soon", START_NS + 3 * DAY_NS, at_ns=START_NS + DAY_NS)
        await grant_until(db, "org_1", 4 * sale, "unused", START_NS + 4 * DAY_NS, at_ns=START_NS + 3 * DAY_NS)
        with pytest.raises(ValueError, match="expired"):
            await grant_until(db, "org_1", 1, "over", START_NS, at_ns=START_NS)
    # One before `soon` began, of `late`; three while it lived, the first as it began: two of `soon`, one of `late`; one
    # after all are over.
    times = [START_NS + hours * DAY_NS // 24 for hours in (1, 24, 31, 32, 24 * 10)]
    await ship(customer, tmp_path, *times)
    async with writing(customer) as db:
        assert await expire_grants(db, at_ns=START_NS + 2 * DAY_NS) == 0
        assert await expire_grants(db, at_ns=START_NS + 4 * DAY_NS) == 4 * sale
        assert await expire_grants(db, at_ns=START_NS + 20 * DAY_NS) == 3 * sale
        assert await expire_grants(db, at_ns=START_NS + 20 * DAY_NS) == 0
        # Own money paid for the last one alone.
        assert await ledger.credit_left(db, "org_1") == 9 * sale
        assert (await ledger.trial_balance(db)).sound
        assert (await invoice(db, "org_1", "2026-11")).closing_pusd == 9 * sale
