"""What SQL knows of money spent, in the form that counters are made from. Reads only."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from billing import schema
from billing.accounts import Scope, customer
from billing.db import add_up, reading, wide_sum
from billing.statements import spent
from gateway.admission.principal import CREDIT, Budget


async def spent_pusd(engine: AsyncEngine, budget: Budget, start_ns: int) -> int:
    """What has been charged against a budget since `start_ns`."""
    async with reading(engine) as db:
        if budget.scope == CREDIT:
            paid_in, left = await credit(db, budget.scope_id)
            return paid_in - left
        return await spent(db, Scope(budget.scope), budget.scope_id, since_ns=start_ns)


async def credit(db: AsyncConnection, organisation_id: str) -> tuple[int, int]:
    """What an organisation ever paid in or was given, and what is left of it, in pUSD.

    One statement, so that both are of one instant: the difference is what a counter starts with."""
    name = customer(organisation_id)
    balance = select(schema.accounts.c.balance_pusd).where(schema.accounts.c.id == name).scalar_subquery()
    query = select(balance, *wide_sum(schema.transfers.c.amount_pusd)).where(schema.transfers.c.credit == name)
    debits_over_credits, dollars, rest = (await db.execute(query)).one()
    return add_up(dollars, rest), -(debits_over_credits or 0)


async def organisation_ids(engine: AsyncEngine) -> list[str]:
    async with reading(engine) as db:
        return list((await db.execute(select(schema.organisations.c.id))).scalars())


async def charges_of(engine: AsyncEngine, request_ids: Sequence[str]) -> dict[str, int]:
    """What finished requests were charged. Those without a row or without a price yet are not among them."""
    table = schema.usage_records.c
    async with reading(engine) as db:
        rows = await db.execute(
            select(table.id, table.charge_pusd).where(table.id.in_(request_ids), table.charge_pusd.is_not(None))
        )
        return {row.id: row.charge_pusd for row in rows}
