"""`python -m local_backend MODEL [--port N | --uds PATH] ...`: one model behind HTTP until SIGTERM.

Prints one JSON line {"event": "listening", "model", "url"} when it takes connections and {"event": "ready"} when it
takes requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import uvicorn

from local_backend.catalogue import Speaker, resolve
from local_backend.client import CoreClient
from local_backend.config import BadSetting, Settings, adapter_folders, load_settings
from local_backend.embeddings import EncoderServer
from local_backend.encoder_config import is_encoder
from local_backend.errors import EngineError
from local_backend.lease import Lease, lease_of
from local_backend.parent import die_with_parent, parent_gone
from local_backend.server import Server

log = logging.getLogger("local_backend")


class Http(uvicorn.Server):
    """uvicorn without its signal handling: it would raise the signal again at the end, and we want to exit with 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def main(argv: list[str]) -> int:
    """Returns: exit status; 0 after SIGTERM, 2 if the settings or the model cannot be used."""
    try:
        settings = load_settings(argv)
        if settings.die_with_parent:
            die_with_parent()
        logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(message)s")
        name, model_dir = resolve(settings.model, Path(settings.data), Speaker(as_json=False).progress)
        if settings.draft_model is not None:
            _, draft_dir = resolve(settings.draft_model, Path(settings.data), Speaker(as_json=False).progress)
            settings = msgspec.structs.replace(settings, draft_model=str(draft_dir.resolve()))
        served_name = settings.served_name or name
        with bind(settings) as listening:
            return asyncio.run(serve(settings, served_name, model_dir.resolve(), listening))
    except (BadSetting, EngineError, OSError) as error:
        sys.stderr.write(f"local_backend: {error}\n")
        return 2
    except ExceptionGroup as group:
        known, unknown = group.split((EngineError, OSError))
        if known is None or unknown is not None:
            raise
        sys.stderr.write(f"local_backend: {known.exceptions[0]}\n")
        return 2


def bind(settings: Settings) -> socket.socket:
    """The listening socket. Raises OSError if the address is taken."""
    if settings.uds is not None:
        if Path(settings.uds).is_socket():  # whose process is gone; a file of somebody's is left where it is
            Path(settings.uds).unlink()
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(settings.uds)
        Path(settings.uds).chmod(0o600)
        return listening
    listening = socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((settings.host, settings.port))
    return listening


async def serve(settings: Settings, served_name: str, model_dir: Path, listening: socket.socket) -> int:
    """Serve until SIGTERM or SIGINT; then refuse what is new, let streams end for `drain_s`, and stop the core.

    Raises ExceptionGroup if a part of it fails; the core is gone then, too."""
    publisher = None
    if settings.kv_events is not None:
        from local_backend.kv_events import Publisher  # on use: few want it, and it brings a library of its own

        publisher = Publisher(settings.kv_events, settings.kv_events_replay)
        say({"event": "kv_events", "urls": publisher.endpoints})
    lease = None
    if settings.register is not None:
        at = settings.advertise or f"{address(settings, listening)}/v1"
        names = [served_name, *(f"{served_name}:{adapter}" for adapter in adapter_folders(settings.adapters))]
        who = (settings.register_token, settings.register_as, settings.replica)
        lease = lease_of(settings.register, *who, at, names, [] if publisher is None else publisher.endpoints)
    core = CoreClient(settings, str(model_dir), publisher)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(core.run())  # first: importing torch takes longer than all of the rest
        await asyncio.sleep(0)
        face = EncoderServer if is_encoder(model_dir) else Server
        server = face(settings, served_name, model_dir, core)
        http = Http(
            uvicorn.Config(
                server,
                lifespan="off",
                access_log=False,
                log_level=settings.log_level,
                http="httptools",
                timeout_graceful_shutdown=math.ceil(settings.drain_s),
                backlog=2048,
            )
        )

        def stop() -> None:
            http.force_exit = http.should_exit  # the second signal does not wait for streams
            server.draining = http.should_exit = True

        leaving: list[asyncio.Task[None]] = []

        async def leave_first(lease: Lease) -> None:
            """Requests that were sent before every gateway knew are answered like others."""
            keeping.cancel()
            await asyncio.sleep(await lease.leave())
            stop()

        def end() -> None:
            if lease is None or leaving:
                stop()
            else:
                leaving.append(tasks.create_task(leave_first(lease)))

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, end)
        serving = tasks.create_task(http.serve(sockets=[listening]))
        say({"event": "listening", "model": served_name, "url": address(settings, listening)})
        keeping = tasks.create_task(register(core, lease))
        beside = [tasks.create_task(announce(core)), keeping]
        if settings.die_with_parent:
            beside.append(tasks.create_task(parent_gone(stop)))
        # The core's end comes first only when it cannot start at all; `run` outlives every other trouble.
        await asyncio.wait({running, serving}, return_when=asyncio.FIRST_COMPLETED)
        stop()
        await serving
        await core.close()
        await running
        for task in (*beside, *leaving):
            task.cancel()
    if publisher is not None:
        publisher.close()
    if core.fatal is not None:
        raise core.fatal
    return 0


def address(settings: Settings, listening: socket.socket) -> str:
    """Where we are, with the port that the system picked if we were given none."""
    if settings.uds is not None:
        return f"unix:{settings.uds}"
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def announce(core: CoreClient) -> None:
    """Say when requests are taken."""
    with contextlib.suppress(EngineError):
        ready = await core.wait_ready()
        say({"event": "ready"} | msgspec.structs.asdict(ready))


async def register(core: CoreClient, lease: Lease | None) -> None:
    """Be one of a gateway's replicas once requests are taken."""
    if lease is not None:
        with contextlib.suppress(EngineError):
            await core.wait_ready()
            await lease.keep()


def say(event: dict[str, object]) -> None:
    """One line for whoever started us."""
    sys.stdout.write(msgspec.json.encode(event).decode() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
