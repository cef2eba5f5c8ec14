"""What SCIM provisions, in SQL: people of ours that belong to it, groups, and what these grant.

Whoever was made here by hand is not seen through SCIM, and cannot be taken over by it.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec
from msgspec import Struct
from sqlalchemy import delete, func, insert, select, update

from billing.db import AsyncConnection, AsyncEngine, writing
from gateway import audit, identity, schema
from gateway.admin.auth import memberships, people
from gateway.admin.auth.roles import Role
from gateway.admin.auth.sign_on import granted
from gateway.admin.scim.wire import ScimError, Test, canonical, member, text_of, truth
from gateway.signing_in import AdminSettings

SOURCE: Final = "scim"
TOKEN_PREFIX: Final = "fbs-"  # noqa: S105 - a prefix, by which leaks are found, is no secret
RESOURCE_BYTES_MAX: Final = 64 * 1024
_SEEN_NS: Final = 60 * 10**9
# Ours to say, or in columns; everything else is kept as it was given.
_NOT_KEPT: Final = frozenset({"id", "meta", "schemas", "groups", "username", "externalid", "active", "password"})


class User(Struct, frozen=True):
    id: str
    name: str
    external_id: str | None
    active: bool
    resource: dict[str, Any]
    created_at_ns: int
    changed_at_ns: int


class Group(Struct, frozen=True):
    id: str
    name: str
    external_id: str | None
    created_at_ns: int
    changed_at_ns: int


class Change(Struct, frozen=True):
    """Who changes what, and when. actor: as the audit names the token. notes: for the audit, at the end."""

    db: AsyncConnection
    admin: AdminSettings
    actor: str
    at_ns: int
    notes: list[dict[str, Any]]

    def note(self, action: str, subject: str, **what: Any) -> None:
        self.notes.append({"action": action, "subject": subject, **what})


@asynccontextmanager
async def changing(engine: AsyncEngine, admin: AdminSettings, actor: str, at_ns: int) -> AsyncIterator[Change]:
    """One transaction. They take turns: a group's has many people in it, and they stand in others in other orders."""
    async with writing(engine) as db:
        await people.hold_all(db)
        change = Change(db, admin, actor, at_ns, [])
        yield change
        for each in change.notes:
            await audit.append(db, actor=actor, at_ns=at_ns, **each)


async def token_name(db: AsyncConnection, secret: str, *, at_ns: int) -> str | None:
    """Whose token this is; None for one that is none of ours, or revoked."""
    table = identity.scim_tokens
    good = (table.c.token_hash == people.hashed(secret)) & table.c.revoked_at_ns.is_(None)
    row = (await db.execute(select(table.c.id, table.c.name, table.c.last_at_ns).where(good))).first()
    if row is None:
        return None
    if row.last_at_ns is None or row.last_at_ns < at_ns - _SEEN_NS:
        await db.execute(update(table).where(table.c.id == row.id).values(last_at_ns=at_ns))
    return f"scim ({row.name})"


async def users(db: AsyncConnection, tests: Sequence[Test] = (), ids: Iterable[str] | None = None) -> list[User]:
    """tests: those that SQL can answer narrow the search; all of them are for the caller to hold against the whole."""
    table, person = identity.scim_users, schema.admin_users
    query = select(table, person.c.name, person.c.disabled_at_ns).join(person, person.c.id == table.c.user_id)
    for test in tests:
        if (wanted := test.only) is None:
            continue
        match test.path:
            case ("username",):
                query = query.where(table.c.user_name == wanted.lower())
            case ("externalid",):
                query = query.where(table.c.external_id == wanted)
            case ("id",):
                query = query.where(table.c.user_id == wanted)
    if ids is not None:
        query = query.where(table.c.user_id.in_(list(ids)))
    rows = (await db.execute(query.order_by(table.c.created_at_ns, table.c.user_id))).mappings()
    return [
        User(row["user_id"], row["name"], row["external_id"], row["disabled_at_ns"] is None, row["resource"],
             row["created_at_ns"], row["changed_at_ns"])
        for row in rows
    ]  # fmt: skip


async def user(db: AsyncConnection, ident: str) -> User:
    """Raises: ScimError (404)."""
    for found in await users(db, ids=[ident]):
        return found
    raise ScimError(404, f"no user {ident!r}")


async def create_user(change: Change, body: dict[str, Any]) -> User:
    """Raises: ScimError."""
    name, external_id, active, resource = _said(body)
    if await people.named(change.db, name) is not None or await users(change.db, [_named(name)]):
        raise ScimError(409, f"{name!r} is somebody else already", "uniqueness")
    made = await people.create_user(change.db, name, Role.MEMBER, at_ns=change.at_ns)
    await change.db.execute(insert(identity.scim_users).values(
        user_id=made.id, user_name=name.lower(), external_id=external_id, resource=resource,
        created_at_ns=change.at_ns, changed_at_ns=change.at_ns,
    ))  # fmt: skip
    change.note("users.create", made.id, after={"name": name, "active": active})
    if not active:
        await _switch(change, made.id, active=False)
    return await user(change.db, made.id)


