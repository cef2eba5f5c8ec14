"""Who belongs where: organisations, teams, the projects in them, and people's roles in each."""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Literal

from litestar import delete, get, post, put
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from msgspec import Meta, Struct
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from billing import accounts
from billing.db import AsyncConnection, writing
from billing.schema import projects as projects_table
from gateway import audit
from gateway.admin import reports
from gateway.admin.api.projects import organisation_of
from gateway.admin.auth import memberships, people
from gateway.admin.auth.grants import bounded
from gateway.admin.auth.memberships import MANUAL, Held
from gateway.admin.auth.people import sign_in_url
from gateway.admin.auth.places import place_of
from gateway.admin.auth.roles import Actor, Place, Role
from gateway.admin.auth.routes import record
from gateway.admin.problems import Problem, invalid, not_found
from gateway.admin.times import Stamp, stamp
from gateway.admin.wants import Caller, Office, Within

Name = Annotated[str, Meta(min_length=1, max_length=200)]
Patterns = Annotated[list[Annotated[str, Meta(min_length=1, max_length=200)]], Meta(min_length=1, max_length=200)]
Level = Literal["organisation", "team", "project"]


class MemberView(Struct, frozen=True):
    """label: what people call the scope. source: who says so: manual, oidc:<provider> or scim. models: globs of what
    keys made by it may ask for; null is all."""

    user_id: str
    name: str
    disabled: bool
    scope: str
    scope_id: str
    label: str
    role: Role
    source: str
    models: list[str] | None


class MemberRole(Struct, frozen=True, forbid_unknown_fields=True):
    role: Role
    models: Patterns | None = None


class Invitation(Struct, frozen=True, forbid_unknown_fields=True):
    """name: of somebody new, or of a person that is known here."""

    name: Name
    role: Role
    models: Patterns | None = None


class Invited(Struct, frozen=True):
    """url: a one-time sign-in link for somebody new, which cannot be shown again; null for one who is known."""

    user_id: str
    url: str | None
    expires_at: Stamp | None


class TeamView(Struct, frozen=True):
    id: str
    name: str
    organisation_id: str
    created_at: Stamp
    project_ids: list[str]


class NewTeam(Struct, frozen=True, forbid_unknown_fields=True):
    """organisation_id: not needed while there is only one."""

    name: Name
    organisation_id: str | None = None


class NewOrganisation(Struct, frozen=True, forbid_unknown_fields=True):
    """prepaid: spends what is paid in, nothing beyond."""

    name: Name
    prepaid: bool = False


class OrganisationSummary(Struct, frozen=True):
    id: str
    name: str
    created_at: Stamp


class ProjectTeam(Struct, frozen=True, forbid_unknown_fields=True):
    """null: of no team any more."""

    team_id: str | None


@get("/organisations", name="organisations.list")
async def list_organisations(services: Office, sight: Within) -> list[OrganisationSummary]:
    """Those that one belongs to, with all that is in them or with a part of it."""
    async with services.reader.reading() as db:
        found, mine = await accounts.organisations(db), sight.organisations
        if sight.projects is not None and mine is not None:
            of = select(projects_table.c.organisation_id).where(projects_table.c.id.in_(sight.projects))
            mine = mine | set((await db.execute(of)).scalars())
    return [
        OrganisationSummary(each.id, each.name, stamp(each.created_at_ns))
        for each in found
        if mine is None or each.id in mine
    ]


@post("/organisations", name="organisations.create")
async def create_organisation(data: JSONBody[NewOrganisation], actor: Caller, services: Office) -> OrganisationSummary:
    now_ns = services.clock()
    try:
        async with writing(services.engine) as db:
            limit = 0 if data.prepaid else None
            made = await accounts.create_organisation(
                db, f"org_{secrets.token_hex(8)}", data.name, at_ns=now_ns, credit_limit_pusd=limit
            )
            after = {"name": made.name, "prepaid": data.prepaid}
            await record(db, actor, "organisations.create", made.id, now_ns, after=after)
    except IntegrityError as error:
        raise _taken(data.name) from error
    return OrganisationSummary(made.id, made.name, stamp(now_ns))


