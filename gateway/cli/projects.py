"""`farebox projects`: what keys and budgets belong to."""

from __future__ import annotations

import secrets
import time

from cyclopts import App

from gateway.cli.common import CHANGES, DEFAULTS, OK, Changes, Common, Problem, database, emit, make_table
from gateway.cli.site import acting

app = App(name="projects")

ACTOR = "farebox projects"


@app.command(name="list")
async def list_(*, common: Common = DEFAULTS) -> int:
    """List projects, and whose they are."""
    from billing import accounts
    from billing.db import reading

    async with database(common.settings()) as engine, reading(engine) as db:
        names = {each.id: each.name for each in await accounts.organisations(db)}
        found = await accounts.projects(db)
    rows = [
        {
            "id": each.id,
            "name": each.name,
            "organisation_id": each.organisation_id,
            "organisation": names.get(each.organisation_id),
        }
        for each in found
    ]
    columns = ["id", "name", "organisation_id", "organisation"]
    emit(common, {"projects": rows}, lambda: make_table(columns, [[row[c] for c in columns] for row in rows]))
    return OK


@app.command
async def create(name: str, /, *, organisation: str | None = None, common: Changes = CHANGES) -> int:
    """Make a project.

    Parameters
    ----------
    organisation:
        Whose, by id or name. Not needed while there is only one.
    """
    from sqlalchemy.exc import IntegrityError

    from billing import accounts
    from billing.db import writing
    from gateway import audit

    if not name.strip() or len(name) > 200:
        raise Problem("a project's name has 1 to 200 characters", fix="`farebox projects create search`")
    now_ns = time.time_ns()
    try:
        async with database(common.settings(), dry=common.dry_run) as engine, writing(engine) as db:
            known = await accounts.organisations(db)
            owner = next((each for each in known if organisation in (each.id, each.name)), None)
            if organisation is None and len(known) == 1:
                owner = known[0]
            if owner is None:
                said = "whose?" if organisation is None else f"no organisation {organisation!r};"
                there = ", ".join(f"{each.name} ({each.id})" for each in known) or "none"
                raise Problem(f"{said} There is: {there}", fix="--organisation, or `farebox ledger open` for a new one")
            made = await accounts.create_project(db, f"proj_{secrets.token_hex(8)}", owner.id, name, at_ns=now_ns)
            value = {"id": made.id, "name": name, "organisation_id": owner.id, "organisation": owner.name}
            await audit.append(
                db, actor=acting(ACTOR), action="projects.create", subject=made.id, at_ns=now_ns, after={"name": name}
            )
    except IntegrityError as error:
        raise Problem(f"there is a project {name!r} already", fix="take another name") from error
    emit(common, value, lambda: f"{value['id']}: {name} of {value['organisation']}")
    return OK
