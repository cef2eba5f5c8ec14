"""Signing in and out, one's own password, and the people and tokens of this installation."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any

from litestar import Request, Response, delete, get, patch, post, put
from litestar.datastructures import Cookie
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, JSONBody
from msgspec import Meta, Struct
from sqlalchemy import delete as delete_rows
from sqlalchemy.exc import IntegrityError

from billing.db import reading, writing
from gateway import audit, identity
from gateway.admin.auth import people
from gateway.admin.auth.guard import COOKIE, identify
from gateway.admin.auth.oidc import SignOnFailed
from gateway.admin.auth.people import sign_in_url
from gateway.admin.auth.roles import Actor, Role, may_hand_out
from gateway.admin.problems import Problem, invalid, not_found
from gateway.admin.services import Services
from gateway.admin.times import Stamp, stamp
from gateway.admin.wants import Caller, Office

Text = Annotated[str, Meta(min_length=1, max_length=200)]
AnyRequest = Request[Any, Any, Any]


class LinkSignIn(Struct, frozen=True, forbid_unknown_fields=True):
    token: Text


class PasswordSignIn(Struct, frozen=True, forbid_unknown_fields=True):
    name: Text
    password: Annotated[str, Meta(min_length=1, max_length=1024)]


class NewPassword(Struct, frozen=True, forbid_unknown_fields=True):
    """current: needed once there is one."""

    password: Annotated[str, Meta(max_length=1024)]
    current: Annotated[str, Meta(max_length=1024)] | None = None


class SignedOut(Struct, frozen=True):
    """url: where the browser goes next to sign out of the provider that it came by; null: nowhere."""

    url: str | None


class HeldView(Struct, frozen=True):
    """A role in an organisation, a team or a project."""

    scope: str
    scope_id: str
    role: Role


class SessionView(Struct, frozen=True):
    """role: over the whole installation; `member` holds what `memberships` say. may: names of what this one may call
    on something, so that a page can hide what it cannot do. csrf: see X-CSRF-Token."""

    user_id: str
    name: str
    role: Role
    has_password: bool
    csrf: str
    may: list[str]
    memberships: list[HeldView]


class UserView(Struct, frozen=True):
    id: str
    name: str
    role: Role
    has_password: bool
    created_at: Stamp
    disabled: bool


class NewUser(Struct, frozen=True, forbid_unknown_fields=True):
    name: Text
    role: Role


class UserChange(Struct, frozen=True, forbid_unknown_fields=True):
    role: Role | None = None
    disabled: bool | None = None


class LinkView(Struct, frozen=True):
    """A one-time sign-in link. It cannot be shown again."""

    user_id: str
    url: str
    expires_at: Stamp


class TokenView(Struct, frozen=True):
    id: str
    name: str
    role: Role
    user_id: str
    created_at: Stamp
    expires_at: Stamp | None
    revoked: bool


class NewToken(Struct, frozen=True, forbid_unknown_fields=True):
    name: Text
    role: Role
    days: Annotated[int, Meta(ge=1, le=3650)] | None = None


class IssuedToken(Struct, frozen=True):
    token: TokenView
    secret: str


@post("/auth/link", name="session.by_link", status_code=200)
async def sign_in_by_link(data: JSONBody[LinkSignIn], request: AnyRequest, services: Office) -> Response[SessionView]:
    """Exchange a one-time link for a session."""
    now_ns, subjects = services.clock(), [f"address:{_address(request)}"]
    async with reading(services.engine) as db:
        await throttle(services, db, subjects)
    async with writing(services.engine) as db:
        user_id = await people.redeem_link(db, data.token, at_ns=now_ns)
        if user_id is None:
            await people.record_failure(db, subjects, at_ns=now_ns)
        else:
            return await begin(services, db, user_id, "link")
    raise Problem(401, "link-spent", "the link is unknown, used or too old",
                  "Sign in with your password, or print a new link with `farebox users link`.")  # fmt: skip


@post("/auth/password", name="session.by_password", status_code=200)
async def sign_in_by_password(
    data: JSONBody[PasswordSignIn], request: AnyRequest, services: Office
) -> Response[SessionView]:
    """Sign in with name and password."""
    if not services.settings.admin.passwords:
        raise Problem(403, "passwords-off", "nobody signs in with a password here", "Sign in by your provider.")
    now_ns, subjects = services.clock(), [f"address:{_address(request)}", _by_name(data.name)]
    async with reading(services.engine) as db:
        await throttle(services, db, subjects)
        kept = await people.credentials(db, data.name)
    good = await services.passwords.matches(kept[1] if kept else None, data.password)
    async with writing(services.engine) as db:
        if kept is not None and good:
            return await begin(services, db, kept[0], "password")
        await people.record_failure(db, subjects, at_ns=now_ns)
    raise Problem(401, "wrong-password", "name or password is wrong", "Try again, or ask an admin for a sign-in link.")


@get("/auth/session", name="session.read")
async def read_session(request: AnyRequest, services: Office) -> SessionView | None:
    """Who is signed in, and what they may do; null for nobody, which is no error to a page that opens."""
    actor = await identify(request, services)
    return None if actor is None else _session(actor, request.cookies.get(COOKIE, ""))


@delete("/auth/session", name="session.end", status_code=200)
async def sign_out(request: AnyRequest, services: Office) -> Response[SignedOut]:
    """End this session, here and on the server."""
    token = request.cookies.get(COOKIE, "")
    async with writing(services.engine) as db:
        url = await _logout_url(services, db, token)
        await people.end_session(db, token)
    gone = Response(SignedOut(url))
    gone.delete_cookie(COOKIE, path="/admin")
    return gone


@put("/auth/password", name="password.set", status_code=204)
async def set_password(data: JSONBody[NewPassword], request: AnyRequest, actor: Caller, services: Office) -> None:
    """Set one's own password. Every other session of this person ends."""
    now_ns = services.clock()
    if actor.via != "session":
        raise Problem(403, "session-needed", "a token cannot change a password", "Sign in first.")
    async with reading(services.engine) as db:
        await throttle(services, db, [_by_name(actor.name)])
        kept = await people.credentials(db, actor.name)
    had = kept[1] if kept else None
    if had is not None and not await services.passwords.matches(had, data.current or ""):
        async with writing(services.engine) as db:
            await people.record_failure(db, [_by_name(actor.name)], at_ns=now_ns)
        raise Problem(403, "wrong-password", "the current password is wrong", "Try again.", field="current")
    fresh = await services.passwords.hash(data.password)
    async with writing(services.engine) as db:
        await people.set_password_hash(db, actor.user_id, fresh)
        await people.end_sessions(db, actor.user_id, but=request.cookies.get(COOKIE))
        await record(db, actor, "password.set", actor.user_id, now_ns)


