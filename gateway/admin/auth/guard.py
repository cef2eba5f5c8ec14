"""The gate of the admin API: who calls, is the call theirs, may their role make it. Every handler passes here first."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit

from litestar import Request
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from litestar.types import Guard

from billing.db import reading, writing
from gateway.admin.auth import people
from gateway.admin.auth.roles import OPEN, PERMITTED, Actor
from gateway.admin.problems import Problem
from gateway.admin.services import Services

COOKIE: Final = "farebox_session"
CSRF_HEADER: Final = "x-csrf-token"
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})

Connection = ASGIConnection[Any, Any, Any, Any]


def gate(services: Callable[[], Services]) -> Guard:
    """A Litestar guard. Leaves the Actor in the connection's state. Raises: Problem (401, 403)."""

    async def admit(connection: Connection, handler: BaseRouteHandler) -> None:
        name, change = handler.name or "", connection.scope["method"] not in _SAFE  # type: ignore[typeddict-item]
        if change:
            _same_origin(connection)
        if name in OPEN:
            return
        caller = await identify(connection, services())
        if caller is None:
            raise Problem(401, "signed-out", "nobody is signed in", "Sign in at /ui, or send an API token as Bearer.")
        if change and caller.via == "session":
            _genuine(connection)
        if caller.role not in PERMITTED[name]:
            able = ", ".join(sorted(PERMITTED[name]))
            raise Problem(403, "role-not-permitted", f"the role {caller.role} may not do this", f"Ask one of: {able}.")
        connection.scope["state"]["actor"] = caller

    return admit


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
