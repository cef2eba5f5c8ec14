"""`farebox projects`: what keys and budgets belong to."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Literal

from cyclopts import App

from gateway.cli.common import (
    CHANGES,
    DEFAULTS,
    OK,
    WRONG_USAGE,
    Changes,
    Common,
    Problem,
    database,
    emit,
    make_table,
    organisation_of,
    usd,
)
from gateway.cli.keys import key_admin, project_named
from gateway.cli.site import acting

if TYPE_CHECKING:
    from gateway.admission.principal import ProjectRouting

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
            owner_id = await organisation_of(db, organisation)
            made = await accounts.create_project(db, f"proj_{secrets.token_hex(8)}", owner_id, name, at_ns=now_ns)
            owner = {each.id: each.name for each in await accounts.organisations(db)}[owner_id]
            value = {"id": made.id, "name": name, "organisation_id": owner_id, "organisation": owner}
            await audit.append(
                db, actor=acting(ACTOR), action="projects.create", subject=made.id, at_ns=now_ns, after={"name": name}
            )
    except IntegrityError as error:
        raise Problem(f"there is a project {name!r} already", fix="take another name") from error
    emit(common, value, lambda: f"{value['id']}: {name} of {value['organisation']}")
    return OK


@app.command
async def routing(
    project: str,
    /,
    *,
    second_usd: str | None = None,
    cache_prompts: Literal["on", "off", "default"] | None = None,
    common: Changes = CHANGES,
) -> int:
    """Say how a project's requests are routed; without anything said, show it.

    Parameters
    ----------
    project:
        By name or id.
    second_usd:
        What the strategy auto pays to save this project a second, as 0.01; default: as the alias says. A request's own
        second_usd wins.
    cache_prompts:
        Whether prompts for Claude are marked for its cache where the client set no mark; default: as the alias says.
    """
    from gateway.admission.project_routing import ProjectRoutings

    settings = common.settings()
    async with database(settings, dry=common.dry_run) as engine, key_admin(settings, engine) as keys:
        owner = await project_named(engine, project)
        store = ProjectRoutings(engine, keys.changed)
        said = await store.read(owner.id)
        if second_usd is not None or cache_prompts is not None:
            said = _changed(said, second_usd, cache_prompts)
            await store.set(owner.id, said, actor=acting(ACTOR), now_ns=time.time_ns())
    worth = "default" if said.second_pusd is None else usd(said.second_pusd)
    marks = {None: "default", True: "on", False: "off"}[said.cache_prompts]
    value = {"project": owner.id, "second_usd": worth, "cache_prompts": marks}
    emit(common, value, lambda: f"project {owner.name}: a second is worth {worth} USD, cache marks {marks}")
    return OK


def _changed(said: ProjectRouting, second_usd: str | None, cache_prompts: str | None) -> ProjectRouting:
    """Raises: Problem."""
    from msgspec.structs import replace

    from billing.money import parse_usd

    if cache_prompts is not None:
        said = replace(said, cache_prompts={"on": True, "off": False}.get(cache_prompts))
    if second_usd is None:
        return said
    try:
        return replace(said, second_pusd=None if second_usd == "default" else parse_usd(second_usd))
    except ValueError as error:
        raise Problem(f"--second-usd: {error}", fix="write it as 0.01, or default", code=WRONG_USAGE) from error
