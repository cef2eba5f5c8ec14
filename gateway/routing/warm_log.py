"""What each gateway learns of warm prefixes, told to the others by one Redis stream: each keeps a mirror of all, so
that a choice asks nobody, and one that has just started reads what the others knew.

The stream is bounded (at most LINES of BATCH_BYTES each, 32 MB) and holds nothing but hashes and names. What does not
fit, or is lost with Redis, costs a prompt that is read twice; nothing waits for it."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

import hiredis
import msgspec
import structlog

from gateway.admission.store import LimitStore, link_to
from gateway.errors import Unavailable
from gateway.routing.warmth import Cache, Chain, Warmth

log = structlog.get_logger(__name__)

STREAM: Final = "fbx:{warmth}"
LINES: Final = 512
BATCH_BYTES: Final = 64 * 1024
EVERY_S: Final = 0.2
_AWAY_S: Final = 2.0
_BLOCK_MS: Final = 1000
_PATIENCE_S: Final = 5.0

CachesOf = Callable[[], Mapping[str, Cache]]
"""Deployment id -> what it keeps, as the catalogue says now; who is not in it is not learned of."""


class Line(msgspec.Struct, array_like=True, frozen=True):
    """read: (deployment id, its prompt's chain as packed 64-bit numbers), oldest first."""

    origin: str
    read: tuple[tuple[str, bytes], ...]


class WarmLog:
    def __init__(
        self, redis: LimitStore, warmth: Warmth, caches: CachesOf, clock: Callable[[], float], origin: str
    ) -> None:
        """clock: the same as the dispatcher's. origin: names this gateway, so that it skips its own lines."""
        self._link = link_to(redis)
        # Of its own: whoever waits for news holds up what is sent behind it.
        self._news = link_to(redis, reply_s=_BLOCK_MS / 1000 + _PATIENCE_S)
        self._warmth = warmth
        self._caches = caches
        self._clock = clock
        self._origin = origin
        self._told: dict[tuple[str, int], Chain] = {}
        self._size = 0
        self._something = asyncio.Event()
        self._seen = "0-0"

    def tell(self, name: str, chain: Chain) -> None:
        """In this process's memory until the next turn of `run`; what is more than a batch holds is not told."""
        if not chain or self._size + 8 * len(chain) > BATCH_BYTES:
            return
        if (name, chain[-1]) not in self._told:
            self._size += 8 * len(chain)
            self._told[name, chain[-1]] = chain
            self._something.set()

    async def run(self) -> None:
        """Until cancelled. Redis may come and go."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._forever(self._send), name="tell of warm prefixes")
                group.create_task(self._forever(self._hear), name="hear of warm prefixes")
        finally:
            await self._link.aclose()
            await self._news.aclose()

    async def _forever(self, turn: Callable[[], Any]) -> None:
        away = False
        while True:
            try:
                await turn()
                away = False
            except (Unavailable, hiredis.ReplyError) as error:
                if not away:
                    log.warning("warm prefixes are not shared while Redis is away", reason=type(error).__name__)
                away = True
                await asyncio.sleep(_AWAY_S)

    async def _send(self) -> None:
        await self._something.wait()
        await asyncio.sleep(EVERY_S)  # for what comes with it
        self._something.clear()
        told, self._told, self._size = self._told, {}, 0
        line = Line(self._origin, tuple((name, array("Q", chain).tobytes()) for (name, _), chain in told.items()))
        await self._link.call("XADD", STREAM, "MAXLEN", "~", LINES, "*", "l", msgspec.msgpack.encode(line))

    async def _hear(self) -> None:
        asked = ("XREAD", "COUNT", 64, "BLOCK", _BLOCK_MS, "STREAMS", STREAM, self._seen)
        for _, entries in await self._news.call(*asked, near=STREAM) or ():
            for ident, pairs in entries:
                self._seen = ident.decode()
                fields = dict(zip(pairs[::2], pairs[1::2], strict=True))
                with suppress(msgspec.MsgspecError, KeyError, ValueError):  # a line of some other version
                    self._learn(msgspec.msgpack.decode(fields[b"l"], type=Line), int(self._seen.partition("-")[0]))

    def _learn(self, line: Line, at_ms: int) -> None:
        if line.origin == self._origin:
            return
        caches = self._caches()
        now = self._clock() - max(0.0, time.time() - at_ms / 1000)
        for name, packed in line.read:
            if (cache := caches.get(name)) is not None:
                self._warmth.keep(name, cache, array("Q", packed), now)
