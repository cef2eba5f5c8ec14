"""A front office with something to show: the routes on a bare Litestar, a migrated database, a month of traffic.

The traffic is written as the gateway writes it: records in a journal, shipped by the real worker at real prices.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
from argon2 import PasswordHasher
from litestar import Litestar
from sqlalchemy.ext.asyncio import AsyncEngine

from billing import accounts, ledger
from billing.accounts import Scope, Window
from billing.db import create_engine, writing
from billing.journal import Journal
from billing.pricelist import load_prices, set_price
from billing.prices import PriceBook
from billing.usage import Meter, Outcome, UsageRecord
from billing.worker import Worker
from gateway.admin.auth import people
from gateway.admin.auth.passwords import Passwords
from gateway.admin.auth.roles import Role
from gateway.admin.reading import Reader
from gateway.admin.routes import ASTRAY, admin_routes
from gateway.admin.services import Services, Switchyard
from gateway.admission.key_admin import KeyAdmin, KeyTerms
from gateway.catalogue.changes import Changes
from gateway.config import Settings, load
from gateway.guardrails.watch import Watch
from gateway.kept import key_ring
from gateway.routing.catalog import Catalog, Deployment
from gateway.routing.health import CALM
from gateway.routing.offer import Offer
from gateway.routing.provider_set import ProviderSet
from gateway.till import GuardrailSettings
from providers.transport.base import Timeouts
from providers.transport.http1 import Http1Transport

NOW_NS = 1_795_003_200 * 10**9  # 2026-11-18, noon UTC.
HOUR_NS = 3_600 * 10**9
DAY_NS = 24 * HOUR_NS
USD = 10**12

MODELS = {
    # alias: provider, model, USD per million tokens in and out, tokens a second, share of the traffic
    "gpt-5-mini": ("openai", "gpt-5-mini", "0.25", "2", 0.34),
    "claude-sonnet-5": ("anthropic", "claude-sonnet-5", "3", "15", 0.22),
    "llama-4-scout": ("groq", "llama-4-scout", "0.11", "0.34", 0.2),
    "gemini-3-flash": ("gemini", "gemini-3-flash", "0.3", "2.5", 0.14),
    "smollm2-135m-instruct": ("local", "smollm2-135m-instruct", "2", "10", 0.1),
}
KEYS = (
    ("web-production", "Shop", 0.5),
    ("nightly-batch", "Search", 0.3),
    ("ci", "Search", 0.15),
    ("ann laptop", "Shop", 0.05),
)


class World:
    """Everything a test asks for. `now_ns` may be set: the routes ask for the time through it."""

    def __init__(self, engine: AsyncEngine, reader: Reader, settings: Settings, http: httpx.AsyncClient) -> None:
        self.engine = engine
        self.now_ns = self.started_ns = NOW_NS
        self.prices = PriceBook([], [])
        self.keys = KeyAdmin(engine, None, b"pepper")
        self.key_ids: dict[str, str] = {}
        self._app: Litestar | None = None
        self.services = Services(
            settings=settings,
            engine=engine,
            reader=reader,
            keys=self.keys,
            catalog=lambda: self.catalog,
            prices=lambda: self.prices,
            reload_prices=self._reload,
            passwords=Passwords(PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)),
            http=http,
            engine_key=None,
            clock=lambda: self.now_ns,
            switchyard=Switchyard(
                Changes(engine, lambda: settings, lambda: key_ring(settings), {}), Offer(engine, settings),
                lambda _: CALM, Http1Transport(),
            ),
            watch=Watch(ProviderSet({}, Http1Transport(), Timeouts()), GuardrailSettings(), None),
        )  # fmt: skip
        self.catalog = Catalog(
            {alias: (Deployment(said[0], said[0], said[1], context_window=128_000),) for alias, said in MODELS.items()},
            {"openai": "openai", "anthropic": "anthropic", "groq": "groq", "gemini": "gemini"},
        )

    def app(self, dist: Path | None = None) -> Litestar:
        """One for all browsers, unless `dist` asks for another."""
        if dist is not None:
            return Litestar(admin_routes(lambda: self.services, dist=dist), openapi_config=None, logging_config=None)
        if self._app is None:
            routes = admin_routes(lambda: self.services)
            self._app = Litestar(routes, openapi_config=None, logging_config=None, exception_handlers=ASTRAY)
        return self._app

    async def link(self, role: Role = Role.OWNER, name: str | None = None) -> str:
        """A sign-in link's token for a new person of that role."""
        async with writing(self.engine) as db:
            user = await people.create_user(
                db, name or f"{role.value}-{random.randrange(10**9)}", role, at_ns=self.now_ns
            )
            return await people.issue_link(db, user.id, at_ns=self.now_ns)

    async def _reload(self) -> None:
        async with writing(self.engine) as db:
            self.prices = await load_prices(db)


