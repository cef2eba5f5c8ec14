"""The roll call. Before a budget's counter is made anew, every living gateway has said what it holds.

Redis may lose its data (FLUSHALL, a restart without its file) or its last second. What was charged is in SQL, but what
running requests hold is known to their gateways alone. So a counter is made in this order:

1. Who lives? Gateways write their name and the time into SQL; a dead one of our host is told by its journal's lock.
2. Each of them renews all that it holds in the organisation, ships its journal, and enters itself in Redis.
3. The loader ships what dead gateways of this host left behind, reads SQL and makes the counter, in a script that
   refuses unless all are entered: had Redis lost its data once more, nobody would be.

Requests wait meanwhile, WAIT_S at most, and are then told to come back.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final

import hiredis
import structlog
from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import SQLAlchemyError

from billing.db import AsyncConnection, AsyncEngine, at_once, reading, writing
from billing.schema import late_charges
from gateway.admission.limits import Limiter, Scopes, prefix_of
from gateway.admission.owners import Owner
from gateway.admission.store import AnyLink
from gateway.errors import Unavailable
from gateway.schema import gateways
from gateway.tasks import cancel

log = structlog.get_logger(__name__)

CHANNEL: Final = "fb:muster"
# How long a request waits for gateways to announce themselves.
WAIT_S: Final = 2.0
# How often a gateway tells SQL that it lives, and after what silence it is taken for dead. It may still run then, cut
# off from SQL or stopped; what it holds is taken when it comes back.
BEAT_S: Final = 5.0
DEAD_S: Final = 20.0
# Between two looks at who has come, and two calls: the first may have met a connection that was being made anew.
LOOK_S: Final = 0.01
CALL_S: Final = 0.1
_RECONNECT_S: Final = 0.2
# How often charges are looked for that budgets have not heard of.
LATE_S: Final = 30.0
_KEYS_MAX: Final = 1_000  # In one command.
_KEPT_NS: Final = 86_400 * 10**9


async def recount_late(engine: AsyncEngine, link: AnyLink) -> None:
    """Have budgets counted anew where usage was charged after it was settled. What cannot be told now stays noted, for
    whoever comes next. Raises: Unavailable, hiredis.ReplyError, SQLAlchemyError."""
    late: dict[str, list[int]] = {}
    async with reading(engine) as db:
        for ident, organisation_id in (await db.execute(select(late_charges))).all():
            late.setdefault(organisation_id, []).append(ident)
    for organisation_id, idents in late.items():
        await _recount(link, organisation_id)
        async with writing(engine) as db:
            await db.execute(delete(late_charges).where(late_charges.c.id.in_(idents)))


async def _recount(link: AnyLink, organisation_id: str) -> None:
    """It is as if Redis had lost all budget counters of an organisation: the next request waits for a roll call, and
    nothing that runs is forgotten."""
    where = Scopes(prefix_of(organisation_id), (), (), (), (), ())
    muster, counters = where.muster, f"{where.prefix}:m:*"
    # The roll goes first: a counter that is being made of what SQL said before the commit is refused.
    await link.call("DEL", muster)
    keys: list[str] = []
    cursor = "0"
    while True:
        at, found = await link.call("SCAN", cursor, "MATCH", counters, "COUNT", _KEYS_MAX, near=muster)
        keys += [key.decode() for key in found]
        if (cursor := at.decode()) == "0":
            break
    for start in range(0, len(keys), _KEYS_MAX):
        # Never without the roll: a counter that vanished alone would be made without what runs.
        await link.call("DEL", muster, *keys[start : start + _KEYS_MAX])


class Muster:
    """Use as an async context: inside it, calls are answered and life is told."""

    def __init__(
        self,
        link: AnyLink,
        limiter: Limiter,
        engine: AsyncEngine,
        owner: Owner,
        announce: Callable[[Scopes], Awaitable[None]],
        clock: Callable[[], int],
        away_since_ns: Callable[[], int | None] = lambda: None,
    ) -> None:
        """announce: renews and enters this gateway. clock: unix time in ns. away_since_ns: since when the store of
        limits does not answer, None while it does; told to SQL for whoever sends alerts."""
        self._link = link
        self._limiter = limiter
        self._engine = engine
        self._owner = owner
        self._announce = announce
        self._clock = clock
        self._away_since_ns = away_since_ns
        self._tasks: set[asyncio.Task[None]] = set()
        # When telling SQL that we live failed last: for a while after, others' silence may be SQL's.
        self._failed_s: float | None = None

    async def __aenter__(self) -> Muster:
        await self._beat()
        loop = asyncio.get_running_loop()
        for work in (self._keep_beating(), self._listen(), self._follow_late_charges()):
            self._keep(loop.create_task(work))
        return self

    async def __aexit__(self, *_: object) -> None:
        await cancel(*self._tasks)
        with contextlib.suppress(SQLAlchemyError, OSError):
            async with writing(self._engine) as db:
                await db.execute(delete(gateways).where(gateways.c.id == self._owner.name))

    async def assemble(self, scopes: Scopes) -> Sequence[str]:
        """Returns: the gateways that have to be entered when the counter is made. Raises: Unavailable."""
        loop = asyncio.get_running_loop()
        until_s, call_s = loop.time() + WAIT_S, 0.0
        await self._announce(scopes)
        try:
            required = await self._living()
            while absent := await self._absent(scopes, required):
                if loop.time() >= until_s:
                    log.warning("budgets wait for gateways that do not answer", absent=absent)
                    raise Unavailable("budgets are being added up again; try again in a moment")
                if loop.time() >= call_s:
                    call_s = loop.time() + CALL_S
                    await self._link.call("PUBLISH", CHANNEL, scopes.prefix)
                    required = await self._living()
                await asyncio.sleep(LOOK_S)
        except (SQLAlchemyError, OSError) as error:
            raise Unavailable("the database that knows the budgets is away") from error
        return required

    async def _absent(self, scopes: Scopes, names: Sequence[str]) -> list[str]:
        muster = scopes.muster
        there = await self._link.call_booted(
            lambda boot: ("HMGET", muster, *(f"{boot}:{n}" for n in names)), near=muster
        )
        return [name for name, entered in zip(names, there, strict=True) if entered is None]

    async def _living(self) -> list[str]:
        """Every gateway that may hold something, ourselves included."""
        async with reading(self._engine) as db:
            rows = (await db.execute(select(gateways.c.id, gateways.c.seen_at_ns))).all()
        now_ns, living = self._clock(), [self._owner.name]
        for name, seen_at_ns in rows:
            if name == self._owner.name or self._owner.is_dead(name):
                continue
            if now_ns - seen_at_ns <= DEAD_S * 10**9:
                living.append(name)
            elif self._failed_s is not None and asyncio.get_running_loop().time() - self._failed_s <= BEAT_S:
                raise Unavailable("the database has been away; budgets are being added up again")
        return living

    async def _beat(self) -> None:
        await at_once(self._engine, partial(_say, self._owner.name, self._clock(), self._away_since_ns()))

    async def _keep_beating(self) -> None:
        pause_s = BEAT_S
        while True:
            await asyncio.sleep(pause_s)
            try:
                await self._beat()
                pause_s = BEAT_S
            except (SQLAlchemyError, OSError) as error:
                log.warning("the database does not know that this gateway lives", reason=type(error).__name__)
                self._failed_s, pause_s = asyncio.get_running_loop().time(), min(BEAT_S, 1.0)

    async def _follow_late_charges(self) -> None:
        """Whoever charged late tells the counters himself, unless he dies, or Redis is away at that moment."""
        while True:
            await asyncio.sleep(LATE_S)
            try:
                await recount_late(self._engine, self._link)
            except (Unavailable, hiredis.ReplyError, SQLAlchemyError, OSError) as error:
                log.warning("budgets not added up again yet", reason=type(error).__name__)

    async def _listen(self) -> None:
        while True:
            try:
                await self._link.listen(CHANNEL, self._heard, lambda: None)
            except (Unavailable, hiredis.ReplyError):
                await asyncio.sleep(_RECONNECT_S)

    def _heard(self, prefix: bytes) -> None:
        where = Scopes(prefix.decode(), (), (), (), (), ())
        self._keep(asyncio.get_running_loop().create_task(self._answer(where)))

    async def _answer(self, where: Scopes) -> None:
        try:
            await self._announce(where)
        except Unavailable as error:
            log.warning("what this gateway holds was not announced", reason=error.message)

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _say(name: str, now_ns: int, limits_away_since_ns: int | None, db: AsyncConnection) -> None:
    """That this gateway lives."""
    said = {"seen_at_ns": now_ns, "limits_away_since_ns": limits_away_since_ns}
    known = await db.execute(update(gateways).where(gateways.c.id == name).values(said))
    if not known.rowcount:
        await db.execute(insert(gateways).values(id=name, **said))
        await db.execute(delete(gateways).where(gateways.c.seen_at_ns < now_ns - _KEPT_NS))
