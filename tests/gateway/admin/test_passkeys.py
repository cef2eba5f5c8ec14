"""Passkeys against an authenticator of our own making, which signs as real ones do and cheats where told to. In a real
browser, with Chromium's authenticator: tests/e2e/dashboard."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from collections.abc import Callable
from typing import Any

import cbor2
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from billing.db import writing
from gateway.admin.auth import people
from gateway.admin.auth.passkeys import OPEN_NS, relying_on
from gateway.admin.auth.roles import Role
from tests.gateway.admin.client import Browser
from tests.gateway.admin.world import World

Opener = Callable[[World], Browser]
ORIGIN = "http://localhost:4000"
PRESENT, VERIFIED, ATTESTED = 0x01, 0x04, 0x40


class Device:
    """One passkey. Source: Web Authentication Level 3, sections 6.1 and 6.5, read 2026-11."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.id = secrets.token_bytes(32)
        self.count, self.origin, self.rp_id, self.flags = 1, ORIGIN, "localhost", PRESENT | VERIFIED
        self.handle: bytes | None = None

    def make(self, options: dict[str, Any]) -> dict[str, Any]:
        numbers = self.key.public_key().public_numbers()
        cose = {1: 2, 3: -7, -1: 1, -2: numbers.x.to_bytes(32, "big"), -3: numbers.y.to_bytes(32, "big")}
        attested = bytes(16) + len(self.id).to_bytes(2, "big") + self.id + cbor2.dumps(cose)
        data = self._data(ATTESTED) + attested
        self.handle = _bytes(options["user"]["id"])
        attestation = cbor2.dumps({"fmt": "none", "attStmt": {}, "authData": data})
        client = self._client("webauthn.create", options)
        told = {"attestationObject": _text(attestation), "clientDataJSON": _text(client), "transports": ["internal"]}
        return self._credential(told)

    def sign(self, options: dict[str, Any]) -> dict[str, Any]:
        self.count += 1
        data, client = self._data(0), self._client("webauthn.get", options)
        mark = self.key.sign(data + hashlib.sha256(client).digest(), ec.ECDSA(hashes.SHA256()))
        told = {"authenticatorData": _text(data), "clientDataJSON": _text(client), "signature": _text(mark)}
        if self.handle is not None:
            told["userHandle"] = _text(self.handle)
        return self._credential(told)

    def _data(self, more: int) -> bytes:
        return hashlib.sha256(self.rp_id.encode()).digest() + bytes([self.flags | more]) + self.count.to_bytes(4, "big")

    def _client(self, kind: str, options: dict[str, Any]) -> bytes:
        return json.dumps({"type": kind, "challenge": options["challenge"], "origin": self.origin}).encode()

    def _credential(self, told: dict[str, Any]) -> dict[str, Any]:
        return {"id": _text(self.id), "rawId": _text(self.id), "type": "public-key", "response": told,
                "clientExtensionResults": {}}  # fmt: skip


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


async def enrolled(browser: Browser, device: Device, name: str = "Laptop") -> dict[str, Any]:
    options = await browser.send("POST", "/auth/passkeys/options")
    made: dict[str, Any] = await browser.send(
        "POST", "/auth/passkeys", {"name": name, "credential": device.make(options)}
    )
    return made


async def tried(browser: Browser, device: Device, options: dict[str, Any] | None = None) -> tuple[int, Any]:
    options = options or (await browser.call("POST", "/auth/passkey/options")).json()
    answer = await browser.call("POST", "/auth/passkey", {"credential": device.sign(options)})
    return answer.status_code, answer.json()


async def test_a_passkey_is_made_signs_in_and_is_removed(made: World, opened: Opener) -> None:
    ann, device = opened(made), Device()
    await ann.sign_in(await made.link(Role.ADMIN, "ann"))
    assert (await ann.get("/auth/ways"))["passkeys"]
    kept = await enrolled(ann, device)
    assert (kept["name"], kept["last_used_at"]) == ("Laptop", None)
    options = await ann.send("POST", "/auth/passkeys/options")
    assert [each["id"] for each in options["excludeCredentials"]] == [_text(device.id)]
    assert (options["rp"]["id"], options["authenticatorSelection"]["userVerification"]) == ("localhost", "required")
    # Discoverable: nobody is named before the device speaks.
    there = opened(made)
    status, session = await tried(there, device)
    assert (status, session["name"], session["role"]) == (200, "ann", "admin")
    there.session = session
    assert (await there.call("POST", "/projects", {"name": "P"})).is_success
    listed = await ann.get("/auth/passkeys")
    assert listed[0]["last_used_at"] is not None
    assert (await opened(made).call("DELETE", f"/auth/passkeys/{kept['id']}")).status_code == 401
    bob = opened(made)
    await bob.sign_in(await made.link(Role.OWNER, "bob"))
    assert (
        await bob.call("DELETE", f"/auth/passkeys/{kept['id']}")
    ).status_code == 404  # One's own alone, owner or not.
    assert (await ann.call("DELETE", f"/auth/passkeys/{kept['id']}")).status_code == 204
    assert (await tried(opened(made), device))[0] == 401
    actions = [row["action"] for row in (await bob.get("/audit"))["items"]]
    assert {"passkeys.add", "passkeys.remove", "session.begin"} <= set(actions)


