"""Coming back from a provider of identities: whose browser, which person, what their groups grant. Handlers only send
the browser on: to the provider, to the dashboard, or to the sign-in page with one word of what went wrong."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Annotated, Any, Final

import structlog
from litestar import Request, get
from litestar.datastructures import Cookie
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, FromQuery, QueryParameter
from litestar.response import Redirect
from msgspec import Struct
from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from billing.db import AsyncConnection, reading, writing
from gateway import audit, identity, schema
from gateway.admin.auth import memberships, people
from gateway.admin.auth.memberships import INSTALLATION
from gateway.admin.auth.oidc import Provider, SignOnFailed
from gateway.admin.auth.passkeys import relying_on
from gateway.admin.auth.people import hashed
from gateway.admin.auth.roles import Membership, Role
from gateway.admin.auth.routes import enter, throttle
from gateway.admin.problems import Problem
from gateway.admin.services import Services
from gateway.admin.wants import Office
from gateway.signing_in import AdminSettings, OidcSettings, can_passkeys

log = structlog.get_logger(__name__)

COOKIE: Final = "farebox_oidc"
PATH: Final = "/admin/v1/auth/oidc"
AWAY_NS: Final = 10 * 60 * 10**9
"""How long somebody may take at the provider."""
_OPEN_MAX: Final = 10_000
"""Sign-ins under way: whoever begins more than that, and ends none, gets no further."""

AnyRequest = Request[Any, Any, Any]


class ProviderButton(Struct, frozen=True):
    name: str
    label: str


class WaysIn(Struct, frozen=True):
    """How one may sign in here."""

    passwords: bool
    passkeys: bool
    providers: list[ProviderButton]


@get("/auth/ways", name="session.ways")
async def ways_in(services: Office) -> WaysIn:
    """What the sign-in page offers."""
    admin = services.settings.admin
    buttons = [ProviderButton(each.name, each.label or each.name) for each in admin.oidc]
    passkeys = can_passkeys(admin) and relying_on(services.settings.office_url) is not None
    return WaysIn(admin.passwords, passkeys, buttons)


@get("/auth/oidc/{provider:str}/begin", name="session.oidc_begin", status_code=302)
async def begin(
    provider: FromPath[str], services: Office, next_: Annotated[str, QueryParameter(name="next")] = "/"
) -> Redirect:
    """Off to the provider."""
    now_ns = services.clock()
    state, nonce, browser, verifier = (secrets.token_urlsafe(32) for _ in range(4))
    try:
        there = services.sign_on.provider(provider)
        url = await there.authorize_url(
            state=state, nonce=nonce, verifier=verifier, redirect_uri=_back(services, provider), now_ns=now_ns
        )
        async with writing(services.engine) as db:
            await _remember(db, provider, state, browser, nonce, verifier, _inside(next_), now_ns)
    except SignOnFailed as error:
        return _failed(provider, error)
    cookie = Cookie(
        key=COOKIE, value=browser, path=PATH, httponly=True, max_age=AWAY_NS // 10**9,
        # Lax, unlike the session's: the provider sends the browser back to us, and the cookie has to come along.
        samesite="lax", secure=services.settings.office_url.startswith("https://"),
    )  # fmt: skip
    return Redirect(url, status_code=302, cookies=[cookie])


@get("/auth/oidc/{provider:str}/callback", name="session.oidc_end", status_code=302)
async def end(
    provider: FromPath[str],
    request: AnyRequest,
    services: Office,
    code: FromQuery[str | None] = None,
    state_: Annotated[str | None, QueryParameter(name="state")] = None,
    iss: FromQuery[str | None] = None,
    error: FromQuery[str | None] = None,
) -> Redirect:
    """Back from the provider. Each sign-in comes back once, and to the browser that began it."""
    now_ns = services.clock()
    subjects = [f"address:{request.client.host if request.client else ''}"]
    try:
        there = services.sign_on.provider(provider)
        async with reading(services.engine) as db:
            await throttle(services, db, subjects)
        async with writing(services.engine) as db:
            begun = await _recall(db, provider, state_ or "", request.cookies.get(COOKIE, ""), now_ns)
            if begun is None:
                await people.record_failure(db, subjects, at_ns=now_ns)
        if begun is None:
            raise SignOnFailed("stale", "a state that nobody began, or not in this browser, or long ago")
        nonce, verifier, onward = begun
        if iss is not None and iss != there.said.issuer:
            raise SignOnFailed("bad-token", "the answer comes from another issuer")
        if error is not None or not code:
            kind = "denied" if error == "access_denied" else "refused"
            raise SignOnFailed(kind, f"the provider answered {str(error)[:100]!r}")
        back = _back(services, provider)
        tokens = await there.exchange(code, verifier=verifier, redirect_uri=back, now_ns=now_ns)
        claims = await there.claims(tokens, nonce=nonce, now_ns=now_ns)
        async with writing(services.engine) as db:
            user_id = await _person(db, services.settings.admin, there, claims, now_ns)
            if (refusal := await _refusal(db, user_id)) is None:
                hours = there.said.session_hours
                lasts_ns = hours * 3_600 * 10**9
                session, cookie, _ = await enter(services, db, user_id, there.said.source, lasts_ns=lasts_ns)
                await db.execute(insert(identity.session_origins).values(
                    token_hash=hashed(session), provider=provider, id_token=tokens.id_token,
                    expires_at_ns=now_ns + lasts_ns,
                ))  # fmt: skip
        if refusal is not None:
            raise refusal  # After the commit: what the groups grant no more is gone from sessions and tokens, too.
    except SignOnFailed as failed:
        return _failed(provider, failed)
    except Problem as problem:
        return _failed(provider, SignOnFailed(problem.kind, problem.detail))
    gone = Cookie(key=COOKIE, value="", path=PATH, max_age=0)
    return Redirect(f"/ui{onward}", status_code=302, cookies=[cookie, gone])


sign_on_handlers: list[HTTPRouteHandler] = [ways_in, begin, end]


def granted(admin: AdminSettings, source: str, groups: Iterable[str]) -> list[Membership]:
    """What groups of that source (a provider's name, or scim) may do."""
    inside = set(groups)
    return [
        Membership(each.scope, each.scope_id, Role(each.role))
        for each in admin.grants
        if each.group in inside and each.source in ("*", source)
    ]


async def _person(
    db: AsyncConnection, admin: AdminSettings, there: Provider, claims: dict[str, Any], now_ns: int
) -> str:
    """Who this is here, with what the groups grant as of now. Raises: SignOnFailed."""
    said, subject = there.said, str(claims["sub"])
    email = _email(said, claims)
    if said.domains and (email is None or email.rpartition("@")[2] not in {each.lower() for each in said.domains}):
        raise SignOnFailed("not-admitted", "an address outside of the domains, or not verified")
    grants = granted(admin, said.name, there.groups(claims))
    if not grants and said.default_role is not None:
        grants = [Membership(INSTALLATION, "", Role(said.default_role))]
    user_id = await _known(db, said, subject, email)
    if user_id is None:
        if not grants:
            raise SignOnFailed("not-admitted", "in no group that is granted anything")
        if not said.create:
            raise SignOnFailed("not-known", "nobody here, and nobody is made")
        user_id = await _make(db, said, claims, email, now_ns)
    table = identity.identities
    mine = (table.c.issuer == said.issuer) & (table.c.subject == subject)
    known = await db.execute(update(table).where(mine).values(last_at_ns=now_ns, email=email))
    if not known.rowcount:
        await db.execute(insert(table).values(
            issuer=said.issuer, subject=subject, user_id=user_id, email=email, created_at_ns=now_ns, last_at_ns=now_ns
        ))  # fmt: skip
    await people.hold(db, user_id)
    if await memberships.replace_source(db, user_id, said.source, grants, at_ns=now_ns):
        after = {"grants": [f"{each.role} of {each.scope} {each.scope_id}".strip() for each in grants]}
        await audit.append(db, actor=said.source, action="users.grants", subject=user_id, at_ns=now_ns, after=after)
    return user_id


async def _refusal(db: AsyncConnection, user_id: str) -> SignOnFailed | None:
    """Why this person is not let in all the same."""
    user = await people.user(db, user_id)
    assert user is not None
    if user.disabled_at_ns is not None:
        return SignOnFailed("disabled", f"{user_id} is disabled")
    role, held = await memberships.held_by(db, user_id, user.role)
    if role is Role.MEMBER and not held:
        return SignOnFailed("not-admitted", "holds nothing any more")
    return None


async def _known(db: AsyncConnection, said: OidcSettings, subject: str, email: str | None) -> str | None:
    table = identity.identities.c
    by_subject = select(table.user_id).where(table.issuer == said.issuer, table.subject == subject)
    found: str | None = (await db.execute(by_subject)).scalar_one_or_none()
    if found is not None or email is None:
        return found
    # Who was provisioned comes from the same house; anybody else is matched only where the settings trust it so far.
    provisioned = identity.scim_users.c
    by_email = select(provisioned.user_id).where(provisioned.user_name == email)
    if said.match == "email":
        by_email = select(schema.admin_users.c.id).where(schema.admin_users.c.name == email)
    user_id: str | None = (await db.execute(by_email)).scalar_one_or_none()
    if user_id is not None:
        taken = select(table.subject).where(table.issuer == said.issuer, table.user_id == user_id)
        if (await db.execute(taken)).first() is not None:
            # An address that was given to somebody else since.
            raise SignOnFailed("not-known", "another subject of this provider has this person")
    return user_id


async def _make(db: AsyncConnection, said: OidcSettings, claims: dict[str, Any], email: str | None, now_ns: int) -> str:
    for name in (email, claims.get("preferred_username"), f"{said.name}:{claims['sub']}"):
        if not isinstance(name, str) or not 0 < len(name) <= 200 or await people.named(db, name) is not None:
            continue
        try:
            user = await people.create_user(db, name, Role.MEMBER, at_ns=now_ns)
        except IntegrityError as error:
            raise SignOnFailed("refused", "the name was taken meanwhile") from error
        after = {"name": name, "subject": claims["sub"]}
        await audit.append(db, actor=said.source, action="users.create", subject=user.id, at_ns=now_ns, after=after)
        return user.id
    raise SignOnFailed("refused", "no name is left for this person")


def _email(said: OidcSettings, claims: dict[str, Any]) -> str | None:
    """The address, if it is verified."""
    address = claims.get("email")
    verified = claims.get("email_verified", said.trust_email)
    good = isinstance(address, str) and address.count("@") == 1 and len(address) <= 200 and verified in (True, "true")
    return address.lower() if good and isinstance(address, str) else None


async def _remember(
    db: AsyncConnection, provider: str, state: str, browser: str, nonce: str, verifier: str, onward: str, now_ns: int
) -> None:
    table = identity.oidc_sign_ins
    await db.execute(delete(table).where(table.c.expires_at_ns < now_ns))
    await db.execute(delete(identity.session_origins).where(identity.session_origins.c.expires_at_ns < now_ns))
    if len((await db.execute(select(table.c.provider).limit(_OPEN_MAX))).all()) >= _OPEN_MAX:
        raise SignOnFailed("too-many-attempts", "too many sign-ins under way")
    await db.execute(insert(table).values(
        state_hash=hashed(state), browser_hash=hashed(browser), provider=provider, nonce=nonce, verifier=verifier,
        next=onward, expires_at_ns=now_ns + AWAY_NS,
    ))  # fmt: skip


async def _recall(
    db: AsyncConnection, provider: str, state: str, browser: str, now_ns: int
) -> tuple[str, str, str] | None:
    """Takes it out: of two that come back with one state, one is let in. Returns: nonce, verifier, where to go on."""
    table = identity.oidc_sign_ins
    mine = (table.c.state_hash == hashed(state)) & (table.c.browser_hash == hashed(browser))
    taken = (
        delete(table)
        .where(mine, table.c.provider == provider, table.c.expires_at_ns > now_ns)
        .returning(table.c.nonce, table.c.verifier, table.c.next)
    )
    row = (await db.execute(taken)).first()
    return None if row is None else (row.nonce, row.verifier, row.next)


def _back(services: Services, provider: str) -> str:
    return f"{services.settings.office_url}{PATH}/{provider}/callback"


def _inside(path: str) -> str:
    """A page of the dashboard: nobody is sent on to another host."""
    good = path.startswith("/") and not path.startswith("//") and len(path) <= 500
    return path if good and path.isprintable() and "\\" not in path else "/"


def _failed(provider: str, error: SignOnFailed) -> Redirect:
    log.warning("sign-in refused", provider=provider, kind=error.kind, reason=str(error))
    return Redirect(f"/ui/sign-in?problem={error.kind}", status_code=302)