@get("/teams", name="teams.list")
async def list_teams(services: Office, sight: Within) -> list[TeamView]:
    async with services.reader.reading() as db:
        inside: dict[str, list[str]] = {}
        for each in await accounts.projects(db):
            if each.team_id is not None:
                inside.setdefault(each.team_id, []).append(each.id)
        return [
            TeamView(each.id, each.name, each.organisation_id, stamp(each.created_at_ns), inside.get(each.id, []))
            for each in await accounts.teams(db)
            if sight.shows("team", each.id)
        ]


@post("/teams", name="teams.create")
async def create_team(data: JSONBody[NewTeam], actor: Caller, services: Office) -> TeamView:
    """Several projects of one organisation, with a budget and people of their own."""
    now_ns = services.clock()
    try:
        async with writing(services.engine) as db:
            home = await organisation_of(db, actor, data.organisation_id)
            team = await accounts.create_team(db, f"team_{secrets.token_hex(8)}", home.id, data.name, at_ns=now_ns)
            await record(db, actor, "teams.create", team.id, now_ns, after={"name": team.name})
    except IntegrityError as error:
        raise _taken(data.name) from error
    return TeamView(team.id, team.name, team.organisation_id, stamp(now_ns), [])


@put("/projects/{project_id:str}/team", name="projects.join", status_code=204)
async def join_team(project_id: FromPath[str], data: JSONBody[ProjectTeam], actor: Caller, services: Office) -> None:
    """Put a project into a team, or out of its one: from then on it counts against that team's budgets."""
    now_ns = services.clock()
    async with writing(services.engine) as db:
        await audit.hold(db, project_id)
        place = await place_of(db, "project", project_id)
        if place is None:
            raise not_found("project", project_id, "List them and take an id from there.")
        try:
            await accounts.join_team(db, project_id, data.team_id)
        except ValueError as error:
            raise invalid("team_id", str(error), "Take a team of the same organisation.") from error
        before, after = {"team_id": place.team_id}, {"team_id": data.team_id}
        await record(db, actor, "projects.join", project_id, now_ns, before=before, after=after)
    await services.keys.changed()


@get("/members", name="members.list")
async def list_members(
    services: Office,
    sight: Within,
    level: Annotated[str | None, QueryParameter(name="scope")] = None,
    scope_id: FromQuery[str | None] = None,
) -> list[MemberView]:
    """Roles in organisations, teams and projects; of one of them when asked. Roles over everything are in /users."""
    async with services.reader.reading() as db:
        rows = [
            each
            for each in await memberships.rows(db, scope=level, scope_id=scope_id)
            if each.scope in memberships.SCOPES and sight.shows(each.scope, each.scope_id)
        ]
        known = {user.id: user for user in await people.users(db)}
        labels: dict[str, str] = {}
        for each_level in memberships.SCOPES:
            ids = [each.scope_id for each in rows if each.scope == each_level]
            labels |= await reports.labels(db, each_level, ids)
        return [_view(each, known[each.user_id], labels.get(each.scope_id, each.scope_id)) for each in rows]


@post("/members/{level:str}/{scope_id:str}", name="members.invite")
async def invite(
    level: FromPath[Level], scope_id: FromPath[str], data: JSONBody[Invitation], actor: Caller, services: Office
) -> Invited:
    """Make somebody a member, by name. For one who is new here a sign-in link is made."""
    now_ns = services.clock()
    async with writing(services.engine) as db:
        place = await _place(db, level, scope_id)
        _may_give(actor, place, data.role)
        models = bounded(actor, place, _tuple(data.models))
        user, token = await people.named(db, data.name), None
        if user is None:
            user = await people.create_user(db, data.name, Role.MEMBER, at_ns=now_ns)
            token = await people.issue_link(db, user.id, at_ns=now_ns)
        await _put(db, actor, place, Held(user.id, level, scope_id, MANUAL, data.role, models), now_ns)
    if token is None:
        return Invited(user.id, None, None)
    url = sign_in_url(services.settings.office_url, token)
    return Invited(user.id, url, stamp(now_ns + people.LINK_NS))


