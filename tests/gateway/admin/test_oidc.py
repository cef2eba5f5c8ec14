"""Signing in by a provider of identities, on a real socket: the good way, and every lie that has ever worked."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from msgspec.structs import replace
from sqlalchemy import select

from billing.db import reading, writing
from gateway import identity, schema
from gateway.admin.auth import people
from gateway.admin.auth.guard import COOKIE
from gateway.admin.auth.oidc import DISCOVERY_NS, REFETCH_NS
from gateway.admin.auth.roles import Role
from gateway.admin.auth.sign_on import AWAY_NS
from gateway.admin.scim import store
from gateway.config import ConfigError, Secret, load
from gateway.signing_in import AdminSettings, GrantSettings, OidcSettings, is_safe
from tests.emulators.identity import CLIENT, SECRET, IdentityProvider
from tests.gateway.admin.client import Browser
from tests.gateway.admin.world import World

Opener = Callable[[World], Browser]
GRANTS = (
    GrantSettings(group="farebox-admins", role="admin"),
    GrantSettings(group="shop", role="developer", scope="project", scope_id="proj_shop"),
    GrantSettings(group="shop-leads", role="team_lead", scope="project", scope_id="proj_shop"),
    GrantSettings(group="elsewhere", role="owner", source="other"),
)


@pytest.fixture
async def house(small: World) -> AsyncIterator[IdentityProvider]:
    async with IdentityProvider() as provider:
        provider.now_s = small.now_ns // 10**9
        provider.person["groups"] = ["shop"]
        configure(small, provider)
        yield provider


def configure(made: World, provider: IdentityProvider, *, admin: dict[str, Any] | None = None, **said: Any) -> None:
    one = OidcSettings(**{"name": "house", "issuer": provider.issuer, "client_id": CLIENT,
                          "client_secret": Secret(SECRET, {}), **said})  # fmt: skip
    settings = AdminSettings(**{"oidc": (one,), "grants": GRANTS, **(admin or {})})
    made.services = dataclasses.replace(made.services, settings=replace(made.services.settings, admin=settings))


async def go(browser: Browser, *, onward: str = "/keys") -> str:
    """As far as the provider's answer. Returns: the way back that it names."""
    off = await browser.http.get("/auth/oidc/house/begin", params={"next": onward})
    assert off.status_code == 302, off.text
    async with httpx.AsyncClient() as real:
        back = await real.get(off.headers["location"])
    assert back.status_code == 302, back.text
    return back.headers["location"]


async def sign_in(browser: Browser, *, onward: str = "/keys") -> str:
    """Returns: where one ends up."""
    return await come_back(browser, await go(browser, onward=onward))


async def come_back(browser: Browser, way: str) -> str:
    parts = urlsplit(way)
    assert parts.path == "/admin/v1/auth/oidc/house/callback"
    answer = await browser.http.get(f"{parts.path.removeprefix('/admin/v1')}?{parts.query}")
    assert answer.status_code == 302, answer.text
    found = await browser.get("/auth/session")
    browser.session = found or {}
    return str(answer.headers["location"])


async def test_somebody_new_comes_in_with_what_their_groups_grant(
    small: World, house: IdentityProvider, opened: Opener
) -> None:
    browser = opened(small)
    ways = await browser.get("/auth/ways")
    assert ways == {"passwords": True, "passkeys": True, "providers": [{"name": "house", "label": "house"}]}
    assert await sign_in(browser) == "/ui/keys"
    session = browser.session
    assert (session["name"], session["role"], session["has_password"]) == ("ann@house.test", "member", False)
    assert session["memberships"] == [{"scope": "project", "scope_id": "proj_shop", "role": "developer"}]
    assert (await browser.call("POST", "/keys", {"project_id": "proj_shop", "name": "k"})).is_success
    # Groups are looked at anew with each sign-in: promoted, moved, and out.
    house.person["groups"] = ["shop", "shop-leads"]
    await sign_in(browser)
    assert [each["role"] for each in browser.session["memberships"]] == ["team_lead"]
    house.person["groups"] = "farebox-admins"  # A provider may say one as text.
    await sign_in(browser)
    assert (browser.session["role"], browser.session["memberships"]) == ("admin", [])
    house.person["groups"] = ["elsewhere"]
    stranger = opened(small)
    assert await sign_in(stranger) == "/ui/sign-in?problem=not-admitted"
    found = await browser.get("/auth/session")
    assert (found["role"], found["memberships"]) == ("member", [])  # A session that is still open holds nothing either.
    async with reading(small.engine) as db:
        actions = (await db.execute(select(schema.audit.c.action, schema.audit.c.actor))).all()
        persons = (await db.execute(select(identity.identities))).mappings().all()
    assert [action for action, actor in actions if actor == "oidc:house"] == ["users.create", *["users.grants"] * 4]
    assert [(each["subject"], each["user_id"]) for each in persons] == [("subject-1", session["user_id"])]


