"""Prices that the settings or the database's catalogue name, brought into the price book."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal

from billing.db import AsyncConnection
from billing.pricelist import set_price
from billing.usage import Meter
from gateway.config import Settings
from gateway.offered import DeploymentTerms, PriceSettings

LOCAL = "local"

# What each name in the settings is a price of. A cache write without a stated lifetime is the short one.
_METERS: dict[str, tuple[Meter, ...]] = {
    "input": (Meter.INPUT_TOKENS,),
    "output": (Meter.OUTPUT_TOKENS,),
    "cache_read": (Meter.CACHE_READ_TOKENS,),
    "cache_write": (Meter.CACHE_WRITE_5M_TOKENS,),
    "reasoning": (Meter.REASONING_TOKENS,),
}


def pusd_per_token(price: PriceSettings) -> dict[Meter, int]:
    """Exact: the settings refuse a price that is no whole number of pUSD a token."""
    rates: dict[Meter, int] = {}
    for name, meters in _METERS.items():
        value: Decimal | None = getattr(price, name)
        if value is not None:
            rates |= dict.fromkeys(meters, int(value * 10**6))
    return rates | {Meter(unit): int(usd * 10**12) for unit, usd in price.per.items()}


async def declare(db: AsyncConnection, settings: Settings, at_ns: int) -> None:
    if settings.local.enabled:
        rates = pusd_per_token(settings.local.price)
        # Our own machine sends no bill per token.
        await set_price(db, LOCAL, settings.local.served_name, rates, dict.fromkeys(rates, 0), at_ns=at_ns)
    placed = [*settings.deployments, *(each for model in settings.models for each in model.deployments)]
    await declare_deployments(db, placed, at_ns)


async def declare_deployments(db: AsyncConnection, placed: Iterable[DeploymentTerms], at_ns: int) -> None:
    """The prices that these name themselves."""
    for deployment in placed:
        if deployment.price is not None:
            sale = pusd_per_token(deployment.price)
            cost = pusd_per_token(deployment.cost) if deployment.cost else sale
            await set_price(db, deployment.provider, deployment.model, sale, cost, at_ns=at_ns)
