"""People, sign-in links, sessions and tokens in SQL. Every secret is kept as its SHA-256 and shown once.

Functions take the caller's transaction; `farebox up` and the handlers use the same ones.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from sqlalchemy import delete, func, insert, select, update

from billing.db import AsyncConnection, take_turn
from gateway import schema
from gateway.admin.auth import memberships
from gateway.admin.auth.roles import Actor, Role, cut

_HOUR_NS: Final = 3_600 * 10**9
LINK_NS: Final = 24 * _HOUR_NS
SESSION_NS: Final = 14 * 24 * _HOUR_NS
IDLE_NS: Final = 3 * 24 * _HOUR_NS
"""A session ends after so long without a request, and in any case SESSION_NS after it began."""
_SEEN_NS: Final = 60 * 10**9
"""How stale `last_seen_at_ns` may be: a write for each read would make every report a writer."""
_TURN: Final = int.from_bytes(b"people", "big")

FAILURES_NS: Final = 15 * 60 * 10**9
MAX_FAILURES: Final = 10

TOKEN_PREFIX: Final = "fba-"  # noqa: S105 - a prefix, by which leaks are found, is no secret


class User(Struct, frozen=True):
    id: str
    name: str
    role: Role
    has_password: bool
    created_at_ns: int
    disabled_at_ns: int | None


class Token(Struct, frozen=True):
    """A token for automation; its secret is not in here."""

    id: str
    name: str
    role: Role
    user_id: str
    created_at_ns: int
    expires_at_ns: int | None
    revoked_at_ns: int | None


def hashed(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def csrf_token(session: str) -> str:
    """What a browser has to send along with a change. Derived from the session, which no script can read."""
    return hashlib.sha256(b"csrf:" + session.encode()).hexdigest()[:32]


async def create_user(db: AsyncConnection, name: str, role: Role, *, at_ns: int) -> User:
    """Raises: sqlalchemy.exc.IntegrityError if the name is taken."""
    user = User(f"user_{secrets.token_hex(8)}", name, role, False, at_ns, None)
    await db.execute(
        insert(schema.admin_users).values(id=user.id, name=user.name, role=user.role.value, created_at_ns=at_ns)
    )
    return user


async def users(db: AsyncConnection) -> list[User]:
    rows = await db.execute(select(schema.admin_users).order_by(schema.admin_users.c.name))
    return [_user(row) for row in rows]


async def user(db: AsyncConnection, user_id: str) -> User | None:
    row = (await db.execute(select(schema.admin_users).where(schema.admin_users.c.id == user_id))).first()
    return None if row is None else _user(row)


async def named(db: AsyncConnection, name: str) -> User | None:
    row = (await db.execute(select(schema.admin_users).where(schema.admin_users.c.name == name))).first()
    return None if row is None else _user(row)


def _user(row: object) -> User:
    fields = msgspec.convert(row, _UserRow, from_attributes=True)
    return User(
        fields.id,
        fields.name,
        fields.role,
        fields.password_hash is not None,
        fields.created_at_ns,
        fields.disabled_at_ns,
    )


class _UserRow(Struct, frozen=True):
    id: str
    name: str
    role: Role
    password_hash: str | None
    created_at_ns: int
    disabled_at_ns: int | None


async def hold_all(db: AsyncConnection) -> None:
    """Nobody else changes what people may do before we end: of two owners who shut each other out one stays."""
    await take_turn(db, _TURN)


async def hold(db: AsyncConnection, user_id: str) -> None:
    """Nobody renames or removes this person before we end. For whoever writes an audit row before the last row that
    refers to the person: who renames waits for the audit, too."""
    mine = select(schema.admin_users.c.id).where(schema.admin_users.c.id == user_id)
    await db.execute(mine.with_for_update(read=True, key_share=True))


async def credentials(db: AsyncConnection, name: str) -> tuple[str, str | None] | None:
    """Of an enabled person: id and password hash."""
    table = schema.admin_users.c
    found = select(table.id, table.password_hash).where(table.name == name, table.disabled_at_ns.is_(None))
    row = (await db.execute(found)).first()
    return None if row is None else (row.id, row.password_hash)


async def set_password_hash(db: AsyncConnection, user_id: str, password_hash: str) -> None:
    await _change(db, user_id, password_hash=password_hash)


async def set_role(db: AsyncConnection, user_id: str, role: Role) -> None:
    await _change(db, user_id, role=role.value)


async def set_disabled(db: AsyncConnection, user_id: str, disabled_at_ns: int | None) -> None:
    """A disabled person's sessions and links end with it; tokens are refused while it lasts."""
    await _change(db, user_id, disabled_at_ns=disabled_at_ns)
    if disabled_at_ns is not None:
        await end_sessions(db, user_id)
        await db.execute(delete(schema.sign_in_links).where(schema.sign_in_links.c.user_id == user_id))


