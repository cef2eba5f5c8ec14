"""`farebox users`: the people of this installation, what they may do, and how they get in."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal

from cyclopts import App

from gateway.cli.common import CHANGES, DEFAULTS, OK, WRONG_USAGE, Changes, Common, Problem, database, emit, make_table
from gateway.cli.site import acting

if TYPE_CHECKING:
    from billing.db import AsyncConnection
    from gateway.admin.auth.people import User

app = App(name="users")

ACTOR = "farebox users"
RoleName = Literal["owner", "admin", "finance", "team_lead", "developer", "viewer", "member"]


@app.command(name="list")
async def list_(*, common: Common = DEFAULTS) -> int:
    """List people: their role over the installation, where else they hold one, and how they sign in."""
    from billing.db import reading
    from gateway.admin.auth import memberships, people

    async with database(common.settings()) as engine, reading(engine) as db:
        found = await people.users(db)
        held = await memberships.rows(db)
    rows = [
        {
            "id": user.id,
            "name": user.name,
            "role": user.role.value,
            "elsewhere": [
                f"{each.role} of {each.scope} {each.scope_id}".strip() for each in held if each.user_id == user.id
            ],
            "password": user.has_password,
            "disabled": user.disabled_at_ns is not None,
        }
        for user in found
    ]
    columns = ["id", "name", "role", "elsewhere", "state"]
    shown = [[each["id"], each["name"], each["role"], ", ".join(each["elsewhere"]),  # type: ignore[arg-type]
              "disabled" if each["disabled"] else ""] for each in rows]  # fmt: skip
    emit(common, {"users": rows}, lambda: make_table(columns, shown))
    return OK


@app.command
async def invite(
    name: str,
    /,
    *,
    role: RoleName = "viewer",
    organisation: str | None = None,
    team: str | None = None,
    project: str | None = None,
    why: str | None = None,
    common: Changes = CHANGES,
) -> int:
    """Add a person, and print the link that they sign in by once. For one who is known: give them a role there.

    Parameters
    ----------
    role:
        Over the installation, or in what the next three name.
    organisation:
        Its id: the role is held there and in all its teams and projects.
    team:
        Its id.
    project:
        Its id.
    why:
        The reason, for the audit.
    """
    from billing.db import writing
    from gateway.admin.auth import memberships, people
    from gateway.admin.auth.memberships import MANUAL, Held
    from gateway.admin.auth.places import place_of
    from gateway.admin.auth.roles import Role

    places = {"organisation": organisation, "team": team, "project": project}
    said = [(scope, ident) for scope, ident in places.items() if ident is not None]
    if len(said) > 1:
        raise Problem("one place at a time", fix="give --organisation, --team or --project", code=WRONG_USAGE)
    settings, now_ns = common.settings(), time.time_ns()
    async with database(settings, dry=common.dry_run) as engine, writing(engine) as db:
        user = await people.named(db, name)
        if user is not None and not said:
            raise Problem(f"{name} is here already", fix=f"farebox users role {name!r} {role}, or `users link`")
        token = None
        if user is None:
            user = await people.create_user(db, name, Role.MEMBER if said else Role(role), at_ns=now_ns)
            token = await people.issue_link(db, user.id, at_ns=now_ns)
            await _note(db, "users.create", user.id, now_ns, why, after={"name": name, "role": user.role})
        for scope, ident in said:
            if await place_of(db, scope, ident) is None:
                raise Problem(f"no {scope} {ident!r}", fix="`farebox quotas team list` or the dashboard shows ids")
            await memberships.put(db, Held(user.id, scope, ident, MANUAL, Role(role), None), at_ns=now_ns)
            after = {"user_id": user.id, "role": role}
            await _note(db, "members.set", f"{scope}:{ident}", now_ns, why, after=after)
    url = None if token is None or common.dry_run else people.sign_in_url(settings.office_url, token)
    value = {"id": user.id, "name": name, "url": url}
    emit(common, value, lambda: f"{name} ({user.id})" + (f"\n\n{url}\n\nGood once, within a day." if url else ""))
    return OK


@app.command
async def link(name: str, /, *, why: str | None = None, common: Changes = CHANGES) -> int:
    """Print a new link for somebody who cannot get in. It works once, within a day.

    Parameters
    ----------
    name:
        The person's name or id.
    why:
        The reason, for the audit.
    """
    from billing.db import writing
    from gateway.admin.auth import people

    settings, now_ns = common.settings(), time.time_ns()
    async with database(settings, dry=common.dry_run) as engine, writing(engine) as db:
        user = await _person(db, name)
        if user.disabled_at_ns is not None:
            raise Problem(f"{user.name} is disabled", fix=f"farebox users enable {user.name!r}")
        token = await people.issue_link(db, user.id, at_ns=now_ns)
        await _note(db, "users.link", user.id, now_ns, why)
    url = None if common.dry_run else people.sign_in_url(settings.office_url, token)
    emit(common, {"id": user.id, "url": url}, lambda: url or f"{user.name} would get a link")
    return OK


@app.command
async def role(name: str, role: RoleName, /, *, why: str | None = None, common: Changes = CHANGES) -> int:
    """Change what a person may do over the whole installation.

    Parameters
    ----------
    name:
        The person's name or id.
    role:
        member: nothing but what memberships, single sign-on and SCIM say.
    why:
        The reason, for the audit.
    """
    from billing.db import writing
    from gateway.admin.auth import people
    from gateway.admin.auth.roles import Role

    now_ns = time.time_ns()
    async with database(common.settings(), dry=common.dry_run) as engine, writing(engine) as db:
        await people.hold_all(db)
        user = await _person(db, name)
        await _not_the_last(db, user, loses=role != "owner")
        await people.set_role(db, user.id, Role(role))
        before, after = {"role": user.role}, {"role": role}
        await _note(db, "users.update", user.id, now_ns, why, before=before, after=after)
    emit(common, {"id": user.id, "role": role}, lambda: f"{user.name}: {user.role} -> {role}")
    return OK


@app.command
async def disable(name: str, /, *, why: str | None = None, common: Changes = CHANGES) -> int:
    """Shut a person out: sessions end and API tokens are revoked at once.

    Parameters
    ----------
    name:
        The person's name or id.
    why:
        The reason, for the audit.
    """
    return await _switch(common, name, why, disabled=True)


@app.command
async def enable(name: str, /, *, why: str | None = None, common: Changes = CHANGES) -> int:
    """Let a disabled person in again. Tokens stay revoked.

    Parameters
    ----------
    name:
        The person's name or id.
    why:
        The reason, for the audit.
    """
    return await _switch(common, name, why, disabled=False)


@app.command(name="sign-out")
async def sign_out(name: str, /, *, why: str | None = None, common: Changes = CHANGES) -> int:
    """Sign a person out everywhere. API tokens go on.

    Parameters
    ----------
    name:
        The person's name or id.
    why:
        The reason, for the audit.
    """
    from billing.db import writing
    from gateway.admin.auth import people

    async with database(common.settings(), dry=common.dry_run) as engine, writing(engine) as db:
        user = await _person(db, name)
        await people.end_sessions(db, user.id)
        await _note(db, "users.sign_out", user.id, time.time_ns(), why)
    emit(common, {"id": user.id, "signed_out": True}, lambda: f"{user.name} is signed out everywhere")
    return OK


async def _switch(common: Changes, name: str, why: str | None, *, disabled: bool) -> int:
    from billing.db import writing
    from gateway.admin.auth import people

    now_ns = time.time_ns()
    async with database(common.settings(), dry=common.dry_run) as engine, writing(engine) as db:
        await people.hold_all(db)
        user = await _person(db, name)
        await _not_the_last(db, user, loses=disabled)
        await people.set_disabled(db, user.id, now_ns if disabled else None)
        if disabled:
            await people.revoke_tokens(db, user.id, at_ns=now_ns)
        before, after = {"disabled": user.disabled_at_ns is not None}, {"disabled": disabled}
        await _note(db, "users.update", user.id, now_ns, why, before=before, after=after)
    told = "disabled" if disabled else "enabled"
    emit(common, {"id": user.id, "disabled": disabled}, lambda: f"{user.name} is {told}")
    return OK


async def _person(db: AsyncConnection, name: str) -> User:
    """By id or name. Raises: NotFound."""
    from gateway.admin.auth import people
    from gateway.errors import NotFound

    found = await people.user(db, name) or await people.named(db, name)
    if found is None:
        raise NotFound(f"no person {name!r}; `farebox users list` shows who there is")
    return found


async def _not_the_last(db: AsyncConnection, user: User, *, loses: bool) -> None:
    from gateway.admin.auth import people
    from gateway.admin.auth.roles import Role

    if loses and user.role is Role.OWNER and not await people.owners_besides(db, user.id):
        raise Problem(f"{user.name} is the last owner", fix="make somebody else owner first")


async def _note(
    db: AsyncConnection, action: str, subject: str, now_ns: int, why: str | None, **sides: dict[str, Any]
) -> None:
    from gateway import audit

    await audit.append(
        db,
        actor=acting(ACTOR),
        action=action,
        subject=subject,
        at_ns=now_ns,
        note=why,
        before=sides.get("before"),
        after=sides.get("after"),
    )