async def replace_user(change: Change, ident: str, body: dict[str, Any]) -> User:
    """Raises: ScimError."""
    was = await user(change.db, ident)
    name, external_id, active, resource = _said(body)
    if name != was.name:
        for other in (await people.named(change.db, name), *await users(change.db, [_named(name)])):
            if other is not None and other.id != ident:
                raise ScimError(409, f"{name!r} is somebody else already", "uniqueness")
        await change.db.execute(update(schema.admin_users).where(schema.admin_users.c.id == ident).values(name=name))
    table = identity.scim_users
    values = {"user_name": name.lower(), "external_id": external_id, "resource": resource}
    mine = table.c.user_id == ident
    await change.db.execute(update(table).where(mine).values(**values, changed_at_ns=change.at_ns))
    if active is not was.active:
        await _switch(change, ident, active=active)
    if (name, active) != (was.name, was.active):
        before, after = {"name": was.name, "active": was.active}, {"name": name, "active": active}
        change.note("users.update", ident, before=before, after=after)
    return await user(change.db, ident)


async def delete_user(change: Change, ident: str) -> None:
    """The person stays as a disabled one, for the audit, under a name that leaves theirs free. Raises: ScimError."""
    was = await user(change.db, ident)
    await _switch(change, ident, active=False)
    await memberships.replace_source(change.db, ident, SOURCE, [], at_ns=change.at_ns)
    for table in (identity.scim_members, identity.scim_users, identity.identities, identity.passkeys):
        await change.db.execute(delete(table).where(table.c.user_id == ident))
    person = schema.admin_users
    freed = {"name": f"{was.name[:170]} ({ident})", "password_hash": None}
    await change.db.execute(update(person).where(person.c.id == ident).values(freed))
    change.note("users.remove", ident, before={"name": was.name})


async def _switch(change: Change, ident: str, *, active: bool) -> None:
    """Off: sessions and links end, tokens are revoked for good; on again, a person signs in and makes new ones."""
    if not active and not await people.owners_besides(change.db, ident):
        person = await people.user(change.db, ident)
        if person is not None and person.role is Role.OWNER:
            raise ScimError(409, "this is the last owner: make somebody else owner first", "mutability")
    await people.set_disabled(change.db, ident, None if active else change.at_ns)
    if not active:
        await people.revoke_tokens(change.db, ident, at_ns=change.at_ns)


def _said(body: dict[str, Any]) -> tuple[str, str | None, bool, dict[str, Any]]:
    """Name, external id, active, and the rest as it is kept. Raises: ScimError."""
    name = text_of(body, "userName", 170, needed=True)
    assert name is not None
    active = member(body, "active")
    resource = {canonical(key): value for key, value in body.items() if key.lower() not in _NOT_KEPT}
    if len(msgspec.json.encode(resource)) > RESOURCE_BYTES_MAX:
        raise ScimError(413, f"a user of more than {RESOURCE_BYTES_MAX} bytes")
    return name, text_of(body, "externalId", 255), True if active is None else truth(active), resource


def _named(name: str) -> Test:
    return Test(("username",), "eq", name)


async def groups(db: AsyncConnection, tests: Sequence[Test] = (), ident: str | None = None) -> list[Group]:
    table = identity.scim_groups
    query = select(table).order_by(table.c.created_at_ns, table.c.id)
    if ident is not None:
        query = query.where(table.c.id == ident)
    for test in tests:
        if (wanted := test.only) is not None and test.path == ("externalid",):
            query = query.where(table.c.external_id == wanted)
        elif wanted is not None and test.path == ("displayname",):
            query = query.where(func.lower(table.c.display_name) == wanted.lower())
    return [
        Group(row["id"], row["display_name"], row["external_id"], row["created_at_ns"], row["changed_at_ns"])
        for row in (await db.execute(query)).mappings()
    ]


async def group(db: AsyncConnection, ident: str) -> Group:
    """Raises: ScimError (404)."""
    for found in await groups(db, ident=ident):
        return found
    raise ScimError(404, f"no group {ident!r}")


