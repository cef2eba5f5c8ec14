"""What one gateway has learned, the next one knows: also one that starts later, and one that has lost Redis between."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from gateway.routing.warm_log import BATCH_BYTES, LINES, STREAM, WarmLog
from gateway.routing.warmth import BLOCK_BYTES, Cache, Chain, Warmth, chain_of_bytes

CACHES = {"a": Cache(10_000_000), "hosted": Cache(10_000, 300.0)}


def chain(seed: int, blocks: int = 10) -> Chain:
    return chain_of_bytes(random.Random(seed).randbytes(blocks * BLOCK_BYTES), "org")


@pytest_asyncio.fixture
async def redis(_valkey: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(_valkey, protocol=3) as client:
        await client.delete(STREAM)
        yield client


@asynccontextmanager
async def gateway(redis: Redis, origin: str) -> AsyncIterator[tuple[WarmLog, Warmth]]:
    warmth = Warmth()
    log = WarmLog(redis, warmth, lambda: CACHES, time.monotonic, origin)
    running = asyncio.create_task(log.run())
    try:
        yield log, warmth
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def knows(warmth: Warmth, name: str, what: Chain) -> None:
    async with asyncio.timeout(60):
        while warmth.tokens(CACHES, what, time.monotonic()).get(name) is None:
            await asyncio.sleep(0.01)


async def test_what_one_has_read_the_other_knows_and_so_does_one_that_starts_later(redis: Redis) -> None:
    async with gateway(redis, "one") as (one, own), gateway(redis, "two") as (_, other):
        one.tell("a", chain(1))
        one.tell("nobody's", chain(2))
        one.tell("hosted", chain(3))
        await knows(other, "a", chain(1))
        await knows(other, "hosted", chain(3))
        assert len(other) == 20
        assert len(own) == 0  # its dispatcher has learned it already
    async with gateway(redis, "three") as (_, late):
        await knows(late, "hosted", chain(3))
        assert late.tokens(CACHES, chain(3), time.monotonic() + 301.0) == {}  # its time runs from when it was read


async def test_a_line_of_another_version_is_passed_over(redis: Redis) -> None:
    await redis.xadd(STREAM, {"l": b"\xc1"})
    await redis.xadd(STREAM, {"other": b""})
    async with gateway(redis, "one") as (one, _), gateway(redis, "two") as (_, other):
        one.tell("a", chain(1))
        await knows(other, "a", chain(1))


async def test_the_stream_stays_small(redis: Redis) -> None:
    async with gateway(redis, "one") as (one, _), gateway(redis, "two") as (_, other):
        for seed in range(200):
            one.tell("a", chain(seed, 100))
        await knows(other, "a", chain(0, 100))
        length = await redis.xlen(STREAM)
        assert length == 1
        assert await redis.memory_usage(STREAM) < 2 * BATCH_BYTES
    assert LINES * BATCH_BYTES == 32 * 1024 * 1024


async def test_redis_may_be_away(tmp_path: object) -> None:
    nowhere = Redis.from_url("redis://127.0.0.1:1", protocol=3)
    async with gateway(nowhere, "one") as (one, _):
        for seed in range(300):
            one.tell("a", chain(seed % 7))
        await asyncio.sleep(0)
        assert one._size <= BATCH_BYTES
    await nowhere.aclose()


def test_nothing_is_told_of_a_prompt_too_short_to_share() -> None:
    log = WarmLog(Redis(), Warmth(), lambda: CACHES, time.monotonic, "one")  # Nobody connects.
    log.tell("a", ())
    assert not log._told


@pytest.mark.parametrize("count", [1, 3])
def test_the_same_prompt_is_told_once_a_batch(count: int) -> None:
    log = WarmLog(Redis(), Warmth(), lambda: CACHES, time.monotonic, "one")  # Nobody connects.
    for _ in range(count):
        log.tell("a", chain(1))
    assert len(log._told) == 1
