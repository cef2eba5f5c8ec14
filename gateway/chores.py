"""Which chores the workers of an installation have, by its settings: for gateways and for `farebox worker`."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncEngine

from billing.chores import Chore
from billing.days import seal_due
from billing.db import writing
from billing.payments import expire_grants
from gateway.config import Settings

POOL_SIZE = 2
"""Chores have connections of their own: a long one keeps nobody's request waiting for a free one."""


def chores_of(settings: Settings, engine: AsyncEngine) -> list[Chore]:
    async def seal(now_ns: int) -> int:
        return await seal_due(engine, now_ns=now_ns)

    async def expire(now_ns: int) -> int:
        async with writing(engine) as db:
            return await expire_grants(db, at_ns=now_ns)

    return [
        Chore("seal days", 600, seal, lease_s=3600),
        Chore("expire grants", 60, expire),
    ]
