"""Reports over usage records: totals, groups, time series, first-token quantiles. SQL in, plain values out.

Sums go through wide_sum, since SQLite's sum() fails beyond 64 bits. Every query is bounded by a period, which the
index on at_ns serves. Times of day are those of UTC.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from msgspec import Struct
from sqlalchemy import ColumnElement, Select, case, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from billing import schema as billing_schema
from billing.db import add_up, wide_sum
from billing.schema import usage_records
from billing.usage import Outcome
from gateway.admin.times import Bucket, Period
from gateway.schema import virtual_keys

_U: Final = usage_records.c

GROUPS: Final[dict[str, ColumnElement[Any]]] = {
    "key": _U.key_id,
    "project": _U.project_id,
    "organisation": _U.organisation_id,
    "alias": _U.alias,
    "model": _U.model,
    "provider": _U.provider,
    "deployment": _U.deployment,
    "end_user": _U.end_user,
    "outcome": _U.outcome,
    "dialect": _U.dialect,
}
FILTERS: Final = tuple(GROUPS)
OTHER: Final = "(other)"
NOBODY: Final = "(none)"

FAILED: Final = (Outcome.UPSTREAM_FAILED, Outcome.TIMED_OUT, Outcome.KILLED)
"""What counts as an error of the service. A rejected request is the client's, a gone client nobody's."""


class Totals(Struct, frozen=True):
    """charge: what customers owe for it; cost: what providers will bill. unpriced: requests not charged yet."""

    requests: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    charge_pusd: int = 0
    cost_pusd: int = 0
    unpriced: int = 0


class Group(Struct, frozen=True):
    name: str
    totals: Totals


class Point(Struct, frozen=True):
    """One group's totals in the step that begins at `at_ns`."""

    at_ns: int
    name: str
    totals: Totals


class Quantiles(Struct, frozen=True):
    """Exact, in milliseconds. None where nothing was measured."""

    p50_ms: int | None
    p95_ms: int | None
    p99_ms: int | None


def where(period: Period, filters: dict[str, list[str]]) -> list[ColumnElement[bool]]:
    """filters: names out of FILTERS, each with the values to keep."""
    clauses: list[ColumnElement[bool]] = [_U.at_ns >= period.start_ns, _U.at_ns < period.end_ns]
    clauses += [GROUPS[name].in_(values) for name, values in filters.items() if values]
    return clauses


def _sums() -> list[ColumnElement[Any]]:
    failed = case((_U.outcome.in_([outcome.value for outcome in FAILED]), 1), else_=0)
    unpriced = case((_U.charge_pusd.is_(None), 1), else_=0)
    return [
        func.count(),
        func.coalesce(func.sum(failed), 0),
        func.coalesce(func.sum(_U.input_tokens), 0),
        func.coalesce(func.sum(_U.output_tokens), 0),
        *wide_sum(_U.charge_pusd),
        *wide_sum(_U.cost_pusd),
        func.coalesce(func.sum(unpriced), 0),
    ]


def _totals(row: Sequence[Any]) -> Totals:
    requests, failed, read, written, charge_whole, charge_rest, cost_whole, cost_rest, unpriced = row
    return Totals(
        int(requests),
        int(failed),
        int(read),
        int(written),
        add_up(charge_whole, charge_rest),
        add_up(cost_whole, cost_rest),
        int(unpriced),
    )


def _named(query: Select[Any]) -> Select[Any]:
    return query.select_from(usage_records)


async def totals(db: AsyncConnection, period: Period, filters: dict[str, list[str]]) -> Totals:
    query = _named(select(*_sums())).where(*where(period, filters))
    return _totals((await db.execute(query)).one())


async def groups(
    db: AsyncConnection, by: str, period: Period, filters: dict[str, list[str]], *, limit: int
) -> list[Group]:
    """The dearest first, then the busiest."""
    column = GROUPS[by]
    dollars, rest = wide_sum(_U.charge_pusd)
    query = (
        _named(select(column, *_sums()))
        .where(*where(period, filters))
        .group_by(column)
        .order_by(dollars.desc(), rest.desc(), func.count().desc())
        .limit(limit)
    )
    return [Group(name if name is not None else NOBODY, _totals(row)) for name, *row in await db.execute(query)]


async def series(
    db: AsyncConnection, by: str | None, bucket: Bucket, period: Period, filters: dict[str, list[str]], top: list[str]
) -> list[Point]:
    """Totals of each step, in the order of time; groups that are not in `top` come together as OTHER."""
    at = (_U.at_ns // bucket.width_ns).label("step")
    if by is None:
        query = _named(select(at, *_sums())).where(*where(period, filters)).group_by(at).order_by(at)
        return [Point(step * bucket.width_ns, "all", _totals(row)) for step, *row in await db.execute(query)]
    column = GROUPS[by]
    name: ColumnElement[Any] = case((column.is_(None), NOBODY), (column.in_(top), column), else_=OTHER).label("name")
    query = _named(select(at, name, *_sums())).where(*where(period, filters)).group_by(at, name).order_by(at, name)
    return [Point(step * bucket.width_ns, found, _totals(row)) for step, found, *row in await db.execute(query)]


async def first_token(db: AsyncConnection, period: Period, filters: dict[str, list[str]]) -> Quantiles:
    """Counted by the millisecond: exact on both databases, and as many rows as there are distinct values."""
    query = (
        _named(select(_U.first_token_ms, func.count()))
        .where(*where(period, filters), _U.first_token_ms.is_not(None))
        .group_by(_U.first_token_ms)
        .order_by(_U.first_token_ms)
    )
    counted = [(int(ms), int(times)) for ms, times in await db.execute(query)]
    return Quantiles(*(_quantile(counted, share) for share in (50, 95, 99)))


def _quantile(counted: list[tuple[int, int]], share: int) -> int | None:
    """The smallest value that at least `share` percent do not exceed."""
    need = -(-sum(times for _, times in counted) * share // 100)
    seen = 0
    for value, times in counted:
        seen += times
        if seen >= need:
            return value
    return None


async def labels(db: AsyncConnection, by: str, names: Sequence[str]) -> dict[str, str]:
    """What people call these ids."""
    table = {
        "key": virtual_keys.c,
        "project": billing_schema.projects.c,
        "organisation": billing_schema.organisations.c,
    }.get(by)
    if table is None or not names:
        return {}
    rows = await db.execute(select(table.id, table.name).where(table.id.in_(names)))
    return {row.id: row.name for row in rows}
