"""Organisations' projects, and the budgets over organisations, projects and keys."""

from __future__ import annotations

import secrets
from typing import Annotated, Any

from litestar import delete, get, post, put
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, FromQuery, JSONBody
from msgspec import Meta, Struct
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

from billing import accounts
from billing import schema as billing_schema
from billing.accounts import BudgetKind, Scope, Window
from billing.db import AsyncConnection, reading, writing
from billing.money import parse_usd
from gateway.admin.api.usage import BudgetView, budget_view, budgets_within
from gateway.admin.auth.roles import ADMINS, Actor
from gateway.admin.auth.routes import record
from gateway.admin.problems import Problem, invalid, not_found
from gateway.admin.services import Services
from gateway.admin.times import Stamp, stamp, unstamp
from gateway.admin.wants import Caller, Office, Within
from gateway.schema import virtual_keys


class ProjectView(Struct, frozen=True):
    """keys: how many of it are not revoked."""

    id: str
    name: str
    organisation_id: str
    organisation: str
    created_at: Stamp
    keys: int


class NewProject(Struct, frozen=True, forbid_unknown_fields=True):
    """organisation_id: not needed while there is only one."""

    name: Annotated[str, Meta(min_length=1, max_length=200)]
    organisation_id: str | None = None


class BudgetChange(Struct, frozen=True, forbid_unknown_fields=True):
    """kind: what happens to a request that the budget does not cover: hard refuses it, soft lets it through and tells,
    throttle lets slow_rpm a minute through, from slow_from_percent of the limit on."""

    limit_usd: Annotated[str, Meta(max_length=40)]
    kind: BudgetKind = BudgetKind.HARD
    slow_rpm: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    slow_from_percent: Annotated[int, Meta(ge=1, le=100)] = 100


class BudgetRaise(Struct, frozen=True, forbid_unknown_fields=True):
    """So much beside the limit, until then."""

    raise_usd: Annotated[str, Meta(max_length=40)]
    until: Stamp


@get("/projects", name="projects.list")
async def list_projects(services: Office, sight: Within) -> list[ProjectView]:
    async with services.reader.reading() as db:
        names = {each.id: each.name for each in await accounts.organisations(db)}
        counted = (
            select(virtual_keys.c.project_id, func.count())
            .where(virtual_keys.c.revoked_at_ns.is_(None))
            .group_by(virtual_keys.c.project_id)
        )
        keys = {row[0]: row[1] for row in await db.execute(counted)}
        return [
            ProjectView(
                each.id,
                each.name,
                each.organisation_id,
                names.get(each.organisation_id, each.organisation_id),
                stamp(each.created_at_ns),
                keys.get(each.id, 0),
            )
            for each in await accounts.projects(db)
            if sight.shows("project", each.id)
        ]


@post("/projects", name="projects.create")
async def create_project(data: JSONBody[NewProject], actor: Caller, services: Office) -> ProjectView:
    now_ns = services.clock()
    try:
        async with writing(services.engine) as db:
            organisation = await organisation_of(db, actor, data.organisation_id)
            project = await accounts.create_project(
                db, f"proj_{secrets.token_hex(8)}", organisation.id, data.name, at_ns=now_ns
            )
            await record(db, actor, "projects.create", project.id, now_ns, after={"name": project.name})
    except IntegrityError as error:
        raise Problem(409, "name-taken", f"there is a project {data.name!r} already", "Take another name.") from error
    return ProjectView(project.id, project.name, organisation.id, organisation.name, stamp(now_ns), 0)


@get("/budgets", name="budgets.list")
async def list_budgets(services: Office, sight: Within, scope_id: FromQuery[str | None] = None) -> list[BudgetView]:
    """Every budget with what has been spent of it in its window."""
    now_ns = services.clock()
    async with services.reader.reading() as db:
        found = await budgets_within(db, sight, await accounts.budgets(db, None if scope_id is None else [scope_id]))
        return [await budget_view(db, budget, now_ns) for budget in found]