async def test_two_people_are_two_whatever_their_tokens_begin_with(
    small: World, house: IdentityProvider, opened: Opener
) -> None:
    """LiteLLM kept userinfo under the first 20 characters of a token (CVE-2026-35030): the next one was the first."""
    house.in_token = False
    seen = []
    for subject in ("a", "b"):
        house.person = {"sub": subject, "email": f"{subject}@house.test", "email_verified": True, "groups": ["shop"]}
        browser = opened(small)
        await sign_in(browser)
        seen.append((browser.session["name"], browser.session["memberships"][0]["role"]))
    assert seen == [("a@house.test", "developer"), ("b@house.test", "developer")]
    house.userinfo_lies = {"sub": "a"}
    assert await sign_in(opened(small)) == "/ui/sign-in?problem=bad-token"


async def test_what_the_provider_did_not_sign_is_nobody(small: World, house: IdentityProvider, opened: Opener) -> None:
    browser = opened(small)
    for forge in ("none", "hs256", "stranger", "broken"):
        house.forge = forge
        assert await sign_in(browser) == "/ui/sign-in?problem=bad-token", forge
        assert not browser.session
        assert COOKIE not in browser.http.cookies
    async with reading(small.engine) as db:
        assert (await db.execute(select(identity.identities))).first() is None


LIES: list[dict[str, Any]] = [
    {"iss": "https://evil.test"},
    {"iss": None},
    {"aud": "another client"},
    {"aud": [CLIENT, "another client"]},  # Two, and no word for whom.
    {"aud": CLIENT, "azp": "another client"},
    {"aud": None},
    {"nonce": "of another sign-in"},
    {"nonce": None},
    {"exp": 1},
    {"exp": None},
    {"exp": "tomorrow"},
    {"iat": 2**40},
    {"nbf": 2**40},
    {"sub": ""},
    {"sub": 7},
]


async def test_a_token_for_somebody_else_or_another_time_is_refused(
    small: World, house: IdentityProvider, opened: Opener
) -> None:
    browser = opened(small)
    for lie in LIES:
        house.lies = lie
        assert await sign_in(browser) == "/ui/sign-in?problem=bad-token", lie
        assert not browser.session


async def test_a_state_comes_back_once_and_to_the_browser_that_began(
    small: World, house: IdentityProvider, opened: Opener
) -> None:
    browser, thief = opened(small), opened(small)
    way = await go(browser)
    # Somebody else's browser with our state (a forged sign-in), then nobody's state, then ours, then ours again.
    assert await come_back(thief, way) == "/ui/sign-in?problem=stale"
    assert await come_back(browser, way.replace("state=", "state=x")) == "/ui/sign-in?problem=stale"
    assert await come_back(browser, way) == "/ui/keys"
    await browser.call("DELETE", "/auth/session")
    assert await come_back(browser, way) == "/ui/sign-in?problem=stale"
    assert not browser.session
    late = await go(browser)
    small.now_ns += AWAY_NS
    assert await come_back(browser, late) == "/ui/sign-in?problem=stale"


async def test_an_answer_of_another_issuer_is_not_taken_for_ours(
    small: World, house: IdentityProvider, opened: Opener
) -> None:
    browser = opened(small)
    way = await go(browser)
    mixed = way.partition("&iss=")[0] + "&iss=https%3A%2F%2Fevil.test"
    assert await come_back(browser, mixed) == "/ui/sign-in?problem=bad-token"


async def test_a_code_is_of_use_to_nobody_without_the_verifier(
    small: World, house: IdentityProvider, opened: Opener
) -> None:
    one, two = opened(small), opened(small)
    stolen, own = await go(one), await go(two)
    code = parse_qs(urlsplit(stolen).query)["code"][0]
    injected = own.replace(parse_qs(urlsplit(own).query)["code"][0], code)
    assert await come_back(two, injected) == "/ui/sign-in?problem=refused"


async def test_keys_may_change_under_way(small: World, house: IdentityProvider, opened: Opener) -> None:
    await sign_in(opened(small))
    await sign_in(opened(small))
    assert house.fetched_keys == 1
    small.now_ns += REFETCH_NS
    house.rotate(keep=True)
    assert await sign_in(opened(small)) == "/ui/keys"
    assert house.fetched_keys == 2
    # A flood of unknown keys is not passed on.
    house.keys[0] = type(house.keys[0]).generate_key(parameters={"kid": "unpublished-yet", "use": "sig"})
    for _ in range(3):
        assert await sign_in(opened(small)) == "/ui/sign-in?problem=bad-token"
    assert house.fetched_keys == 2
    # One that is published no more ends with our memory of it.
    small.now_ns += DISCOVERY_NS
    house.now_s = small.now_ns // 10**9
    assert await sign_in(opened(small)) == "/ui/keys"