async def _change(db: AsyncConnection, user_id: str, **values: object) -> None:
    await db.execute(update(schema.admin_users).where(schema.admin_users.c.id == user_id).values(**values))


async def owners_besides(db: AsyncConnection, user_id: str) -> int:
    """How many enabled owners there are without this one: the last one can be neither demoted nor disabled."""
    table = schema.admin_users.c
    others = select(func.count()).where(
        table.role == Role.OWNER.value, table.disabled_at_ns.is_(None), table.id != user_id
    )
    return int((await db.execute(others)).scalar_one())


async def issue_link(db: AsyncConnection, user_id: str, *, at_ns: int) -> str:
    """Returns: the token of a new sign-in link. It works once, within LINK_NS."""
    token = secrets.token_urlsafe(32)
    await db.execute(
        insert(schema.sign_in_links).values(
            token_hash=hashed(token), user_id=user_id, created_at_ns=at_ns, expires_at_ns=at_ns + LINK_NS
        )
    )
    return token


async def first_link(db: AsyncConnection, *, at_ns: int) -> str | None:
    """The link that `farebox up` prints: makes the first owner if there is nobody yet.

    Returns: a token as long as no owner has a password; None after that, when people sign in by it."""
    table = schema.admin_users.c
    owner = (await db.execute(select(schema.admin_users).where(table.role == Role.OWNER.value))).first()
    if owner is None:
        return await issue_link(db, (await create_user(db, "owner", Role.OWNER, at_ns=at_ns)).id, at_ns=at_ns)
    if owner.password_hash is None and owner.disabled_at_ns is None:
        return await issue_link(db, owner.id, at_ns=at_ns)
    return None


def sign_in_url(base_url: str, token: str) -> str:
    """The token travels behind `#`: no server, proxy or log ever sees it, and no preview of the link spends it."""
    return f"{base_url}/ui/sign-in#token={token}"


async def redeem_link(db: AsyncConnection, token: str, *, at_ns: int) -> str | None:
    """Returns: whose link it is; None for one that is unknown, used or too old. Of two at once, one gets in."""
    table = schema.sign_in_links.c
    taken = (
        update(schema.sign_in_links)
        .where(table.token_hash == hashed(token), table.used_at_ns.is_(None), table.expires_at_ns > at_ns)
        .values(used_at_ns=at_ns)
        .returning(table.user_id)
    )
    owner: str | None = (await db.execute(taken)).scalar_one_or_none()
    return owner


async def begin_session(db: AsyncConnection, user_id: str, *, at_ns: int, lasts_ns: int = SESSION_NS) -> str:
    """Returns: the session's secret, for the cookie."""
    token = secrets.token_urlsafe(32)
    await db.execute(
        insert(schema.admin_sessions).values(
            token_hash=hashed(token),
            user_id=user_id,
            created_at_ns=at_ns,
            last_seen_at_ns=at_ns,
            expires_at_ns=at_ns + lasts_ns,
        )
    )
    # Those that somebody is just ending are left to him.
    sessions = schema.admin_sessions
    expired = select(sessions.c.token_hash).where(sessions.c.expires_at_ns < at_ns).with_for_update(skip_locked=True)
    await db.execute(delete(sessions).where(sessions.c.token_hash.in_(expired)))
    return token


async def session_actor(db: AsyncConnection, token: str, *, at_ns: int) -> tuple[Actor, bool] | None:
    """Returns: who is signed in, and whether `touch` is due; None for no living session."""
    people, sessions = schema.admin_users.c, schema.admin_sessions.c
    row = (
        await db.execute(
            select(people.id, people.name, people.role, people.password_hash, sessions.last_seen_at_ns)
            .join(schema.admin_sessions, sessions.user_id == people.id)
            .where(
                sessions.token_hash == hashed(token),
                sessions.expires_at_ns > at_ns,
                sessions.last_seen_at_ns > at_ns - IDLE_NS,
                people.disabled_at_ns.is_(None),
            )
        )
    ).first()
    if row is None:
        return None
    role, held = await memberships.held_by(db, row.id, Role(row.role))
    actor = Actor(row.id, row.name, role, "session", row.password_hash is not None, held)
    return actor, row.last_seen_at_ns < at_ns - _SEEN_NS


