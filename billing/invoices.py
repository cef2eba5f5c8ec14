"""What an organisation owes for a month: a projection of ledger and usage, as values, CSV and PDF. Writes nothing.

An invoice is final once every journal that was written in its month has been shipped; until then it may still grow, by
requests that ended in the month and were settled after it.
"""

import csv
import datetime
import io
import re
from typing import Any, Final

import msgspec
from sqlalchemy import ColumnElement, func, select

from billing import accounts, pdf, schema
from billing.currency import IN_DOLLARS, LINE_DIGITS, USD, Rate, rate_at, show
from billing.db import AsyncConnection, add_up, wide_sum, wide_sum_kept
from billing.money import format_usd
from billing.rollups import NS_PER_HOUR

_MONTH: Final = re.compile(r"(\d{4})-(0[1-9]|1[0-2])")
_USED: Final = ("charge", "overrun")


class UsageItem(msgspec.Struct, frozen=True):
    provider: str
    model: str
    requests: int
    input_tokens: int
    output_tokens: int
    charge_pusd: int


class Movement(msgspec.Struct, frozen=True):
    """One top-up, grant, refund, payout or correction. Above zero: to the customer's favour."""

    at_ns: int
    kind: str
    amount_pusd: int
    note: str


class Invoice(msgspec.Struct, frozen=True):
    """opening_pusd, closing_pusd: the customer's credit at both ends of the month; below zero it is owed.

    opening - usage + movements = closing, always. differing_pusd is what the items lack to the ledger's usage: 0, or
    somebody has changed rows. unpriced: requests of the month that wait for a price and are not in it yet."""

    number: str
    organisation_id: str
    organisation: str
    month: str
    opening_pusd: int
    items: tuple[UsageItem, ...]
    usage_pusd: int
    movements: tuple[Movement, ...]
    closing_pusd: int
    differing_pusd: int
    unpriced: int
    estimated: int
    # What it is shown in: the rate that held at the end of the month. Items are shown to a millionth of the unit, so
    # they may add up to some millionths more or less than the total, which is rounded from the exact one.
    rate: Rate = IN_DOLLARS


