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
from sqlalchemy.ext.asyncio import AsyncConnection

from billing import accounts
from billing import schema as billing_schema
from billing.accounts import Budget, Scope, Window
from billing.db import reading, writing
from billing.money import parse_usd
from gateway.admin.api.usage import BudgetView, budget_view
from gateway.admin.auth.routes import record
from gateway.admin.problems import Problem, invalid, not_found
from gateway.admin.times import Stamp, stamp
from gateway.admin.wants import Caller, Office
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
    limit_usd: Annotated[str, Meta(max_length=40)]


@get("/projects", name="projects.list")
async def list_projects(services: Office) -> list[ProjectView]:
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
        ]


@post("/projects", name="projects.create")
async def create_project(data: JSONBody[NewProject], actor: Caller, services: Office) -> ProjectView:
    now_ns = services.clock()
    try:
        async with writing(services.engine) as db:
            organisation = await _organisation(db, data.organisation_id)
            project = await accounts.create_project(
                db, f"proj_{secrets.token_hex(8)}", organisation.id, data.name, at_ns=now_ns
            )
            await record(db, actor, "projects.create", project.id, now_ns, after={"name": project.name})
    except IntegrityError as error:
        raise Problem(409, "name-taken", f"there is a project {data.name!r} already", "Take another name.") from error
    return ProjectView(project.id, project.name, organisation.id, organisation.name, stamp(now_ns), 0)


@get("/budgets", name="budgets.list")
async def list_budgets(services: Office, scope_id: FromQuery[str | None] = None) -> list[BudgetView]:
    """Every budget with what has been spent of it in its window."""
    now_ns = services.clock()
    async with services.reader.reading() as db:
        found = await accounts.budgets(db, None if scope_id is None else [scope_id])
        return [await budget_view(db, budget, now_ns) for budget in found]


@put("/budgets/{level:str}/{scope_id:str}/{window:str}", name="budgets.set")
async def set_budget(
    level: FromPath[Scope],
    scope_id: FromPath[str],
    window: FromPath[Window],
    data: JSONBody[BudgetChange],
    actor: Caller,
    services: Office,
) -> BudgetView:
    """Set or change the limit of an organisation, a project or a key: in all (`total`), a month or a day of UTC."""
    now_ns = services.clock()
    budget = Budget(level, scope_id, window, amount_of(data.limit_usd, "limit_usd"))
    async with reading(services.engine) as db:
        await _existing(db, level, scope_id)
    await services.keys.set_budget(level, scope_id, window, budget.limit_pusd, actor=actor.name, now_ns=now_ns)
    async with reading(services.engine) as db:
        return await budget_view(db, budget, now_ns)


@delete("/budgets/{level:str}/{scope_id:str}/{window:str}", name="budgets.remove", status_code=204)
async def remove_budget(
    level: FromPath[Scope], scope_id: FromPath[str], window: FromPath[Window], actor: Caller, services: Office
) -> None:
    """Without a budget nothing but the organisation's credit bounds the spending."""
    async with reading(services.engine) as db:
        if window not in {each.window for each in await accounts.budgets(db, [scope_id]) if each.scope is level}:
            raise not_found("budget", f"{level}/{scope_id}/{window}", "List the budgets.")
    await services.keys.set_budget(level, scope_id, window, None, actor=actor.name, now_ns=services.clock())


project_handlers: list[HTTPRouteHandler] = [list_projects, create_project, list_budgets, set_budget, remove_budget]


def amount_of(text: str, field: str) -> int:
    """pUSD of an amount that is not below zero. Raises: Problem."""
    try:
        amount = parse_usd(text)
    except ValueError as error:
        raise invalid(field, str(error), "Write dollars, as 25 or 0.01.") from error
    if amount < 0:
        raise invalid(field, "an amount below zero", "Write dollars, as 25 or 0.01.")
    return amount


async def _organisation(db: AsyncConnection, organisation_id: str | None) -> accounts.Organisation:
    found = await accounts.organisations(db)
    if organisation_id is None and len(found) == 1:
        return found[0]
    for each in found:
        if each.id == organisation_id:
            return each
    if organisation_id is None:
        raise invalid("organisation_id", "there are several organisations", "Name one; /ledger/balances lists them.")
    raise not_found("organisation", organisation_id, "Take an id from /ledger/balances.")


async def _existing(db: AsyncConnection, scope: Scope, scope_id: str) -> None:
    tables: dict[Scope, Any] = {
        Scope.ORGANISATION: billing_schema.organisations,
        Scope.PROJECT: billing_schema.projects,
        Scope.KEY: virtual_keys,
    }
    table = tables[scope]
    if (await db.execute(select(table.c.id).where(table.c.id == scope_id))).first() is None:
        raise not_found(scope.value, scope_id, "List them and take an id from there.")
