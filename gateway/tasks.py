"""How work beside ours is ended."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any, Final, TypeVar, cast

AGAIN_S: Final = 1.0
T = TypeVar("T")


async def every(*work: Awaitable[T]) -> list[T]:
    """Each to its end, whatever becomes of the others, or of us. Raises: after that, what the first that failed did."""
    found = await asyncio.gather(*work, return_exceptions=True)
    for each in found:
        if isinstance(each, BaseException):
            raise each
    return cast(list[T], found)


async def cancel(*tasks: asyncio.Task[Any]) -> None:
    """Until all have ended: a client library may lose a cancellation that comes just as its answer does.

    Raises: what one of them failed with."""
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=AGAIN_S)
    for task in tasks:
        with suppress(asyncio.CancelledError):
            task.result()