@asynccontextmanager
async def world(database_url: str, data_dir: Path) -> AsyncIterator[World]:
    """An installation with an organisation, two projects, four keys, prices and no traffic yet."""
    settings = load(environ={}, flags={"data_dir": data_dir, "database_url": database_url, "local.enabled": True})
    engine, reader = create_engine(database_url), Reader(database_url)
    async with httpx.AsyncClient() as http:
        made = World(engine, reader, settings, http)
        start_ns = NOW_NS - 40 * 24 * HOUR_NS
        async with writing(engine) as db:
            await accounts.create_organisation(db, "org_1", "Harbour Books", at_ns=start_ns)
            for project in ("Shop", "Search"):
                await accounts.create_project(db, f"proj_{project.lower()}", "org_1", project, at_ns=start_ns)
            for provider, model, price_in, price_out, _ in MODELS.values():
                rates = {
                    Meter.INPUT_TOKENS: int(float(price_in) * 10**6),
                    Meter.OUTPUT_TOKENS: int(float(price_out) * 10**6),
                    Meter.CACHE_READ_TOKENS: int(float(price_in) * 10**5),
                }
                await set_price(db, provider, model, rates, rates, at_ns=start_ns)
            await ledger.top_up(db, "org_1", 500 * USD, "bank-2026-10", at_ns=start_ns, note="Bank transfer, October")
        for name, project, _ in KEYS:
            budgets = [(Window.MONTH, 40 * USD)] if name == "ci" else []
            new = await made.keys.create_key(
                project_id=f"proj_{project.lower()}", name=name, actor="ann", now_ns=start_ns, budgets=budgets,
                terms=KeyTerms(rpm=600 if name == "web-production" else None),
            )  # fmt: skip
            made.key_ids[name] = new.key_id
        await made.keys.set_budget(Scope.PROJECT, "proj_shop", Window.MONTH, 200 * USD, actor="ann", now_ns=start_ns)
        await made._reload()
        try:
            yield made
        finally:
            await reader.aclose()
            await engine.dispose()


async def traffic(made: World, journal_dir: Path, count: int, *, days: int = 30, seed: int = 7) -> list[UsageRecord]:
    """Ship so many requests of the last days, the same ones for the same seed. Returns: them."""
    chance = random.Random(seed)
    records = [_request(made, chance, n, days) for n in range(count)]
    journal = Journal.open(journal_dir, "world")
    for record in records:
        await journal.settle(record)
    await journal.close()
    worker = Worker(journal_dir, made.engine, made.prices)
    while await worker.ship_once():
        pass
    return records


def _request(made: World, chance: random.Random, n: int, days: int) -> UsageRecord:
    alias = chance.choices(list(MODELS), [said[4] for said in MODELS.values()])[0]
    name, project, _ = chance.choices(KEYS, [share for *_, share in KEYS])[0]
    provider, model = MODELS[alias][:2]
    # More by day than by night, and a little more each week.
    while True:
        back_ns = int(chance.random() ** 1.15 * days * 24 * HOUR_NS)
        hour = (NOW_NS - back_ns) // HOUR_NS % 24
        if chance.random() < (1.0 if 7 <= hour <= 19 else 0.25):
            break
    outcome = chance.choices(
        [Outcome.COMPLETED, Outcome.CLIENT_GONE, Outcome.UPSTREAM_FAILED, Outcome.REJECTED, Outcome.TIMED_OUT],
        [0.955, 0.02, 0.012, 0.01, 0.003],
    )[0]
    produced = outcome in (Outcome.COMPLETED, Outcome.CLIENT_GONE)
    read, written = int(chance.lognormvariate(7.6, 0.9)), int(chance.lognormvariate(5.6, 0.8))
    cached = int(read * chance.random() * 0.6) if chance.random() < 0.4 else 0
    quantities = {Meter.INPUT_TOKENS: read - cached, Meter.OUTPUT_TOKENS: written, Meter.REQUESTS: 1}
    if cached:
        quantities[Meter.CACHE_READ_TOKENS] = cached
    first = int(chance.lognormvariate(5.9, 0.5))
    at_ns = NOW_NS - back_ns
    return UsageRecord(
        id=f"req_{at_ns // 1_000_000:012x}{n:016x}",
        at_ns=at_ns,
        organisation_id="org_1",
        project_id=f"proj_{project.lower()}",
        key_id=made.key_ids[name],
        end_user=chance.choice([None, "u-17", "u-42", "u-99"]),
        alias=alias,
        provider=provider,
        model=model,
        deployment=f"{provider}/{model}",
        price_id=made.prices.sheet(provider, model, at_ns).id,
        quantities=quantities if produced else {},
        estimated=outcome is Outcome.CLIENT_GONE,
        outcome=outcome,
        hold_pusd=USD // 20,
        finish_reason="stop" if outcome is Outcome.COMPLETED else None,
        first_token_ms=first if produced else None,
        duration_ms=first + written * 11 if produced else chance.randrange(40, 3000),
        status={
            Outcome.COMPLETED: 200,
            Outcome.REJECTED: 400,
            Outcome.UPSTREAM_FAILED: 502,
            Outcome.TIMED_OUT: 504,
        }.get(outcome),
        dialect=chance.choice(["openai_chat", "openai_chat", "anthropic_messages", "openai_responses"]),
        attempts=1 if chance.random() < 0.97 else 2,
    )
