"""`python -m tests.emulators`: every emulator of this folder on a loopback port, until interrupted.

An emulator module shows itself with `SERVED`: name -> factory taking `port=`. One line per provider is printed, with
the base URL a deployment would be given.
"""

from __future__ import annotations

import asyncio
import contextlib
import pkgutil
from collections.abc import Callable, Mapping
from importlib import import_module

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
        await asyncio.Event().wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(4100))
