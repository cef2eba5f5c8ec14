"""The composition root: builds every long-lived thing once, in order, and closes them in reverse."""

from __future__ import annotations

import asyncio
import importlib
import os
import random
import secrets
import socket
import time
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from billing.db import AsyncConnection, AsyncEngine, at_once, create_engine
from billing.journal import Journal
from billing.money import PUSD_PER_USD
from billing.usage import OrphanPolicy
from billing.worker import Worker
from gateway.admission import Gate, KeyStore
from gateway.admission.owners import Owner
from gateway.admission.store import LimitStore, store_from
from gateway.answers import Answers
from gateway.background import Background, Jobs
from gateway.batches import store as batch_store
from gateway.batches.api import Batches, Files
from gateway.batches.messages import MessageBatches
from gateway.batches.runner import Runner
from gateway.bodies.recorder import Recorder
from gateway.config import ConfigError, Settings, Source
from gateway.embedded.secrets import Secrets
from gateway.errors import Unavailable
from gateway.guardrails.watch import Watch
from gateway.ingress.astray import astray
from gateway.ingress.cors import Cors
from gateway.ingress.errors import as_body
from gateway.ingress.hotpath import HotPath
from gateway.ingress.joining import Joining
from gateway.kept import key_ring
from gateway.memory import spare_the_collector
from gateway.observe.health import Health
from gateway.observe.metrics import METRICS
from gateway.observe.notebook import Notebook
from gateway.observe.vitals import CONDITIONS, Standing, Vitals
from gateway.pipeline import Pipeline
from gateway.routing.fallback import Dispatcher
from gateway.routing.health import HealthTable, Outlook
from gateway.routing.known_blocks import KnownBlocks
from gateway.routing.offer import Offer
from gateway.routing.probing import Prober
from gateway.routing.provider_set import ProviderSet
from gateway.routing.replicas import Replicas
from gateway.routing.retries import RetryTerms
from gateway.routing.warm_log import WarmLog
from gateway.shadowing import Shadows
from gateway.similar import SimilarAnswers
from gateway.stored import Store
from gateway.tasks import cancel
from providers.transport.base import Timeouts
from providers.transport.http1 import Http1Transport

if TYPE_CHECKING:
    from gateway.admin.office import FrontOffice
    from gateway.admin.services import CommandLine
    from gateway.observe.traces import Traces

log = structlog.get_logger(__name__)

CHORES_AFTER_S = 1.0

# Payment services call from outside, so these stay on the public port.
WEBHOOKS_PATH = "/webhooks/"
OFFICE_PATHS = ("/admin", "/ui", "/docs", "/scim", WEBHOOKS_PATH)


