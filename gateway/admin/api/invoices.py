"""Invoices: a month of an organisation, as JSON, PDF and CSV. Projections of the ledger: nothing is stored."""

from __future__ import annotations

import datetime
from typing import Annotated

from litestar import Response, get
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, FromQuery, QueryParameter
from msgspec import Struct

from billing import accounts, invoices
from billing.currency import show
from billing.money import format_usd
from gateway.admin import reports
from gateway.admin.problems import invalid, not_found
from gateway.admin.services import Services
from gateway.admin.times import Period, Stamp, stamp
from gateway.admin.wants import Office, Within

MONTHS_MAX = 36
_MANY = 100_000


class InvoiceLine(Struct, frozen=True):
    """One invoice of the list. open: its month is not over, so it grows."""

    number: str
    organisation_id: str
    organisation: str
    month: str
    requests: int
    usage_usd: str
    open: bool


class InvoiceItem(Struct, frozen=True):
    provider: str
    model: str
    requests: int
    input_tokens: int
    output_tokens: int
    charge_usd: str


class InvoiceMovement(Struct, frozen=True):
    """Above zero: in the customer's favour."""

    at: Stamp
    kind: str
    amount_usd: str
    note: str


class InvoiceView(Struct, frozen=True):
    """opening - usage + movements = closing; below zero it is owed. differing_usd: what the items lack to the ledger,
    0 unless somebody changed rows. closing: in the organisation's currency, at `usd_rate` of `rate_day`."""

    number: str
    organisation_id: str
    organisation: str
    month: str
    open: bool
    opening_usd: str
    items: list[InvoiceItem]
    usage_usd: str
    movements: list[InvoiceMovement]
    closing_usd: str
    currency: str
    closing: str
    usd_rate: str
    rate_day: str | None
    differing_usd: str
    unpriced: int
    estimated: int


@get("/invoices", name="invoices.list")
async def list_invoices(
    services: Office,
    sight: Within,
    organisation_id: FromQuery[str | None] = None,
    months: Annotated[int, QueryParameter(ge=1, le=MONTHS_MAX)] = 12,
) -> list[InvoiceLine]:
    """Of the last months, the newest first: every organisation that used something, and this month for all."""
    now_ns = services.clock()
    lines: list[InvoiceLine] = []
    async with services.reader.reading() as db:
        known = [
            each
            for each in await accounts.organisations(db)
            if organisation_id in (None, each.id) and sight.shows("organisation", each.id)
        ]
        filters = {} if organisation_id is None else {"organisation": [organisation_id]}
        for month in _months(now_ns, months):
            start_ns, end_ns = invoices.month_bounds_ns(month)
            # A whole month is of sealed days, but for the one that runs.
            period = Period(start_ns, min(end_ns, now_ns))
            found = await reports.groups(db, "organisation", period, filters, limit=_MANY)
            used = {group.name: group.totals for group in found}
            lines += [
                InvoiceLine(
                    f"{month}/{each.id}", each.id, each.name, month, totals.requests, format_usd(totals.charge_pusd),
                    now_ns < end_ns,
                )
                for each in known
                if (totals := used.get(each.id, reports.Totals())).requests or now_ns < end_ns
            ]  # fmt: skip
    return lines


@get("/invoices/{organisation_id:str}/{month:str}", name="invoices.read")
async def read_invoice(organisation_id: FromPath[str], month: FromPath[str], services: Office) -> InvoiceView:
    """month: as 2026-11, from its first instant to its last in UTC."""
    bill = await _bill(services, organisation_id, month)
    foreign = bill.rate.currency != "USD"
    return InvoiceView(
        bill.number,
        bill.organisation_id,
        bill.organisation,
        bill.month,
        services.clock() < invoices.month_bounds_ns(month)[1],
        format_usd(bill.opening_pusd),
        [
            InvoiceItem(
                each.provider, each.model, each.requests, each.input_tokens, each.output_tokens,
                format_usd(each.charge_pusd),
            )
            for each in bill.items
        ],
        format_usd(bill.usage_pusd),
        [InvoiceMovement(stamp(m.at_ns), m.kind, format_usd(m.amount_pusd), m.note) for m in bill.movements],
        format_usd(bill.closing_pusd),
        bill.rate.currency,
        show(bill.closing_pusd, bill.rate),
        bill.rate.per_usd,
        bill.rate.day if foreign else None,
        format_usd(bill.differing_pusd),
        bill.unpriced,
        bill.estimated,
    )  # fmt: skip


@get("/invoices/{organisation_id:str}/{month:str}/pdf", name="invoices.pdf", media_type="application/pdf")
async def invoice_pdf(organisation_id: FromPath[str], month: FromPath[str], services: Office) -> Response[bytes]:
    """The document for the customer."""
    bill = await _bill(services, organisation_id, month)
    return _file(invoices.as_pdf(bill), "application/pdf", bill, "pdf")


@get("/invoices/{organisation_id:str}/{month:str}/csv", name="invoices.csv", media_type="text/csv")
async def invoice_csv(organisation_id: FromPath[str], month: FromPath[str], services: Office) -> Response[bytes]:
    """One line an item and a movement, for accounting."""
    bill = await _bill(services, organisation_id, month)
    return _file(invoices.as_csv(bill).encode(), "text/csv; charset=utf-8", bill, "csv")


invoice_handlers: list[HTTPRouteHandler] = [list_invoices, read_invoice, invoice_pdf, invoice_csv]


async def _bill(services: Services, organisation_id: str, month: str) -> invoices.Invoice:
    """Raises: Problem."""
    try:
        invoices.month_bounds_ns(month)
    except ValueError as error:
        raise invalid("month", str(error), "Write it as 2026-11.") from error
    async with services.reader.reading() as db:
        if organisation_id not in {each.id for each in await accounts.organisations(db)}:
            raise not_found("organisation", organisation_id, "Take an id from /ledger/balances.")
        return await invoices.invoice(db, organisation_id, month)


def _file(content: bytes, media_type: str, bill: invoices.Invoice, ending: str) -> Response[bytes]:
    # Ids of organisations are an operator's: nothing that would end the quotes gets into the header.
    name = "".join(c if c.isalnum() or c in "-_." else "_" for c in f"invoice-{bill.month}-{bill.organisation_id}")
    headers = {"content-disposition": f'attachment; filename="{name}.{ending}"'}
    return Response(content, media_type=media_type, headers=headers)


def _months(now_ns: int, count: int) -> list[str]:
    """This one and those before it."""
    now = datetime.datetime.fromtimestamp(now_ns // 10**9, datetime.UTC)
    numbers = (now.year * 12 + now.month - 1 - back for back in range(count))
    return [f"{number // 12:04d}-{number % 12 + 1:02d}" for number in numbers]
