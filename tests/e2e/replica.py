"""`python -m tests.e2e.replica GATEWAYS PROVIDER NAME`: an emulated engine, a process of its own, that is a replica.

As the engine does: it joins, renews, and on SIGTERM leaves, answers on while requests may still come, and ends."""

from __future__ import annotations

import asyncio
import logging
import sys

from local_backend.config import register_token
from local_backend.lease import beside, lease_of
from tests.emulators.openai import OpenAIEmulator

# What is still being answered then ends well within it.
DRAIN_S = 1.0


async def main(gateways: str, provider: str, name: str) -> None:
    async with OpenAIEmulator() as engine:
        lease = lease_of(gateways, register_token(), provider, name, f"{engine.url}/v1", ["echo-1"])
        await beside(lease, DRAIN_S)


if __name__ == "__main__":
    logging.basicConfig(level="INFO")
    asyncio.run(main(*sys.argv[1:]))
