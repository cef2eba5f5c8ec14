"""uvicorn, as we want it: our signals, our exit code, streams drained before it ends; one process or several."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Generator, Mapping, Sequence
from functools import partial
from tempfile import TemporaryFile
from typing import Any, ClassVar

import structlog
import uvicorn

from gateway.cli.listening import on_signal
from gateway.config import ConfigError, Settings, own_environment
from gateway.embedded.process import StartFailed, Supervisor, spawn
from gateway.ingress.accepting import Counts, Listener
from gateway.ingress.connection import ClientConnection, Exchange
from gateway.ingress.cors import Cors
from gateway.ingress.guard import Door, Guard
from gateway.sections import TlsSettings
from gateway.tasks import every

log = structlog.get_logger(__name__)

WORKER_READY_S = 60.0
HANDOVER_GRACE_S = 1.0


class Server(uvicorn.Server):
    """Leaves signals to its caller: uvicorn raises them again after a clean stop, and the exit code would be 143.

    `drain` begins the stop: readiness says no at once, open streams go on for as long as `drain_s` allows."""

    def __init__(self, settings: Settings, app: Any, *, hands_over: bool = False, counts: Counts | None = None) -> None:
        """hands_over: another process goes on at the same port when this one ends. counts: where others take
        connections from the same sockets."""
        super().__init__(_config(settings, app, HANDOVER_GRACE_S if hands_over else 0.0))
        if settings.server.tls is not None:
            self.config.load()
            self.config.ssl = tls_context(settings.server.tls)
        self._app = app
        self._counts = counts
        self._ending = asyncio.Event()
        self.up = asyncio.Event()
        """Set when the application's lifespan has started and the socket takes requests."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Raises: StartFailed where uvicorn would end the process."""
        try:
            await super().startup(sockets if self._counts is None else [])
        except SystemExit as error:
            raise StartFailed("the gateway did not start; the log line above says why") from error
        if self._counts is not None:
            self.servers = [self._listener(each, self._counts) for each in sockets or ()]
        self.up.set()

    def _listener(self, bound: socket.socket, counts: Counts) -> Any:
        made: Any = self.config.http_protocol_class
        made = partial(made, config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
        return Listener(bound, made, self.config.ssl, self.config.backlog, counts, self.server_state.connections)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn tells the connections that it knows; who has been taken, but is not known yet, is waited for."""
        for listener in self.servers:
            if isinstance(listener, Listener):
                listener.close()
                await listener.wait_closed()
        await super().shutdown(sockets)

    async def main_loop(self) -> None:
        """uvicorn's wakes ten times a second to see whether it is to end, and at each tenth sets the date that it tells
        clients: ours is told when it is to end."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._ending.wait()

    def drain(self) -> None:
        """Called again, it cuts what is still open; the lifespan ends in order all the same.

        uvicorn's own second signal leaves the lifespan out, and with it the last usage records on their way to SQL."""
        self._app.draining = True
        if not self.should_exit:
            self.should_exit = True
            self._ending.set()
            return
        for task in self.server_state.tasks:
            task.cancel()
        for connection in list(self.server_state.connections):
            if (transport := getattr(connection, "transport", None)) is not None:
                transport.abort()


class GuardedConnection(Guard, ClientConnection):
    """A client's connection behind our door."""

    __slots__ = (*Guard.STATE, "_last")
    idle_grace_s: ClassVar[float] = 0.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._last = False

    @property
    def queued(self) -> bool:
        if self.receiving_body or self.cycle is None:
            return bool(self.pipeline)
        return bool(not self.cycle.response_complete)

    @property
    def answered(self) -> bool:
        return bool(self.receiving_body and self.cycle.response_started)

    def shutdown(self) -> None:
        """uvicorn's word that the server is about to end. Where another one goes on, a client that has just connected,
        or uses a kept connection again, must not meet a closed door: its request may be on its way."""
        if self.idle_grace_s and self._idle:
            self._last = True
            self._known = None
            self.loop.call_later(self.idle_grace_s, self._end_idle)
        else:
            super().shutdown()

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        if self._last:
            self.cycle.keep_alive = False

    @property
    def _idle(self) -> bool:
        return self.cycle is None or bool(self.cycle.response_complete)

    def _end_idle(self) -> None:
        if self._idle:
            self.transport.close()

    def abandon(self) -> None:
        if self.cycle is not None:
            self.cycle.disconnected = True
            if not isinstance(self.cycle, Exchange):
                self.cycle.message_event.set()


def _config(settings: Settings, app: Any, idle_grace_s: float) -> uvicorn.Config:
    cors = Cors.of(settings.server.cors_origins)
    connection = {"door": Door(settings.server), "idle_grace_s": idle_grace_s, "cors": cors}
    trusted = list(settings.server.trusted_proxies)
    return uvicorn.Config(
        app,
        http=type("GuardedConnection", (GuardedConnection,), {"__slots__": (), **connection}),
        ws="none",
        lifespan="on",
        interface="asgi3",
        # None keeps the handlers that observe.logs has set up.
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(trusted),
        forwarded_allow_ips=trusted or None,
        timeout_graceful_shutdown=int(settings.server.drain_s),
        # Longer than the idle time of common load balancers (60 s), which would else reuse a connection we just closed.
        timeout_keep_alive=75,
        backlog=2048,
    )


def tls_context(tls: TlsSettings) -> ssl.SSLContext:
    """Raises: ConfigError for files that are no certificate and key."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(tls.certificate, tls.key)
        if tls.client_ca is not None:
            context.load_verify_locations(tls.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as error:  # ssl.SSLError is one
        problem = f"cannot be used: {error.strerror or error}"
        raise ConfigError("server.tls", problem, fix="name PEM files: certificate chain, its key, client_ca") from error
    return context


class Workers:
    """Several gateway processes on the same sockets, each started again when it dies: `farebox serve --socket-fd`.

    They read the settings anew, so they are given the same flags, and what `up` found out by environment. SIGHUP takes
    them one after another to the settings, and the code, as they are by then: `roll`."""

    def __init__(
        self, settings: Settings, bound: Sequence[socket.socket], flags: Sequence[str], environ: Mapping[str, str]
    ) -> None:
        self._bound = [each.fileno() for each in bound]
        self._counts = -1
        self._flags = list(flags)
        self._environ = own_environment(environ)
        self._drain_s = settings.server.drain_s
        self._ready: dict[int, int] = {}
        self._supervisors = [self._supervisor(n) for n in range(settings.server.workers)]
        self._started = asyncio.Event()
        self._ending = False
        self._rolling: asyncio.Task[None] | None = None
        self._leaving: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """All of them are up inside. Raises: StartFailed."""
        # From the first worker's start to the last one's end: a signal that nobody hears would end us, and them.
        with on_signal(self._hang_up, signal.SIGHUP), TemporaryFile() as counts:
            counts.truncate(Counts.size_for(len(self._supervisors)))
            self._counts = counts.fileno()
            try:
                await every(*(supervisor.start() for supervisor in self._supervisors))
                self._started.set()
                yield
            finally:
                self._ending = True
                if self._rolling is not None:
                    self._rolling.cancel()
                    await asyncio.wait([self._rolling])
                stops = (supervisor.stop(self._grace_s) for supervisor in self._supervisors)
                await every(*stops, *self._leaving)

    async def roll(self) -> None:
        """Put a new worker in the place of each, on the same socket; the old one drains once the new one takes
        requests. A worker that does not start ends this, and those not yet replaced serve on."""
        await self._started.wait()
        for n, old in enumerate(self._supervisors):
            new = self._supervisor(n)
            try:
                await new.start()
            except (StartFailed, OSError) as error:
                log.error("a new worker did not start; the old ones serve on", error=str(error))
                return
            self._supervisors[n] = new
            leaving = asyncio.create_task(old.stop(self._grace_s), name=f"drain {old.name}")
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)
        log.info("every worker is new", workers=len(self._supervisors))

    @property
    def _grace_s(self) -> float:
        return self._drain_s + 5.0

    def _hang_up(self) -> None:
        if not self._ending and (self._rolling is None or self._rolling.done()):
            self._rolling = asyncio.create_task(self.roll(), name="replace the workers")

    def _supervisor(self, n: int) -> Supervisor:
        return Supervisor(f"gateway worker {n}", partial(self._start_child, n), self._wait_ready)

    async def _start_child(self, n: int) -> Process:
        told, tells = os.pipe()
        argv = [sys.executable, "-m", "gateway", "serve", *self._flags]
        for name, number in zip(("--socket-fd", "--admin-fd"), self._bound, strict=False):
            argv += [name, str(number)]
        argv += ["--ready-fd", str(tells), "--counts-fd", str(self._counts), "--place", str(n)]
        try:
            process = await spawn(
                argv, log_path=None, environ=self._environ, pass_fds=[*self._bound, self._counts, tells]
            )
        except BaseException:
            os.close(told)
            raise
        finally:
            os.close(tells)
        self._ready[process.pid] = told
        return process

    async def _wait_ready(self, process: Process) -> None:
        told = os.fdopen(self._ready.pop(process.pid), "rb")
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), told
        )
        try:
            # The pipe ends with the worker, so this returns when it is up and when it never will be.
            said = await asyncio.wait_for(reader.read(1), WORKER_READY_S)
        except TimeoutError as error:
            raise StartFailed(f"a gateway worker was not up within {WORKER_READY_S:.0f} s") from error
        finally:
            transport.close()
        if not said:
            raise StartFailed("a gateway worker did not start; the log line above says why")
