"""Work beside ours is ended, not left behind."""

from __future__ import annotations

import asyncio

import pytest

from gateway.tasks import every


async def test_each_ends_whatever_becomes_of_the_others() -> None:
    ended: list[str] = []

    async def slow(name: str) -> str:
        try:
            for _ in range(50):
                await asyncio.sleep(0)
        finally:
            for _ in range(10):  # As a transaction that is taken back.
                await asyncio.sleep(0)
            ended.append(name)
        return name

    async def fails() -> str:
        raise OSError("away")

    assert await every(slow("a"), slow("b")) == ["a", "b"]
    with pytest.raises(OSError, match="away"):
        await every(fails(), slow("c"))
    assert ended == ["a", "b", "c"]
    both = asyncio.ensure_future(every(fails(), slow("d")))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    both.cancel()
    with pytest.raises((asyncio.CancelledError, OSError)):
        await both
    assert ended == ["a", "b", "c", "d"]
