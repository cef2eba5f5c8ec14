"""The audit log: who changed what, from what to what. Append-only; each row's hash covers the row before it.

A row about something of an organisation (a key, a project, a member) says of which, so that its own administrators may
read it.

A row that is edited, removed or put in between breaks the chain from there on. Cutting off the newest rows does not:
keep the newest hash elsewhere (`verify` tells it) to see that too.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct
from sqlalchemy import ColumnElement, RowMapping, desc, insert, or_, select, union_all

from billing.db import AsyncConnection, take_turn
from billing.schema import organisations, projects, teams
from gateway import schema

GENESIS: Final = bytes(32)
_TURN: Final = int.from_bytes(b"farebox", "big")


class Verdict(Struct, frozen=True):
    """head: the newest good hash in hexadecimal. broken_at: id of the first row that does not follow from the one
    before it; None when all do."""

    rows: int
    head: str
    broken_at: int | None


async def hold(db: AsyncConnection, subject: str) -> None:
    """Wait until nobody else is changing this, and keep them waiting until we end: what is read from here on is what
    was before. The first thing that a transaction waits for, of one subject in each."""
    await take_turn(db, int.from_bytes(hashlib.blake2s(subject.encode(), digest_size=8).digest(), "big", signed=True))


async def append(
    db: AsyncConnection,
    *,
    actor: str,
    action: str,
    subject: str,
    at_ns: int,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
    note: str | None = None,
    of: str | None = None,
) -> None:
    """Write one row in the caller's transaction, so that a change and its trace stand or fall together.

    The last thing that a transaction waits for: until it ends nobody else can write here, so what it changes afterwards
    must be its own, or they wait for each other.

    of: id of the organisation, team, project or key that it belongs to, where that is not the subject.
    before, after: text, whole numbers, truth values, lists; no floats, which databases write in ways of their own,
    and never a secret."""
    await take_turn(db, _TURN)
    newest = select(schema.audit.c.hash).order_by(desc(schema.audit.c.id)).limit(1)
    previous = (await db.execute(newest)).scalar_one_or_none() or GENESIS
    row = {
        "at_ns": at_ns,
        "actor": actor,
        "action": action,
        "subject": subject,
        "before": _plain(before),
        "after": _plain(after),
        "note": note,
        "organisation_id": await _owner(db, subject if of is None else of),
    }
    await db.execute(insert(schema.audit).values(row | {"hash": chained(previous, row)}))


def chained(previous: bytes, row: Mapping[str, Any]) -> bytes:
    """SHA-256 over the hash before and the row as JSON with sorted keys: in whatever order a database keeps them."""
    fields = [row[name] for name in ("at_ns", "actor", "action", "subject", "before", "after", "note")]
    if (owner := row.get("organisation_id")) is not None:
        fields.append(owner)  # Rows of before 2026-11-23 have none, and their hashes stay good.
    return hashlib.sha256(previous + msgspec.json.encode(fields, order="sorted")).digest()


class Wanted(Struct, frozen=True):
    """Which rows. actor, action, subject: exactly this; why: words in the reason; times in unix ns, the last one not
    included. organisations: of these alone; None: all, and what belongs to none."""

    actor: str | None = None
    action: str | None = None
    subject: str | None = None
    why: str | None = None
    since_ns: int = 0
    until_ns: int | None = None
    organisations: frozenset[str] | None = None

    def where(self) -> list[ColumnElement[bool]]:
        table = schema.audit.c
        found = [table.at_ns >= self.since_ns]
        for column, value in ((table.actor, self.actor), (table.action, self.action), (table.subject, self.subject)):
            if value is not None:
                found.append(column == value)
        if self.why is not None:
            found.append(table.note.icontains(self.why, autoescape=True))
        if self.until_ns is not None:
            found.append(table.at_ns < self.until_ns)
        if self.organisations is not None:
            found.append(table.organisation_id.in_(sorted(self.organisations)))
        return found


async def newest(db: AsyncConnection, wanted: Wanted, *, limit: int, before_id: int | None = None) -> list[RowMapping]:
    """The last so many, in the order of time."""
    query = select(schema.audit).where(*wanted.where()).order_by(desc(schema.audit.c.id)).limit(limit)
    if before_id is not None:
        query = query.where(schema.audit.c.id < before_id)
    return list(reversed((await db.execute(query)).mappings().all()))


async def lines(db: AsyncConnection, wanted: Wanted) -> AsyncIterator[bytes]:
    """Every row as a line of JSON, the oldest first: enough to check the chain without this database."""
    async with db.stream(select(schema.audit).where(*wanted.where()).order_by(schema.audit.c.id)) as result:
        async for row in result.mappings():
            yield msgspec.json.encode(plain(row)) + b"\n"


def plain(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A row as programs read it. hash: hexadecimal."""
    return {**row, "hash": row["hash"].hex()}


async def verify(db: AsyncConnection) -> Verdict:
    """Go through the whole chain. Reads every row, in a stream."""
    head, rows = GENESIS, 0
    async with db.stream(select(schema.audit).order_by(schema.audit.c.id)) as result:
        async for row in result.mappings():
            expected = chained(head, dict(row))
            if expected != row["hash"]:
                return Verdict(rows, head.hex(), row["id"])
            head, rows = expected, rows + 1
    return Verdict(rows, head.hex(), None)


async def _owner(db: AsyncConnection, subject: str) -> str | None:
    """Whose organisation's this is. Subjects are an id, `kind:id`, or an id with a name behind a slash."""
    ident = subject.rpartition(":")[2].partition("/")[0]
    keys = schema.virtual_keys.c
    mine = [
        select(organisations.c.id).where(organisations.c.id == ident),
        *(select(table.c.organisation_id).where(table.c.id == ident) for table in (teams, projects)),
        select(keys.organisation_id).where(or_(keys.id == ident, keys.public_id == ident)),
    ]
    found: str | None = (await db.execute(union_all(*mine).limit(1))).scalar()
    return found


def _plain(value: Mapping[str, Any] | None) -> Any:
    """As it will be read back: enumerations as their text, structs as mappings."""
    return None if value is None else msgspec.to_builtins(value)
