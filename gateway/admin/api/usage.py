"""Overview and usage: the same totals, once at a glance and once by any dimension."""

from __future__ import annotations

from typing import Annotated, Any

from litestar import Request, get
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromQuery, QueryParameter
from msgspec import Struct
from sqlalchemy import select

from billing import accounts
from billing.accounts import Budget, BudgetKind, Scope, Window, window_start_ns
from billing.db import AsyncConnection
from billing.statements import spent
from gateway.admin import reports
from gateway.admin.api.values import TotalsView, totals_view, usd
from gateway.admin.auth.roles import TELLERS, Sight
from gateway.admin.problems import invalid
from gateway.admin.reports import FILTERS, GROUPS, Group, Point, Quantiles
from gateway.admin.services import Services
from gateway.admin.times import Bucket, Period, Stamp, bucket_for, period_of, stamp
from gateway.admin.wants import Caller, Office, Within
from gateway.schema import virtual_keys

From = Annotated[Stamp | None, QueryParameter(name="from", description="RFC 3339; default: 24 hours before `to`")]
To = Annotated[Stamp | None, QueryParameter(name="to", description="RFC 3339; default: now")]

TOP = 8
EXPORT_ROWS = 100_000
BUDGETS_AT_RISK = 5
_UNTOLD = Quantiles(None, None, None)
_GROUPED = (Scope.ORGANISATION, Scope.PROJECT, Scope.KEY)
"""Scopes that the kept sums are grouped by."""


class PeriodView(Struct, frozen=True):
    start: Stamp
    end: Stamp
    bucket: str


class GroupView(Struct, frozen=True):
    """name: the value or id; label: what people call it."""

    name: str
    label: str
    totals: TotalsView


class SeriesPoint(Struct, frozen=True):
    at: Stamp
    name: str
    requests: int
    failed: int
    input_tokens: int
    output_tokens: int
    charge_usd: str


class BudgetView(Struct, frozen=True):
    """`limit_usd` is what holds now, `raised_usd` the part of it that is there until `raised_until`, `base_usd` what
    was set: whoever changes a budget begins with that. `share` is spent / limit; above 1 when a limit was lowered, or
    does not refuse. `scope_id` may name a model, a provider or a tag after its owner and a slash; of scope `end_user`
    the one who spent most is told."""

    scope: str
    scope_id: str
    label: str
    window: str
    limit_usd: str
    base_usd: str
    spent_usd: str
    share: float
    kind: BudgetKind
    slow_rpm: int
    slow_from_percent: int
    raised_usd: str | None
    raised_until: Stamp | None


class Overview(Struct, frozen=True):
    """now and before: this period and the one of the same length that it follows."""

    period: PeriodView
    now: TotalsView
    before: TotalsView
    first_token_now: Quantiles
    first_token_before: Quantiles
    by_model: list[SeriesPoint]
    models: list[GroupView]
    keys: list[GroupView]
    outcomes: list[GroupView]
    budgets: list[BudgetView]
    first_request: bool


class Usage(Struct, frozen=True):
    """groups: the dearest first; what is beyond the limit is in `total` alone. series: top groups and "(other)"."""

    period: PeriodView
    by: str
    total: TotalsView
    groups: list[GroupView]
    series: list[SeriesPoint]


@get("/overview", name="overview.read")
async def overview(actor: Caller, sight: Within, services: Office, start: From = None, end: To = None) -> Overview:
    """Spend, requests, tokens, errors and first-token time at a glance, against the period before. First-token time
    is the installation's: whoever sees a part of it is told none."""
    period, within = period_of(start, end, services.clock()), sight.filters({})
    bucket, money = bucket_for(period, None), actor.role in TELLERS
    async with services.reader.reading() as db:
        models = await reports.explore(db, "alias", bucket, period, within, limit=TOP, top=TOP)
        keys = await reports.groups(db, "key", period, within, limit=TOP)
        outcomes = await reports.groups(db, "outcome", period, within, limit=TOP)
        ever = await reports.totals(db, Period(0, period.end_ns), within) if not models.points else None
        first_now, first_before = _UNTOLD, _UNTOLD
        if not within:
            first_now, first_before = [await reports.first_token(db, each) for each in (period, period.before)]
        return Overview(
            _period(period, bucket),
            totals_view(models.total, money=money),
            totals_view(await reports.totals(db, period.before, within), money=money),
            first_now,
            first_before,
            _points(models.points),
            await _groups(db, "alias", models.groups, money),
            await _groups(db, "key", keys, money),
            await _groups(db, "outcome", outcomes, money),
            await budgets_at_risk(db, sight, services.clock()),
            ever is None or ever.requests > 0,
        )


@get("/usage", name="usage.read")
async def usage(
    request: Request[Any, Any, Any],
    actor: Caller,
    sight: Within,
    services: Office,
    start: From = None,
    end: To = None,
    by: FromQuery[str] = "alias",
    bucket: FromQuery[str | None] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=1000)] = 50,
) -> Usage:
    """Totals by one dimension, with a time series of the biggest.

    Any dimension filters too, repeated for several values: `?by=model&provider=groq&key=key_1&key=key_2`."""
    period, filters, _ = asked(request, services, sight, start, end, by)
    step, money = bucket_for(period, bucket), actor.role in TELLERS
    async with services.reader.reading() as db:
        found = await reports.explore(db, by, step, period, filters, limit=limit, top=TOP)
        return Usage(
            _period(period, step),
            by,
            totals_view(found.total, money=money),
            await _groups(db, by, found.groups, money),
            _points(found.points),
        )


