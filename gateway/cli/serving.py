"""uvicorn, as we want it: our signals, our exit code, streams drained before it ends; one process or several."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Generator, Mapping, Sequence
from typing import Any

import uvicorn

from gateway.config import ConfigError, Settings, own_environment
from gateway.embedded.process import StartFailed, Supervisor, spawn
from gateway.ingress.connection import ClientConnection, Exchange
from gateway.ingress.guard import Door, Guard
from gateway.sections import TlsSettings

WORKER_READY_S = 60.0


class Server(uvicorn.Server):
    """Leaves signals to its caller: uvicorn raises them again after a clean stop, and the exit code would be 143.

    `drain` begins the stop: readiness says no at once, open streams go on for as long as `drain_s` allows."""

    def __init__(self, settings: Settings, app: Any) -> None:
        super().__init__(_config(settings, app))
        if settings.server.tls is not None:
            self.config.load()
            self.config.ssl = tls_context(settings.server.tls)
        self._app = app
        self.up = asyncio.Event()
        """Set when the application's lifespan has started and the socket takes requests."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Raises: StartFailed where uvicorn would end the process."""
        try:
            await super().startup(sockets)
        except SystemExit as error:
            raise StartFailed("the gateway did not start; the log line above says why") from error
        self.up.set()

    def drain(self) -> None:
        """Called again, it cuts what is still open; the lifespan ends in order all the same.

        uvicorn's own second signal leaves the lifespan out, and with it the last usage records on their way to SQL."""
        self._app.draining = True
        if not self.should_exit:
            self.should_exit = True
            return
        for task in self.server_state.tasks:
            task.cancel()
        for connection in list(self.server_state.connections):
            if (transport := getattr(connection, "transport", None)) is not None:
                transport.abort()


class GuardedConnection(Guard, ClientConnection):
    """A client's connection behind our door."""

    @property
    def queued(self) -> bool:
        if self.receiving_body or self.cycle is None:
            return bool(self.pipeline)
        return bool(not self.cycle.response_complete)

    @property
    def answered(self) -> bool:
        return bool(self.receiving_body and self.cycle.response_started)

    def abandon(self) -> None:
        if self.cycle is not None:
            self.cycle.disconnected = True
            if not isinstance(self.cycle, Exchange):
                self.cycle.message_event.set()


def _config(settings: Settings, app: Any) -> uvicorn.Config:
    trusted = list(settings.server.trusted_proxies)
    return uvicorn.Config(
        app,
        http=type("GuardedConnection", (GuardedConnection,), {"door": Door(settings.server)}),
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
    """Several gateway processes on one socket, each started again when it dies. Each is `farebox serve --socket-fd`.

    They read the settings anew, so they are given the same flags, and what `up` found out by environment."""

    def __init__(
        self, settings: Settings, bound: socket.socket, flags: Sequence[str], environ: Mapping[str, str]
    ) -> None:
        self._bound = bound
        self._flags = list(flags)
        self._environ = own_environment(environ)
        self._stop = asyncio.Event()
        self._drain_s = settings.server.drain_s
        self._ready: dict[int, int] = {}
        self._supervisors = [
            Supervisor(f"gateway worker {n}", self._start_child, self._wait_ready)
            for n in range(settings.server.workers)
        ]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """All of them are up inside. Raises: StartFailed."""
        try:
            await asyncio.gather(*(supervisor.start() for supervisor in self._supervisors))
            yield
        finally:
            grace_s = self._drain_s + 5.0
            await asyncio.gather(*(supervisor.stop(grace_s) for supervisor in self._supervisors))

    async def _start_child(self) -> Process:
        told, tells = os.pipe()
        argv = [sys.executable, "-m", "gateway", "serve", *self._flags]
        argv += ["--socket-fd", str(self._bound.fileno()), "--ready-fd", str(tells)]
        try:
            process = await spawn(argv, log_path=None, environ=self._environ, pass_fds=[self._bound.fileno(), tells])
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
