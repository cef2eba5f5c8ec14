"""Passkeys: made by a person's own device, bound to this address, and of no use to whoever copies what we store.

Source: Web Authentication Level 3 (W3C), read 2026-11; the library `webauthn` checks what authenticators sign. A user
is always verified by the device (PIN, finger, face), so that a passkey alone is two factors.
"""

from __future__ import annotations

import base64
import secrets
from ipaddress import ip_address
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import msgspec
from litestar import Request, Response, delete, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, JSONBody
from msgspec import Meta, Struct
from sqlalchemy import delete as delete_rows
from sqlalchemy import insert, select, update
from sqlalchemy.exc import IntegrityError

from billing.db import AsyncConnection, reading, writing
from gateway import audit
from gateway.admin.auth import people
from gateway.admin.auth.people import hashed
from gateway.admin.auth.routes import SessionView, begin, record, throttle
from gateway.admin.problems import Problem, not_found
from gateway.admin.services import Services
from gateway.admin.times import Stamp, stamp
from gateway.admin.wants import Caller, Office
from gateway.identity import passkey_challenges, passkeys
from gateway.signing_in import can_passkeys

OPEN_NS: Final = 5 * 60 * 10**9
"""How long an authenticator may take."""
PASSKEYS_MAX: Final = 20
_OPEN_MAX: Final = 10_000

AnyRequest = Request[Any, Any, Any]
Credential = Annotated[dict[str, Any], Meta(max_length=50)]


class PasskeyView(Struct, frozen=True):
    """synced: kept by a cloud of the device's maker, and on more than one device."""

    id: str
    name: str
    synced: bool
    created_at: Stamp
    last_used_at: Stamp | None


class NewPasskey(Struct, frozen=True, forbid_unknown_fields=True):
    """credential: what `navigator.credentials.create` gave, as its toJSON()."""

    name: Annotated[str, Meta(min_length=1, max_length=200)]
    credential: Credential


class PasskeySignIn(Struct, frozen=True, forbid_unknown_fields=True):
    """credential: what `navigator.credentials.get` gave, as its toJSON()."""

    credential: Credential


@get("/auth/passkeys", name="passkeys.list")
async def list_passkeys(actor: Caller, services: Office) -> list[PasskeyView]:
    """One's own."""
    async with reading(services.engine) as db:
        return [_view(row) for row in await _of(db, actor.user_id)]


@post("/auth/passkeys/options", name="passkeys.begin", status_code=200)
async def begin_adding(actor: Caller, services: Office) -> dict[str, Any]:
    """Options for `navigator.credentials.create`."""
    relying = _relying(services, actor.via)
    from webauthn import generate_registration_options, options_to_json
    from webauthn.helpers.structs import (
        AuthenticatorSelectionCriteria,
        PublicKeyCredentialDescriptor,
        ResidentKeyRequirement,
        UserVerificationRequirement,
    )

    async with writing(services.engine) as db:
        there = await _of(db, actor.user_id)
        if len(there) >= PASSKEYS_MAX:
            raise Problem(409, "too-many", f"{PASSKEYS_MAX} passkeys are the most", "Remove one that is not in use.")
        challenge = await _challenge(db, actor.user_id, services.clock())
    options = generate_registration_options(
        rp_id=relying.id,
        rp_name="Farebox",
        user_id=actor.user_id.encode(),
        user_name=actor.name,
        challenge=challenge,
        authenticator_selection=AuthenticatorSelectionCriteria(
            resident_key=ResidentKeyRequirement.REQUIRED, user_verification=UserVerificationRequirement.REQUIRED
        ),
        exclude_credentials=[PublicKeyCredentialDescriptor(id=row["credential_id"]) for row in there],
    )
    return msgspec.json.decode(options_to_json(options), type=dict[str, Any])


