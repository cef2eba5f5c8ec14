"""What caches saved: prompt tokens that providers read at the cached price, and answers that were given twice."""

from __future__ import annotations

from typing import Any, Final

from litestar import Request, get
from litestar.handlers import HTTPRouteHandler
from msgspec import Struct
from sqlalchemy import func, select

from billing.db import AsyncConnection
from billing.money import format_usd
from billing.pricelist import load_sheet
from billing.schema import usage_records
from billing.usage import Meter
from gateway.admin import reports
from gateway.admin.api.usage import From, To, filters_of
from gateway.admin.times import DAY_NS, Period, Stamp, period_of, stamp
from gateway.admin.wants import Office, Within

# The kept sums do not know of caches, so rows are read: of a week at most, which 400,000 of them take a second.
LONGEST_NS: Final = 7 * DAY_NS


class Savings(Struct, frozen=True):
    """start: later than asked for where that was more than a week. saved_usd: cached tokens at what they would have
    cost anew, less what they did. kept_answers: requests that no provider was asked for."""

    start: Stamp
    end: Stamp
    cached_tokens: int
    saved_usd: str
    kept_answers: int


@get("/savings", name="savings.read")
async def read_savings(
    request: Request[Any, Any, Any], services: Office, sight: Within, start: From = None, end: To = None
) -> Savings:
    """Of the period, or of its last week. Filters as in `/usage`."""
    asked = period_of(start, end, services.clock())
    period = Period(max(asked.start_ns, asked.end_ns - LONGEST_NS), asked.end_ns)
    async with services.reader.reading() as db:
        tokens, pusd, answers = await saved(db, period, sight.filters(filters_of(request)))
    return Savings(stamp(period.start_ns), stamp(period.end_ns), tokens, format_usd(pusd), answers)


savings_handlers: list[HTTPRouteHandler] = [read_savings]


async def saved(db: AsyncConnection, period: Period, filters: dict[str, list[str]]) -> tuple[int, int, int]:
    """Cached tokens, what they saved in pUSD, and answers that were given again."""
    table, tokens, pusd = usage_records.c, 0, 0
    cached = table.quantities[Meter.CACHE_READ_TOKENS.value].as_integer()
    where = reports.where(db, period, filters)
    query = select(table.price_id, func.sum(cached)).where(*where, cached > 0).group_by(table.price_id)
    for price_id, count in (await db.execute(query)).all():
        tokens += int(count)
        if (sheet := await load_sheet(db, price_id)) is not None:
            prices = sheet.tier(0).sale
            anew = prices.get(Meter.INPUT_TOKENS, 0)
            pusd += int(count) * max(0, anew - prices.get(Meter.CACHE_READ_TOKENS, anew))
    answers = (await db.execute(select(func.count()).where(*where, table.attempts == 0))).scalar_one()
    return tokens, pusd, answers
