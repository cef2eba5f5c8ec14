"""What the front office works with, handed over by the composition root once the process is up."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import httpx
from sqlalchemy.ext.asyncio import AsyncEngine

from billing.prices import PriceBook
from gateway.admin.auth.passwords import Passwords
from gateway.admin.reading import Reader
from gateway.admission.key_admin import KeyAdmin
from gateway.config import Settings
from gateway.routing.catalog import Catalog


@dataclass(frozen=True)
class Services:
    """engine: for changes and sign-in. reader: for reports. clock: unix nanoseconds.

    reload_prices: makes this process charge by prices set a moment ago. engine_key: bearer token of the local engine.
    http: for control calls to the local engine; belongs to whoever made it, as engine and reader do."""

    settings: Settings
    engine: AsyncEngine
    reader: Reader
    keys: KeyAdmin
    catalog: Callable[[], Catalog]
    prices: Callable[[], PriceBook]
    reload_prices: Callable[[], Awaitable[None]]
    passwords: Passwords
    http: httpx.AsyncClient
    engine_key: str | None
    clock: Callable[[], int]
