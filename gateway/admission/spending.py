"""What SQL knows of money spent, in the form that counters are made from. Reads only."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from sqlalchemy import select

from billing import schema
from billing.accounts import ADJUSTMENTS, CASH, GRANTS, Scope, customer
from billing.db import AsyncConnection, AsyncEngine, add_up, reading, wide_sum
from billing.statements import spent
from gateway.admission.limits import Spending
from gateway.admission.principal import CREDIT, Budget

_IDS_MAX: Final = 500  # In one statement.


async def spending(engine: AsyncEngine, budget: Budget, start_ns: int, asked: Sequence[str] = ()) -> Spending:
    """What has been charged against a budget since `start_ns`, and which of the requests asked about are in it."""
    async with _snapshot(engine) as db:
        if budget.scope == CREDIT:
            paid_in, left = await credit(db, budget.scope_id)
            pusd = paid_in - left
        else:
            scope = Scope(budget.scope)
            pusd = await spent(db, scope, budget.scope_id, since_ns=start_ns, end_user=budget.end_user)
        return Spending(pusd, frozenset(await _charges(db, asked)))


@asynccontextmanager
async def _snapshot(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """All statements see the same moment, which on PostgreSQL `reading` does not promise."""
    if engine.dialect.name != "postgresql":
        async with reading(engine) as db:
            yield db
        return
    async with engine.connect() as db:
        await db.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        async with db.begin():
            yield db


async def credit(db: AsyncConnection, organisation_id: str) -> tuple[int, int]:
    """What an organisation paid in or was given, less what it took out or what was taken back (payouts, expired grants,
    corrections), and what is left of it, in pUSD. So the difference is usage alone, and who takes money out lowers the
    limit that a counter is held against, whenever the counter was made.

    One statement, so that both are of one instant: the difference is what a counter starts with."""
    name, moves = customer(organisation_id), schema.transfers.c
    balance = select(schema.accounts.c.balance_pusd).where(schema.accounts.c.id == name).scalar_subquery()
    sums = wide_sum(moves.amount_pusd)
    paid = [select(column).where(moves.credit == name).scalar_subquery() for column in sums]
    # By the other side: there are few of these, and of usage there are millions.
    back = (moves.credit.in_((CASH, GRANTS, ADJUSTMENTS)), moves.debit == name)
    out = [select(column).where(*back).scalar_subquery() for column in sums]
    found: Any = (await db.execute(select(*paid, *out, balance))).one()
    above, below, above_out, below_out, balance_pusd = found
    return add_up(above, below) - add_up(above_out, below_out), -(balance_pusd or 0)


async def organisation_ids(engine: AsyncEngine) -> list[str]:
    async with reading(engine) as db:
        return list((await db.execute(select(schema.organisations.c.id))).scalars())


async def charges_of(engine: AsyncEngine, request_ids: Sequence[str]) -> dict[str, int | None]:
    """What requests that have a usage row were charged; None where that waits for a price."""
    table = schema.usage_records.c
    found: dict[str, int | None] = {}
    async with reading(engine) as db:
        for start in range(0, len(request_ids), _IDS_MAX):
            some = request_ids[start : start + _IDS_MAX]
            rows = await db.execute(select(table.id, table.charge_pusd).where(table.id.in_(some)))
            found |= {row.id: row.charge_pusd for row in rows}
    return found


async def _charges(db: AsyncConnection, request_ids: Sequence[str]) -> set[str]:
    table = schema.usage_records.c
    found: set[str] = set()
    for start in range(0, len(request_ids), _IDS_MAX):
        some = request_ids[start : start + _IDS_MAX]
        # What has no price yet is in the sum as well, as what was held for it.
        found |= set((await db.execute(select(table.id).where(table.id.in_(some)))).scalars())
    return found
