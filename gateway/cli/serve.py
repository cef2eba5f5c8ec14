"""`farebox serve`: gateway processes for machines where the database and Redis are somebody else's."""

from __future__ import annotations

import os
import signal
import socket
from typing import Annotated

from cyclopts import App, Parameter

from gateway.cli.common import LOCAL, OK, WRONG_USAGE, Local, Problem, commands_of
from gateway.config import Settings, Source

app = App(name="serve")

Hidden = Annotated[int | None, Parameter(show=False)]


@app.default
def serve(
    *,
    host: str | None = None,
    port: int | None = None,
    workers: int | None = None,
    socket_fd: Hidden = None,
    admin_fd: Hidden = None,
    ready_fd: Hidden = None,
    counts_fd: Hidden = None,
    place: Hidden = None,
    common: Local = LOCAL,
) -> int:
    """Run the gateway until SIGTERM, then drain and exit 0. Needs DATABASE_URL (migrated) and REDIS_URL.

    With several workers SIGHUP replaces them one by one, with new settings and new code, without cutting a stream.

    Parameters
    ----------
    host:
        Address to listen on; loopback unless told.
    port:
        TCP port.
    workers:
        Processes on that port.
    """
    import uvloop

    from gateway.cli.listening import bind
    from gateway.memory import share_one_arena
    from gateway.observe import logs

    settings = common.settings(server__host=host, server__port=port, server__workers=workers)
    logs.configure(settings.log)
    share_one_arena()
    if settings.redis_url is None:
        fix = "set REDIS_URL; `farebox up` starts an embedded one"
        raise Problem("serve needs a Redis or Valkey of yours", fix=fix, code=WRONG_USAGE)
    for error in settings.missing_secrets():
        raise error
    source = Source(common.config, data_dir=common.data)
    if socket_fd is not None:
        given = [socket.socket(fileno=fd) for fd in (socket_fd, admin_fd) if fd is not None]
        shared = None if counts_fd is None or place is None else (counts_fd, place)
        uvloop.run(_one(settings, source, given, ready_fd, shared))
        return OK
    flags = [f"--config={common.config}"] if common.config else []
    flags += [f"--data={settings.data_dir}"]
    with bind(settings) as bound:
        if settings.server.workers == 1:
            uvloop.run(_one(settings, source, bound, None))
        else:
            uvloop.run(_several(settings, bound, flags))
    return OK


async def _one(
    settings: Settings,
    source: Source,
    bound: list[socket.socket],
    ready_fd: int | None,
    shared: tuple[int, int] | None = None,
) -> None:
    """shared: the file of connection counts and our place in it, of several workers."""
    import asyncio

    from gateway.app import create_app
    from gateway.cli.listening import on_signal
    from gateway.cli.serving import Server
    from gateway.ingress.accepting import Counts

    hands_over = ready_fd is not None or settings.server.reuse_port
    counts = None if shared is None else Counts(*shared)
    app = create_app(settings, lambda: commands_of(settings), source)
    server = Server(settings, app, hands_over=hands_over, counts=counts)

    async def tell() -> None:
        await server.up.wait()
        if ready_fd is not None:
            os.write(ready_fd, b"1")
            os.close(ready_fd)

    with on_signal(server.drain), on_signal(_explain, signal.SIGHUP):
        telling = asyncio.create_task(tell())
        try:
            await server.serve(sockets=bound)
        finally:
            telling.cancel()


def _explain() -> None:
    """A worker on its own has nobody to hand over to."""
    import structlog

    log = structlog.get_logger(__name__)
    log.warning("SIGHUP ignored: run with --workers 2 or more, or start a second `serve` with server.reuse_port")


async def _several(settings: Settings, bound: list[socket.socket], flags: list[str]) -> None:
    import asyncio

    from gateway.cli.listening import on_signal
    from gateway.cli.serving import Workers

    stop = asyncio.Event()
    with on_signal(stop.set):
        async with Workers(settings, bound, flags, {}).running():
            await stop.wait()
