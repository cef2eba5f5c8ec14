"""Which chores the workers of an installation have, by its settings: for gateways and for `farebox worker`."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy.ext.asyncio import AsyncEngine

from billing.chores import Chore
from billing.days import seal_due
from billing.db import writing
from billing.payments import expire_grants
from gateway.alerting import Messenger, evaluate_and_deliver
from gateway.config import Settings

POOL_SIZE = 2
"""Chores have connections of their own: a long one keeps nobody's request waiting for a free one."""


@asynccontextmanager
async def chores_of(settings: Settings, engine: AsyncEngine) -> AsyncIterator[list[Chore]]:
    """What they need is closed with the context: end what runs them before."""
    messenger = Messenger(settings)

    async def seal(now_ns: int) -> int:
        return await seal_due(engine, now_ns=now_ns)

    async def expire(now_ns: int) -> int:
        async with writing(engine) as db:
            return await expire_grants(db, at_ns=now_ns)

    async def tell(_: int) -> int:
        return await evaluate_and_deliver(engine, messenger, time.time_ns)

    try:
        yield [
            Chore("seal days", 600, seal, lease_s=3600),
            Chore("expire grants", 60, expire),
            Chore("alerts", 30, tell),
        ]
    finally:
        await messenger.aclose()