@post("/auth/passkeys", name="passkeys.add")
async def add(data: JSONBody[NewPasskey], actor: Caller, services: Office) -> PasskeyView:
    """Keep a passkey that the device has made."""
    relying, now_ns = _relying(services, actor.via), services.clock()
    challenge = _challenge_in(data.credential)
    async with writing(services.engine) as db:
        asked = await _taken(db, challenge, now_ns)
    if asked != actor.user_id:
        raise _stale()  # After the commit: a challenge that came back wrong is used up as well.
    from webauthn import verify_registration_response
    from webauthn.helpers.exceptions import WebAuthnException

    try:
        made = verify_registration_response(
            credential=data.credential,
            expected_challenge=challenge,
            expected_rp_id=relying.id,
            expected_origin=relying.origins,
            require_user_verification=True,
        )
    except (WebAuthnException, ValueError, KeyError, TypeError) as error:
        raise _refused(str(error)) from error
    row = {
        "id": f"passkey_{secrets.token_hex(8)}",
        "credential_id": made.credential_id,
        "user_id": actor.user_id,
        "public_key": made.credential_public_key,
        "sign_count": made.sign_count,
        "name": data.name,
        "synced": made.credential_backed_up,
        "created_at_ns": now_ns,
        "last_at_ns": None,
    }
    try:
        async with writing(services.engine) as db:
            await db.execute(insert(passkeys).values(row))
            after = {"name": data.name, "synced": made.credential_backed_up}
            await record(db, actor, "passkeys.add", actor.user_id, now_ns, after=after)
    except IntegrityError as error:
        raise Problem(409, "known-passkey", "this passkey is there already", "Use another device.") from error
    return _view(row)


@delete("/auth/passkeys/{passkey_id:str}", name="passkeys.remove", status_code=204)
async def remove(passkey_id: FromPath[str], actor: Caller, services: Office) -> None:
    """Take one of one's own out of use. The device keeps it, and it opens nothing any more."""
    async with writing(services.engine) as db:
        mine = (passkeys.c.id == passkey_id) & (passkeys.c.user_id == actor.user_id)
        name = (await db.execute(delete_rows(passkeys).where(mine).returning(passkeys.c.name))).scalar_one_or_none()
        if name is None:
            raise not_found("passkey", passkey_id, "List your own and take an id from there.")
        await record(db, actor, "passkeys.remove", actor.user_id, services.clock(), before={"name": name})


@post("/auth/passkey/options", name="session.passkey_begin", status_code=200)
async def begin_signing_in(services: Office) -> dict[str, Any]:
    """Options for `navigator.credentials.get`. The device shows whom it knows: no name is asked for or told."""
    relying = _relying(services)
    from webauthn import generate_authentication_options, options_to_json
    from webauthn.helpers.structs import UserVerificationRequirement

    async with writing(services.engine) as db:
        challenge = await _challenge(db, None, services.clock())
    options = generate_authentication_options(
        rp_id=relying.id, challenge=challenge, user_verification=UserVerificationRequirement.REQUIRED
    )
    return msgspec.json.decode(options_to_json(options), type=dict[str, Any])


@post("/auth/passkey", name="session.by_passkey", status_code=200)
async def sign_in(data: JSONBody[PasskeySignIn], request: AnyRequest, services: Office) -> Response[SessionView]:
    """Sign in with a passkey."""
    relying, now_ns = _relying(services), services.clock()
    subjects = [f"address:{request.client.host if request.client else ''}"]
    async with reading(services.engine) as db:
        await throttle(services, db, subjects)
    try:
        challenge = _challenge_in(data.credential)
        async with writing(services.engine) as db:
            asked = await _taken(db, challenge, now_ns)
        if asked != "":
            raise _stale()
        user_id, passkey_id, count = await _verified(services, relying, data.credential, challenge, now_ns)
    except Problem:
        async with writing(services.engine) as db:
            await people.record_failure(db, subjects, at_ns=now_ns)
        raise
    async with writing(services.engine) as db:
        # In one step: of two answers with one count, one is let in.
        mine = (passkeys.c.id == passkey_id) & ((passkeys.c.sign_count < count) | (passkeys.c.sign_count == 0))
        if not (await db.execute(update(passkeys).where(mine).values(sign_count=count, last_at_ns=now_ns))).rowcount:
            raise _refused("its count went back")
        return await begin(services, db, user_id, "passkey")


passkey_handlers: list[HTTPRouteHandler] = [list_passkeys, begin_adding, add, remove, begin_signing_in, sign_in]


class Relying(Struct, frozen=True):
    """What a passkey is bound to: a name, and the addresses of pages that may ask for it."""

    id: str
    origins: list[str]


def relying_on(office_url: str) -> Relying | None:
    """None: an address that browsers bind no passkey to. This machine goes by the name of localhost."""
    parts = urlsplit(office_url)
    host, origin = parts.hostname or "", f"{parts.scheme}://{parts.netloc}"
    try:
        address = ip_address(host)
    except ValueError:
        return Relying(host, [origin]) if parts.scheme == "https" or host == "localhost" else None
    if not address.is_loopback:
        return None
    port = f":{parts.port}" if parts.port else ""
    return Relying("localhost", [f"{parts.scheme}://localhost{port}"])