async def test_a_copy_of_a_passkey_is_found_by_its_count(small: World, opened: Opener) -> None:
    ann, device = opened(small), Device()
    await ann.sign_in(await small.link(Role.OWNER, "ann"))
    await enrolled(ann, device)
    assert (await tried(opened(small), device))[0] == 200
    device.count -= 2  # What a copy that was made a sign-in ago would say next, and after that.
    status, said = await tried(opened(small), device)
    assert (status, "copy" in said["detail"]) == (401, True)
    assert [row["subject"] for row in (await ann.get("/audit", action="passkeys.copied"))["items"]]
    device.count += 5
    assert (await tried(opened(small), device))[0] == 200


async def test_what_is_not_for_us_or_not_of_the_person_is_refused(small: World, opened: Opener) -> None:
    ann, device, other = opened(small), Device(), Device()
    await ann.sign_in(await small.link(Role.OWNER, "ann"))
    await enrolled(ann, device)
    await enrolled(ann, other, "Phone")

    async def refused(**lie: Any) -> None:
        for name, value in lie.items():
            was = getattr(device, name)
            setattr(device, name, value)
            # From another address each time: guessing is counted.
            async with writing(small.engine) as db:
                await db.exec_driver_sql("DELETE FROM sign_in_failures")
            assert (await tried(opened(small), device))[0] == 401, name
            setattr(device, name, was)

    await refused(
        origin="http://evil.test", rp_id="evil.test", flags=PRESENT, key=other.key, id=b"nobody", handle=b"user_x"
    )
    device.flags = VERIFIED
    assert (await tried(opened(small), device))[0] == 401  # Nobody was there.
    device.flags = PRESENT | VERIFIED
    assert (await tried(opened(small), device))[0] == 200


async def test_a_challenge_is_answered_once_in_time_and_by_whom_it_was_for(small: World, opened: Opener) -> None:
    ann, bob, device = opened(small), opened(small), Device()
    await ann.sign_in(await small.link(Role.OWNER, "ann"))
    await bob.sign_in(await small.link(Role.VIEWER, "bob"))
    options = await ann.send("POST", "/auth/passkeys/options")
    credential = device.make(options)
    stolen = await bob.call("POST", "/auth/passkeys", {"name": "n", "credential": credential})
    assert (stolen.status_code, stolen.json()["type"]) == (401, "urn:farebox:problem:stale")
    again = await ann.call("POST", "/auth/passkeys", {"name": "n", "credential": credential})
    assert again.status_code == 401  # Bob's try has used it up.
    await enrolled(ann, device)
    options = (await ann.call("POST", "/auth/passkey/options")).json()
    assert (await tried(opened(small), device, options))[0] == 200
    assert (await tried(opened(small), device, options))[0] == 401
    options = (await ann.call("POST", "/auth/passkey/options")).json()
    small.now_ns += OPEN_NS
    assert (await tried(opened(small), device, options))[0] == 401
    # A challenge for making one is not one for signing in.
    options = await ann.send("POST", "/auth/passkeys/options")
    assert (await tried(opened(small), device, options))[0] == 401
    for junk in ({}, {"rawId": 1, "response": []}, {"response": {"clientDataJSON": "!"}}):
        assert (await opened(small).call("POST", "/auth/passkey", {"credential": junk})).status_code == 401


async def test_a_disabled_person_has_no_passkey_and_a_token_makes_none(small: World, opened: Opener) -> None:
    ann, device = opened(small), Device()
    await ann.sign_in(await small.link(Role.OWNER, "ann"))
    await enrolled(ann, device)
    issued = await ann.send("POST", "/tokens", {"name": "ci", "role": "owner"})
    machine = opened(small)
    machine.http.headers["authorization"] = f"Bearer {issued['secret']}"
    assert (await machine.call("POST", "/auth/passkeys/options")).status_code == 403
    async with writing(small.engine) as db:
        await people.set_disabled(db, ann.session["user_id"], small.now_ns)
    status, said = await tried(opened(small), device)
    assert (status, said["type"]) == (403, "urn:farebox:problem:disabled")


def test_which_addresses_can_have_passkeys() -> None:
    assert relying_on("https://farebox.test/x") is not None
    local = relying_on("http://127.0.0.1:4000")
    assert local is not None
    assert (local.id, local.origins) == ("localhost", ["http://localhost:4000"])
    for bad in ("http://farebox.test", "https://10.0.0.7", "http://10.0.0.7:4000"):
        assert relying_on(bad) is None
