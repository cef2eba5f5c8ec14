"""The catalogue in SQL: its versions, and the sealed credentials that its entries name."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct
from sqlalchemy import delete, desc, func, insert, select, update

from billing.db import AsyncConnection
from gateway.catalogue.document import EMPTY, Credentials, Document, decode, encode
from gateway.config_parts import Secret, is_reference
from gateway.envelope import KeyRing, Sealed
from gateway.schema import catalogue_versions, provider_credentials

KEPT: Final = 200
"""Versions, for looking back and going back."""
# Of a shorter value its last four characters would tell too much.
_SHOWN_CHARS_MIN: Final = 16


class Version(Struct, frozen=True):
    """number 0: nothing was ever written."""

    number: int
    document: Document
    at_ns: int = 0
    actor: str = ""
    change: str = ""


class StoredField(Struct, frozen=True, omit_defaults=True):
    """What of one field may be seen again. reference: where the value is; else last4 and fingerprint of the value."""

    reference: str | None = None
    last4: str | None = None
    fingerprint: str | None = None


class StoredCredential(Struct, frozen=True):
    """A credential as lists show it. key_id: which key of the ring it is sealed under."""

    id: str
    name: str
    kind: str
    fields: dict[str, StoredField]
    key_id: str
    created_at_ns: int
    changed_at_ns: int
    changed_by: str


async def newest_number(db: AsyncConnection) -> int:
    return (await db.execute(select(func.max(catalogue_versions.c.number)))).scalar_one() or 0


async def newest(db: AsyncConnection) -> Version:
    """Raises: msgspec.ValidationError for one that a newer release wrote."""
    found = await versions(db, limit=1)
    return found[0] if found else Version(0, EMPTY)


async def versions(db: AsyncConnection, *, limit: int, number: int | None = None) -> list[Version]:
    """The newest first; number: that one alone."""
    query = select(catalogue_versions).order_by(desc(catalogue_versions.c.number)).limit(limit)
    if number is not None:
        query = query.where(catalogue_versions.c.number == number)
    return [
        Version(row["number"], decode(row["document"]), row["at_ns"], row["actor"], row["change"])
        for row in (await db.execute(query)).mappings()
    ]


async def append(db: AsyncConnection, version: Version) -> None:
    """Raises: IntegrityError where somebody else has taken the number."""
    row = {"number": version.number, "at_ns": version.at_ns, "actor": version.actor, "change": version.change[:400]}
    await db.execute(insert(catalogue_versions).values(row | {"document": encode(version.document)}))
    await db.execute(delete(catalogue_versions).where(catalogue_versions.c.number <= version.number - KEPT))


async def stored(db: AsyncConnection) -> list[StoredCredential]:
    columns = [c for c in provider_credentials.c if c.name not in ("wrapped", "ciphertext")]
    rows = await db.execute(select(*columns).order_by(provider_credentials.c.name))
    return [
        StoredCredential(
            row["id"],
            row["name"],
            row["kind"],
            msgspec.convert(row["shown"], dict[str, StoredField]),
            row["key_id"],
            row["created_at_ns"],
            row["changed_at_ns"],
            row["changed_by"],
        )
        for row in rows.mappings()
    ]


async def opened(db: AsyncConnection, ring: KeyRing, environ: Mapping[str, str]) -> Credentials:
    """environ: what references look their variables up in. Raises: CannotOpen."""
    rows = (await db.execute(select(provider_credentials))).mappings()
    return {
        row["name"]: {
            field: Secret(text, environ)
            for field, text in msgspec.json.decode(ring.open(_sealed(row), _of(row["id"])), type=dict[str, str]).items()
        }
        for row in rows
    }


async def any_stored(db: AsyncConnection) -> bool:
    return (await db.execute(select(provider_credentials.c.id).limit(1))).first() is not None


async def put(
    db: AsyncConnection, ring: KeyRing, name: str, kind: str, fields: Mapping[str, str], *, actor: str, at_ns: int
) -> None:
    """Seal and keep, under a new id where the name is new."""
    table = provider_credentials
    known = (await db.execute(select(table.c.id).where(table.c.name == name))).scalar_one_or_none()
    ident = known or f"cred_{secrets.token_hex(8)}"
    sealed = ring.seal(msgspec.json.encode(dict(fields)), _of(ident))
    row: dict[str, Any] = {
        "kind": kind,
        "key_id": sealed.key_id,
        "wrapped": sealed.wrapped,
        "ciphertext": sealed.ciphertext,
        "shown": msgspec.to_builtins({field: shown(text) for field, text in fields.items()}),
        "changed_at_ns": at_ns,
        "changed_by": actor,
    }
    if known is not None:
        await db.execute(update(table).where(table.c.id == ident).values(row))
    else:
        await db.execute(insert(table).values(row | {"id": ident, "name": name, "created_at_ns": at_ns}))


async def remove(db: AsyncConnection, name: str) -> None:
    await db.execute(delete(provider_credentials).where(provider_credentials.c.name == name))


async def rewrap(db: AsyncConnection, ring: KeyRing) -> int:
    """Every credential under the ring's first key. Returns: how many were not. Raises: CannotOpen; nothing is written
    then, the transaction being the caller's."""
    table = provider_credentials
    rows = (await db.execute(select(table).where(table.c.key_id != ring.current))).mappings().all()
    for row in rows:
        sealed = ring.rewrapped(_sealed(row), _of(row["id"]))
        changed = {"key_id": sealed.key_id, "wrapped": sealed.wrapped}
        await db.execute(update(table).where(table.c.id == row["id"]).values(changed))
    return len(rows)


def shown(text: str) -> StoredField:
    if is_reference(text):
        return StoredField(reference=text)
    fingerprint = hashlib.sha256(text.encode()).hexdigest()[:12]
    if len(text) < _SHOWN_CHARS_MIN:
        return StoredField()  # A fingerprint of so little could be guessed backwards.
    return StoredField(last4=text[-4:], fingerprint=fingerprint)


def _sealed(row: Any) -> Sealed:
    return Sealed(row["key_id"], row["wrapped"], row["ciphertext"])


def _of(ident: str) -> str:
    return f"provider_credentials/{ident}"
