"""A second deployment asked while the first is late: whoever answers first is kept, the other is cancelled.

After Dean and Barroso, "The Tail at Scale" (2013): wait for a high percentile of what the first usually takes, so that
few requests are asked twice. Providers may charge for a prompt that is cancelled, so the share is capped and counted;
the client is charged for the answer that it gets."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from gateway.routing.retries import Window
from providers.errors import ProviderError

T = TypeVar("T")

SAMPLES: Final = 128
# Fewer tell nothing of a tail.
SAMPLES_LEAST: Final = 20
# A first token that is always prompt needs no second asking.
LEAST_S: Final = 0.05


class FirstTokens:
    """Seconds to the latest first tokens of one deployment."""

    __slots__ = ("_seen",)

    def __init__(self) -> None:
        self._seen: deque[float] = deque(maxlen=SAMPLES)

    def add(self, seconds: float) -> None:
        self._seen.append(seconds)

    def percentile(self, percent: int) -> float | None:
        """None while too few are known."""
        if len(self._seen) < SAMPLES_LEAST:
            return None
        ranked = sorted(self._seen)
        return max(LEAST_S, ranked[min(len(ranked) - 1, len(ranked) * percent // 100)])


class HedgeBudget:
    """So many of the last half minute's requests may be asked twice; five are free, for those with little traffic."""

    __slots__ = ("_hedged", "_requests", "_share")

    def __init__(self, share: float) -> None:
        self._share = share
        self._requests = Window()
        self._hedged = Window()

    def requested(self, now: float) -> None:
        self._requests.add(now)

    def take(self, now: float) -> bool:
        if self._hedged.total(now) + 1 > 5 + self._share * self._requests.total(now):
            return False
        self._hedged.add(now)
        return True


async def raced(
    first: Awaitable[T],
    wait_s: float,
    second: Callable[[], Awaitable[T] | None],
    discard: Callable[[T], Awaitable[None]],
) -> T:
    """The first's result, or the second's where that comes sooner. second: begins it after `wait_s`; None: do not.
    discard: lets go of a result that came too late to be wanted.

    Raises: the first's error when it fails before the second begins, or when both fail."""
    tasks: list[asyncio.Future[T]] = [asyncio.ensure_future(first)]
    kept: asyncio.Future[T] | None = None
    try:
        done, _ = await asyncio.wait(tasks, timeout=wait_s)
        if not done and (other := second()) is not None:
            tasks.append(asyncio.ensure_future(other))
        waiting = set(tasks)
        while waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            kept = next((task for task in done if not isinstance(task.exception(), ProviderError)), None)
            if kept is not None:
                return kept.result()
        return tasks[0].result()
    finally:
        try:
            await _let_go([task for task in tasks if task is not kept], discard)
        except asyncio.CancelledError:
            if kept is not None and kept.exception() is None:
                await discard(kept.result())  # There is nobody left to give it to.
            raise


async def _let_go(tasks: list[asyncio.Future[T]], discard: Callable[[T], Awaitable[None]]) -> None:
    """Of whoever is still at work; and of an answer that arrived in the same instant as the one that is kept.

    Raises: CancelledError if that is what we were meanwhile, once all are let go."""
    cancelled: asyncio.CancelledError | None = None
    for task in tasks:
        task.cancel()
    for task in tasks:
        while not task.done():
            try:
                await asyncio.wait({task})
            except asyncio.CancelledError as error:  # Ours: theirs would not come this way.
                cancelled = error
        if not task.cancelled() and task.exception() is None:
            await discard(task.result())
    if cancelled is not None:
        raise cancelled