usage_handlers: list[HTTPRouteHandler] = [overview, usage]


async def budgets_within(db: AsyncConnection, sight: Sight, found: list[Budget]) -> list[Budget]:
    """Those that the caller may see: a key's goes by its project."""
    if sight.projects is None:
        return found
    of_keys = select(virtual_keys.c.id).where(virtual_keys.c.project_id.in_(sight.projects))
    keys = set((await db.execute(of_keys)).scalars())
    return [
        each
        for each in found
        if (each.scope_id in keys if each.scope is Scope.KEY else sight.shows(each.scope.value, each.scope_id))
    ]


async def budgets_at_risk(db: AsyncConnection, sight: Sight, now_ns: int) -> list[BudgetView]:
    """The budgets that are used up the most."""
    found = await budgets_within(db, sight, await accounts.budgets(db))
    used: dict[tuple[Scope, Window], dict[str, int]] = {}
    for kind in {(budget.scope, budget.window) for budget in found}:
        if kind[0] not in _GROUPED:
            used[kind] = {
                each.scope_id: await spent(db, each.scope, each.scope_id, since_ns=window_start_ns(each.window, now_ns))
                for each in found
                if (each.scope, each.window) == kind
            }
            continue
        # What has no price yet counts here once it has one: the roll-ups do not know what was held for it.
        scope, period = kind[0], Period(window_start_ns(kind[1], now_ns), now_ns)
        lines = await reports.groups(db, scope.value, period, {}, limit=EXPORT_ROWS)
        used[kind] = {line.name: line.totals.charge_pusd for line in lines}
    ranked = [(budget, used[budget.scope, budget.window].get(budget.scope_id, 0)) for budget in found]
    ranked.sort(key=lambda pair: -_share(pair[0], pair[1], now_ns))
    return [await _budget_view(db, budget, spent_pusd, now_ns) for budget, spent_pusd in ranked[:BUDGETS_AT_RISK]]


async def budget_view(db: AsyncConnection, budget: Budget, now_ns: int) -> BudgetView:
    used = await spent(db, budget.scope, budget.scope_id, since_ns=window_start_ns(budget.window, now_ns))
    return await _budget_view(db, budget, used, now_ns)


async def _budget_view(db: AsyncConnection, budget: Budget, used: int, now_ns: int) -> BudgetView:
    names = await reports.labels(db, budget.scope.value, [budget.scope_id]) if budget.scope in _GROUPED else {}
    limit_pusd = budget.limit_at(now_ns)
    raised_pusd = limit_pusd - budget.limit_pusd
    return BudgetView(
        budget.scope.value,
        budget.scope_id,
        names.get(budget.scope_id, budget.scope_id),
        budget.window.value,
        usd(limit_pusd) or "",
        usd(budget.limit_pusd) or "",
        usd(used) or "",
        _share(budget, used, now_ns),
        budget.kind,
        budget.slow_rpm,
        budget.slow_from_percent,
        usd(raised_pusd) if raised_pusd else None,
        stamp(budget.raise_until_ns) if raised_pusd and budget.raise_until_ns else None,
    )


def _share(budget: Budget, used: int, now_ns: int) -> float:
    limit_pusd = budget.limit_at(now_ns)
    return used / limit_pusd if limit_pusd else 1.0


def asked(
    request: Request[Any, Any, Any],
    services: Services,
    sight: Sight,
    start: Stamp | None,
    end: Stamp | None,
    by: str,
) -> tuple[Period, dict[str, list[str]], str]:
    if by not in GROUPS:
        raise invalid("by", f"{by!r} is no dimension", f"Take one of: {', '.join(GROUPS)}.")
    return period_of(start, end, services.clock()), sight.filters(filters_of(request)), by


def filters_of(request: Request[Any, Any, Any]) -> dict[str, list[str]]:
    """Every dimension that the query names."""
    return {name: values for name in FILTERS if (values := request.query_params.getall(name, []))}


def _period(period: Period, bucket: Bucket) -> PeriodView:
    return PeriodView(stamp(period.start_ns), stamp(period.end_ns), bucket.name)


async def _groups(db: AsyncConnection, by: str, found: list[Group], money: bool) -> list[GroupView]:
    names = await reports.labels(db, by, [group.name for group in found])
    return [
        GroupView(group.name, names.get(group.name, group.name), totals_view(group.totals, money=money))
        for group in found
    ]


def _points(points: list[Point]) -> list[SeriesPoint]:
    return [
        SeriesPoint(
            stamp(point.at_ns),
            point.name,
            point.totals.requests,
            point.totals.failed,
            point.totals.input_tokens,
            point.totals.output_tokens,
            usd(point.totals.charge_pusd) or "",
        )
        for point in points
    ]
