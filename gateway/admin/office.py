"""The front office as one Litestar application, with what it works with. Loading Litestar and the admin API is half of
a start's CPU and a quarter of its memory, and most processes are never asked for it: `app.py` does it on first demand.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import httpx
from litestar import Litestar

from billing.db import AsyncEngine
from gateway.admin.auth.passwords import Passwords
from gateway.admin.reading import Reader
from gateway.admin.routes import ASTRAY, admin_routes
from gateway.admin.services import CommandLine, Services, Switchyard
from gateway.admission.key_admin import KeyAdmin
from gateway.admission.store import LimitStore
from gateway.catalogue.changes import Changes
from gateway.config import Settings, own_environment
from gateway.guardrails.watch import Watch
from gateway.kept import key_ring
from gateway.routing.health import Outlook
from gateway.routing.offer import Offer
from gateway.webhooks import webhook_routes
from providers.transport.base import Transport


class FrontOffice:
    """Close with `aclose`. The engine, Redis and the offer belong to whoever made them."""

    def __init__(
        self,
        settings: Settings,
        pepper: bytes,
        engine_key: str | None,
        engine: AsyncEngine,
        redis: LimitStore,
        offer: Offer,
        watch: Watch,
        commands: CommandLine | None,
        outlook: Callable[[list[str]], Outlook],
        transport: Transport,
    ) -> None:
        self._closing = AsyncExitStack()
        reader = Reader(settings.database_url)
        self._closing.push_async_callback(reader.aclose)
        http = httpx.AsyncClient(timeout=5.0)
        self._closing.push_async_callback(http.aclose)
        services = Services(
            settings,
            engine,
            reader,
            KeyAdmin(engine, redis, pepper),
            lambda: offer.catalog,
            lambda: offer.prices,
            offer.load,
            Passwords(),
            http,
            engine_key,
            time.time_ns,
            watch,
            commands,
            switchyard=Switchyard(
                Changes(engine, lambda: offer.live.file, lambda: key_ring(settings), own_environment({})),
                offer,
                outlook,
                transport,
            ),
        )
        self.app: Callable[..., Awaitable[None]] = Litestar(
            [*admin_routes(lambda: services), *webhook_routes(settings, lambda: services)],
            openapi_config=None,
            exception_handlers=ASTRAY,
            # Its own would take the root logger away from observe.logs.
            logging_config=None,
        )

    async def aclose(self) -> None:
        await self._closing.aclose()
