"""Projections of what has been shipped: spending within a window, and usage by one dimension. Reads, never writes."""

import datetime
from collections.abc import Sequence
from enum import StrEnum
from typing import Final

import msgspec
from sqlalchemy import ColumnElement, Integer, case, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.accounts import Scope
from billing.db import add_up, wide_sum
from billing.schema import usage_records

_NS_PER_DAY: Final = 86_400 * 10**9
_SCOPE_COLUMN: Final = {
    Scope.ORGANISATION: usage_records.c.organisation_id,
    Scope.PROJECT: usage_records.c.project_id,
    Scope.KEY: usage_records.c.key_id,
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


_DIMENSION: Final[dict[Dimension, ColumnElement[str]]] = {
    Dimension.ORGANISATION: usage_records.c.organisation_id,
    Dimension.PROJECT: usage_records.c.project_id,
    Dimension.KEY: usage_records.c.key_id,
    Dimension.END_USER: usage_records.c.end_user,
    Dimension.ALIAS: usage_records.c.alias,
    Dimension.MODEL: usage_records.c.model,
    Dimension.PROVIDER: usage_records.c.provider,
    Dimension.DAY: usage_records.c.at_ns // _NS_PER_DAY,
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
    column = _SCOPE_COLUMN[scope]
    query = select(column, *wide_sum(usage_records.c.charge_pusd)).where(
        column.in_(scope_ids), usage_records.c.at_ns >= since_ns
    )
    if until_ns is not None:
        query = query.where(usage_records.c.at_ns < until_ns)
    sums = {name: add_up(*parts) for name, *parts in await db.execute(query.group_by(column))}
    return {scope_id: sums.get(scope_id, 0) for scope_id in scope_ids}


async def usage_by(
    db: AsyncConnection, dimension: Dimension, *, since_ns: int = 0, until_ns: int | None = None
) -> list[UsageLine]:
    """Usage in [since, until), one line for each value of the dimension, in its order."""
    table = usage_records.c
    name = _DIMENSION[dimension]
    query = (
        select(
            name,
            func.count(),
            func.sum(table.input_tokens),
            func.sum(table.output_tokens),
            _count(table.estimated.is_(True)),
            _count(table.charge_pusd.is_(None)),
            *wide_sum(table.charge_pusd),
            *wide_sum(table.cost_pusd),
        )
        .where(table.at_ns >= since_ns)
        .group_by(name)
        .order_by(name)
    )
    if until_ns is not None:
        query = query.where(table.at_ns < until_ns)
    return [
        UsageLine(
            name=_day(value) if dimension is Dimension.DAY else value or "",
            requests=requests,
            input_tokens=int(tokens_in),
            output_tokens=int(tokens_out),
            charge_pusd=add_up(*parts[:2]),
            cost_pusd=add_up(*parts[2:]),
            estimated=estimated,
            unpriced=unpriced,
        )
        for value, requests, tokens_in, tokens_out, estimated, unpriced, *parts in await db.execute(query)
    ]


def _count(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return func.coalesce(func.sum(case((condition, 1), else_=0)), 0).cast(Integer)


def _day(number: int) -> str:
    return (datetime.date(1970, 1, 1) + datetime.timedelta(days=int(number))).isoformat()
