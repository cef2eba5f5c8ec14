"""Answers of the Responses and the Interactions API in SQL: kept for their project, found by id, forgotten in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final

import msgspec
import structlog
from msgspec import Struct
from sqlalchemy import delete, select
from sqlalchemy.exc import SQLAlchemyError

from billing.accounts import put
from billing.db import AsyncEngine, reading, writing
from gateway import schema
from providers.wire.sse import SseDecoder

log = structlog.get_logger(__name__)

RETENTION_S: Final = 30 * 24 * 3600
LOOKED_THROUGH: Final = 50
INTERACTION: Final = "v1_"
"""How the ids of interactions begin: answers of the Responses API lie in the same table."""
_table: Final = schema.stored_responses
_pieces: Final = schema.response_pieces


class Stored(Struct, frozen=True):
    """conversation: JSON array of all that was said, this answer included. body: the answer as its client got it."""

    id: str
    conversation: bytes
    body: bytes


class Store:
    """Rows of one project are invisible to every other. Raises: SQLAlchemyError wherever SQL is away."""

    def __init__(self, engine: AsyncEngine, retention_s: int = RETENTION_S) -> None:
        self._engine = engine
        self._retention_ns = retention_s * 10**9

    async def keep(self, project_id: str, stored: Stored, now_ns: int) -> None:
        """Also forgets what is past its time: nothing else has to remember to."""
        async with writing(self._engine) as db:
            await db.execute(delete(_table).where(_table.c.expires_at_ns <= now_ns))
            # Engines there are that give an id twice; then the newer answer is the one that was meant.
            times = {"created_at_ns": now_ns, "expires_at_ns": now_ns + self._retention_ns}
            said = {"id": stored.id, "conversation": stored.conversation, "body": stored.body}
            await put(db, _table, {"project_id": project_id, **said, **times})

    async def keep_at_best(self, project_id: str, stored: Stored, now_ns: int) -> None:
        """A store that fails costs the client its memory, not the answer that it has paid for."""
        try:
            # Shielded: a client that leaves after the last byte has still been answered.
            await asyncio.shield(self.keep(project_id, stored, now_ns))
        except SQLAlchemyError as error:
            log.error("response not stored", response_id=stored.id, reason=type(error).__name__)

    async def find(self, project_id: str, ident: str, now_ns: int) -> Stored | None:
        found = select(_table.c.id, _table.c.conversation, _table.c.body).where(
            _table.c.project_id == project_id, _table.c.id == ident, _table.c.expires_at_ns > now_ns
        )
        async with reading(self._engine) as db:
            row = (await db.execute(found)).one_or_none()
        return None if row is None else Stored(row.id, row.conversation, row.body)

    async def items(self, project_id: str, idents: Sequence[str], now_ns: int) -> dict[str, Any]:
        """Items of stored answers by their ids, None for one that cannot be given back to anybody; as far as the newest
        `LOOKED_THROUGH` answers have them: whoever names an item goes on with a conversation of today."""
        newest = (
            select(_table.c.conversation, _table.c.body)
            .where(_table.c.project_id == project_id, _table.c.expires_at_ns > now_ns)
            .order_by(_table.c.created_at_ns.desc())
            .limit(LOOKED_THROUGH)
        )
        missing, found = set(idents), dict[str, Any]()
        async with reading(self._engine) as db:
            rows = (await db.execute(newest)).all()
        for row in rows:
            if not any(ident.encode() in row.body or ident.encode() in row.conversation for ident in missing):
                continue
            said = [*msgspec.json.decode(row.conversation), *msgspec.json.decode(row.body, type=Whole).output]
            for item in said:
                if isinstance(item, dict) and item.get("id") in missing:
                    missing.discard(item["id"])
                    found[item["id"]] = item if says_something(item) else None
            if not missing:
                break
        return found

    async def forget(self, project_id: str, ident: str) -> bool:
        """Whether there was one."""
        gone = delete(_table).where(_table.c.project_id == project_id, _table.c.id == ident)
        async with writing(self._engine) as db:
            await db.execute(delete(_pieces).where(_pieces.c.response_id == ident))
            return (await db.execute(gone)).rowcount > 0


async def watched(
    body: AsyncIterator[bytes], ends: frozenset[str], keep: Callable[[bytes], Awaitable[None]]
) -> AsyncIterator[bytes]:
    """The answer stands in SQL before the client learns that it is whole: its next turn may follow at once.

    ends: names of the events that carry the whole answer. keep: given such an event's data."""
    frames = SseDecoder()
    pieces = aiter(body)
    try:
        async for piece in pieces:
            for frame in frames.feed(piece):
                if frame.event in ends:
                    await keep(frame.data)
            yield piece
    finally:
        await pieces.aclose()  # type: ignore[attr-defined]


class Whole(Struct):
    output: list[Any] = []


def says_something(item: Any) -> bool:
    """Thinking without its seal cannot be given back to anybody: its provider would look for it in its own store."""
    return not (isinstance(item, dict) and item.get("type") == "reasoning" and not item.get("encrypted_content"))
