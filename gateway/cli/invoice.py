"""`farebox invoice`: a month of one organisation, projected from the ledger."""

from __future__ import annotations

import time

from cyclopts import App

from gateway.cli.common import (
    DEFAULTS,
    NOT_WELL,
    OK,
    WRONG_USAGE,
    Common,
    Problem,
    database,
    emit,
    make_table,
    organisation_of,
    usd,
)
from gateway.cli.site import Written, place

app = App(name="invoice")


@app.default
async def invoice(
    organisation: str,
    month: str | None = None,
    /,
    *,
    csv: Written | None = None,
    pdf: Written | None = None,
    common: Common = DEFAULTS,
) -> int:
    """Show a month's usage, payments and balance. Exit code 1 if the ledger and the usage rows disagree.

    Parameters
    ----------
    organisation:
        Whose, by id or name; `farebox ledger organisations` lists them.
    month:
        As 2026-11; from its first instant to its last in UTC. This one where none is said.
    csv:
        Also write it to this file.
    pdf:
        Also write it to this file.
    """
    from billing import invoices
    from billing.currency import show
    from billing.db import reading

    month = month or time.strftime("%Y-%m", time.gmtime())
    try:
        invoices.month_bounds_ns(month)
        async with database(common.settings()) as engine, reading(engine) as db:
            bill = await invoices.invoice(db, await organisation_of(db, organisation), month)
        if csv is not None:
            place(csv).write_text(invoices.as_csv(bill), encoding="utf-8", newline="")
        if pdf is not None:
            place(pdf).write_bytes(invoices.as_pdf(bill))
    except ValueError as error:
        raise Problem(str(error), fix="`farebox invoice ORGANISATION 2026-11`", code=WRONG_USAGE) from error
    items = [
        {
            "provider": item.provider,
            "model": item.model,
            "requests": item.requests,
            "input_tokens": item.input_tokens,
            "output_tokens": item.output_tokens,
            "charge_usd": usd(item.charge_pusd),
        }
        for item in bill.items
    ]
    movements = [
        {"at_ns": m.at_ns, "kind": m.kind, "amount_usd": usd(m.amount_pusd), "note": m.note} for m in bill.movements
    ]
    value = {
        "number": bill.number,
        "organisation": bill.organisation,
        "opening_usd": usd(bill.opening_pusd),
        "items": items,
        "usage_usd": usd(bill.usage_pusd),
        "usage_pusd": bill.usage_pusd,
        "movements": movements,
        "closing_usd": usd(bill.closing_pusd),
        "closing_pusd": bill.closing_pusd,
        "currency": bill.rate.currency,
        "closing": show(bill.closing_pusd, bill.rate),
        "usd_rate": bill.rate.per_usd,
        "rate_day": bill.rate.day if bill.rate.currency != "USD" else None,
        "differing_pusd": bill.differing_pusd,
        "unpriced": bill.unpriced,
        "estimated": bill.estimated,
    }

    def table() -> object:
        columns = ["what", "requests", "input_tokens", "output_tokens", "amount_usd"]
        rows: list[list[object]] = [["credit at the beginning", "", "", "", usd(bill.opening_pusd)]]
        rows += [
            [f"{i.provider}/{i.model}", i.requests, i.input_tokens, i.output_tokens, usd(-i.charge_pusd)]
            for i in bill.items
        ]
        rows += [[f"{m.kind} {m.note}", "", "", "", usd(m.amount_pusd)] for m in bill.movements]
        rows.append(["credit at the end", "", "", "", usd(bill.closing_pusd)])
        if bill.rate.currency != "USD":
            shown = f"in {bill.rate.currency}, 1 USD = {bill.rate.per_usd} of {bill.rate.day}"
            rows.append([shown, "", "", "", show(bill.closing_pusd, bill.rate)])
        return make_table(columns, rows, right=columns[1:])

    emit(common, value, table)
    return NOT_WELL if bill.differing_pusd else OK