class Gateway:
    """One gateway process as an ASGI application. Its lifespan builds and closes; a request only uses."""

    def __init__(
        self, settings: Settings, commands: Callable[[], CommandLine] | None = None, source: Source | None = None
    ) -> None:
        """commands: loads what runs command lines that are sent here. source: the settings' file, followed for what it
        offers."""
        self._settings = settings
        self._commands = commands
        self._source = source
        self.hot: HotPath | None = None
        """What `ingress.connection` asks for the data plane; None until everything is built."""
        self.offer: Offer | None = None
        self.health_table: HealthTable | None = None
        self._engine: AsyncEngine | None = None
        self._gate: Gate | None = None
        self._journal: Journal | None = None
        self._shipping: asyncio.Task[None] | None = None
        if settings.payments.stripe_webhook_secret is not None:
            from gateway.webhooks import check_secret  # a bad one stops the start, though the office opens later

            check_secret(settings)
        self._health = Health(self.faults, lambda: self.started)
        self._office: asyncio.Task[FrontOffice] | None = None
        self._open_office: Callable[[], FrontOffice] | None = None
        self._joining: Joining | None = None
        self._request_id = RequestIds()
        self._cors = Cors.of(settings.server.cors_origins)
        self.draining = False
        self.started = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI: the lifespan, and every path that is not for the data plane."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif self._is_hidden(scope):
            await self._astray(scope, send)
        elif self._health.knows(scope):
            await self._health(scope, receive, send)
        elif self._joining is not None and self._joining.knows(scope):
            await self._joining(scope, receive, send)
        elif scope["type"] != "http" or scope["path"].startswith(OFFICE_PATHS):
            await (await self._front_office()).app(scope, receive, send)
        else:
            await self._astray(scope, send)

    async def _astray(self, scope: Any, send: Any) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        path = scope["raw_path"].decode("ascii", "replace")
        reply = astray(scope["method"], path, headers, self._request_id())
        assert isinstance(reply.body, bytes)
        fields = [*reply.headers, ("content-length", str(len(reply.body)))] if reply.body else reply.headers
        if self._cors is not None:
            fields = [*fields, *self._cors.preflight(headers, dict(fields).get("allow", ""))]
        raw = [(name.encode(), value.encode("latin-1", "replace")) for name, value in fields]
        await send({"type": "http.response.start", "status": reply.status, "headers": raw})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else reply.body})

    def _is_hidden(self, scope: Any) -> bool:
        """Whether this is for the admin port and came by the other. By the socket it came on: no header has a say."""
        port = self._settings.server.admin_port
        if port is None or scope["server"][1] == port:
            return False
        path: str = scope["path"]
        return path == "/metrics" or not (self._health.knows(scope) or path.startswith(WEBHOOKS_PATH))

    async def _front_office(self) -> FrontOffice:
        """Loaded in a thread by whoever comes first, while requests are served."""
        if self._office is None:
            assert self._open_office is not None, "no request comes before the lifespan has started"
            self._office = asyncio.create_task(asyncio.to_thread(self._open_office), name="open the front office")
        return await asyncio.shield(self._office)

    async def _close_office(self) -> None:
        if self._office is not None:
            await (await self._office).aclose()

    async def _live(self, receive: Any, send: Any) -> None:
        """Source: ASGI specification, lifespan protocol 2.0, read 2026-11."""
        await receive()
        started = False
        try:
            async with self._lifespan():
                await send({"type": "lifespan.startup.complete"})
                started = True
                await receive()
        except BaseException:
            kind = "shutdown" if started else "startup"
            await send({"type": f"lifespan.{kind}.failed", "message": traceback.format_exc()})
            raise
        await send({"type": "lifespan.shutdown.complete"})

    @asynccontextmanager
    async def _lifespan(self) -> AsyncIterator[None]:
        settings = self._settings
        async with AsyncExitStack() as stack:
            own = Secrets.load(settings)
            engine = self._engine = create_engine(settings.database_url)
            stack.push_async_callback(engine.dispose)
            redis = _limit_store(settings)
            ca_file = settings.network.ca_file
            # As many as there may be clients: who may have how many requests at once is admission's to say.
            transport = Http1Transport(
                max_connections=settings.server.max_connections,
                ca_file=None if ca_file is None else str(ca_file),
            )
            stack.push_async_callback(transport.aclose)
            timeouts = Timeouts(
                settings.timeouts.connect_s,
                settings.timeouts.first_byte_s,
                settings.timeouts.between_bytes_s,
                settings.timeouts.total_s,
            )
            providers = ProviderSet({}, transport, timeouts)
            stack.push_async_callback(providers.aclose)
            offer = self.offer = Offer(engine, settings, self._source, providers, own.engine_key)
            await offer.load()
            journal = self._journal = Journal.open(settings.data_dir / "journal", owner())
            stack.push_async_callback(journal.close)
            METRICS.watch_open_intents(lambda: journal.open_intents)
            worker = Worker(
                settings.data_dir / "journal",
                engine,
                offer.prices,
                orphans=OrphanPolicy(settings.admission.orphans),
                exports=tuple(settings.exports),
            )
            await worker.recover()
            stop = asyncio.Event()
            self._shipping = asyncio.create_task(worker.run(stop), name="ship usage records")
            stack.push_async_callback(_finish, stop, self._shipping)
            watching = asyncio.create_task(offer.watch(), name="watch the price list")
            stack.push_async_callback(cancel, watching)
            pepper = own.key_pepper.encode()
            keys = await stack.enter_async_context(KeyStore(engine, redis, pepper))
            gate = self._gate = await stack.enter_async_context(
                Gate(
                    engine,
                    redis,
                    shipped=worker.recover,
                    lease_ms=int(settings.admission.lease_s * 1000),
                    owner=Owner.of(journal),
                    share_percent=settings.admission.local_share_percent
                    if settings.admission.store_away == "local_share"
                    else 0,
                )
            )

            def outlook(deployment_ids: list[str]) -> Outlook:
                return dispatcher.outlook(deployment_ids)

            notebook = Notebook(engine)
            writing_down = asyncio.create_task(notebook.run(), name="write notes down")
            stack.push_async_callback(notebook.aclose, writing_down)
            watch = Watch(providers, settings.guardrails, notebook)
            stack.push_async_callback(watch.aclose)

            def open_office() -> FrontOffice:
                from gateway.admin.office import FrontOffice

                commands = None if self._commands is None else self._commands()
                return FrontOffice(
                    settings, pepper, own.engine_key, engine, redis, offer, watch, commands, outlook, transport
                )

            self._open_office = open_office
            stack.push_async_callback(self._close_office)
            tries = RetryTerms(
                settings.routing.retries,
                settings.routing.retry_share,
                total_s=settings.timeouts.total_s,
                hedge_share=settings.routing.hedge_share,
                hedge_pusd=None if (most := settings.routing.hedge_max_usd) is None else int(most * PUSD_PER_USD),
                slow_s=settings.routing.slow_first_token_s,
                queue_s=settings.routing.queue_s,
                queue_max=settings.routing.queue_max,
            )
            dispatcher = Dispatcher(tries, time.monotonic, random.random)
            self.health_table = dispatcher.health
            offer.renewed = dispatcher.renewed
            shared = WarmLog(redis, dispatcher.warmth, lambda: offer.catalog.caches, time.monotonic, owner())
            dispatcher.tell_warm = shared.tell
            stack.push_async_callback(cancel, asyncio.create_task(shared.run(), name="share warm prefixes"))
            answers = Answers(redis, pepper)
            stack.push_async_callback(answers.aclose)
            answers.similar = SimilarAnswers(redis, pepper, providers, lambda: offer.catalog)
            stack.push_async_callback(answers.similar.aclose)
            kept = batch_store.Store(engine)
            work = asyncio.Event()
            replicas = Replicas(
                redis,
                settings.replicas.lease_s,
                lambda: any(each.replicas for each in offer.live.settings.providers.values()),
                offer.join,
                time.monotonic,
            )
            with suppress(Unavailable):  # Else when Redis is there: until then nobody has joined.
                await replicas.look()
            stack.push_async_callback(cancel, asyncio.create_task(replicas.run(), name="hear of replicas"))
            self._joining = Joining(replicas, settings.replicas.token, lambda: offer.live.settings.providers)
            prober = Prober(
                redis,
                providers,
                lambda: offer.live.settings.providers,
                lambda: offer.catalog,
                dispatcher.health,
                time.monotonic,
                random.random,
            )
            stack.push_async_callback(cancel, asyncio.create_task(prober.run(), name="probe providers"))
            known = KnownBlocks(providers, lambda: offer.live.settings.providers, fleet=lambda: offer.live.fleet)
            stack.push_async_callback(cancel, asyncio.create_task(known.follow(), name="follow engines' caches"))
            shadows = Shadows(keys.principal_of, RequestIds(), time.time_ns, random.random, as_body)
            stack.push_async_callback(shadows.aclose)
            background = Background(Jobs(engine), work, time.time_ns)
            pipeline = Pipeline(
                keys,
                gate,
                journal,
                providers,
                offer,
                time.time_ns,
                settings.strict,
                Store(engine),
                background,
                dispatcher,
                settings.server,
                Files(kept, settings.batches),
                Batches(kept, work),
                MessageBatches(kept, work),
                answers,
                watch,
                shadows,
                known,
                Recorder(notebook, partial(key_ring, settings)),
            )
            if settings.batches.parallel:
                runner = Runner(
                    kept,
                    background,
                    settings.batches,
                    pipeline.serve_as,
                    keys.principal_of,
                    as_body,
                    owner(),
                    time.time_ns,
                    work,
                )
                stack.push_async_callback(cancel, asyncio.create_task(runner.run(), name="run batches"))
            self.hot = HotPath(
                pipeline,
                lambda: offer.catalog,
                max_body_bytes=settings.server.max_body_bytes,
                clock=time.time_ns,
                request_id=self._request_id,
                heartbeat_s=settings.server.heartbeat_s,
                cancels_whole=settings.server.gone_client == "cancel",
                traces=await self._traces(stack),
            )
            watch_process(journal, gate, dispatcher)
            vitals = Vitals({"redis": gate.ping, "database": self._ask_database})
            stack.push_async_callback(cancel, asyncio.create_task(vitals.run(), name="look at what is needed"))
            self.started = True
            spare_the_collector()
            stack.push_async_callback(cancel, asyncio.create_task(_do_chores(settings, stop), name="chores"))
            log.info("gateway ready", models=len(offer.catalog.aliases), providers=sorted(offer.catalog.open_providers))
            yield
            self.draining = True

    async def _traces(self, stack: AsyncExitStack) -> Traces | None:
        """Raises: ConfigError where the extra is missing."""
        telemetry = self._settings.telemetry
        if telemetry.sentry_dsn is not None:
            from gateway.observe import crashes

            try:
                end = crashes.report_to(telemetry.sentry_dsn.reveal())
            except (ImportError, ValueError) as error:
                fix = "pip install 'farebox[sentry]', and take the DSN from the project's settings"
                raise ConfigError("telemetry.sentry_dsn", str(error), source="the settings", fix=fix) from error
            stack.push_async_callback(asyncio.to_thread, end)
        if telemetry.otlp_endpoint is None:
            return None
        try:
            from gateway.observe.traces import Traces
        except ImportError as error:
            fix = "pip install 'farebox[otel]'"
            raise ConfigError("telemetry.otlp_endpoint", f"{error}", source="the settings", fix=fix) from error
        traces = Traces(telemetry)
        stack.push_async_callback(asyncio.to_thread, traces.shutdown)
        return traces

    async def _ask_database(self) -> None:
        assert self._engine is not None
        await at_once(self._engine, _nothing, read_only=True)

    async def faults(self) -> list[str]:
        """What keeps this process from taking requests, each with what to do. Calls no model."""
        faults = []
        if self.draining or self.hot is None:
            return ["not accepting requests: starting or stopping"]
        assert self._gate is not None
        assert self._journal is not None
        try:
            await self._gate.ping()
        except Exception as error:
            faults.append(f"Redis is away ({type(error).__name__}); check REDIS_URL or the embedded server's log")
        try:
            await self._ask_database()
        except Exception as error:
            faults.append(f"the database is away ({type(error).__name__}); check DATABASE_URL")
        if (reason := self._journal.unavailable) is not None:
            faults.append(f"the usage journal takes no records ({reason}); free disk space in the data folder")
        if self._shipping is None or self._shipping.done():
            faults.append("usage is not shipped to the database any more; restart the gateway, the journal keeps it")
        return faults


