"""What let strangers into other gateways, tried on this one. The OIDC ones are in test_oidc, the IDORs in
test_memberships, which goes through every endpoint."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import select

from billing.db import reading
from gateway import identity, schema
from gateway.admin.auth.guard import COOKIE
from gateway.admin.auth.roles import OPEN
from gateway.admin.routes import HANDLERS
from tests.gateway.admin.client import BASE, Browser
from tests.gateway.admin.world import World

Opener = Callable[[World], Browser]


async def test_a_stolen_hash_is_no_credential(small: World, opened: Opener) -> None:
    """GHSA-69x8 of LiteLLM: whoever had the database could present what it keeps."""
    owner = opened(small)
    link = await small.link()
    await owner.sign_in(link)
    await owner.send("PUT", "/auth/password", {"password": "correct horse battery"})
    await owner.send("POST", "/tokens", {"name": "ci", "role": "owner"})
    await owner.send("POST", "/scim-tokens", {"name": "Entra"})
    async with reading(small.engine) as db:
        kept = [
            value
            for table, column in (
                (schema.admin_tokens, "token_hash"), (schema.admin_sessions, "token_hash"),
                (schema.sign_in_links, "token_hash"), (identity.scim_tokens, "token_hash"),
            )
            for value in (await db.execute(select(table.c[column]))).scalars()
        ]  # fmt: skip
        password = (await db.execute(select(schema.admin_users.c.password_hash))).scalars().first()
    assert len(kept) >= 4
    for value in kept:
        stranger = opened(small)
        stranger.http.headers["authorization"] = f"Bearer {value.hex()}"
        assert (await stranger.call("GET", "/keys")).status_code == 401
        assert (await stranger.http.get(f"{BASE}/scim/v2/Users")).status_code == 401
        assert (await stranger.http.get("/scim/v2/Users")).status_code in (401, 404)
        del stranger.http.headers["authorization"]
        stranger.http.cookies.set(COOKIE, value.hex())
        assert await stranger.get("/auth/session") is None
    name = owner.session["name"]
    refused = await opened(small).call("POST", "/auth/password", {"name": name, "password": password})
    assert refused.status_code == 401


async def test_no_host_header_and_no_dressed_up_path_opens_an_endpoint(small: World, opened: Opener) -> None:
    """CVE-2026-49468 of LiteLLM: what the gate looked at was put together from the Host header."""
    stranger = opened(small)
    for host in ("farebox.test/admin/v1/auth/session?", "farebox.test#", "farebox.test:80/../auth/ways?x="):
        assert (await stranger.call("GET", "/users", host=host)).status_code in (400, 401)
    for path in (
        "/auth/../users",
        "/auth/session/../../users",
        "//users",
        "/users/",
        "/USERS",
        "/%75sers",
        "/users;x=/auth/ways",
    ):
        assert (await stranger.call("GET", path)).status_code in (401, 404), path
    for name in ("x-forwarded-host", "x-original-url", "x-rewrite-url", "x-forwarded-prefix", "x-http-method-override"):
        assert (await stranger.call("GET", "/users", **{name: "/admin/v1/auth/ways"})).status_code == 401


def test_nothing_but_the_ways_in_is_open() -> None:
    """CVE-2026-35029 of LiteLLM: one endpoint that nobody had given a role."""
    assert {handler.name for handler in HANDLERS if handler.name in OPEN} == OPEN
    assert all(name.startswith("session.") for name in OPEN)
