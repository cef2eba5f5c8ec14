"""Seals days: what usage_days, usage_day_facets and usage_day_waits say of a day that is over.

A day is made from its hours and its rows in one transaction that no shipper can write in between. A row that comes
later takes the seal off (billing.rollups) and the day is made anew; until then reports read its hours and rows.
"""

from typing import Final

from sqlalchemy import case, delete, func, insert, literal, select, true

from billing import rollups, schema
from billing.accounts import upsert
from billing.db import AsyncConnection, AsyncEngine, reading, writing
from billing.money import PUSD_PER_USD
from billing.rollups import NAMES, NS_PER_HOUR
from billing.sums import FACETS, NS_PER_DAY, Dimension, row_sums, tag_of

# Requests that ended at midnight have been shipped by then; those that were not only cost a second sealing.
GRACE_NS: Final = NS_PER_HOUR // 2


async def seal_due(engine: AsyncEngine, *, now_ns: int, most: int = 400) -> int:
    """Seal days that are over and not sealed, the newest first, each in a transaction of its own. Returns: how many."""
    today = (now_ns - GRACE_NS) // NS_PER_DAY
    hour, day = schema.usage_hours.c.hour, schema.usage_sealed.c.day
    async with reading(engine) as db:
        first = (await db.execute(select(func.min(hour)))).scalar_one_or_none()
        if first is None:
            return 0
        sealed = set((await db.execute(select(day).where(day >= first // 24))).scalars())
    due = [number for number in range(today - 1, first // 24 - 1, -1) if number not in sealed][:most]
    for number in due:
        async with writing(engine) as db:
            await seal(db, number)
    return len(due)


async def rebuild(engine: AsyncEngine, *, now_ns: int) -> int:
    """Take every seal off whose rows are still there, and seal anew. Returns: how many days."""
    async with writing(engine) as db:
        await rollups.hold(db)
        await db.execute(delete(schema.usage_sealed).where(schema.usage_sealed.c.pruned.is_(False)))
    return await seal_due(engine, now_ns=now_ns, most=100_000)


async def seal(db: AsyncConnection, day: int) -> None:
    """Make one day in the caller's transaction; `writing` for the caller."""
    hours = schema.usage_hours
    await rollups.hold(db)  # Else a row could fall between hours and seal.
    sealed = schema.usage_sealed
    pruned = (await db.execute(select(sealed.c.pruned).where(sealed.c.day == day))).scalar_one_or_none()
    await db.execute(delete(schema.usage_days).where(schema.usage_days.c.day == day))
    names = [hours.c[name] for name in NAMES]
    query = select(literal(day), *names, *(func.sum(hours.c[name]) for name in _COUNTED)).group_by(*names)
    query = query.where(hours.c.hour >= day * 24, hours.c.hour < (day + 1) * 24)
    await db.execute(insert(schema.usage_days).from_select(["day", *NAMES, *_COUNTED], query))
    if not pruned:
        for facet in FACETS:
            await _make_facet(db, day, facet)
        await _make_waits(db, day)
        await db.execute(upsert(db, sealed).values(day=day, pruned=False).on_conflict_do_nothing())


_COUNTED: Final = ("requests", "input_tokens", "output_tokens", "estimated", "unpriced", "charge_usd",
                   "charge_rest_pusd", "cost_usd", "cost_rest_pusd")  # fmt: skip


async def _make_facet(db: AsyncConnection, day: int, facet: Dimension) -> None:
    table, rows = schema.usage_day_facets, schema.usage_records
    await db.execute(delete(table).where(table.c.facet == facet.value, table.c.day == day))
    tag = tag_of(db.dialect.name)
    name = tag if facet is Dimension.TAG else rows.c.end_user
    source = rows.outerjoin(tag.table, true()) if facet is Dimension.TAG else rows
    one, failed, tokens_in, tokens_out, *_, estimated, unpriced = row_sums()
    amounts = []
    for amount in (rows.c.charge_pusd, rows.c.cost_pusd):
        amounts += [
            func.coalesce(func.sum(amount // PUSD_PER_USD), 0),
            func.coalesce(func.sum(amount % PUSD_PER_USD), 0),
        ]
    scope = (rows.c.organisation_id, rows.c.project_id)
    counts = [func.sum(column) for column in (failed, one, tokens_in, tokens_out, estimated, unpriced)]
    query = select(literal(day), literal(facet.value), name, *scope, *counts, *amounts).select_from(source)
    query = query.where(rows.c.at_ns >= day * NS_PER_DAY, rows.c.at_ns < (day + 1) * NS_PER_DAY)
    columns = ["day", "facet", "name", "organisation_id", "project_id", "failed", *_COUNTED]
    await db.execute(insert(table).from_select(columns, query.group_by(name, *scope)))


async def _make_waits(db: AsyncConnection, day: int) -> None:
    table, rows = schema.usage_day_waits, schema.usage_records.c
    await db.execute(delete(table).where(table.c.day == day))
    ms = rows.first_token_ms
    step = case((ms < 1000, ms), else_=ms - ms % 10)
    query = select(literal(day), rows.provider, step, func.count()).where(rows.first_token_ms.is_not(None))
    query = query.where(rows.at_ns >= day * NS_PER_DAY, rows.at_ns < (day + 1) * NS_PER_DAY)
    columns = ["day", "provider", "first_token_ms", "requests"]
    await db.execute(insert(table).from_select(columns, query.group_by(rows.provider, step)))
