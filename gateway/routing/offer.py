"""What is on offer now: the catalogue in force and the price book, followed while the gateway runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import structlog
from sqlalchemy.exc import SQLAlchemyError

from billing.db import AsyncEngine, at_once, reading
from billing.pricelist import load_prices, prices_version
from billing.prices import STANDARD, PriceBook, PriceSheet
from gateway.config import Settings, Source
from gateway.routing.catalog import ANY, Catalog, Deployment, from_settings
from gateway.routing.live import Live
from gateway.routing.provider_set import ProviderSet
from gateway.routing.replicas import Fleet

log = structlog.get_logger(__name__)

# A catalogue that was changed by the CLI, in another process, or in the file is in force by after so long; one small
# query a second and process.
FOLLOW_S: Final = 1.0
# Rounds of it: prices and margins are looked at every fifth, secrets that somebody may have rotated every fifteenth.
PRICES_EVERY: Final = 5
SECRETS_EVERY: Final = 15


class Offer:
    """Snapshots that are swapped whole: a request keeps the ones it began with."""

    def __init__(
        self,
        engine: AsyncEngine,
        settings: Settings,
        source: Source | None = None,
        providers: ProviderSet | None = None,
        engine_key: str | None = None,
    ) -> None:
        """source: the file to follow. providers: the adapters to keep in step with the catalogue; None: plans alone are
        made with it."""
        self._engine = engine
        self._providers = providers
        self.live = Live(engine, settings, source, None if providers is None else providers.adopt, engine_key)
        self._version = ""
        self.number = 0
        """Which version of the database's catalogue requests go by."""
        self.renewed: Callable[[set[str]], None] = lambda names: None
        """Told which providers (or `provider@account`) are reached otherwise now than before, or no more."""
        self._loading = asyncio.Lock()
        self.prices = PriceBook((), ())
        self.catalog = Catalog({}, {})

    async def load(self) -> None:
        """Raises: SQLAlchemyError; then what stood before stands. At the first call also ConfigError."""
        async with self._loading:
            changed = await self.live.follow()
            version, prices = await at_once(self._engine, prices_version, read_only=True), self.prices
            if version != self._version:
                async with reading(self._engine) as db:
                    prices = await load_prices(db)  # Newer than the version perhaps: it is read again then.
            if changed or version != self._version:
                self._swap(prices)
                self._version = version

    async def join(self, fleet: Fleet) -> None:
        """The catalogue with these replicas."""
        async with self._loading:
            if await self.live.join(fleet):
                self._swap(self.prices)

    async def watch(self) -> None:
        """Runs until cancelled."""
        rounds = 0
        while True:
            await asyncio.sleep(FOLLOW_S)
            rounds += 1
            try:
                await self._look(rounds)
            except (SQLAlchemyError, OSError) as error:
                log.warning("catalogue and prices not read, the old ones stand", reason=type(error).__name__)

    async def _look(self, rounds: int) -> None:
        if rounds % PRICES_EVERY == 0:
            await self.load()
        else:
            async with self._loading:
                changed = await self.live.follow()
            if changed:
                self._version = ""  # A new deployment may have brought its price.
                await self.load()
        if rounds % SECRETS_EVERY == 0:
            async with self._loading:
                if await self.live.refresh():
                    self._swap(self.prices)
            if self._providers is not None:
                await self._providers.sweep()

    def _swap(self, prices: PriceBook) -> None:
        before = self.catalog.endpoints
        self.prices, self.catalog = prices, self.with_fleet(self.live.settings, prices)
        self.number = self.live.number
        now = self.catalog.endpoints
        if renewed := {name for name, key in before.items() if now.get(name) != key}:
            self.renewed(renewed)

    def with_fleet(self, settings: Settings, prices: PriceBook) -> Catalog:
        """The catalogue of these settings, with the replicas that are here now."""
        return from_settings(settings, prices, self.live.keys, self.live.fleet)

    def price_of(
        self, deployment: Deployment, at_ns: int, *, variant: str = STANDARD, organisation_id: str | None = None
    ) -> PriceSheet:
        """By the name the operator gave the provider, else by the list of its kind, else what the operator set for
        any model of it; at the price of its region and service tier, with the organisation's margin.

        Raises: UnknownPrice; a tier without a price is not sold at the standard one."""
        return sheet_of(self.prices, deployment, at_ns, variant, organisation_id)


def sheet_of(
    prices: PriceBook,
    deployment: Deployment,
    at_ns: int,
    variant: str = STANDARD,
    organisation_id: str | None = None,
) -> PriceSheet:
    """See `Offer.price_of`."""
    model, region = deployment.model, deployment.region
    if deployment.priced_as is not None:
        return prices.sheet(
            *deployment.priced_as, at_ns, variant=variant, organisation_id=organisation_id, region=region
        )
    for provider, name in ((deployment.provider, model), (deployment.kind, model)):
        found = prices.sheet_if_any(
            provider, name, at_ns, variant=variant, organisation_id=organisation_id, region=region
        )
        if found is not None:
            return found
    return prices.sheet(deployment.provider, ANY, at_ns, variant=variant, organisation_id=organisation_id)
