"""Reports over usage: totals, groups, time series, first-token quantiles, in the words of the admin API.

What they are read from is billing.sums' to choose; where they are read is gateway.admin.reading. Times of day are
those of UTC.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any, Final

from msgspec import Struct
from sqlalchemy import ColumnElement, select

from billing import schema as billing_schema
from billing import sums
from billing.db import AsyncConnection
from billing.sums import NOBODY, OTHER, Dimension, Span, Totals
from gateway.admin.times import Bucket, Period
from gateway.schema import virtual_keys

__all__ = ["NOBODY", "OTHER", "Totals"]

GROUPS: Final = tuple(each.value for each in Dimension)
FILTERS: Final = GROUPS


class Group(Struct, frozen=True):
    name: str
    totals: Totals


class Point(Struct, frozen=True):
    """One group's totals in the step that begins at `at_ns`."""

    at_ns: int
    name: str
    totals: Totals


class Explored(Struct, frozen=True):
    """groups: the dearest first. points: the series of the biggest ones and OTHER. total: of all."""

    groups: list[Group]
    points: list[Point]
    total: Totals


class Quantiles(Struct, frozen=True):
    """In milliseconds. None where nothing was measured."""

    p50_ms: int | None
    p95_ms: int | None
    p99_ms: int | None


def where(db: AsyncConnection, period: Period, filters: dict[str, list[str]]) -> list[ColumnElement[bool]]:
    """The rows of the period. filters: names out of FILTERS, each with the values to keep."""
    return sums.where(_span(period), _filters(filters), db.dialect.name)


async def totals(db: AsyncConnection, period: Period, filters: dict[str, list[str]]) -> Totals:
    return await sums.totals(db, _span(period), _filters(filters))


async def groups(
    db: AsyncConnection, by: str, period: Period, filters: dict[str, list[str]], *, limit: int
) -> list[Group]:
    """The dearest first, then the busiest."""
    found = await sums.groups(db, Dimension(by), _span(period), _filters(filters), limit=limit)
    return [Group(name if name is not None else NOBODY, line) for name, line in found]


async def series(
    db: AsyncConnection, by: str | None, bucket: Bucket, period: Period, filters: dict[str, list[str]], top: list[str]
) -> list[Point]:
    """Totals of each step, in the order of time; groups that are not in `top` come together as OTHER."""
    dimension = None if by is None else Dimension(by)
    found = await sums.series(db, dimension, bucket.width_ns, _span(period), _filters(filters), top)
    return [Point(step * bucket.width_ns, name, line) for step, name, line in found]


# Names that an operator lists. Everybody's in every step is little more than the biggest ones' then, so that one query
# answers what else takes three.
_FEW: Final = frozenset({"alias", "model", "provider", "deployment", "outcome", "dialect"})


async def explore(
    db: AsyncConnection, by: str, bucket: Bucket, period: Period, filters: dict[str, list[str]], *, limit: int, top: int
) -> Explored:
    if by not in _FEW:
        named, steps = await sums.ranked(
            db, Dimension(by), bucket.width_ns, _span(period), _filters(filters), limit=limit, top=top
        )
        found = [Group(name if name is not None else NOBODY, line) for name, line in named]
        points = [Point(step * bucket.width_ns, name, line) for step, name, line in steps]
        # By tag, a request may be in two groups.
        tags = Dimension(by) is Dimension.TAG
        total = await totals(db, period, filters) if tags else sum((p.totals for p in points), Totals())
        return Explored(found, points, total)
    steps = await sums.series(db, Dimension(by), bucket.width_ns, _span(period), _filters(filters), None)
    names: dict[str, Totals] = {}
    for _, name, line in steps:
        names[name] = names.get(name, Totals()) + line
    ranked = [Group(name, line) for name, line in sorted(names.items(), key=_dearest)]
    biggest = {group.name for group in ranked[:top]}
    shown: dict[tuple[int, str], Totals] = {}
    for step, name, line in steps:
        key = (step, name if name in biggest or name == NOBODY else OTHER)
        shown[key] = shown.get(key, Totals()) + line
    points = [
        Point(step * bucket.width_ns, name, line) for (step, name), line in sorted(shown.items(), key=itemgetter(0))
    ]
    return Explored(ranked[:limit], points, sum(names.values(), Totals()))


def _dearest(group: tuple[str, Totals]) -> tuple[int, int, str]:
    name, line = group
    return -line.charge_pusd, -line.requests, name


async def first_token(db: AsyncConnection, period: Period, providers: Sequence[str] = ()) -> Quantiles:
    counted = await sums.waits(db, _span(period), providers)
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


def _span(period: Period) -> Span:
    return Span(max(0, period.start_ns), period.end_ns)


def _filters(filters: dict[str, list[str]]) -> dict[Dimension, list[str]]:
    return {Dimension(name): values for name, values in filters.items()}


async def labels(db: AsyncConnection, by: str, names: Sequence[str]) -> dict[str, str]:
    """What people call these ids."""
    table: Any = {
        "key": virtual_keys.c,
        "team": billing_schema.teams.c,
        "project": billing_schema.projects.c,
        "organisation": billing_schema.organisations.c,
    }.get(by)
    if table is None or not names:
        return {}
    rows = await db.execute(select(table.id, table.name).where(table.id.in_(names)))
    return {row.id: row.name for row in rows}