async def _nothing(db: AsyncConnection) -> None:
    await db.exec_driver_sql("SELECT 1")


def _limit_store(settings: Settings) -> LimitStore:
    try:
        return store_from(settings.redis_url or "")
    except ValueError as error:
        fix = "correct REDIS_URL; gateway/admission/README.md shows the forms"
        raise ConfigError("redis_url", str(error), source="the settings", fix=fix) from error


def watch_process(journal: Journal, gate: Gate, dispatcher: Dispatcher) -> None:
    """Gauges of what this process has at hand, read at each scrape."""
    METRICS.watch(
        Standing("farebox_waiting", "What waits: reservations, settlements, records not on disk.", ("what",), lambda: (
            (("holds",), gate.open_count),
            (("settlements",), gate.pending_count),
            (("records",), journal.unsynced_records),
        ))
    )  # fmt: skip
    METRICS.watch(
        Standing("farebox_breaker", "Of each deployment: 0 closed, 1 half open, 2 open, 3 cooling, 4 absent.",
                 ("deployment",),
                 lambda: (((name,), CONDITIONS[condition]) for name, condition in dispatcher.conditions()))
    )  # fmt: skip
    METRICS.watch(
        Standing("farebox_queue", "Requests that wait for their turn at a deployment.", ("deployment",),
                 lambda: (((name,), waiting) for name, waiting in dispatcher.queues()))
    )  # fmt: skip


