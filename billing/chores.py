"""What workers do besides shipping: each chore when it is due, by one of them at a time, wherever they run.

A chore is claimed by moving its due time to the end of a lease; a holder that dies is taken over from then on. So a
chore may be done twice (a lease that ran out on a living holder, a kill before "done"): each has to stand that.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec
from sqlalchemy import select, update
from sqlalchemy.exc import SQLAlchemyError

from billing import schema
from billing.accounts import upsert
from billing.db import AsyncConnection, AsyncEngine, at_once, writing

log = logging.getLogger(__name__)

_S: Final = 10**9
LOOK_S: Final = 5.0
_RETRY_S: Final = 30.0
_PROBLEM_CHARS: Final = 500


class Chore(msgspec.Struct, frozen=True):
    """do: gets the time in nanoseconds; returns how much there was to do. lease_s: longer than it ever takes."""

    name: str
    every_s: float
    do: Callable[[int], Awaitable[int]]
    lease_s: float = 300.0


class Chores:
    def __init__(
        self,
        engine: AsyncEngine,
        chores: Sequence[Chore],
        holder: str,
        clock: Callable[[], int],
        look_s: float = LOOK_S,
    ) -> None:
        """holder: names this process; no two alive may share it. clock: nanoseconds since 1970, by which hosts have to
        agree to within a lease."""
        self._engine = engine
        self._chores = {chore.name: chore for chore in chores}
        self._holder = holder[:64]
        self._clock = clock
        self._look_s = look_s

    async def run(self, stop: asyncio.Event) -> None:
        """Until told to stop. What fails is logged, written beside the chore, and tried again."""
        while not stop.is_set():
            try:
                await self.once()
            except (SQLAlchemyError, OSError) as error:
                log.warning("chores not looked at, will try again: %s", error)
            try:
                await asyncio.wait_for(stop.wait(), self._look_s)
            except TimeoutError:
                continue

    async def once(self) -> list[str]:
        """Do what is due and nobody else is doing. Returns: the names of what was done well."""
        known = await at_once(self._engine, _due, read_only=True)
        now_ns = self._clock()
        due = [chore for name, chore in self._chores.items() if known.get(name, 0) <= now_ns]
        async with asyncio.TaskGroup() as group:  # None is left behind, whatever becomes of another one or of us.
            doing = [group.create_task(self._look_after(chore)) for chore in due]
        return [chore.name for chore, task in zip(due, doing, strict=True) if task.result()]

    async def _look_after(self, chore: Chore) -> bool:
        try:
            return await self._claim(chore) and await self._do(chore)
        except (SQLAlchemyError, OSError) as error:  # Claimed it is taken up again when its lease ends.
            log.warning("chore %s not claimed or not ended, will try again: %s", chore.name, error)
            return False

    async def _do(self, chore: Chore) -> bool:
        problem = None
        try:
            await chore.do(self._clock())
        except Exception as error:  # Whatever it is belongs to this chore alone, and is written down.
            problem = f"{type(error).__name__}: {error}"[:_PROBLEM_CHARS]
            log.error("chore %s failed, will try again: %s", chore.name, error, exc_info=error)
        now_ns, table = self._clock(), schema.chores
        values = {"due_ns": now_ns + int(chore.every_s * _S), "holder": None, "problem": problem}
        if problem is None:
            values["done_ns"] = now_ns
        else:
            values["due_ns"] = now_ns + int(min(chore.every_s, _RETRY_S) * _S)
        async with writing(self._engine) as db:
            ours = (table.c.name == chore.name, table.c.holder == self._holder)
            await db.execute(update(table).where(*ours).values(**values))
        return problem is None

    async def _claim(self, chore: Chore) -> bool:
        now_ns, table = self._clock(), schema.chores
        async with writing(self._engine) as db:
            await db.execute(upsert(db, table).values(name=chore.name, due_ns=0).on_conflict_do_nothing())
            claimed = await db.execute(
                update(table)
                .where(table.c.name == chore.name, table.c.due_ns <= now_ns)
                .values(due_ns=now_ns + int(chore.lease_s * _S), holder=self._holder)
            )
        return bool(claimed.rowcount)


async def _due(db: AsyncConnection) -> dict[str, int]:
    """When, in nanoseconds."""
    table = schema.chores.c
    return {row.name: row.due_ns for row in await db.execute(select(table.name, table.due_ns))}
