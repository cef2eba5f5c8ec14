"""The Organisation page in both themes, and two ways in that a browser has to take part in: a passkey of Chromium's own
authenticator, and a provider of identities on a real socket."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from msgspec.structs import replace
from playwright.async_api import expect

from billing import accounts
from billing.db import writing
from gateway.admin.auth.roles import Role
from gateway.config import Secret
from gateway.signing_in import AdminSettings, GrantSettings, OidcSettings
from tests.e2e.dashboard.browser import Scheme, chromium, page
from tests.e2e.dashboard.office import office, picture, sign_in
from tests.emulators.identity import CLIENT, SECRET, IdentityProvider
from tests.gateway.admin.world import World


def at(made: World, base: str, admin: AdminSettings) -> None:
    """The installation as it is told its own address, and who signs in how."""
    settings = made.services.settings
    server = replace(settings.server, port=int(base.rpartition(":")[2]))
    made.services = dataclasses.replace(made.services, settings=replace(settings, server=server, admin=admin))


def house(issuer: str, **said: object) -> AdminSettings:
    one = OidcSettings(name="house", label="Harbour House", issuer=issuer, client_id=CLIENT,
                       client_secret=Secret(SECRET, {}), **said)  # type: ignore[arg-type]  # fmt: skip
    shop = GrantSettings(group="shop", role="developer", scope="project", scope_id="proj_shop")
    return AdminSettings(oidc=(one,), grants=(shop,))


@pytest.mark.timeout(240)
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_page_is_accessible_empty_and_full(scheme: Scheme, sqlite_template: Path, tmp_path: Path) -> None:
    async with (
        chromium() as browser,
        office(sqlite_template, tmp_path, 0) as (made, base),
        page(browser, scheme) as watched,
    ):
        visit, wrong = watched.page, []
        await sign_in(made, base, visit)
        for tab, empty in (("", "No members yet"), ("?tab=sign-on", "No provider of identities"),
                           ("?tab=passkeys", "No passkeys"), ("?tab=teams", "Teams & projects")):  # fmt: skip
            await visit.goto(f"{base}/ui/organisation{tab}")
            await expect(visit.get_by_text(empty).first).to_be_visible()
            wrong += [f"empty {tab}: {each}" for each in await watched.violations()]
        async with writing(made.engine) as db:
            await accounts.create_team(db, "team_a", "org_1", "Storefront", at_ns=made.now_ns)
        at(made, base, house("https://id.harbour.test/realms/house"))
        # A member, by hand: the link is shown once.
        await visit.goto(f"{base}/ui/organisation")
        await visit.get_by_role("button", name="Add member").first.click()
        await visit.get_by_role("textbox", name="Name").fill("ann@harbour.test")
        await visit.get_by_role("combobox", name="Role").click()
        await visit.get_by_role("option", name="Developer").click()
        wrong += [f"adding: {each}" for each in await watched.violations()]
        await visit.get_by_role("dialog").get_by_role("button", name="Add").click()
        await expect(visit.get_by_text("#token=")).to_be_visible()
        await visit.get_by_role("button", name="Done").click()
        row = visit.get_by_role("row", name="ann@harbour.test")
        await expect(row).to_contain_text("Harbour Books")
        await row.get_by_role("combobox", name="Role of ann@harbour.test").click()
        await visit.get_by_role("option", name="Team lead").click()
        await expect(row.get_by_role("combobox", name="Role of ann@harbour.test")).to_have_value("Team lead")
        wrong += [f"members: {each}" for each in await watched.violations()]
        await picture(watched, f"organisation-members-{scheme}")
        # A project joins a team.
        await visit.get_by_role("tab", name="Teams & projects").click()
        await visit.get_by_role("combobox", name="Team of Shop").click()
        await visit.get_by_role("option", name="Storefront").click()
        await expect(visit.get_by_role("combobox", name="Team of Shop")).to_have_value("Storefront")
        wrong += [f"teams: {each}" for each in await watched.violations()]
        await picture(watched, f"organisation-teams-{scheme}")
        # A SCIM token, shown once.
        await visit.get_by_role("tab", name="Sign-on & SCIM").click()
        await expect(visit.get_by_text("Harbour House")).to_be_visible()
        await visit.get_by_role("button", name="Create SCIM token").click()
        await visit.get_by_role("textbox", name="Name").fill("Entra")
        await visit.get_by_role("dialog").get_by_role("button", name="Create").click()
        await expect(visit.get_by_text("fbs-").first).to_be_visible()
        await visit.get_by_role("button", name="Done").click()
        await expect(visit.get_by_role("row", name="Entra")).to_contain_text("never")
        wrong += [f"sign-on: {each}" for each in await watched.violations()]
        await picture(watched, f"organisation-sign-on-{scheme}")
        # The way in, with what it offers and what went wrong.
        await visit.context.clear_cookies()
        await visit.goto(f"{base}/ui/sign-in?problem=away")
        await expect(visit.get_by_text("The sign-on provider does not answer.")).to_be_visible()
        await expect(visit.get_by_role("link", name="Sign in with Harbour House")).to_be_visible()
        wrong += [f"sign-in: {each}" for each in await watched.violations()]
        await picture(watched, f"sign-in-{scheme}")
        assert not wrong
        watched.check()


async def test_a_passkey_is_made_and_signs_in(sqlite_template: Path, tmp_path: Path) -> None:
    async with chromium() as browser, office(sqlite_template, tmp_path, 0) as (made, base), page(browser) as watched:
        visit, local = watched.page, base.replace("127.0.0.1", "localhost")
        at(made, base, AdminSettings())
        devices = await visit.context.new_cdp_session(visit)
        await devices.send("WebAuthn.enable")
        device = {"protocol": "ctap2", "transport": "internal", "hasResidentKey": True, "hasUserVerification": True,
                  "isUserVerified": True, "automaticPresenceSimulation": True}  # fmt: skip
        added = await devices.send("WebAuthn.addVirtualAuthenticator", {"options": device})
        await sign_in(made, local, visit)
        await visit.goto(f"{local}/ui/organisation?tab=passkeys")
        await visit.get_by_role("button", name="Add passkey").click()
        await visit.get_by_role("textbox", name="Name").fill("Laptop")
        await visit.get_by_role("button", name="Make passkey").click()
        await expect(visit.get_by_role("row", name="Laptop")).to_contain_text("never")
        await visit.get_by_role("button", name="Account of").click()
        await visit.get_by_role("menuitem", name="Sign out").click()
        await visit.get_by_role("button", name="Sign in with a passkey").click()
        await expect(visit.get_by_role("heading", name="Organisation")).to_be_visible()
        kept = await devices.send("WebAuthn.getCredentials", {"authenticatorId": added["authenticatorId"]})
        assert [each["signCount"] > 1 for each in kept["credentials"]] == [True]
        await visit.get_by_role("button", name="Remove Laptop").click()
        await expect(visit.get_by_text("No passkeys")).to_be_visible()
        # The device still has it, and it opens nothing.
        await visit.context.clear_cookies()
        await visit.goto(f"{local}/ui/sign-in")
        await visit.get_by_role("button", name="Sign in with a passkey").click()
        await expect(visit.get_by_text("the passkey was refused")).to_be_visible()


async def test_a_provider_brings_one_in_and_takes_one_out(sqlite_template: Path, tmp_path: Path) -> None:
    async with (
        IdentityProvider() as provider,
        chromium() as browser,
        office(sqlite_template, tmp_path, 0) as (made, base),
        page(browser) as watched,
    ):
        visit = watched.page
        provider.now_s = made.now_ns // 10**9
        provider.person["groups"] = ["shop"]
        at(made, base, house(provider.issuer))
        await visit.goto(f"{base}/ui/keys")
        await visit.get_by_role("link", name="Sign in with Harbour House").click()
        await expect(visit.get_by_role("heading", name="Keys")).to_be_visible()
        await expect(visit.get_by_text("web-production")).to_be_visible()
        await expect(visit.get_by_text("nightly-batch")).to_have_count(0)  # Another project's.
        await expect(visit.get_by_role("link", name="Money")).to_have_count(0)
        await visit.get_by_role("button", name="Account of ann@house.test").click()
        await visit.get_by_role("menuitem", name="Sign out").click()
        await visit.wait_for_url(f"{provider.issuer}/logout?**")
        # Back again, when the provider is away: a page, and the other ways in.
        provider.away = True
        at(made, base, house(provider.issuer))
        await visit.goto(f"{base}/ui/sign-in")
        await visit.get_by_role("link", name="Sign in with Harbour House").click()
        await expect(visit.get_by_text("The sign-on provider does not answer.")).to_be_visible()
        await expect(visit.get_by_role("textbox", name="Name")).to_be_visible()
        async with page(browser) as other:
            await sign_in(made, base, other.page, Role.VIEWER)