@get("/users", name="users.list")
async def list_users(services: Office) -> list[UserView]:
    async with reading(services.engine) as db:
        return [_user(user) for user in await people.users(db)]


@post("/users", name="users.create")
async def create_user(data: JSONBody[NewUser], actor: Caller, services: Office) -> LinkView:
    """Add a person. Returns their sign-in link."""
    now_ns = services.clock()
    _may_hand_out(actor, data.role)
    try:
        async with writing(services.engine) as db:
            user = await people.create_user(db, data.name, data.role, at_ns=now_ns)
            token = await people.issue_link(db, user.id, at_ns=now_ns)
            await record(db, actor, "users.create", user.id, now_ns, after={"name": user.name, "role": user.role})
    except IntegrityError as error:
        raise Problem(409, "name-taken", f"there is a {data.name!r} already", "Take another name.") from error
    return _link(services, user.id, token, now_ns)


@patch("/users/{user_id:str}", name="users.update")
async def update_user(user_id: FromPath[str], data: JSONBody[UserChange], actor: Caller, services: Office) -> UserView:
    """Change a role, or disable and enable. Disabling ends the person's sessions and tokens at once."""
    now_ns = services.clock()
    async with writing(services.engine) as db:
        await people.hold_all(db)
        user = await _existing(db, user_id)
        _may_hand_out(actor, user.role)
        loses = (data.role is not None and data.role is not Role.OWNER) or bool(data.disabled)
        if user.role is Role.OWNER and loses and not await people.owners_besides(db, user_id):
            raise Problem(409, "last-owner", "this is the last owner", "Make somebody else owner first.")
        if data.role is not None:
            _may_hand_out(actor, data.role)
            await people.set_role(db, user_id, data.role)
        if data.disabled is not None:
            await people.set_disabled(db, user_id, now_ns if data.disabled else None)
            if data.disabled:
                await people.revoke_tokens(db, user_id, at_ns=now_ns)
        changed = await _existing(db, user_id)
        await record(db, actor, "users.update", user_id, now_ns, before=_facts(user), after=_facts(changed))
    return _user(changed)


