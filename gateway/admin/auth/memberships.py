"""Who belongs where, in SQL. Each source (by hand, a provider of identities, SCIM) keeps its own rows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from msgspec import Struct
from sqlalchemy import delete, select

from billing import accounts
from billing.db import AsyncConnection
from gateway import identity
from gateway.admin.auth.roles import Membership, Role, higher

MANUAL: Final = "manual"
INSTALLATION: Final = "installation"
SCOPES: Final = ("organisation", "team", "project")


class Held(Struct, frozen=True):
    """One row: a membership, whose, and who said so."""

    user_id: str
    scope: str
    scope_id: str
    source: str
    role: Role
    models: tuple[str, ...] | None


async def held_by(db: AsyncConnection, user_id: str, base: Role) -> tuple[Role, tuple[Membership, ...]]:
    """base: the person's own role over the installation. Returns: that or a higher one that a source gave, and the
    memberships below."""
    role, found = base, []
    for each in await rows(db, user_id=user_id):
        if each.scope == INSTALLATION:
            role = higher(role, each.role)
        else:
            found.append(Membership(each.scope, each.scope_id, each.role, each.models))
    return role, tuple(found)


async def rows(
    db: AsyncConnection,
    *,
    user_id: str | None = None,
    scope: str | None = None,
    scope_id: str | None = None,
    source: str | None = None,
) -> list[Held]:
    table = identity.memberships
    query = select(table).order_by(table.c.scope, table.c.scope_id, table.c.user_id, table.c.source)
    asked = {"user_id": user_id, "scope": scope, "scope_id": scope_id, "source": source}
    for column, value in ((table.c[name], value) for name, value in asked.items()):
        if value is not None:
            query = query.where(column == value)
    return [
        Held(row["user_id"], row["scope"], row["scope_id"], row["source"], Role(row["role"]),
             None if row["models"] is None else tuple(row["models"]))
        for row in (await db.execute(query)).mappings()
    ]  # fmt: skip


async def put(db: AsyncConnection, held: Held, *, at_ns: int) -> None:
    """Replaces what the same source said of the same place."""
    key = {"user_id": held.user_id, "scope": held.scope, "scope_id": held.scope_id, "source": held.source}
    said = {"role": held.role.value, "models": None if held.models is None else list(held.models)}
    await accounts.put(db, identity.memberships, key | said | {"created_at_ns": at_ns})


async def remove(db: AsyncConnection, held: Held) -> bool:
    """Returns: whether there was one."""
    table = identity.memberships
    gone = await db.execute(
        delete(table).where(
            table.c.user_id == held.user_id,
            table.c.scope == held.scope,
            table.c.scope_id == held.scope_id,
            table.c.source == held.source,
        )
    )
    return bool(gone.rowcount)


def highest(wanted: Iterable[Membership]) -> dict[tuple[str, str], Role]:
    """By scope and id."""
    best: dict[tuple[str, str], Role] = {}
    for each in wanted:
        place = (each.scope, each.scope_id)
        best[place] = higher(best.get(place, Role.MEMBER), each.role)
    return best


async def replace_source(
    db: AsyncConnection, user_id: str, source: str, wanted: Iterable[Membership], *, at_ns: int
) -> bool:
    """Everything that this source says of a person, anew. Of two roles in one place the higher stays.

    Returns: whether anything is otherwise than before."""
    best = highest(wanted)
    before = {(each.scope, each.scope_id): each.role for each in await rows(db, user_id=user_id)
              if each.source == source}  # fmt: skip
    if best == before:
        return False
    table = identity.memberships
    await db.execute(delete(table).where(table.c.user_id == user_id, table.c.source == source))
    for (scope, scope_id), role in best.items():
        await put(db, Held(user_id, scope, scope_id, source, role, None), at_ns=at_ns)
    return True
