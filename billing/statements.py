"""Projections of what has been shipped: spending within a window, and usage by one dimension. Reads, never writes."""

import datetime
from collections.abc import Sequence
from enum import StrEnum
from fnmatch import fnmatchcase
from operator import itemgetter
from typing import Final

import msgspec
from sqlalchemy import ColumnElement, exists, func, literal, select

from billing import sums
from billing.accounts import Scope
from billing.db import AsyncConnection, add_up, wide_sum, wide_sum_kept
from billing.rollups import NS_PER_HOUR
from billing.schema import projects, usage_hours, usage_records, usage_sealed
from billing.sums import FOR_EVER_NS, NS_PER_DAY, Span, Totals

_SCOPE: Final = {
    Scope.ORGANISATION: "organisation_id",
    Scope.PROJECT: "project_id",
    Scope.KEY: "key_id",
}


class Dimension(StrEnum):
    ORGANISATION = "organisation"
    PROJECT = "project"
    KEY = "key"
    TEAM = "team"
    END_USER = "end_user"
    TAG = "tag"
    ALIAS = "alias"
    MODEL = "model"
    PROVIDER = "provider"
    DEPLOYMENT = "deployment"
    OUTCOME = "outcome"
    DIALECT = "dialect"
    DAY = "day"


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
    db: AsyncConnection,
    scope: Scope,
    scope_id: str,
    *,
    since_ns: int = 0,
    until_ns: int | None = None,
    end_user: str | None = None,
) -> int:
    """What one scope was charged in [since, until), in pUSD, and what was held for requests that have no price yet:
    what a budget's live counter is rebuilt from. end_user: whose, of scope END_USER; None: who spent most."""
    if scope in _SCOPE:
        return (await spent_by(db, scope, [scope_id], since_ns=since_ns, until_ns=until_ns))[scope_id]
    if scope is Scope.TEAM:
        members = (await db.execute(select(projects.c.id).where(projects.c.team_id == scope_id))).scalars().all()
        return sum((await spent_by(db, Scope.PROJECT, members, since_ns=since_ns, until_ns=until_ns)).values())
    table = usage_records.c
    kept_ns = await _kept_from(db)
    amount = wide_sum(func.coalesce(table.charge_pusd, table.hold_pusd))
    query = select(table.end_user, *amount) if scope is Scope.END_USER else select(literal(""), *amount)
    query = query.where(*await _within(db, scope, scope_id), table.at_ns >= max(since_ns, kept_ns))
    if until_ns is not None:
        query = query.where(table.at_ns < until_ns)
    if scope is Scope.END_USER:
        query = query.where(table.end_user.is_not(None) if end_user is None else table.end_user == end_user)
        query = query.group_by(table.end_user)
    found = {name: add_up(*row) for name, *row in await db.execute(query)}
    if since_ns < kept_ns:
        span = Span(since_ns, kept_ns if until_ns is None else min(kept_ns, until_ns))
        for name, amount_pusd in (await _spent_before(db, scope, scope_id, span, end_user)).items():
            found[name] = found.get(name, 0) + amount_pusd
    return max(found.values(), default=0)


async def _kept_from(db: AsyncConnection) -> int:
    """From when on rows are there; of days before it they may be gone, and what was made of them stands for them."""
    pruned = usage_sealed.c
    last = (await db.execute(select(func.max(pruned.day)).where(pruned.pruned.is_(True)))).scalar_one_or_none()
    return 0 if last is None else (last + 1) * NS_PER_DAY


async def _spent_before(
    db: AsyncConnection, scope: Scope, scope_id: str, span: Span, end_user: str | None
) -> dict[str, int]:
    """`spent` of a scope that is no column of its own, from days: by end user, or under "" all together."""
    owner, _, name = scope_id.partition("/")
    is_project = (await db.execute(select(projects.c.id).where(projects.c.id == owner))).first() is not None
    filters = {sums.Dimension.PROJECT if is_project else sums.Dimension.ORGANISATION: [owner]}
    match scope:
        case Scope.END_USER:
            if end_user is not None:
                filters[sums.Dimension.END_USER] = [end_user]
            found = await sums.groups(db, sums.Dimension.END_USER, span, filters)
            return {user: line.charge_pusd for user, line in found if user is not None}
        case Scope.MODEL:
            aliases = await sums.groups(db, sums.Dimension.ALIAS, span, filters)
            return {"": sum(line.charge_pusd for alias, line in aliases if fnmatchcase(alias or "", name))}
        case Scope.PROVIDER:
            filters[sums.Dimension.PROVIDER] = [name]
        case Scope.TAG:
            filters[sums.Dimension.TAG] = [name]
        case _:
            raise ValueError(f"no scope of this kind: {scope}")
    return {"": (await sums.totals(db, span, filters)).charge_pusd}


