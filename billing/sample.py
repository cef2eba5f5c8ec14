"""Takes an organisation back out, with all that was ever booked for it: for sample data, which is nobody's money.

A real organisation is never removed: its postings are the books. `farebox demo --clear` is the one caller.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from sqlalchemy import delete, func, or_, select, update

from billing import accounts, partitions, rollups, schema
from billing.db import AsyncConnection, metadata
from billing.sums import NS_PER_DAY

# Columns by which a row belongs to somebody. Tables of other packages have them too, and new ones will.
_OWNERS: Final = ("organisation_id", "project_id", "team_id", "key_id", "scope_id")
# Taken out below, in their own order; and what is never shortened, whose rows prove each other.
_NOT_BY_OWNER: Final = frozenset({"projects", "teams", "organisations", "audit"})


async def remove(db: AsyncConnection, organisation_id: str, key_ids: Sequence[str]) -> dict[str, int]:
    """In the caller's transaction. key_ids: its keys. Balances are as if it had never been; the audit log stays.

    Returns: rows that went, by table."""
    gone: defaultdict[str, int] = defaultdict(int)
    # Balances come first here and last with shippers, who would meet us half-way.
    await partitions.hold(db)
    await rollups.hold(db)
    await _remove_postings(db, organisation_id, gone)
    await _unseal(db, organisation_id, gone)
    projects = select(schema.projects.c.id).where(schema.projects.c.organisation_id == organisation_id)
    teams = select(schema.teams.c.id).where(schema.teams.c.organisation_id == organisation_id)
    ids = [organisation_id, *key_ids, *(await db.execute(projects)).scalars(), *(await db.execute(teams)).scalars()]
    for table in reversed(metadata.sorted_tables):
        columns = [table.c[name] for name in _OWNERS if name in table.c]
        if table.name in _NOT_BY_OWNER or not columns:
            continue
        # A budget of a model stands under ORGANISATION/NAME.
        named = [table.c.scope_id.like(f"{each}/%") for each in ids] if "scope_id" in table.c else []
        gone[table.name] += (
            await db.execute(delete(table).where(or_(*(column.in_(ids) for column in columns), *named)))
        ).rowcount
    for table in (schema.projects, schema.teams):
        gone[table.name] += (await db.execute(delete(table).where(table.c.organisation_id == organisation_id))).rowcount
    row = delete(schema.organisations).where(schema.organisations.c.id == organisation_id)
    gone["organisations"] += (await db.execute(row)).rowcount
    return {name: count for name, count in sorted(gone.items()) if count}


async def _remove_postings(db: AsyncConnection, organisation_id: str, gone: dict[str, int]) -> None:
    """What is posted for its requests, and whatever touches its account."""
    table, customer = schema.transfers, accounts.customer(organisation_id)
    records = select(schema.usage_records.c.id).where(schema.usage_records.c.organisation_id == organisation_id)
    await partitions.forget(db, records)
    its = or_(table.c.debit == customer, table.c.credit == customer, table.c.record_id.in_(records))
    moved: defaultdict[str, int] = defaultdict(int)
    for row in await db.execute(select(table.c.debit, table.c.credit, table.c.amount_pusd).where(its)):
        moved[row.debit] += row.amount_pusd
        moved[row.credit] -= row.amount_pusd
    gone["transfers"] += (await db.execute(delete(table).where(its))).rowcount
    kept = schema.accounts
    locked = select(kept).where(kept.c.id.in_(moved)).order_by(kept.c.id).with_for_update()
    for account in (await db.execute(locked)).all():
        balance = account.balance_pusd - moved[account.id]
        used = select(func.count()).where(or_(table.c.debit == account.id, table.c.credit == account.id))
        if balance == 0 and not (await db.execute(used)).scalar_one():
            gone["accounts"] += (await db.execute(delete(kept).where(kept.c.id == account.id))).rowcount
        else:
            await db.execute(update(kept).where(kept.c.id == account.id).values(balance_pusd=balance))


async def _unseal(db: AsyncConnection, organisation_id: str, gone: dict[str, int]) -> None:
    """Its days are made anew by the next worker; reports read hours and rows until then. See billing.days."""
    rows, sealed, waits = schema.usage_records.c, schema.usage_sealed, schema.usage_day_waits
    found = select((rows.at_ns // NS_PER_DAY).label("day")).where(rows.organisation_id == organisation_id).distinct()
    days = [int(day) for day in (await db.execute(found)).scalars()]
    whole = select(sealed.c.day).where(sealed.c.day.in_(days), sealed.c.pruned.is_(False))
    for day in list((await db.execute(whole)).scalars()):
        gone["usage_sealed"] += (await db.execute(delete(sealed).where(sealed.c.day == day))).rowcount
        gone["usage_day_waits"] += (await db.execute(delete(waits).where(waits.c.day == day))).rowcount