async def test_a_provider_that_is_away_or_wrong_is_told_on_a_page(
    small: World, house: IdentityProvider, opened: Opener
) -> None:
    browser = opened(small)
    way = await go(browser)
    house.away = True
    assert await come_back(browser, way) == "/ui/sign-in?problem=away"
    configure(small, house)  # Nothing in memory.
    off = await browser.http.get("/auth/oidc/house/begin")
    assert (off.status_code, off.headers["location"]) == (302, "/ui/sign-in?problem=away")
    house.away, house.issuer_said = False, "https://evil.test"
    off = await browser.http.get("/auth/oidc/house/begin")
    assert off.headers["location"] == "/ui/sign-in?problem=misconfigured"
    house.issuer_said = None
    configure(small, house, client_secret=Secret("another", {}))
    assert await sign_in(browser) == "/ui/sign-in?problem=misconfigured"
    nobody = await browser.http.get("/auth/oidc/nobody/begin")
    assert nobody.headers["location"] == "/ui/sign-in?problem=unknown-provider"
    configure(small, house, issuer="http://127.0.0.1:9/none")
    off = await browser.http.get("/auth/oidc/house/begin")
    assert off.headers["location"] == "/ui/sign-in?problem=away"


async def test_a_person_who_declines_is_told_so(small: World, house: IdentityProvider, opened: Opener) -> None:
    browser = opened(small)
    state = parse_qs(urlsplit(await go(browser)).query)["state"][0]
    way = f"http://x/admin/v1/auth/oidc/house/callback?error=access_denied&state={state}"
    assert await come_back(browser, way) == "/ui/sign-in?problem=denied"


async def test_nobody_is_sent_on_to_another_host(small: World, house: IdentityProvider, opened: Opener) -> None:
    browser = opened(small)
    for onward in ("//evil.test", "https://evil.test", "/\\evil.test", "/a\r\nx: y", "evil", "/" + "a" * 600):
        assert await sign_in(browser, onward=onward) == "/ui/", onward


async def test_only_verified_addresses_of_the_domains_get_in(
    small: World, house: IdentityProvider, opened: Opener
) -> None:
    configure(small, house, domains=("House.test",))
    assert await sign_in(opened(small)) == "/ui/keys"
    for email, verified in (
        ("ann@evil.test", True), ("ann@house.test", False), ("ann@house.test.evil.test", True),
        ("a@b@house.test", True), (None, True), ("ann@evilhouse.test", True),
    ):  # fmt: skip
        house.person |= {"sub": f"s-{email}", "email": email, "email_verified": verified}
        assert await sign_in(opened(small)) == "/ui/sign-in?problem=not-admitted", email
    # Also whoever was let in before the list was.
    house.person |= {"sub": "subject-1", "email": "ann@evil.test", "email_verified": True}
    assert await sign_in(opened(small)) == "/ui/sign-in?problem=not-admitted"


async def test_an_address_alone_takes_nobodys_place(small: World, house: IdentityProvider, opened: Opener) -> None:
    """The local owner has the address as name; the provider says somebody has it. That is not enough to be owner."""
    async with writing(small.engine) as db:
        owner = await people.create_user(db, "ann@house.test", Role.OWNER, at_ns=small.now_ns)
    browser = opened(small)
    assert await sign_in(browser) == "/ui/keys"
    assert browser.session["user_id"] != owner.id
    assert browser.session["role"] == "member"
    # Trusted so far, it is; but no second subject takes the same person, and an unverified address none at all.
    configure(small, house, match="email")
    house.person |= {"sub": "subject-2"}
    matched = opened(small)
    await sign_in(matched)
    assert (matched.session["user_id"], matched.session["role"]) == (owner.id, "owner")
    house.person |= {"sub": "subject-3"}
    assert await sign_in(opened(small)) == "/ui/sign-in?problem=not-known"
    house.person |= {"sub": "subject-4", "email_verified": False}
    other = opened(small)
    await sign_in(other)
    assert other.session["user_id"] != owner.id


async def test_who_was_provisioned_signs_in_as_the_same_person(
    small: World, house: IdentityProvider, opened: Opener
) -> None:
    configure(small, house, create=False)
    async with store.changing(small.engine, small.services.settings.admin, "scim (test)", small.now_ns) as change:
        ann = await store.create_user(change, {"userName": "Ann@House.test"})
    browser = opened(small)
    await sign_in(browser)
    assert (browser.session["user_id"], browser.session["name"]) == (ann.id, "Ann@House.test")