@put("/members/{level:str}/{scope_id:str}/{user_id:str}", name="members.set")
async def set_member(
    level: FromPath[Level],
    scope_id: FromPath[str],
    user_id: FromPath[str],
    data: JSONBody[MemberRole],
    actor: Caller,
    services: Office,
) -> MemberView:
    """Give a role here, or another one. What single sign-on or SCIM says stays beside it; the higher one counts."""
    now_ns = services.clock()
    async with writing(services.engine) as db:
        place = await _place(db, level, scope_id)
        user = await people.user(db, user_id)
        if user is None:
            raise not_found("person", user_id, "Invite them by name.")
        _may_give(actor, place, data.role)
        held = Held(user_id, level, scope_id, MANUAL, data.role, bounded(actor, place, _tuple(data.models)))
        await _put(db, actor, place, held, now_ns)
        label = (await reports.labels(db, level, [scope_id])).get(scope_id, scope_id)
    return _view(held, user, label)


@delete("/members/{level:str}/{scope_id:str}/{user_id:str}", name="members.remove", status_code=204)
async def remove_member(
    level: FromPath[Level], scope_id: FromPath[str], user_id: FromPath[str], actor: Caller, services: Office
) -> None:
    """Take the role away that was given by hand. Felt with the person's next request."""
    now_ns = services.clock()
    async with writing(services.engine) as db:
        place = await _place(db, level, scope_id)
        found = [
            each
            for each in await memberships.rows(db, user_id=user_id, scope=level, scope_id=scope_id)
            if each.source == MANUAL
        ]
        if not found:
            raise not_found("membership", user_id, "List the members; what single sign-on or SCIM says ends there.")
        _may_give(actor, place, found[0].role)
        await memberships.remove(db, found[0])
        await record(db, actor, "members.remove", f"{level}:{scope_id}", now_ns, before=_facts(found[0]))


member_handlers: list[HTTPRouteHandler] = [
    list_organisations, create_organisation, list_teams, create_team, join_team,
    list_members, invite, set_member, remove_member,
]  # fmt: skip


async def _put(db: AsyncConnection, actor: Actor, place: Place, held: Held, now_ns: int) -> None:
    before = [
        each
        for each in await memberships.rows(db, user_id=held.user_id, scope=held.scope, scope_id=held.scope_id)
        if each.source == MANUAL
    ]
    for each in before:
        _may_give(actor, place, each.role)
    await memberships.put(db, held, at_ns=now_ns)
    was = _facts(before[0]) if before else None
    await record(db, actor, "members.set", f"{held.scope}:{held.scope_id}", now_ns, before=was, after=_facts(held))


async def _place(db: AsyncConnection, level: str, scope_id: str) -> Place:
    """Whose members nobody else changes before we end."""
    await audit.hold(db, f"{level}:{scope_id}")
    place = await place_of(db, level, scope_id)
    if place is None:
        raise not_found(level, scope_id, "List them and take an id from there.")
    return place


def _may_give(actor: Actor, place: Place, role: Role) -> None:
    if role is Role.MEMBER or not actor.may_hand_out(role, place):
        raise invalid("role", f"you cannot give or take {role} here", "Nobody hands out more than they hold.")


def _tuple(patterns: list[str] | None) -> tuple[str, ...] | None:
    return None if patterns is None else tuple(patterns)


def _facts(held: Held) -> dict[str, Any]:
    models = None if held.models is None else list(held.models)
    return {"user_id": held.user_id, "role": held.role, "models": models}


def _view(held: Held, user: people.User, label: str) -> MemberView:
    models = None if held.models is None else list(held.models)
    off = user.disabled_at_ns is not None
    return MemberView(user.id, user.name, off, held.scope, held.scope_id, label, held.role, held.source, models)


def _taken(name: str) -> Problem:
    return Problem(409, "name-taken", f"there is a {name!r} already", "Take another name.")
