"""The gate of the admin API: who calls, is the call theirs, may their role make it on this very resource. Every handler
passes here first.

Whoever does not belong to what a resource is part of is told that there is none, as for one that does not exist.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
from litestar import Request
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from litestar.types import Guard
from msgspec.structs import replace

from billing.db import reading, writing
from gateway.admin.auth import people
from gateway.admin.auth.places import place_of, sight_of
from gateway.admin.auth.roles import CONCERNS, EVERYTHING, OPEN, PERMITTED, Actor, Of, Own, Role, Seen, Sight
from gateway.admin.problems import Problem, invalid, not_found
from gateway.admin.services import Services

COOKIE: Final = "farebox_session"
CSRF_HEADER: Final = "x-csrf-token"
WHY_HEADER: Final = "x-farebox-why"
WHY_CHARS: Final = 500
"""Why a change is made, in a person's words: kept in the audit beside it."""
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})

Connection = ASGIConnection[Any, Any, Any, Any]


def gate(services: Callable[[], Services]) -> Guard:
    """A Litestar guard. Leaves the Actor in the connection's state. Raises: Problem (401, 403)."""

    async def admit(connection: Connection, handler: BaseRouteHandler) -> None:
        method: str = connection.scope["method"]  # type: ignore[typeddict-item]
        name, change = handler.name or "", method not in _SAFE
        if method == "OPTIONS" and not name:
            return  # Litestar's own answer, which says but what methods a path has
        if change:
            _same_origin(connection)
        if name in OPEN:
            return
        caller = await identify(connection, services())
        if caller is None:
            raise Problem(401, "signed-out", "nobody is signed in", "Sign in at /ui, or send an API token as Bearer.")
        if change and caller.via == "session":
            _genuine(connection)
        state = connection.scope["state"]
        state["sight"] = await _within(connection, services(), name, caller)
        state["actor"] = replace(caller, why=_why(connection)) if change else caller

    return admit


async def _within(connection: Connection, services: Services, name: str, caller: Actor) -> Sight:
    """What the caller may see of what the endpoint answers with. Raises: Problem (403, 404) if they may not call it,
    or not on this resource."""
    permitted = PERMITTED[name]
    if caller.role in permitted:
        return EVERYTHING
    concern = CONCERNS.get(name)
    if concern is None or not any(each.role in permitted for each in caller.held):
        raise _refusal(name, caller.role)
    match concern:
        case Own():
            return EVERYTHING
        case Seen():
            async with reading(services.engine) as db:
                return await sight_of(db, caller.held, permitted)
        case Of():
            await _on_resource(connection, services, name, caller, concern)
    return EVERYTHING


async def _on_resource(connection: Connection, services: Services, name: str, caller: Actor, of: Of) -> None:
    path = connection.scope["path_params"]
    kind = str(path["level"]) if of.kind == "scope" else of.kind
    ident = path[of.field] if of.where == "path" else await _in_body(connection, of)
    async with reading(services.engine) as db:
        if ident is None:
            # Left out where there is one alone; among several the handler asks which.
            homes = {each.scope_id for each in caller.held if each.scope == "organisation"}
            ident = homes.pop() if len(homes) == 1 else ""
        place = await place_of(db, kind, str(ident))
    if place is None or not caller.roles_at(place):
        raise not_found(kind, str(ident), "List what is there and take an id from the list.")
    roles = caller.roles_at(place)
    if name.startswith("budgets."):
        # A budget bounds whoever leads what it is on: they set those below it alone.
        roles = frozenset({caller.role, *(
            each.role for each in caller.held
            if each.covers(place) and (each.role is not Role.TEAM_LEAD or each.scope_id != ident)
        )})  # fmt: skip
    if not roles & PERMITTED[name]:
        raise _refusal(name, *sorted(caller.roles_at(place)))


async def _in_body(connection: Connection, of: Of) -> object:
    assert isinstance(connection, Request)
    try:
        body = msgspec.json.decode(await connection.body(), type=dict[str, object])
    except msgspec.DecodeError:
        body = {}
    found = body.get(of.field)
    if not isinstance(found, str) and not (found is None and of.optional):
        raise invalid(of.field, "is missing or no text", "Name the one that this is about.")
    return found


def _refusal(name: str, *roles: str) -> Problem:
    able = ", ".join(sorted(PERMITTED[name]))
    return Problem(403, "role-not-permitted", f"the role {' or '.join(roles)} may not do this", f"Ask one of: {able}.")


def _why(connection: Connection) -> str | None:
    said = connection.headers.get(WHY_HEADER, "").strip()
    if len(said) > WHY_CHARS:
        raise invalid(WHY_HEADER, f"more than {WHY_CHARS} characters", "Say it shorter.")
    return said or None


async def sight(request: Request[Any, Any, Any]) -> Sight:
    """A dependency: what a list may show to this caller."""
    found: Sight = request.scope["state"]["sight"]
    return found


async def actor(request: Request[Any, Any, Any]) -> Actor:
    """A dependency: whom the guard let in."""
    found: Actor = request.scope["state"]["actor"]
    return found


async def identify(connection: Connection, services: Services) -> Actor | None:
    """Who calls, if anybody. Raises: Problem (401) for a token that is none of ours."""
    now_ns = services.clock()
    scheme, _, secret = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and secret:
        async with reading(services.engine) as db:
            by_token = await people.token_actor(db, secret.strip(), at_ns=now_ns)
        if by_token is None:
            raise Problem(401, "token-unknown", "the token is unknown, expired or revoked",
                          "Make one under Settings, or send the request with a session.")  # fmt: skip
        return by_token
    if session := connection.cookies.get(COOKIE):
        async with reading(services.engine) as db:
            found = await people.session_actor(db, session, at_ns=now_ns)
        if found is not None:
            signed_in, stale = found
            if stale:
                async with writing(services.engine) as db:
                    await people.touch(db, session, at_ns=now_ns)
            return signed_in
    return None


def _genuine(connection: Connection) -> None:
    """A change with a cookie needs what only our own page knows: browsers send cookies along by themselves."""
    expected = people.csrf_token(connection.cookies[COOKIE])
    if not hmac.compare_digest(connection.headers.get(CSRF_HEADER, "").encode(), expected.encode()):
        problem = "the X-CSRF-Token header is missing or not this session's"
        raise Problem(403, "forged-request", problem, "Reload the page; programs use an API token instead of a cookie.")


def _same_origin(connection: Connection) -> None:
    """A browser says where a request comes from; ours come from our own pages. Programs say nothing, and may pass."""
    origin = connection.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != connection.headers.get("host"):
        raise Problem(
            403, "foreign-origin", f"the request comes from {origin}", "Use the dashboard at its own address."
        )