async def test_who_is_not_known_is_made_only_where_that_is_wished(
    small: World, house: IdentityProvider, opened: Opener
) -> None:
    configure(small, house, create=False)
    assert await sign_in(opened(small)) == "/ui/sign-in?problem=not-known"
    configure(small, house)
    known = opened(small)
    await sign_in(known)
    configure(small, house, create=False)
    assert await sign_in(opened(small)) == "/ui/keys"
    async with writing(small.engine) as db:
        await people.set_disabled(db, known.session["user_id"], small.now_ns)
    assert await sign_in(opened(small)) == "/ui/sign-in?problem=disabled"
    configure(small, house, default_role="viewer")
    house.person |= {"sub": "s-9", "email": "eve@house.test", "groups": []}
    guest = opened(small)
    await sign_in(guest)
    assert guest.session["role"] == "viewer"


async def test_signing_out_here_signs_out_there(small: World, house: IdentityProvider, opened: Opener) -> None:
    browser = opened(small)
    await sign_in(browser)
    url = (await browser.send("DELETE", "/auth/session"))["url"]
    query = parse_qs(urlsplit(url).query)
    assert url.startswith(f"{house.issuer}/logout?")
    assert query["id_token_hint"][0].count(".") == 2
    assert query["post_logout_redirect_uri"] == [f"{small.services.settings.office_url}/ui/sign-in"]
    async with reading(small.engine) as db:
        assert (await db.execute(select(identity.session_origins))).first() is None
    local = opened(small)
    await local.sign_in(await small.link())
    assert await local.send("DELETE", "/auth/session") == {"url": None}


async def test_a_session_ends_with_the_providers_hours(small: World, house: IdentityProvider, opened: Opener) -> None:
    configure(small, house, session_hours=2)
    browser = opened(small)
    await sign_in(browser)
    small.now_ns += 2 * 3_600 * 10**9
    assert await browser.get("/auth/session") is None


async def test_passwords_can_be_switched_off(small: World, house: IdentityProvider, opened: Opener) -> None:
    configure(small, house, admin={"passwords": False})
    browser = opened(small)
    assert not (await browser.get("/auth/ways"))["passwords"]
    refused = await browser.call("POST", "/auth/password", {"name": "ann", "password": "correct horse battery"})
    assert (refused.status_code, refused.json()["type"]) == (403, "urn:farebox:problem:passwords-off")


async def test_secrets_of_the_client_travel_as_the_provider_wants_them(
    small: World, house: IdentityProvider, opened: Opener
) -> None:
    house.basic = False
    assert await sign_in(opened(small)) == "/ui/keys"
    assert "authorization" not in next(r for r in house.requests if r.path.endswith("/token")).headers
    public = IdentityProvider(client_id=CLIENT, client_secret=None)
    public.now_s = house.now_s
    public.person = house.person
    async with public:
        configure(small, public, client_secret=None)
        assert (await sign_in(opened(small))) == "/ui/keys"


def test_settings_that_cannot_be_are_refused(tmp_path: Any) -> None:
    good = '[[admin.oidc]]\nname = "house"\nissuer = "https://id.test"\nclient_id = "c"\nclient_secret = "env:NONE"\n'
    for more, path in (
        ("", None),
        (good, "admin.oidc[1].name"),
        ('[[admin.oidc]]\nname = "b"\nissuer = "http://id.test"\nclient_id = "c"\n', "admin.oidc[1].issuer"),
        ('[[admin.grants]]\ngroup = "g"\nrole = "viewer"\nscope = "team"\n', "admin.grants[0].scope_id"),
        ('[[admin.grants]]\ngroup = "g"\nrole = "viewer"\nsource = "hous"\n', "admin.grants[0].source"),
    ):
        file = tmp_path / "farebox.toml"
        file.write_text(good + more)
        if path is None:
            settings = load(file, environ={})
            assert "hidden" in repr(settings.admin.oidc[0]) or "env:NONE" in repr(settings.admin.oidc[0])
            assert [error.path for error in settings.missing_secrets()] == ["admin.oidc.house.client_secret"]
            continue
        with pytest.raises(ConfigError) as refused:
            load(file, environ={})
        assert refused.value.path == path
    assert not any(
        is_safe(url) for url in ("http://127.0.0.1.evil.test", "ftp://x", "https://", "http://localhost@evil.test")
    )
    assert all(is_safe(url) for url in ("http://[::1]:80/x", "http://127.0.0.1:9", "https://id.test/realm"))