def create_app(
    settings: Settings, commands: Callable[[], CommandLine] | None = None, source: Source | None = None
) -> Gateway:
    return Gateway(settings, commands, source)


def owner() -> str:
    """Names this process in its journal; recovery trusts the file lock, not the name."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"


class RequestIds:
    """Each sorts by time: `req_`, 12 hexadecimal digits of milliseconds, 16 of chance; the kernel is asked for chance
    once for many."""

    def __init__(self) -> None:
        self._chance = ""
        self._at = 0

    def __call__(self) -> str:
        if self._at >= len(self._chance):
            self._chance, self._at = secrets.token_hex(4096), 0
        at = self._at
        self._at = at + 16
        return f"req_{time.time_ns() // 1_000_000:012x}{self._chance[at : at + 16]}"


async def _do_chores(settings: Settings, stop: asyncio.Event) -> None:
    """Begun once the first requests have been taken: what sends mail and webhooks is a sixth of a start's CPU."""
    with suppress(TimeoutError):
        async with asyncio.timeout(CHORES_AFTER_S):
            await stop.wait()
            return
    chores = await asyncio.to_thread(importlib.import_module, "gateway.chores")
    from billing.chores import Chores

    engine = create_engine(settings.database_url, pool_size=chores.POOL_SIZE)
    try:
        budgets = chores.BudgetWatch(engine, time.time_ns)
        # The group within: both have ended before what they use is closed.
        async with chores.chores_of(settings, engine) as listed, asyncio.TaskGroup() as group:
            group.create_task(Chores(engine, listed, owner(), time.time_ns).run(stop))
            group.create_task(budgets.run(stop))
    finally:
        await engine.dispose()


async def _finish(stop: asyncio.Event, task: asyncio.Task[None]) -> None:
    stop.set()
    await task