def _relying(services: Services, via: str = "session") -> Relying:
    found = relying_on(services.settings.office_url) if can_passkeys(services.settings.admin) else None
    if found is None:
        todo = "Give `server.public_url` an https name, install farebox[sso], and see admin.passkeys."
        raise Problem(409, "no-passkeys", "passkeys are not to be had at this address", todo)
    if via != "session":
        raise Problem(403, "session-needed", "a token cannot make passkeys", "Sign in first.")
    return found


async def _verified(
    services: Services, relying: Relying, credential: dict[str, Any], challenge: bytes, now_ns: int
) -> tuple[str, str, int]:
    """Returns: whose, which passkey, its new count. Raises: Problem."""
    async with reading(services.engine) as db:
        wanted = select(passkeys).where(passkeys.c.credential_id == _bytes(credential.get("rawId")))
        row = (await db.execute(wanted)).mappings().first()
    if row is None:
        raise _refused("nobody here has it")
    from webauthn import verify_authentication_response
    from webauthn.helpers.exceptions import WebAuthnException

    try:
        handle = (credential.get("response") or {}).get("userHandle")
        if handle and _bytes(handle) != row["user_id"].encode():
            raise ValueError("it is somebody else's")
        # The count is looked at below, so that a copy is told apart from a bad signature.
        found = verify_authentication_response(
            credential=credential,
            expected_challenge=challenge,
            expected_rp_id=relying.id,
            expected_origin=relying.origins,
            credential_public_key=row["public_key"],
            credential_current_sign_count=0,
            require_user_verification=True,
        )
    except (WebAuthnException, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _refused(str(error)) from error
    if row["sign_count"] > 0 and found.new_sign_count <= row["sign_count"]:
        async with writing(services.engine) as db:
            await audit.append(
                db, actor=row["user_id"], action="passkeys.copied", subject=row["id"], at_ns=now_ns,
                before={"count": row["sign_count"]}, after={"count": found.new_sign_count},
                note="The count did not grow: somebody has a copy of this passkey.",
            )  # fmt: skip
        raise _refused("its count did not grow, so there is a copy of it")
    return row["user_id"], row["id"], found.new_sign_count


async def _challenge(db: AsyncConnection, user_id: str | None, now_ns: int) -> bytes:
    table = passkey_challenges
    await db.execute(delete_rows(table).where(table.c.expires_at_ns < now_ns))
    if len((await db.execute(select(table.c.expires_at_ns).limit(_OPEN_MAX))).all()) >= _OPEN_MAX:
        raise Problem(429, "too-many-attempts", "too many sign-ins under way", "Wait a few minutes.", retry_after_s=300)
    challenge = secrets.token_bytes(32)
    row = {"challenge_hash": hashed(challenge.hex()), "user_id": user_id, "expires_at_ns": now_ns + OPEN_NS}
    await db.execute(insert(table).values(row))
    return challenge


async def _taken(db: AsyncConnection, challenge: bytes, now_ns: int) -> str | None:
    """Returns: whom it was for ("" to sign in, whoever it is); None if nobody asked, or it was answered before."""
    table = passkey_challenges
    mine = (table.c.challenge_hash == hashed(challenge.hex())) & (table.c.expires_at_ns > now_ns)
    row = (await db.execute(delete_rows(table).where(mine).returning(table.c.user_id))).first()
    return None if row is None else row.user_id or ""


def _challenge_in(credential: dict[str, Any]) -> bytes:
    try:
        said = msgspec.json.decode(_bytes(credential["response"]["clientDataJSON"]), type=dict[str, Any])
        return _bytes(said["challenge"])
    except (KeyError, TypeError, ValueError, msgspec.DecodeError) as error:
        raise _refused("is no answer of an authenticator") from error


def _bytes(text: object) -> bytes:
    if not isinstance(text, str) or len(text) > 1 << 16:
        raise _refused("is no answer of an authenticator")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError as error:
        raise _refused("is no answer of an authenticator") from error


async def _of(db: AsyncConnection, user_id: str) -> list[Any]:
    mine = select(passkeys).where(passkeys.c.user_id == user_id).order_by(passkeys.c.created_at_ns)
    return list((await db.execute(mine)).mappings())


def _view(row: Any) -> PasskeyView:
    used = None if row["last_at_ns"] is None else stamp(row["last_at_ns"])
    return PasskeyView(row["id"], row["name"], row["synced"], stamp(row["created_at_ns"]), used)


def _stale() -> Problem:
    return Problem(401, "stale", "this was not asked for, or is answered already", "Begin again.")


def _refused(why: str) -> Problem:
    return Problem(
        401, "passkey-refused", f"the passkey was refused: {why[:200]}", "Try again, or sign in another way."
    )
