"""`python -m tests.emulators`: every emulator of this folder on a loopback port, until interrupted.

An emulator module shows itself with `SERVED`: name -> factory taking `port=`. One line per provider is printed, with
the base URL a deployment would be given.

`--with-gateway --port 4100` starts a gateway in front of its own set of emulators instead, with SQLite and Valkey in a
temporary folder, prints one JSON line (`base_url`, `key`, `models` by provider, each with its capabilities) and stays
until SIGTERM: for suites that look at a gateway from outside.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import pkgutil
import signal
import tempfile
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path

import tests.emulators
from tests.emulators.server import Emulator

Factories = Mapping[str, Callable[..., Emulator]]


def found() -> dict[str, Callable[..., Emulator]]:
    """Every factory by name."""
    factories: dict[str, Callable[..., Emulator]] = {}
    for module in pkgutil.iter_modules(tests.emulators.__path__):
        if module.name not in ("__main__", "server", "scripted"):
            served: Factories = getattr(import_module(f"tests.emulators.{module.name}"), "SERVED", {})
            factories.update(served)
    return factories


async def serve(first_port: int) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for offset, (name, make) in enumerate(sorted(found().items())):
            emulator = await stack.enter_async_context(make(port=first_port + offset))
            print(f"{name:12} {emulator.url}", flush=True)
        await told_to_stop().wait()


async def serve_with_gateway(port: int) -> None:
    # Imported here: the emulators alone need nothing of the gateway.
    from billing.migrate import upgrade
    from tests import services
    from tests.e2e.yard import BACKENDS, all_models, models_of, yard_of

    stop = told_to_stop()  # before anything starts, so that an early signal, too, ends what has begun
    with tempfile.TemporaryDirectory(prefix="farebox-") as name, services.valkey() as redis_url:
        folder, template = Path(name) / "gateway", Path(name) / "template.db"
        folder.mkdir()
        await upgrade(f"sqlite:///{template}")
        async with yard_of(folder, template, redis_url, all_models(), port=port) as yard:
            told = {
                "base_url": yard.gateway.url,
                "key": yard.gateway.key,
                "models": {
                    backend: [{"id": place, "capabilities": words} for place, words in models_of(backend).items()]
                    for backend in BACKENDS
                },
            }
            print(json.dumps(told), flush=True)
            await stop.wait()


def told_to_stop() -> asyncio.Event:
    """Set by SIGTERM or SIGINT."""
    told, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.emulators")
    parser.add_argument("--with-gateway", action="store_true", help="a gateway in front of them; prints one JSON line")
    parser.add_argument("--port", type=int, default=4100, help="the gateway's, or the first emulator's (4100)")
    asked = parser.parse_args()
    asyncio.run(serve_with_gateway(asked.port) if asked.with_gateway else serve(asked.port))


if __name__ == "__main__":
    main()