def month_bounds_ns(month: str) -> tuple[int, int]:
    """ "2026-11" -> [start, end) in UTC. Raises: ValueError."""
    said = _MONTH.fullmatch(month)
    if said is None:
        raise ValueError(f"not a month like 2026-11: {month!r}")
    year, number = int(said[1]), int(said[2])
    start = datetime.datetime(year, number, 1, tzinfo=datetime.UTC)
    end = datetime.datetime(year + number // 12, number % 12 + 1, 1, tzinfo=datetime.UTC)
    return int(start.timestamp()) * 10**9, int(end.timestamp()) * 10**9


async def invoice(db: AsyncConnection, organisation_id: str, month: str) -> Invoice:
    """Read within one transaction, so that all of it is of one instant. Raises: ValueError for an unknown one,
    UnknownRate where its currency has none for that month."""
    start_ns, end_ns = month_bounds_ns(month)
    organisations = schema.organisations.c
    query = select(organisations.name, organisations.currency).where(organisations.id == organisation_id)
    found = (await db.execute(query)).one_or_none()
    if found is None:
        raise ValueError(f"no organisation {organisation_id!r}")
    rate = await rate_at(db, found.currency, end_ns - 1)
    opening_pusd = await _credit(db, organisation_id, 0, start_ns)
    usage_pusd = -await _credit(db, organisation_id, start_ns, end_ns, used=True)
    movements = await _movements(db, organisation_id, start_ns, end_ns)
    items, unpriced, estimated = await _items(db, organisation_id, start_ns, end_ns)
    return Invoice(
        number=f"{month}/{organisation_id}",
        organisation_id=organisation_id,
        organisation=found.name,
        month=month,
        opening_pusd=opening_pusd,
        items=items,
        usage_pusd=usage_pusd,
        movements=movements,
        closing_pusd=opening_pusd - usage_pusd + sum(m.amount_pusd for m in movements),
        differing_pusd=usage_pusd - sum(item.charge_pusd for item in items),
        unpriced=unpriced,
        estimated=estimated,
        rate=rate,
    )


async def _credit(
    db: AsyncConnection, organisation_id: str, since_ns: int, until_ns: int, *, used: bool = False
) -> int:
    """Credits less debits of the customer's account in that time; with `used`, of usage alone."""
    table, customer, total = schema.transfers.c, accounts.customer(organisation_id), 0
    for side, sign in ((table.credit, 1), (table.debit, -1)):
        query = select(*wide_sum(table.amount_pusd)).where(
            side == customer, table.at_ns >= since_ns, table.at_ns < until_ns
        )
        if used:
            query = query.where(table.kind.in_(_USED))
        total += sign * add_up(*(await db.execute(query)).one())
    return total


async def _movements(db: AsyncConnection, organisation_id: str, start_ns: int, end_ns: int) -> tuple[Movement, ...]:
    table, customer = schema.transfers.c, accounts.customer(organisation_id)
    query = (
        select(schema.transfers)
        .where((table.credit == customer) | (table.debit == customer), table.kind.not_in(_USED))
        .where(table.at_ns >= start_ns, table.at_ns < end_ns)
        .order_by(table.at_ns, table.id)
    )
    return tuple(
        Movement(row.at_ns, row.kind, row.amount_pusd if row.credit == customer else -row.amount_pusd, row.note or "")
        for row in await db.execute(query)
    )


async def _items(
    db: AsyncConnection, organisation_id: str, start_ns: int, end_ns: int
) -> tuple[tuple[UsageItem, ...], int, int]:
    table = schema.usage_hours.c
    sums: list[ColumnElement[Any]] = [
        func.sum(column)
        for column in (table.requests, table.input_tokens, table.output_tokens, table.unpriced, table.estimated)
    ]
    sums += wide_sum_kept(table.charge_usd, table.charge_rest_pusd)
    query = (
        select(table.provider, table.model, *sums)
        .where(table.organisation_id == organisation_id)
        .where(table.hour >= start_ns // NS_PER_HOUR, table.hour < end_ns // NS_PER_HOUR)
        .group_by(table.provider, table.model)
        .order_by(table.provider, table.model)
    )
    items, unpriced, estimated = [], 0, 0
    for provider, model, requests, tokens_in, tokens_out, late, guessed, *charge in await db.execute(query):
        amount = add_up(*charge)
        items.append(UsageItem(provider, model, int(requests), int(tokens_in), int(tokens_out), amount))
        unpriced += int(late)
        estimated += int(guessed)
    return tuple(items), unpriced, estimated


def as_csv(bill: Invoice) -> str:
    """One line an item and a movement, exact amounts in US dollars; what is charged is below zero."""
    out = io.StringIO()
    lines = csv.writer(out, lineterminator="\r\n")  # RFC 4180
    lines.writerow(["number", "date", "kind", "provider", "model", "requests", "input_tokens", "output_tokens",
                    "amount_usd", "note", "currency", "amount", "usd_rate", "rate_day"])  # fmt: skip

    def line(date: str, kind: str, amount_pusd: int, usage: UsageItem | None = None, note: str = "") -> None:
        counts = ["", "", ""] if usage is None else [usage.requests, usage.input_tokens, usage.output_tokens]
        names = ["", ""] if usage is None else [_inert(usage.provider), _inert(usage.model)]
        shown = [bill.rate.currency, show(amount_pusd, bill.rate, LINE_DIGITS), bill.rate.per_usd, bill.rate.day]
        lines.writerow(
            [_inert(bill.number), date, kind, *names, *counts, format_usd(amount_pusd), _inert(note), *shown]
        )

    line(f"{bill.month}-01", "opening", bill.opening_pusd)
    for item in bill.items:
        line(bill.month, "usage", -item.charge_pusd, item)
    for movement in bill.movements:
        line(_date(movement.at_ns), movement.kind, movement.amount_pusd, note=movement.note)
    line(bill.month, "closing", bill.closing_pusd)
    return out.getvalue()


def as_pdf(bill: Invoice) -> bytes:
    """One document of A4 pages. Characters beyond Windows-1252 appear as `?`; the CSV has them all."""
    foreign = bill.rate.currency != USD

    def amount(pusd: int) -> str:
        return show(pusd, bill.rate, LINE_DIGITS) if foreign else format_usd(pusd)

    rows = [
        f"Invoice {bill.number}",
        "",
        f"For:     {bill.organisation} ({bill.organisation_id})",
        f"Period:  {bill.month}, UTC. Amounts in {bill.rate.currency if foreign else 'US dollars'}.",
    ]
    if foreign:
        said = f" ({bill.rate.source})" if bill.rate.source else ""
        rows.append(f"Rate:    1 USD = {bill.rate.per_usd} {bill.rate.currency}, of {bill.rate.day}{said}.")
    rows += ["", f"{'Model':<38}{'Requests':>11}{'Tokens in':>15}{'Tokens out':>14}{'Amount':>18}"]
    for item in bill.items:
        name = f"{item.provider}/{item.model}"
        *above, last = [name[at : at + 37] for at in range(0, len(name), 37)]
        rows += above
        counts = f"{item.requests:>11}{item.input_tokens:>15}{item.output_tokens:>14}"
        rows.append(f"{last:<38}{counts}{amount(item.charge_pusd):>18}")
    rows += ["", f"{'Usage':<78}{amount(bill.usage_pusd):>18}", ""]
    rows.append(f"{'Credit at the beginning':<78}{amount(bill.opening_pusd):>18}")
    for movement in bill.movements:
        what = f"{_date(movement.at_ns)}  {movement.kind}  {movement.note}"
        rows.append(f"{what[:76]:<78}{amount(movement.amount_pusd):>18}")
    rows.append(f"{'Usage':<78}{amount(-bill.usage_pusd):>18}")
    label = "Amount due" if bill.closing_pusd < 0 else "Credit left"
    if foreign:
        rows.append(f"{label + ', ' + bill.rate.currency:<78}{show(abs(bill.closing_pusd), bill.rate):>18}")
        label += ", US dollars"
    rows.append(f"{label:<78}{format_usd(abs(bill.closing_pusd)):>18}")
    if bill.estimated:
        rows += ["", f"{bill.estimated} requests were estimated: their answers were cut off before they were counted."]
    if bill.unpriced:
        rows += ["", f"{bill.unpriced} requests wait for a price and are not included yet."]
    return pdf.document(rows, title=f"Invoice {bill.number}")


def _date(at_ns: int) -> str:
    return datetime.datetime.fromtimestamp(at_ns // 10**9, datetime.UTC).date().isoformat()


def _inert(text: str) -> str:
    """Model names and notes come from outside; a spreadsheet would run what begins like a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