async def members(db: AsyncConnection, group_ids: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
    """Id and name of each group's people."""
    table, person = identity.scim_members, schema.admin_users
    query = (
        select(table.c.group_id, table.c.user_id, person.c.name)
        .join(person, person.c.id == table.c.user_id)
        .where(table.c.group_id.in_(group_ids))
        .order_by(person.c.name)
    )
    found: dict[str, list[tuple[str, str]]] = {}
    for row in await db.execute(query):
        found.setdefault(row.group_id, []).append((row.user_id, row.name))
    return found


async def groups_of(db: AsyncConnection, user_ids: Sequence[str] | None) -> dict[str, list[tuple[str, str]]]:
    """Id and name of each person's groups. None: of everybody, however many there are."""
    table, home = identity.scim_members, identity.scim_groups
    query = (
        select(table.c.user_id, home.c.id, home.c.display_name)
        .join(home, home.c.id == table.c.group_id)
        .order_by(home.c.display_name)
    )
    if user_ids is not None:
        query = query.where(table.c.user_id.in_(user_ids))
    found: dict[str, list[tuple[str, str]]] = {}
    for row in await db.execute(query):
        found.setdefault(row.user_id, []).append((row.id, row.display_name))
    return found


async def put_group(change: Change, ident: str | None, body: dict[str, Any]) -> Group:
    """A new group, or one as it shall be from now on; its people's roles follow at once. Raises: ScimError."""
    name = text_of(body, "displayName", 255, needed=True)
    external_id = text_of(body, "externalId", 255)
    wanted = _member_ids(member(body, "members"))
    known = {each.id for each in await users(change.db, ids=wanted)} if wanted else set()
    if unknown := sorted(wanted - known):
        raise ScimError(400, f"no user {unknown[0]!r}", "invalidValue")
    for other in await groups(change.db, [Test(("displayname",), "eq", name)]):
        if other.id != ident:
            raise ScimError(409, f"there is a group {name!r} already", "uniqueness")
    table, belongs = identity.scim_groups, identity.scim_members
    values = {"display_name": name, "external_id": external_id, "changed_at_ns": change.at_ns}
    before: dict[str, Any] | None = None
    had: set[str] = set()
    if ident is None:
        ident = f"group_{secrets.token_hex(8)}"
        await change.db.execute(insert(table).values(**values, id=ident, created_at_ns=change.at_ns))
    else:
        was = await group(change.db, ident)
        had = {each for each, _ in (await members(change.db, [ident])).get(ident, [])}
        before = {"name": was.name}
        await change.db.execute(update(table).where(table.c.id == ident).values(values))
    gone = had - wanted
    if gone:
        out = (belongs.c.group_id == ident) & belongs.c.user_id.in_(gone)
        await change.db.execute(delete(belongs).where(out))
    for each in sorted(wanted - had):
        await change.db.execute(insert(belongs).values(group_id=ident, user_id=each))
    after = {"name": name, "added": sorted(wanted - had), "removed": sorted(gone)}
    change.note("groups.set", ident, before=before, after=after)
    await regrant(change, had | wanted)
    return await group(change.db, ident)


async def delete_group(change: Change, ident: str) -> None:
    """Raises: ScimError."""
    was = await group(change.db, ident)
    had = [each for each, _ in (await members(change.db, [ident])).get(ident, [])]
    await change.db.execute(delete(identity.scim_members).where(identity.scim_members.c.group_id == ident))
    await change.db.execute(delete(identity.scim_groups).where(identity.scim_groups.c.id == ident))
    change.note("groups.remove", ident, before={"name": was.name, "members": sorted(had)})
    await regrant(change, had)


async def outdated(db: AsyncConnection, admin: AdminSettings) -> list[str]:
    """People whom their groups grant something else by the settings of now than is written."""
    everybody = (await db.execute(select(identity.scim_users.c.user_id))).scalars().all()
    inside = await groups_of(db, None)
    held: dict[str, dict[tuple[str, str], Role]] = {}
    for each in await memberships.rows(db, source=SOURCE):
        held.setdefault(each.user_id, {})[each.scope, each.scope_id] = each.role
    return [
        each
        for each in everybody
        if memberships.highest(granted(admin, SOURCE, [name for _, name in inside.get(each, [])])) != held.get(each, {})
    ]


async def regrant(change: Change, user_ids: Iterable[str]) -> None:
    """What these people's groups grant by the settings of now."""
    wanted = sorted(set(user_ids))
    inside = await groups_of(change.db, wanted)
    for each in wanted:
        grants = granted(change.admin, SOURCE, [name for _, name in inside.get(each, [])])
        if await memberships.replace_source(change.db, each, SOURCE, grants, at_ns=change.at_ns):
            told = [f"{grant.role} of {grant.scope} {grant.scope_id}".strip() for grant in grants]
            change.note("users.grants", each, after={"grants": told})


def _member_ids(said: Any) -> set[str]:
    found = said if isinstance(said, list) else [] if said is None else [said]
    ids = {each.get("value") if isinstance(each, dict) else None for each in found}
    if not all(isinstance(each, str) for each in ids):
        raise ScimError(400, "members are objects with a value", "invalidValue")
    return {str(each) for each in ids}
