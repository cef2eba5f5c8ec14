"""A whole gateway on a real socket, with what a test wants to ask of it afterwards: rows, money, keys."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from billing import accounts, journal, ledger, schema
from billing.accounts import Window
from billing.db import create_engine, reading, writing
from billing.pricelist import load_prices
from billing.usage import UsageRecord
from billing.worker import Worker
from gateway.admission.key_admin import KeyAdmin, KeyTerms
from gateway.app import Gateway, create_app
from gateway.cli.serving import Server
from gateway.config import (
    DeploymentSettings,
    LocalSettings,
    LogSettings,
    ModelSettings,
    PriceSettings,
    ProviderSettings,
    Secret,
    ServerSettings,
    Settings,
    TimeoutSettings,
)
from gateway.embedded.prices import declare
from gateway.embedded.secrets import Secrets
from gateway.observe import logs

# What is waited for happens, however busy the machine is; nobody is made to wait so long.
WITHIN_S = 60.0
PRICE = PriceSettings(input=Decimal("1.5"), output=Decimal("7.25"), cache_read=Decimal("0.15"))


def provider(kind: str, base_url: str, credential: Mapping[str, str] | None = None, **more: Any) -> ProviderSettings:
    secrets = {name: Secret(value, {}) for name, value in (credential or {"api_key": "sk-test"}).items()}
    return ProviderSettings(kind=kind, base_url=base_url, credential=secrets, **more)


def model(alias: str, *places: str, price: PriceSettings | None = PRICE, **more: Any) -> ModelSettings:
    """places: "provider/model", tried in this order."""
    deployments = tuple(
        DeploymentSettings(provider=p, model=m, priority=n, price=price, **more)
        for n, (p, _, m) in enumerate(place.partition("/") for place in places)
    )
    return ModelSettings(alias=alias, deployments=deployments)


def settings_for(
    data_dir: Path,
    database_url: str,
    redis_url: str,
    providers: Mapping[str, ProviderSettings],
    models: tuple[ModelSettings, ...],
    *,
    local: LocalSettings | None = None,
    **more: Any,
) -> Settings:
    return Settings(
        server=ServerSettings(port=0, drain_s=5.0),
        data_dir=data_dir,
        database_url=database_url,
        redis_url=redis_url,
        providers=dict(providers),
        models=models,
        local=local or LocalSettings(enabled=False),
        discover_providers=False,
        timeouts=more.pop("timeouts", TimeoutSettings(connect_s=2, first_byte_s=5, between_bytes_s=5, total_s=60)),
        **more,
    )


@dataclass
class House:
    """url: without /v1. Everything else asks SQL."""

    url: str
    settings: Settings
    app: Gateway
    engine: AsyncEngine
    keys: KeyAdmin
    project: accounts.Project
    worker: Worker
    key: str = ""
    made: list[str] = field(default_factory=list)

    @property
    def v1(self) -> str:
        return f"{self.url}/v1"

    async def new_key(self, *, budget_pusd: int | None = None, **terms: Any) -> str:
        budgets = [(Window.TOTAL, budget_pusd)] if budget_pusd is not None else []
        made = await self.keys.create_key(
            project_id=self.project.id,
            name="test",
            actor="test",
            now_ns=time.time_ns(),
            terms=KeyTerms(**terms),
            budgets=budgets,
        )
        assert made.plain is not None
        return made.plain

    async def shipped(self) -> None:
        """Returns when every record that stands in a journal stands in SQL. The gateway's own worker may be at it."""
        directory = self.settings.data_dir / "journal"
        written = {
            entry.id
            for run in journal.runs(directory)
            for segment in journal.segments(run)
            for _, entry in journal.read_segment(segment)
            if isinstance(entry, UsageRecord)
        }
        ids = schema.usage_records.c.id
        while True:
            await self.worker.ship_once()
            async with reading(self.engine) as db:
                known = set((await db.execute(select(ids).where(ids.in_(written)))).scalars())
            if known >= written:
                return
            await asyncio.sleep(0.005)

    async def rows(self, at_least: int = 0) -> list[dict[str, Any]]:
        """Every usage row, once all that stands in the journals has been shipped and there are so many."""
        query = select(schema.usage_records).order_by(schema.usage_records.c.at_ns)
        async with asyncio.timeout(WITHIN_S):
            while True:
                await self.shipped()
                async with reading(self.engine) as db:
                    found = [dict(row) for row in (await db.execute(query)).mappings()]
                if len(found) >= at_least:
                    return found
                await asyncio.sleep(0.005)

    async def charged_pusd(self) -> int:
        """What the ledger says was earned. Checks the books on the way."""
        await self.shipped()
        async with reading(self.engine) as db:
            assert (await ledger.trial_balance(db)).sound
            balances = {b.account: b for b in await ledger.balances(db)}
        return sum(b.normal_pusd for name, b in balances.items() if name == "revenue")


async def until(condition: Callable[[], bool], within_s: float = WITHIN_S) -> None:
    """Raises: TimeoutError."""
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def house(settings: Settings, *, port: int = 0) -> AsyncIterator[House]:
    """The database is migrated already. port: 0 for any free one. Leaving drains and closes everything."""
    logs.configure(LogSettings(format="json"))
    pepper = Secrets.load(settings).key_pepper.encode()
    engine = create_engine(settings.database_url)
    now_ns = time.time_ns()
    async with writing(engine) as db:
        await declare(db, settings, now_ns)
        organisation = await accounts.create_organisation(db, f"org_{now_ns}", f"org {now_ns}", at_ns=now_ns)
        project = await accounts.create_project(db, f"proj_{now_ns}", organisation.id, "demo", at_ns=now_ns)
    async with reading(engine) as db:
        prices = await load_prices(db)
    redis = Redis.from_url(settings.redis_url or "", protocol=3)
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", port))
    app = create_app(settings)
    server = Server(settings, app)
    serving = asyncio.create_task(server.serve(sockets=[bound]))
    up = asyncio.create_task(server.up.wait())
    await asyncio.wait({serving, up}, return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        up.cancel()
        serving.result()
    keys = KeyAdmin(engine, redis, pepper)
    worker = Worker(settings.data_dir / "journal", engine, prices)
    built = House(f"http://127.0.0.1:{bound.getsockname()[1]}", settings, app, engine, keys, project, worker)
    try:
        built.key = await built.new_key()
        yield built
    finally:
        server.drain()
        await serving
        await redis.aclose()
        await engine.dispose()
