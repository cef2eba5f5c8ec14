"""One run of `farebox up`: what is started in which order, what is said when all is ready, what is ended in reverse.

Little is imported at the top: the engine takes longest to come up, so its process starts before SQLAlchemy, Litestar
and the rest of the gateway are loaded, and loads its own weight beside them on another core.
"""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from msgspec.structs import replace

from gateway.cli import panel
from gateway.cli.common import Local, commands_of, encode
from gateway.cli.listening import on_signal
from gateway.config import Settings, Source, own_environment
from gateway.discovery import discover
from gateway.embedded import valkey
from gateway.embedded.engine import LocalEngine, can_run
from gateway.embedded.instance import Instance, Running
from gateway.embedded.secrets import Secrets

if TYPE_CHECKING:
    from gateway.cli.serving import Server, Workers
    from gateway.embedded.bootstrap import First

log = structlog.get_logger(__name__)


class Ride:
    """Started things go on one stack: a stop ends first the gateway, whose streams need the engine, then the engine,
    then Valkey."""

    def __init__(
        self, settings: Settings, instance: Instance, bound: list[socket.socket], common: Local, started: float
    ) -> None:
        """started: monotonic seconds, from which the ready time is counted."""
        self._settings = settings
        self._instance = instance
        self._bound = bound
        self._common = common
        self._started = started
        self._notes = discover(own_environment({}))[1] if settings.discover_providers else []
        self._stop = asyncio.Event()
        self._server: Server | None = None

    async def run(self) -> None:
        """Returns when a signal has ended it. Raises: StartFailed, ConfigError, Problem."""
        with on_signal(self._signalled):
            riding = asyncio.create_task(self._ride(), name="ride")
            stopped = asyncio.create_task(self._stop.wait(), name="wait for a signal")
            await asyncio.wait({riding, stopped}, return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            if not riding.done() and self._server is None:
                riding.cancel()  # Told to stop while starting, or there is no server here to drain.
            try:
                await riding
            except asyncio.CancelledError:
                if not self._stop.is_set():
                    raise

    def _signalled(self) -> None:
        self._stop.set()
        if self._server is not None:
            self._server.drain()

    async def _ride(self) -> None:
        secrets = Secrets.load(self._settings)
        async with AsyncExitStack() as stack:
            # The engine takes longest, so it starts first and comes up while everything else does.
            engine = self._engine(secrets.engine_key)
            loading = asyncio.create_task(self._load(engine, stack), name="start the engine")
            stack.push_async_callback(_end, loading)
            cache = await self._start_cache(stack)
            self._step("cache")
            await self._migrate()
            self._step("database")
            first = await self._first_things(secrets.key_pepper.encode())
            serving = await self._serve(stack)
            self._step("gateway")
            await _first_of(loading, serving)
            self._step("engine")
            await self._announce(first, cache)
            await serving

    def _step(self, done: str) -> None:
        log.debug("started", what=done, after_ms=round((time.monotonic() - self._started) * 1000))

    async def _migrate(self) -> None:
        from billing.migrate import upgrade

        await upgrade(self._settings.database_url)

    def _engine(self, key: str) -> LocalEngine | None:
        """The engine to start, its address already in the settings; None when there is none to start."""
        local = self._settings.local
        if not local.enabled or local.base_url is not None:
            return None
        if not can_run():
            self._settings = replace(self._settings, local=replace(local, enabled=False))
            self._notes.append(panel.LOCAL_HINT)
            return None
        engine = LocalEngine(local, self._settings.data_dir, key)
        self._settings = replace(self._settings, local=replace(local, base_url=engine.base_url))
        return engine

    async def _load(self, engine: LocalEngine | None, stack: AsyncExitStack) -> None:
        if engine is None:
            return
        model, name = self._settings.local.model, self._settings.local.served_name
        # The engine would fetch it by itself, but without a bar.
        if not Path(model).exists() and not (self._settings.data_dir / "models" / name).exists():
            from gateway.cli.progress import pull_with_progress

            await pull_with_progress(model, self._settings.data_dir, quiet=self._common.json)
        stack.push_async_callback(engine.stop)
        await engine.start()

    async def _start_cache(self, stack: AsyncExitStack) -> str:
        """Returns: what it is, for the panel."""
        if self._settings.redis_url is not None:
            return "your Redis"
        server = valkey.EmbeddedValkey(self._settings.data_dir)
        stack.push_async_callback(server.stop)
        await server.start()
        self._settings = replace(self._settings, redis_url=server.url)
        return f"{await asyncio.to_thread(server.version)} (embedded)"

    async def _first_things(self, pepper: bytes) -> First:
        from billing.db import create_engine
        from gateway.embedded.bootstrap import bootstrap

        engine = create_engine(self._settings.database_url)
        try:
            return await bootstrap(engine, self._settings, pepper, at_ns=time.time_ns())
        finally:
            await engine.dispose()

    async def _serve(self, stack: AsyncExitStack) -> asyncio.Task[Any]:
        """Returns: a task that ends when serving does; requests are taken already."""
        settings = self._settings
        if settings.server.workers > 1:
            await stack.enter_async_context(self._workers().running())
            return asyncio.create_task(self._stop.wait(), name="serve by workers")
        from gateway.app import create_app
        from gateway.cli.serving import Server

        source = Source(self._common.config, data_dir=self._common.data)
        server = Server(settings, create_app(settings, lambda: commands_of(settings), source))
        serving = asyncio.create_task(server.serve(sockets=self._bound), name="serve")
        stack.push_async_callback(_drained, server, serving)
        up = asyncio.create_task(server.up.wait())
        await _first_of(up, serving)
        self._server = server
        return serving

    def _workers(self) -> Workers:
        """Worker processes read the settings anew; what this start has found out reaches them by environment."""
        from gateway.cli.serving import Workers

        settings = self._settings
        flags = [f"--data={settings.data_dir}"]
        flags += [f"--config={self._common.config}"] if self._common.config else []
        flags += [f"--port={settings.server.port}", f"--host={settings.server.host}"]
        told = {"REDIS_URL": settings.redis_url or "", "FAREBOX_LOCAL__ENABLED": str(settings.local.enabled).lower()}
        if settings.local.base_url:
            told["FAREBOX_LOCAL__BASE_URL"] = settings.local.base_url
        return Workers(settings, self._bound, flags, told)

    async def _announce(self, first: First, cache: str) -> None:
        settings = self._settings
        self._instance.tell(
            Running(
                pid=self._instance.pid,
                base_url=settings.base_url,
                redis_url=settings.redis_url,
                engine_url=settings.local.base_url,
            )
        )
        ready = panel.Ready(
            base_url=settings.base_url,
            key=first.key,
            models=await self._models(),
            dashboard=first.sign_in_url or f"{settings.office_url}/ui",
            seconds=time.monotonic() - self._started,
            data_dir=settings.data_dir,
            database=panel.describe_database(settings),
            cache=cache,
            providers=tuple(name for name, provider in settings.providers.items() if provider.enabled),
            notes=tuple(self._notes),
        )
        if not self._common.json:
            panel.show(ready)
        print(encode(ready.line()), flush=True)

    async def _models(self) -> tuple[str, ...]:
        """Named aliases first, and of the price book's long lists what stands under a bare name."""
        from billing.db import create_engine
        from gateway.routing.offer import Offer

        settings = self._settings
        engine = create_engine(settings.database_url)
        try:
            offer = Offer(engine, settings)
            await offer.load()
        finally:
            await engine.dispose()
        settings, catalog = offer.live.settings, offer.catalog
        named = [model.alias for model in settings.models]
        named += [settings.local.served_name] if settings.local.enabled else []
        return tuple(dict.fromkeys([*named, *sorted(catalog.aliases)]))


async def _first_of(wanted: asyncio.Task[Any], other: asyncio.Task[Any]) -> None:
    """Wait for `wanted`; if `other` ends before, its error is what happened."""
    await asyncio.wait({wanted, other}, return_when=asyncio.FIRST_COMPLETED)
    if not wanted.done():
        wanted.cancel()
        await asyncio.gather(wanted, return_exceptions=True)
        await other
        return
    await wanted


async def _end(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _drained(server: Server, serving: asyncio.Task[Any]) -> None:
    if not serving.done() and not server.should_exit:
        server.drain()
    await asyncio.gather(serving, return_exceptions=True)
