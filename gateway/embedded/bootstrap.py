"""The first start: an organisation, a project, a key and a way into the dashboard. Later starts find them there."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Final

from msgspec import Struct
from sqlalchemy import select

from billing import accounts
from billing.db import AsyncConnection, AsyncEngine, reading, take_turn, writing
from gateway.admin.auth import people
from gateway.admission.key_admin import KeyAdmin
from gateway.admission.minting import GIVEN_CHARS_MIN, LOOPBACK_CHARS_MIN, hash_of
from gateway.config import ConfigError, Settings
from gateway.embedded import prices
from gateway.errors import InvalidRequest
from gateway.schema import virtual_keys

ORGANISATION = "default"
PROJECT = "demo"
ACTOR = "farebox up"
# Before the audit's, which comes with the first key.
_TURN: Final = int.from_bytes(b"first", "big")


class First(Struct, frozen=True):
    """key: None when the first key is not known here, or not good any more. sign_in_url: good once; None when somebody
    has a password to sign in with."""

    key: str | None
    sign_in_url: str | None

    def __repr__(self) -> str:
        return "First(hidden)"


async def bootstrap(engine: AsyncEngine, settings: Settings, pepper: bytes, *, at_ns: int) -> First:
    """Make what is missing, all or nothing; once where several gateways start at once.

    Raises: ConfigError for a FAREBOX_BOOTSTRAP_KEY that can be no key."""
    # No gateway has read keys from this database before this start, or it will read them anew: nobody is to be told.
    keys = KeyAdmin(engine, None, pepper)
    async with writing(engine) as db:
        await take_turn(db, _TURN)
        await prices.declare(db, settings, at_ns)
        project = await _project(db, at_ns)
        link = await people.first_link(db, at_ns=at_ns)
        if settings.bootstrap_key is not None:
            key: str | None = settings.bootstrap_key.reveal()
            chars_min = LOOPBACK_CHARS_MIN if settings.server.on_loopback else GIVEN_CHARS_MIN
            try:
                await keys.add_key(
                    db,
                    project_id=project.id,
                    name="bootstrap",
                    actor=ACTOR,
                    now_ns=at_ns,
                    plain=key,
                    plain_chars_min=chars_min,
                )
            except InvalidRequest as error:
                raise ConfigError("bootstrap_key", error.message, source="FAREBOX_BOOTSTRAP_KEY") from error
        else:
            key = await _first_key(db, keys, settings, project, at_ns)
    return First(await good(engine, key, pepper), people.sign_in_url(settings.office_url, link) if link else None)


async def good(engine: AsyncEngine, key: str | None, pepper: bytes) -> str | None:
    """The key, if it is known and has not been revoked."""
    if key is None:
        return None
    query = select(virtual_keys.c.revoked_at_ns).where(virtual_keys.c.secret_hash == hash_of(key, pepper))
    async with reading(engine) as db:
        row = (await db.execute(query)).first()
    return key if row is not None and row.revoked_at_ns is None else None


async def _first_key(
    db: AsyncConnection, keys: KeyAdmin, settings: Settings, project: accounts.Project, at_ns: int
) -> str | None:
    """Made once, where there is no key at all; kept in a file of the owner's alone, so that every `up` can show it."""
    kept = settings.data_dir / "secrets" / "first_key"
    if (await db.execute(select(virtual_keys.c.id).limit(1))).first() is not None:
        return _read(kept)
    new = await keys.add_key(db, project_id=project.id, name="first", actor=ACTOR, now_ns=at_ns)
    assert new.plain is not None, "a key of our own making is new"
    # Before the commit: a key that nobody knows would be in the way of every later one.
    _keep(kept, new.plain)
    return new.plain


async def _project(db: AsyncConnection, at_ns: int) -> accounts.Project:
    """The demo project, or, where an operator has made others and no such one, the oldest of them."""
    known = sorted(await accounts.projects(db), key=lambda project: (project.name != PROJECT, project.created_at_ns))
    if known:
        return known[0]
    organisation = await accounts.create_organisation(db, f"org_{secrets.token_hex(6)}", ORGANISATION, at_ns=at_ns)
    return await accounts.create_project(db, f"proj_{secrets.token_hex(6)}", organisation.id, PROJECT, at_ns=at_ns)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None


def _keep(path: Path, plain: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(plain)