@post("/users/{user_id:str}/link", name="users.link")
async def new_link(user_id: FromPath[str], actor: Caller, services: Office) -> LinkView:
    """A new one-time link, for somebody who lost their password."""
    now_ns = services.clock()
    async with writing(services.engine) as db:
        user = await _existing(db, user_id)
        _may_hand_out(actor, user.role)
        if user.disabled_at_ns is not None:
            raise Problem(409, "disabled", f"{user.name} is disabled", "Enable the person first.")
        token = await people.issue_link(db, user_id, at_ns=now_ns)
        await record(db, actor, "users.link", user_id, now_ns)
    return _link(services, user_id, token, now_ns)


@get("/tokens", name="tokens.list")
async def list_tokens(actor: Caller, services: Office) -> list[TokenView]:
    """One's own; owners and admins see everybody's."""
    async with reading(services.engine) as db:
        mine = None if actor.role in (Role.OWNER, Role.ADMIN) else actor.user_id
        return [_token(token) for token in await people.tokens(db, mine)]


@post("/tokens", name="tokens.create")
async def create_token(data: JSONBody[NewToken], actor: Caller, services: Office) -> IssuedToken:
    """Make a token for automation. Its secret is shown this once."""
    now_ns = services.clock()
    # Wherever its maker holds less, so does the token: it is cut there when it is used.
    if not any(may_hand_out(own, data.role) for own in (actor.role, *(each.role for each in actor.held))):
        raise invalid("role", f"nowhere do you hold {data.role} or more", "Take a lesser role.")
    expires = None if data.days is None else now_ns + data.days * 86_400 * 10**9
    async with writing(services.engine) as db:
        token, secret = await people.issue_token(
            db, actor.user_id, data.name, data.role, at_ns=now_ns, expires_at_ns=expires
        )
        await record(db, actor, "tokens.create", token.id, now_ns, after={"name": token.name, "role": token.role})
    return IssuedToken(_token(token), secret)


@delete("/tokens/{token_id:str}", name="tokens.revoke", status_code=204)
async def revoke_token(token_id: FromPath[str], actor: Caller, services: Office) -> None:
    now_ns = services.clock()
    async with writing(services.engine) as db:
        mine = None if actor.role in (Role.OWNER, Role.ADMIN) else actor.user_id
        if token_id not in {token.id for token in await people.tokens(db, mine)}:
            raise not_found("token", token_id, "List the tokens and take an id from there.")
        await people.revoke_token(db, token_id, at_ns=now_ns)
        await record(db, actor, "tokens.revoke", token_id, now_ns)


auth_handlers: list[HTTPRouteHandler] = [
    sign_in_by_link, sign_in_by_password, read_session, sign_out, set_password,
    list_users, create_user, update_user, new_link, list_tokens, create_token, revoke_token,
]  # fmt: skip


async def record(db: Any, actor: Actor, action: str, subject: str, at_ns: int, **what: Any) -> None:
    """One audit row for a change that `actor` makes in this transaction, with what they gave as its reason."""
    what.setdefault("note", actor.why)
    await audit.append(db, actor=actor.name, action=action, subject=subject, at_ns=at_ns, **what)