async def touch(db: AsyncConnection, token: str, *, at_ns: int) -> None:
    sessions = schema.admin_sessions
    await db.execute(update(sessions).where(sessions.c.token_hash == hashed(token)).values(last_seen_at_ns=at_ns))


async def end_session(db: AsyncConnection, token: str) -> None:
    await db.execute(delete(schema.admin_sessions).where(schema.admin_sessions.c.token_hash == hashed(token)))


async def end_sessions(db: AsyncConnection, user_id: str, *, but: str | None = None) -> None:
    """Sign a person out everywhere; `but`: the session that asks for it stays."""
    gone = delete(schema.admin_sessions).where(schema.admin_sessions.c.user_id == user_id)
    if but is not None:
        gone = gone.where(schema.admin_sessions.c.token_hash != hashed(but))
    await db.execute(gone)


async def issue_token(
    db: AsyncConnection, user_id: str, name: str, role: Role, *, at_ns: int, expires_at_ns: int | None
) -> tuple[Token, str]:
    """Returns: the token's row and its secret, which cannot be had again."""
    secret = TOKEN_PREFIX + secrets.token_urlsafe(32)
    token = Token(f"token_{secrets.token_hex(8)}", name, role, user_id, at_ns, expires_at_ns, None)
    row = msgspec.structs.asdict(token) | {"role": role.value, "token_hash": hashed(secret)}
    await db.execute(insert(schema.admin_tokens).values(row))
    return token, secret


async def token_actor(db: AsyncConnection, secret: str, *, at_ns: int) -> Actor | None:
    people, tokens = schema.admin_users.c, schema.admin_tokens.c
    row = (
        await db.execute(
            select(
                people.id,
                people.name,
                people.role.label("holder"),
                tokens.name.label("token"),
                tokens.role,
                tokens.expires_at_ns,
            )
            .join(schema.admin_tokens, tokens.user_id == people.id)
            .where(tokens.token_hash == hashed(secret), tokens.revoked_at_ns.is_(None), people.disabled_at_ns.is_(None))
        )
    ).first()
    if row is None or (row.expires_at_ns is not None and row.expires_at_ns <= at_ns):
        return None
    most = Role(row.role)
    role, held = await memberships.held_by(db, row.id, Role(row.holder))
    whole = cut(role, most)
    below = tuple(replace(each, role=left) for each in held if (left := cut(each.role, most)) is not None)
    if whole is None and not below:  # The person has been demoted since.
        return None
    return Actor(row.id, f"{row.name} ({row.token})", whole or Role.MEMBER, "token", held=below)


async def tokens(db: AsyncConnection, user_id: str | None = None) -> list[Token]:
    """Those of one person, or all, the newest first."""
    query = select(schema.admin_tokens).order_by(schema.admin_tokens.c.created_at_ns.desc())
    if user_id is not None:
        query = query.where(schema.admin_tokens.c.user_id == user_id)
    return [msgspec.convert(row, Token, from_attributes=True) for row in await db.execute(query)]


async def revoke_token(db: AsyncConnection, token_id: str, *, at_ns: int) -> None:
    table = schema.admin_tokens
    await db.execute(update(table).where(table.c.id == token_id, table.c.revoked_at_ns.is_(None))
                     .values(revoked_at_ns=at_ns))  # fmt: skip


async def revoke_tokens(db: AsyncConnection, user_id: str, *, at_ns: int) -> None:
    """All of a person's, for good."""
    table = schema.admin_tokens
    mine = (table.c.user_id == user_id) & table.c.revoked_at_ns.is_(None)
    await db.execute(update(table).where(mine).values(revoked_at_ns=at_ns))


async def failures(db: AsyncConnection, subjects: list[str], *, at_ns: int) -> int:
    """The most failed sign-ins that any of the subjects has in the last FAILURES_NS."""
    table = schema.sign_in_failures.c
    counted = (
        select(func.count().label("times"))
        .where(table.subject.in_(subjects), table.at_ns > at_ns - FAILURES_NS)
        .group_by(table.subject)
    )
    return max((int(times) for times in (await db.execute(counted)).scalars()), default=0)


async def record_failure(db: AsyncConnection, subjects: list[str], *, at_ns: int) -> None:
    await db.execute(delete(schema.sign_in_failures).where(schema.sign_in_failures.c.at_ns < at_ns - FAILURES_NS))
    rows = [{"id": secrets.token_hex(16), "subject": subject, "at_ns": at_ns} for subject in subjects]
    await db.execute(insert(schema.sign_in_failures), rows)
