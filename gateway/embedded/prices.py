"""Prices that the settings name, brought into the price book at each start."""

from __future__ import annotations

import time

from billing.db import create_engine, writing
from gateway.catalogue.declared import declare as declare
from gateway.catalogue.declared import pusd_per_token as pusd_per_token
from gateway.config import Settings


async def declare_prices(settings: Settings, *, at_ns: int | None = None) -> None:
    """Say again what the settings say; the price book appends only what is new. An edge: asks the clock unless told."""
    engine = create_engine(settings.database_url)
    try:
        async with writing(engine) as db:
            await declare(db, settings, time.time_ns() if at_ns is None else at_ns)
    finally:
        await engine.dispose()