async def _within(db: AsyncConnection, scope: Scope, scope_id: str) -> list[ColumnElement[bool]]:
    """Which rows a scope has that is no column of its own."""
    table = usage_records.c
    owner, _, name = scope_id.partition("/")
    is_project = (await db.execute(select(projects.c.id).where(projects.c.id == owner))).first() is not None
    owned = [(table.project_id if is_project else table.organisation_id) == owner]
    match scope:
        case Scope.MODEL:
            # Not LIKE, which on SQLite knows no case, nor GLOB, which PostgreSQL does not know.
            aliases = await db.execute(select(table.alias).where(owned[0]).distinct())
            owned.append(table.alias.in_([alias for alias in aliases.scalars() if fnmatchcase(alias, name)]))
        case Scope.PROVIDER:
            owned.append(table.provider == name)
        case Scope.TAG:
            tag = sums.tag_of(db.dialect.name)
            owned.append(exists().select_from(tag.table).where(tag == name))
        case _:
            pass
    return owned


async def spent_by(
    db: AsyncConnection, scope: Scope, scope_ids: Sequence[str], *, since_ns: int = 0, until_ns: int | None = None
) -> dict[str, int]:
    """`spent` of several of one kind in one query; who has not spent is there with 0."""
    # From the rows themselves, by their index: budgets do not depend on the roll-ups. But for days whose rows are gone.
    table, hours = usage_records.c, usage_hours.c
    kept_ns = await _kept_from(db)
    found = dict.fromkeys(scope_ids, 0)
    if since_ns < kept_ns:
        until_hour = min(kept_ns, FOR_EVER_NS if until_ns is None else until_ns) // NS_PER_HOUR
        column = hours[_SCOPE[scope]]
        query = select(column, *wide_sum_kept(hours.charge_usd, hours.charge_rest_pusd)).group_by(column)
        query = query.where(column.in_(scope_ids), hours.hour >= -(-since_ns // NS_PER_HOUR), hours.hour < until_hour)
        for name, *parts in await db.execute(query):
            found[name] += add_up(*parts)
    column = table[_SCOPE[scope]]
    # What waits for a price counts as what was held for it: nobody gets more than their budget by being unpriced.
    query = select(column, *wide_sum(func.coalesce(table.charge_pusd, table.hold_pusd))).group_by(column)
    query = query.where(column.in_(scope_ids), table.at_ns >= max(since_ns, kept_ns))
    if until_ns is not None:
        query = query.where(table.at_ns < until_ns)
    for name, *parts in await db.execute(query):
        found[name] += add_up(*parts)
    return found


async def usage_by(
    db: AsyncConnection, dimension: Dimension, *, since_ns: int = 0, until_ns: int | None = None
) -> list[UsageLine]:
    """Usage in [since, until), one line for each value of the dimension, in its order; "" where there is none."""
    span = Span(since_ns, FOR_EVER_NS if until_ns is None else until_ns)
    found: list[tuple[str, Totals]]
    if dimension is Dimension.DAY:
        found = [(day_name(step), line) for step, _, line in await sums.series(db, None, NS_PER_DAY, span, {})]
    else:
        by = sums.Dimension(dimension.value)
        found = sorted(((name or "", line) for name, line in await sums.groups(db, by, span, {})), key=itemgetter(0))
    return [
        UsageLine(
            name=name,
            requests=line.requests,
            input_tokens=line.input_tokens,
            output_tokens=line.output_tokens,
            charge_pusd=line.charge_pusd,
            cost_pusd=line.cost_pusd,
            estimated=line.estimated,
            unpriced=line.unpriced,
        )
        for name, line in found
    ]


def day_name(number: int) -> str:
    """A day since 1970 as 2026-11-23."""
    return (datetime.date(1970, 1, 1) + datetime.timedelta(days=number)).isoformat()