async def throttle(services: Services, db: Any, subjects: list[str]) -> None:
    if await people.failures(db, subjects, at_ns=services.clock()) >= people.MAX_FAILURES:
        wait_s = people.FAILURES_NS // 10**9
        raise Problem(429, "too-many-attempts", "too many failed sign-ins", f"Wait {wait_s // 60} minutes.",
                      retry_after_s=wait_s)  # fmt: skip


async def begin(services: Services, db: Any, user_id: str, how: str) -> Response[SessionView]:
    token, cookie, actor = await enter(services, db, user_id, how)
    return Response(_session(actor, token), cookies=[cookie])


async def enter(
    services: Services, db: Any, user_id: str, how: str, *, lasts_ns: int = people.SESSION_NS
) -> tuple[str, Cookie, Actor]:
    """Begin a session, however one came in. Returns: its secret, the cookie that carries it, who it is."""
    now_ns = services.clock()
    token = await people.begin_session(db, user_id, at_ns=now_ns, lasts_ns=lasts_ns)
    found = await people.session_actor(db, token, at_ns=now_ns)
    if found is None:
        raise Problem(403, "disabled", "this person is disabled", "Ask an owner or admin.")
    await record(db, found[0], "session.begin", user_id, now_ns, after={"by": how})
    cookie = Cookie(
        key=COOKIE,
        value=token,
        # The data plane lives under other paths and never gets to see it.
        path="/admin",
        httponly=True,
        samesite="strict",
        secure=services.settings.office_url.startswith("https://"),
        max_age=lasts_ns // 10**9,
    )
    return token, cookie, found[0]


async def _logout_url(services: Services, db: Any, session: str) -> str | None:
    """Of the provider that began this session. Forgets it."""
    table = identity.session_origins
    gone = delete_rows(table).where(table.c.token_hash == people.hashed(session))
    row = (await db.execute(gone.returning(table.c.provider, table.c.id_token))).first()
    if row is None:
        return None
    try:
        there = services.sign_on.provider(row.provider)
    except SignOnFailed:
        return None  # Configured no more.
    back = f"{services.settings.office_url}/ui/sign-in"
    return await there.logout_url(row.id_token, back_to=back, now_ns=services.clock())


def _session(actor: Actor, token: str) -> SessionView:
    held = [HeldView(each.scope, each.scope_id, each.role) for each in actor.held]
    csrf = people.csrf_token(token)
    return SessionView(actor.user_id, actor.name, actor.role, actor.has_password, csrf, actor.powers(), held)


def _may_hand_out(actor: Actor, role: Role) -> None:
    if not actor.may_hand_out(role):
        raise invalid("role", f"the role {actor.role} cannot hand out or change {role}", "Ask an owner.")


async def _existing(db: Any, user_id: str) -> people.User:
    user = await people.user(db, user_id)
    if user is None:
        raise not_found("person", user_id, "List the people and take an id from there.")
    return user


def _facts(user: people.User) -> dict[str, Any]:
    return {"role": user.role, "disabled": user.disabled_at_ns is not None}


def _user(user: people.User) -> UserView:
    off = user.disabled_at_ns is not None
    return UserView(user.id, user.name, user.role, user.has_password, stamp(user.created_at_ns), off)


def _token(token: people.Token) -> TokenView:
    until = None if token.expires_at_ns is None else stamp(token.expires_at_ns)
    facts = (token.id, token.name, token.role, token.user_id, stamp(token.created_at_ns), until)
    return TokenView(*facts, token.revoked_at_ns is not None)


def _link(services: Services, user_id: str, token: str, now_ns: int) -> LinkView:
    return LinkView(user_id, sign_in_url(services.settings.office_url, token), stamp(now_ns + people.LINK_NS))


def _by_name(name: str) -> str:
    """What failures under a name are counted by. People type their password there: 32 bits of it tell nobody which."""
    return f"name:{hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}"


def _address(request: AnyRequest) -> str:
    return request.client.host if request.client else ""
