"""How fast a budget goes, and where that leads: what was spent step by step, and a straight line from here on."""

from __future__ import annotations

from typing import Final

from litestar import get
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, FromQuery
from msgspec import Struct

from billing import accounts
from billing.accounts import Budget, Scope, Window, window_end_ns, window_start_ns
from billing.db import AsyncConnection
from billing.money import format_usd
from billing.statements import spent
from gateway.admin import reports
from gateway.admin.api.projects import named
from gateway.admin.problems import not_found
from gateway.admin.times import BUCKETS, DAY_NS, HOUR_NS, Bucket, Period, Stamp, stamp
from gateway.admin.wants import Office

# What a budget without an end is drawn over, and what a rate is taken from: last month says little of today.
_SHOWN_NS: Final = 30 * DAY_NS
_RATE_NS: Final = 7 * DAY_NS
# Scopes that the kept sums can be filtered by.
_DRAWN: Final = (Scope.ORGANISATION, Scope.TEAM, Scope.PROJECT, Scope.KEY)


class SpentPoint(Struct, frozen=True):
    """What had been spent of the budget by the end of the step that begins at `at`."""

    at: Stamp
    spent_usd: str


class Forecast(Struct, frozen=True):
    """points: empty for budgets that sums are not kept by. a_day_usd: of the last seven days, or since the window
    began. ends_at: of the window; null where it has none. at_end_usd: spent by then at that rate. used_up_at: when the
    limit is reached at that rate, null if it is not before the window's end, or nothing is being spent."""

    limit_usd: str
    spent_usd: str
    starts_at: Stamp
    ends_at: Stamp | None
    bucket: str
    points: list[SpentPoint]
    a_day_usd: str
    at_end_usd: str | None
    used_up_at: Stamp | None


@get("/budgets/{level:str}/{scope_id:str}/{window:str}/forecast", name="forecast.read")
async def forecast(
    level: FromPath[Scope],
    scope_id: FromPath[str],
    window: FromPath[Window],
    services: Office,
    name: FromQuery[str | None] = None,
) -> Forecast:
    """How a budget has been used up, and when it will be at this rate."""
    now_ns, of = services.clock(), named(scope_id, name)
    async with services.reader.reading() as db:
        for budget in await accounts.budgets(db, [of]):
            if (budget.scope, budget.window) == (level, window):
                return await _forecast(db, budget, now_ns)
    raise not_found("budget", f"{level}/{of}/{window}", "List the budgets.")


forecast_handlers: list[HTTPRouteHandler] = [forecast]


async def _forecast(db: AsyncConnection, budget: Budget, now_ns: int) -> Forecast:
    begun_ns, end_ns = window_start_ns(budget.window, now_ns), window_end_ns(budget.window, now_ns)
    limit, used = budget.limit_at(now_ns), await spent(db, budget.scope, budget.scope_id, since_ns=begun_ns)
    lately_ns = max(begun_ns, now_ns - _RATE_NS)
    lately = used if lately_ns == begun_ns else await spent(db, budget.scope, budget.scope_id, since_ns=lately_ns)
    # Nothing can be said of the first moments of a window: an hour is the least that a rate is taken over.
    took_ns = max(now_ns - lately_ns, min(HOUR_NS, now_ns - begun_ns + 1))
    starts_ns = max(begun_ns, now_ns - _SHOWN_NS)
    bucket = BUCKETS["minute" if budget.window is Window.HOUR else "hour" if budget.window is Window.DAY else "day"]
    used_up_ns = None
    if used >= limit:
        used_up_ns = now_ns
    elif lately > 0:
        reached_ns = now_ns + (limit - used) * took_ns // lately
        used_up_ns = reached_ns if reached_ns < (end_ns or now_ns + 3650 * DAY_NS) else None
    return Forecast(
        format_usd(limit),
        format_usd(used),
        stamp(starts_ns),
        None if end_ns is None else stamp(end_ns),
        bucket.name,
        await _points(db, budget, bucket, Period(starts_ns, now_ns), used),
        format_usd(lately * DAY_NS // took_ns),
        None if end_ns is None else format_usd(used + lately * (end_ns - now_ns) // took_ns),
        None if used_up_ns is None else stamp(used_up_ns),
    )


async def _points(
    db: AsyncConnection, budget: Budget, bucket: Bucket, period: Period, used_pusd: int
) -> list[SpentPoint]:
    """Backwards from what is spent now, so that the last point is what the budget says."""
    if budget.scope not in _DRAWN or period.end_ns <= period.start_ns:
        return []
    found = await reports.series(db, None, bucket, period, {budget.scope.value: [budget.scope_id]}, [])
    steps: dict[int, int] = {}
    for point in found:
        steps[point.at_ns] = steps.get(point.at_ns, 0) + point.totals.charge_pusd
    points, left = [], used_pusd
    for at_ns in reversed(bucket.starts(period)):
        points.append(SpentPoint(stamp(at_ns), format_usd(max(0, left))))
        left -= steps.get(at_ns, 0)
    return points[::-1]
