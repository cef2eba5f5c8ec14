"""Which chores the workers of an installation have, by its settings: for gateways and for `farebox worker`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from sqlalchemy import select

from billing.archive import retain
from billing.chores import Chore
from billing.days import seal_due
from billing.db import AsyncEngine, reading, writing
from billing.partitions import make_days, partitioned
from billing.payments import expire_grants
from gateway.alerting import Messenger, evaluate_and_deliver
from gateway.config import Settings
from gateway.exporting import export
from gateway.identity import scim_users
from gateway.observe.budgets import BudgetWatch as BudgetWatch
from gateway.till import ExportSettings

if TYPE_CHECKING:
    import httpx

POOL_SIZE = 2
"""Chores have connections of their own: a long one keeps nobody's request waiting for a free one."""


@asynccontextmanager
async def chores_of(settings: Settings, engine: AsyncEngine) -> AsyncIterator[list[Chore]]:
    """What they need is closed with the context: end what runs them before."""
    messenger = Messenger(settings)

    async def seal(now_ns: int) -> int:
        return await seal_due(engine, now_ns=now_ns)

    async def make(now_ns: int) -> int:
        return await make_days(engine, now_ns=now_ns)

    async def expire(now_ns: int) -> int:
        async with writing(engine) as db:
            return await expire_grants(db, at_ns=now_ns)

    async def tell(_: int) -> int:
        return await evaluate_and_deliver(engine, messenger, time.time_ns)

    async def keep(now_ns: int) -> int:
        kept = settings.retention
        if kept.days is None:
            return 0
        return await retain(engine, days=kept.days, now_ns=now_ns, archive=kept.archive, form=kept.archive_form)

    async def forget_reports(now_ns: int) -> int:
        from gateway.guardrails.store import forget_reports as forget

        return await forget(engine, before_ns=now_ns - settings.guardrails.reports_days * 24 * 3600 * 10**9)

    async def forget_bodies(now_ns: int) -> int:
        from gateway.bodies.store import forget_bodies as forget

        return await forget(engine, now_ns=now_ns)

    async def grant(now_ns: int) -> int:
        # The settings may have changed since the last start: what SCIM's groups grant goes by them as they are.
        async with reading(engine) as db:
            if (await db.execute(select(scim_users.c.user_id).limit(1))).first() is None:
                return 0
            from gateway.admin.scim.store import changing, outdated, regrant

            wanted = await outdated(db, settings.admin)
        if wanted:
            async with changing(engine, settings.admin, "settings", now_ns) as change:
                await regrant(change, wanted)
        return len(wanted)

    def exporter(http: httpx.AsyncClient, name: str, export_to: ExportSettings) -> Chore:
        async def tell_service(_: int) -> int:
            return await export(engine, http, name, export_to, time.time_ns)

        return Chore(f"export {name}"[:64], 10, tell_service)

    async with AsyncExitStack() as stack:
        stack.push_async_callback(messenger.aclose)
        exporters = []
        if settings.exports:
            http = await stack.enter_async_context(await asyncio.to_thread(_client))
            exporters = [exporter(http, name, export_to) for name, export_to in settings.exports.items()]
        yield [
            *([Chore("usage tables", 3600, make)] if partitioned(engine) else []),
            Chore("seal days", 600, seal, lease_s=3600),
            Chore("expire grants", 60, expire),
            Chore("alerts", 30, tell),
            Chore("grants of groups", 60, grant),
            Chore("guardrail reports", 3600, forget_reports),
            Chore("logged bodies", 600, forget_bodies),
            *([Chore("retention", 3600, keep, lease_s=4 * 3600)] if settings.retention.days is not None else []),
            *exporters,
        ]


def _client() -> httpx.AsyncClient:
    import httpx

    return httpx.AsyncClient(follow_redirects=False)
