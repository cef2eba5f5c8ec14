"""How background work is ended."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Final

AGAIN_S: Final = 1.0


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
