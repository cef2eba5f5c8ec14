"""`farebox tokens`: API tokens of people, for automation and for `farebox --url`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal

from cyclopts import App

from gateway.cli.common import CHANGES, DEFAULTS, OK, WRONG_USAGE, Changes, Common, Problem, database, emit, make_table
from gateway.cli.site import acting

if TYPE_CHECKING:
    from billing.db import AsyncConnection
    from gateway.admin.auth.people import User

app = App(name="tokens")

ACTOR = "farebox tokens"
DAY_NS = 86_400 * 10**9


@app.command
async def create(
    name: str,
    /,
    *,
    role: Literal["owner", "admin", "finance", "team_lead", "developer", "viewer"] = "admin",
    of: str | None = None,
    days: int | None = None,
    common: Changes = CHANGES,
) -> int:
    """Make an API token. It is shown once, here, and stored nowhere.

    Parameters
    ----------
    name:
        What it is for.
    role:
        The most that it may do; never more than the person may.
    of:
        Whose, by name or id. Not needed while there is only one person.
    days:
        It ends after so many. Default: when it is revoked.
    """
    from billing.db import writing
    from gateway import audit
    from gateway.admin.auth import people
    from gateway.admin.auth.roles import Role, may_hand_out

    if days is not None and not 1 <= days <= 3650:
        raise Problem(f"--days {days}", fix="1 to 3650", code=WRONG_USAGE)
    now_ns = time.time_ns()
    async with database(common.settings(), dry=common.dry_run) as engine, writing(engine) as db:
        person = await _person(db, of)
        if not may_hand_out(person.role, Role(role)):
            raise Problem(
                f"{person.name} is {person.role.value}, which is less than {role}", fix="take a lesser --role"
            )
        expires_ns = None if days is None else now_ns + days * DAY_NS
        token, secret = await people.issue_token(
            db, person.id, name, Role(role), at_ns=now_ns, expires_at_ns=expires_ns
        )
        after = {"name": name, "role": role, "user_id": person.id}
        await audit.append(db, actor=acting(ACTOR), action="tokens.create", subject=token.id, at_ns=now_ns, after=after)
    value = {"id": token.id, "name": name, "role": role, "of": person.name, "token": None if common.dry_run else secret}
    emit(
        common,
        value,
        lambda: (
            f"a token of {person.name} would be made"
            if common.dry_run
            else f"{secret}\n\nid {token.id}, {role}, of {person.name}. Keep it: it cannot be shown again."
        ),
    )
    return OK


@app.command(name="list")
async def list_(*, common: Common = DEFAULTS) -> int:
    """List tokens. Never shows a secret."""
    from billing.db import reading
    from gateway.admin.auth import people

    now_ns = time.time_ns()
    async with database(common.settings()) as engine, reading(engine) as db:
        names = {user.id: user.name for user in await people.users(db)}
        found = await people.tokens(db, None)
    rows = [
        {
            "id": token.id,
            "name": token.name,
            "role": token.role.value,
            "of": names.get(token.user_id, token.user_id),
            "state": "revoked"
            if token.revoked_at_ns is not None
            else "expired"
            if token.expires_at_ns is not None and token.expires_at_ns <= now_ns
            else "active",
        }
        for token in found
    ]
    columns = ["id", "name", "role", "of", "state"]
    emit(common, {"tokens": rows}, lambda: make_table(columns, [[row[c] for c in columns] for row in rows]))
    return OK


@app.command
async def revoke(token_id: str, /, *, common: Changes = CHANGES) -> int:
    """Revoke a token for good, at once.

    Parameters
    ----------
    token_id:
        As `farebox tokens list` shows it.
    """
    from billing.db import writing
    from gateway import audit
    from gateway.admin.auth import people

    now_ns = time.time_ns()
    async with database(common.settings(), dry=common.dry_run) as engine, writing(engine) as db:
        if token_id not in {token.id for token in await people.tokens(db, None)}:
            raise Problem(f"no token {token_id!r}", fix="`farebox tokens list` shows them")
        await people.revoke_token(db, token_id, at_ns=now_ns)
        await audit.append(db, actor=acting(ACTOR), action="tokens.revoke", subject=token_id, at_ns=now_ns)
    emit(common, {"revoked": token_id}, lambda: f"{token_id} is revoked")
    return OK


async def _person(db: AsyncConnection, name: str | None) -> User:
    from gateway.admin.auth import people

    known = [user for user in await people.users(db) if user.disabled_at_ns is None]
    if name is None and len(known) == 1:
        return known[0]
    for user in known:
        if name in (user.id, user.name):
            return user
    if name is None:
        fix = "--of NAME; `farebox users list` shows them" if known else "`farebox up` makes the first owner"
        raise Problem("whose token? There are several people" if known else "there is nobody yet", fix=fix)
    raise Problem(f"nobody is called {name!r}", fix="`farebox users list` shows them")
