"""What an open stream costs while nothing comes: `python -m tests.bench.idle [--streams 10000]`.

Opens as many streams as the limit on open files allows (each is two sockets in the gateway), each with a first chunk
and then silence, and listens for heartbeats. KB a stream is growth of the gateway's resident memory, its connection to
the provider included."""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import time
from typing import Any

import uvloop

from tests.bench.hotpath import KEY, Gateway, load, stack
from tests.bench.load import request_of

HEARTBEAT_S = 5.0
BEATS = 3
_OPENING_AT_ONCE = 128
_SPARE_FILES = 600


class Listener(asyncio.Protocol):
    """One stream's client."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self.open = asyncio.get_running_loop().create_future()
        self.beats = 0
        self.lost = False

    def connection_made(self, transport: Any) -> None:
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if not self.open.done() and b"data: " in data:
            self.open.set_result(None)
        elif b"data: " not in data:
            self.beats += data.count(b"\r\n:")

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        if not self.open.done():
            self.open.set_exception(ConnectionError("cut before its first chunk"))


async def measure(gateway: Gateway, streams: int) -> dict[str, float]:
    loop = asyncio.get_running_loop()
    request = request_of(gateway.port, KEY, "mock-n2-t0-d900000000", "chat", True)
    listeners: list[Listener] = []
    gate = asyncio.Semaphore(_OPENING_AT_ONCE)

    async def open_one() -> None:
        async with gate:
            _, listener = await loop.create_connection(lambda: Listener(request), "127.0.0.1", gateway.port)
            await listener.open
            listeners.append(listener)

    before_mb, began = gateway.rss_mb, time.monotonic()
    await asyncio.gather(*(open_one() for _ in range(streams)))
    opened_s = time.monotonic() - began
    for listener in listeners:
        listener.beats = 0
    cpu, began = gateway.cpu_s, time.monotonic()
    # Their number is the measurement here, so time is let pass.
    await asyncio.sleep(HEARTBEAT_S * (BEATS + 0.5))
    idle_s = time.monotonic() - began
    return {
        "streams": streams,
        "opened_in_s": opened_s,
        "kb_a_stream": (gateway.rss_mb - before_mb) * 1024 / streams,
        "idle_cpu_percent": (gateway.cpu_s - cpu) / idle_s * 100,
        "cut": sum(listener.lost for listener in listeners),
        "fewest_beats": min(listener.beats for listener in listeners),
        "beats_due": BEATS,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    streams = min(args.streams, (hard - _SPARE_FILES) // 2)
    settings = {"FAREBOX_SERVER__HEARTBEAT_S": str(HEARTBEAT_S)}
    with stack(postgres=False, pin=False, extra=settings) as (gateway, _):
        load(gateway.port, "--connections", 64, "--seconds", 2, pin=False)  # warm, and its records shipped
        figures = uvloop.run(measure(gateway, streams))
    if args.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:20} {value:>12,.2f}")


if __name__ == "__main__":
    main()
