"""The composition root: builds every long-lived thing once, in order, and closes them in reverse."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import structlog
from litestar import Litestar
from providers.transport.http1 import Http1Transport
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from billing.db import create_engine, reading
from billing.journal import Journal
from billing.pricelist import load_prices
from billing.prices import PriceBook
from billing.worker import Worker
from gateway.admission import Gate, KeyStore
from gateway.config import Settings
from gateway.embedded.secrets import Secrets
from gateway.ingress.asgi import HotPath, Scope, Send
from gateway.ingress.body import Receive
from gateway.observe.health import health_routes
from gateway.observe.metrics import METRICS
from gateway.pipeline import Pipeline
from gateway.routing.catalog import Catalog, from_settings
from gateway.routing.provider_set import ProviderSet, endpoints_from
from providers.transport.base import Timeouts

log = structlog.get_logger(__name__)


class Gateway:
    """One gateway process as an ASGI application. Its lifespan builds and closes; a request only uses."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._hot: HotPath | None = None
        self._engine: AsyncEngine | None = None
        self._redis: Redis | None = None
        self._journal: Journal | None = None
        self.draining = False
        self._litestar = Litestar(
            [*health_routes(self.faults)],
            lifespan=[self._lifespan],
            openapi_config=None,
            # Its own would take the root logger away from observe.logs.
            logging_config=None,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._hot is None:
            await self._litestar(scope, receive, send)  # type: ignore[arg-type]
        else:
            await self._hot(scope, receive, send)

    @asynccontextmanager
    async def _lifespan(self, _: Litestar) -> AsyncIterator[None]:
        settings = self._settings
        async with AsyncExitStack() as stack:
            own = Secrets.load(settings)
            engine = self._engine = create_engine(settings.database_url)
            stack.push_async_callback(engine.dispose)
            redis = self._redis = Redis.from_url(settings.redis_url or "", protocol=3)
            stack.push_async_callback(redis.aclose)
            prices, catalog = await self._catalogue()
            journal = self._journal = Journal.open(settings.data_dir / "journal", owner())
            stack.push_async_callback(journal.close)
            METRICS.watch_open_intents(lambda: journal.open_intents)
            worker = Worker(settings.data_dir / "journal", engine, prices)
            await worker.recover()
            stop = asyncio.Event()
            shipping = asyncio.create_task(worker.run(stop), name="ship usage records")
            stack.push_async_callback(_finish, stop, shipping)
            keys = KeyStore(engine, redis, own.key_pepper.encode())
            await stack.enter_async_context(keys)
            gate = await stack.enter_async_context(Gate(engine, redis, shipped=worker.recover))
            transport = Http1Transport()
            stack.push_async_callback(transport.aclose)
            timeouts = Timeouts(
                settings.timeouts.connect_s,
                settings.timeouts.first_byte_s,
                settings.timeouts.between_bytes_s,
                settings.timeouts.total_s,
            )
            providers = ProviderSet(endpoints_from(settings, own.engine_key), transport, timeouts)
            stack.push_async_callback(providers.aclose)
            pipeline = Pipeline(
                keys, gate, journal, providers, lambda: catalog, lambda: prices, time.time_ns, settings.strict
            )
            self._hot = HotPath(
                pipeline,
                lambda: catalog,
                self._litestar,  # type: ignore[arg-type]
                max_body_bytes=settings.server.max_body_bytes,
                clock=time.time_ns,
                request_id=new_request_id,
            )
            log.info("gateway ready", models=len(catalog.aliases), providers=sorted(catalog.open_providers))
            yield
            self.draining = True

    async def _catalogue(self) -> tuple[PriceBook, Catalog]:
        assert self._engine is not None
        async with reading(self._engine) as db:
            prices = await load_prices(db)
        return prices, from_settings(self._settings, prices)

    async def faults(self) -> list[str]:
        """What keeps this process from taking requests, each with what to do. Calls no model."""
        faults = []
        if self.draining or self._hot is None:
            return ["not accepting requests: starting or stopping"]
        assert self._redis is not None
        assert self._engine is not None
        assert self._journal is not None
        try:
            await self._redis.ping()
        except Exception as error:
            faults.append(f"Redis is away ({type(error).__name__}); check REDIS_URL or the embedded server's log")
        try:
            async with reading(self._engine) as db:
                await db.exec_driver_sql("SELECT 1")
        except Exception as error:
            faults.append(f"the database is away ({type(error).__name__}); check DATABASE_URL")
        if (reason := self._journal.unavailable) is not None:
            faults.append(f"the usage journal takes no records ({reason}); free disk space in the data folder")
        return faults


def create_app(settings: Settings) -> Gateway:
    return Gateway(settings)


def owner() -> str:
    """Names this process in its journal; recovery trusts the file lock, not the name."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"


def new_request_id() -> str:
    """Sorts by time: `req_`, 12 hexadecimal digits of milliseconds, 16 of chance."""
    return f"req_{time.time_ns() // 1_000_000:012x}{secrets.token_hex(8)}"


async def _finish(stop: asyncio.Event, task: asyncio.Task[Any]) -> None:
    stop.set()
    await task