@put("/budgets/{level:str}/{scope_id:str}/{window:str}", name="budgets.set")
async def set_budget(
    level: FromPath[Scope],
    scope_id: FromPath[str],
    window: FromPath[Window],
    data: JSONBody[BudgetChange],
    actor: Caller,
    services: Office,
    name: FromQuery[str | None] = None,
) -> BudgetView:
    """Set or change a limit: in all (`total`), a month, a day or an hour of UTC.

    scope_id: of an organisation, a team, a project or a key; of a project, for each of its end users by itself; of an
    organisation or project with `?name=` of a model (a glob of aliases, counted together), a provider or a tag."""
    now_ns, of = services.clock(), named(scope_id, name)
    async with reading(services.engine) as db:
        await _existing(db, level, scope_id)
    await services.keys.set_budget(
        level,
        of,
        window,
        amount_of(data.limit_usd, "limit_usd"),
        actor=actor.name,
        now_ns=now_ns,
        why=actor.why,
        kind=data.kind,
        slow_rpm=data.slow_rpm,
        slow_from_percent=data.slow_from_percent,
    )
    return await _seen(services, level, of, window)


@post("/budgets/{level:str}/{scope_id:str}/{window:str}/raise", name="budgets.raise", status_code=200)
async def raise_budget(
    level: FromPath[Scope],
    scope_id: FromPath[str],
    window: FromPath[Window],
    data: JSONBody[BudgetRaise],
    actor: Caller,
    services: Office,
    name: FromQuery[str | None] = None,
) -> BudgetView:
    """Add to a limit for a time. 0 ends a raise now."""
    of, amount_pusd = named(scope_id, name), amount_of(data.raise_usd, "raise_usd")
    await services.keys.raise_budget(
        level, of, window, amount_pusd, unstamp(data.until), actor=actor.name, now_ns=services.clock(), why=actor.why
    )
    return await _seen(services, level, of, window)


@delete("/budgets/{level:str}/{scope_id:str}/{window:str}", name="budgets.remove", status_code=204)
async def remove_budget(
    level: FromPath[Scope],
    scope_id: FromPath[str],
    window: FromPath[Window],
    actor: Caller,
    services: Office,
    name: FromQuery[str | None] = None,
) -> None:
    """Without a budget nothing but the organisation's credit bounds the spending."""
    of = named(scope_id, name)
    await _seen(services, level, of, window)
    await services.keys.set_budget(level, of, window, None, actor=actor.name, now_ns=services.clock(), why=actor.why)


project_handlers: list[HTTPRouteHandler] = [
    list_projects, create_project, list_budgets, set_budget, raise_budget, remove_budget,
]  # fmt: skip


def named(scope_id: str, name: str | None) -> str:
    return scope_id if name is None else f"{scope_id}/{name}"


async def _seen(services: Services, level: Scope, scope_id: str, window: Window) -> BudgetView:
    """Raises: Problem where there is none."""
    async with reading(services.engine) as db:
        for budget in await accounts.budgets(db, [scope_id]):
            if (budget.scope, budget.scope_id, budget.window) == (level, scope_id, window):
                return await budget_view(db, budget, services.clock())
    raise not_found("budget", f"{level}/{scope_id}/{window}", "List the budgets.")


def amount_of(text: str, field: str) -> int:
    """pUSD of an amount that is not below zero. Raises: Problem."""
    try:
        amount = parse_usd(text)
    except ValueError as error:
        raise invalid(field, str(error), "Write dollars, as 25 or 0.01.") from error
    if amount < 0:
        raise invalid(field, "an amount below zero", "Write dollars, as 25 or 0.01.")
    return amount


async def organisation_of(db: AsyncConnection, actor: Actor, organisation_id: str | None) -> accounts.Organisation:
    """The one that is named, or the only one that the caller belongs to. Raises: Problem."""
    found = await accounts.organisations(db)
    homes = {each.scope_id for each in actor.held if each.scope == "organisation"}
    if organisation_id is None and actor.role not in ADMINS:
        found = [each for each in found if each.id in homes]
    if organisation_id is None and len(found) == 1:
        return found[0]
    for each in found:
        if each.id == organisation_id:
            return each
    if organisation_id is None:
        raise invalid("organisation_id", "there are several organisations", "Name one; /organisations lists them.")
    raise not_found("organisation", organisation_id, "Take an id from /organisations.")


async def _existing(db: AsyncConnection, scope: Scope, scope_id: str) -> None:
    organisations, projects = billing_schema.organisations, billing_schema.projects
    tables: dict[Scope, tuple[Any, ...]] = {
        Scope.ORGANISATION: (organisations,),
        Scope.TEAM: (billing_schema.teams,),
        Scope.PROJECT: (projects,),
        Scope.END_USER: (projects,),
        Scope.KEY: (virtual_keys,),
    }
    for table in tables.get(scope, (projects, organisations)):
        if (await db.execute(select(table.c.id).where(table.c.id == scope_id))).first() is not None:
            break
    else:
        raise not_found(scope.value, scope_id, "List them and take an id from there.")
