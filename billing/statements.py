"""Projections of what has been shipped: spending within a window, and usage by one dimension. Reads, never writes."""

import datetime
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import ColumnElement, Integer, Table, case, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.accounts import Scope
from billing.db import add_up, wide_sum
from billing.rollups import NS_PER_HOUR
from billing.schema import usage_hours, usage_records

_HOURS_PER_DAY: Final = 24
_SCOPE: Final = {
    Scope.ORGANISATION: "organisation_id",
    Scope.PROJECT: "project_id",
    Scope.KEY: "key_id",
}


class Dimension(StrEnum):
    ORGANISATION = "organisation"
    PROJECT = "project"
    KEY = "key"
    END_USER = "end_user"
    ALIAS = "alias"
    MODEL = "model"
    PROVIDER = "provider"
    DAY = "day"


_DIMENSION: Final = {
    Dimension.ORGANISATION: "organisation_id",
    Dimension.PROJECT: "project_id",
    Dimension.KEY: "key_id",
    Dimension.END_USER: "end_user",
    Dimension.ALIAS: "alias",
    Dimension.MODEL: "model",
    Dimension.PROVIDER: "provider",
}


class UsageLine(msgspec.Struct, frozen=True):
    """`name` is the dimension's value, a day as 2026-11-23. `estimated` and `unpriced` count requests."""

    name: str
    requests: int
    input_tokens: int
    output_tokens: int
    charge_pusd: int
    cost_pusd: int
    estimated: int
    unpriced: int


async def spent(
    db: AsyncConnection, scope: Scope, scope_id: str, *, since_ns: int = 0, until_ns: int | None = None
) -> int:
    """What one scope was charged in [since, until), in pUSD: what a budget's live counter is rebuilt from."""
    return (await spent_by(db, scope, [scope_id], since_ns=since_ns, until_ns=until_ns))[scope_id]


async def spent_by(
    db: AsyncConnection, scope: Scope, scope_ids: Sequence[str], *, since_ns: int = 0, until_ns: int | None = None
) -> dict[str, int]:
    """`spent` of several of one kind in one query; who has not spent is there with 0."""
    # From the rows themselves, by their index: budgets do not depend on the roll-ups.
    rows = _rows(since_ns, until_ns)
    column = rows.table.c[_SCOPE[scope]]
    query = select(column, *rows.charge).where(column.in_(scope_ids), *rows.within).group_by(column)
    sums = {name: add_up(*parts) for name, *parts in await db.execute(query)}
    return {scope_id: sums.get(scope_id, 0) for scope_id in scope_ids}


async def usage_by(
    db: AsyncConnection, dimension: Dimension, *, since_ns: int = 0, until_ns: int | None = None
) -> list[UsageLine]:
    """Usage in [since, until), one line for each value of the dimension, in its order."""
    by_end_user = dimension is Dimension.END_USER
    totals: dict[Any, list[int]] = {}
    for source in [_rows(since_ns, until_ns)] if by_end_user else _sources(since_ns, until_ns):
        name = source.day if dimension is Dimension.DAY else source.table.c[_DIMENSION[dimension]]
        query = select(name, *source.counts, *source.charge, *source.cost).where(*source.within).group_by(name)
        for value, *columns in await db.execute(query):
            *counts, charge_usd, charge_rest, cost_usd, cost_rest = columns
            parts = [*map(int, counts), add_up(charge_usd, charge_rest), add_up(cost_usd, cost_rest)]
            totals[value] = [a + b for a, b in zip(totals.get(value, [0] * len(parts)), parts, strict=True)]
    return [
        UsageLine(
            name=_day(value) if dimension is Dimension.DAY else value or "",
            requests=requests,
            input_tokens=tokens_in,
            output_tokens=tokens_out,
            charge_pusd=charge_pusd,
            cost_pusd=cost_pusd,
            estimated=estimated,
            unpriced=unpriced,
        )
        for value, (requests, tokens_in, tokens_out, estimated, unpriced, charge_pusd, cost_pusd) in sorted(
            totals.items(), key=lambda item: (item[0] is not None, item[0])
        )
    ]


class _Source(NamedTuple):
    """A table that holds a part of the time asked for, and its sums. counts: in the order of UsageLine's from
    requests on, without amounts. Amounts are (dollars, rest), as `add_up` takes them."""

    table: Table
    within: list[ColumnElement[bool]]
    day: ColumnElement[int]
    counts: tuple[ColumnElement[Any], ...]
    charge: tuple[ColumnElement[Any], ColumnElement[Any]]
    cost: tuple[ColumnElement[Any], ColumnElement[Any]]


def _sources(since_ns: int, until_ns: int | None) -> list[_Source]:
    """Whole hours from the roll-up; what is left of an hour at either end from the rows."""
    first = -(-since_ns // NS_PER_HOUR)
    if until_ns is None:
        found = [_hours(first, None)]
    else:
        last = until_ns // NS_PER_HOUR
        if first >= last:
            return [_rows(since_ns, until_ns)]
        found = [_hours(first, last)]
        if last * NS_PER_HOUR < until_ns:
            found.append(_rows(last * NS_PER_HOUR, until_ns))
    if since_ns < first * NS_PER_HOUR:
        found.append(_rows(since_ns, first * NS_PER_HOUR))
    return found


def _hours(first: int, until: int | None) -> _Source:
    table = usage_hours.c
    within = [table.hour >= first]
    if until is not None:
        within.append(table.hour < until)
    counted = (table.requests, table.input_tokens, table.output_tokens, table.estimated, table.unpriced)
    return _Source(
        usage_hours,
        within,
        table.hour // _HOURS_PER_DAY,
        tuple(func.sum(column) for column in counted),
        (func.sum(table.charge_usd), func.sum(table.charge_rest_pusd)),
        (func.sum(table.cost_usd), func.sum(table.cost_rest_pusd)),
    )


def _rows(since_ns: int, until_ns: int | None) -> _Source:
    table = usage_records.c
    within = [table.at_ns >= since_ns]
    if until_ns is not None:
        within.append(table.at_ns < until_ns)
    return _Source(
        usage_records,
        within,
        table.at_ns // (_HOURS_PER_DAY * NS_PER_HOUR),
        (
            func.count(),
            func.sum(table.input_tokens),
            func.sum(table.output_tokens),
            _count(table.estimated.is_(True)),
            _count(table.charge_pusd.is_(None)),
        ),
        wide_sum(table.charge_pusd),
        wide_sum(table.cost_pusd),
    )


def _count(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return func.coalesce(func.sum(case((condition, 1), else_=0)), 0).cast(Integer)


def _day(number: int) -> str:
    return (datetime.date(1970, 1, 1) + datetime.timedelta(days=int(number))).isoformat()
