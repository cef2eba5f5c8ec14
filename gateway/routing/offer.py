"""What is on offer now: the price book and the catalogue made from it, read anew when somebody has set a price."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from billing.db import reading
from billing.errors import UnknownPrice
from billing.pricelist import load_prices, prices_version
from billing.prices import STANDARD, PriceBook, PriceSheet
from gateway.config import Settings
from gateway.routing.catalog import ANY, Catalog, Deployment, from_settings

log = structlog.get_logger(__name__)

# A price or a margin set by the CLI, or in another process, is charged by after so long at most.
WATCH_S: Final = 5.0


class Offer:
    """Snapshots that are swapped whole: a request keeps the ones it began with."""

    def __init__(self, engine: AsyncEngine, settings: Settings) -> None:
        self._engine = engine
        self._settings = settings
        self._version = ""
        self.prices = PriceBook((), ())
        self.catalog = Catalog({}, {})

    async def load(self) -> None:
        """Raises: SQLAlchemyError; then what stood before stands."""
        async with reading(self._engine) as db:
            version = await prices_version(db)
            if version == self._version:
                return
            prices = await load_prices(db)
        catalog = from_settings(self._settings, prices)
        self._version, self.prices, self.catalog = version, prices, catalog

    async def watch(self) -> None:
        """Runs until cancelled."""
        while True:
            await asyncio.sleep(WATCH_S)
            try:
                await self.load()
            except (SQLAlchemyError, OSError) as error:
                log.warning("price list not read, the old one stands", reason=type(error).__name__)

    def price_of(
        self, deployment: Deployment, at_ns: int, *, variant: str = STANDARD, organisation_id: str | None = None
    ) -> PriceSheet:
        """By the name the operator gave the provider, else by the list of its kind, else what the operator set for
        any model of it; at the service tier's own price and with the organisation's margin.

        Raises: UnknownPrice; a tier without a price is not sold at the standard one."""
        model, prices = deployment.model, self.prices
        for provider, name in ((deployment.provider, model), (deployment.kind, model)):
            try:
                return prices.sheet(provider, name, at_ns, variant=variant, organisation_id=organisation_id)
            except UnknownPrice:
                continue
        return prices.sheet(deployment.provider, ANY, at_ns, variant=variant, organisation_id=organisation_id)
