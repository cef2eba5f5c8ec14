"""Where a resource lies in organisation > team > project, and what lies within somebody's memberships."""

from __future__ import annotations

from typing import Final

from sqlalchemy import ColumnElement, or_, select

from billing.db import AsyncConnection
from billing.schema import organisations, projects, teams
from gateway.admin.auth.roles import Membership, Place, Role, Sight
from gateway.schema import virtual_keys

_SCOPES: Final = ("organisation", "team", "project", "key")


async def place_of(db: AsyncConnection, kind: str, ident: str) -> Place | None:
    """kind: of auth.roles.Kind, or a scope of billing.accounts. None: there is no such thing."""
    match kind:
        case "organisation":
            found = await db.execute(select(organisations.c.id).where(organisations.c.id == ident))
            return None if found.first() is None else Place(ident)
        case "team":
            home = (await db.execute(select(teams.c.organisation_id).where(teams.c.id == ident))).scalar_one_or_none()
            return None if home is None else Place(home, ident)
        case "project" | "end_user":
            return await _project(db, projects.c.id == ident)
        case "project's organisation":
            place = await _project(db, projects.c.id == ident)
            return None if place is None else Place(place.organisation_id)
        case "key":
            of = select(virtual_keys.c.project_id).where(
                or_(virtual_keys.c.id == ident, virtual_keys.c.public_id == ident)
            )
            return await _project(db, projects.c.id.in_(of))
    # A limit of a model, a provider or a tag belongs to a project or to an organisation.
    return await place_of(db, "project", ident) or await place_of(db, "organisation", ident)


async def _project(db: AsyncConnection, which: ColumnElement[bool]) -> Place | None:
    columns = projects.c
    row = (await db.execute(select(columns.organisation_id, columns.team_id, columns.id).where(which))).first()
    return None if row is None else Place(*row)


async def sight_of(db: AsyncConnection, held: tuple[Membership, ...], permitted: frozenset[Role]) -> Sight:
    """What the memberships whose role is permitted let one see: all that is below them, nothing beside or above."""
    ids: dict[str, set[str]] = {scope: set() for scope in _SCOPES}
    for each in held:
        if each.role in permitted:
            ids[each.scope].add(each.scope_id)
    below = select(teams.c.id).where(teams.c.organisation_id.in_(ids["organisation"]))
    seen_teams = ids["team"] | set((await db.execute(below)).scalars())
    columns = projects.c
    inside = or_(
        columns.id.in_(ids["project"]),
        columns.team_id.in_(ids["team"]),
        columns.organisation_id.in_(ids["organisation"]),
    )
    seen_projects = set((await db.execute(select(columns.id).where(inside))).scalars())
    return Sight(frozenset(ids["organisation"]), frozenset(seen_teams), frozenset(seen_projects))
