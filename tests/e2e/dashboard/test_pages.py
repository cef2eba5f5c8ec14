"""Every page in both themes: nothing in the console, nothing to strangers, nothing that axe finds, and it fits a phone.

With FAREBOX_SCREENSHOTS=folder each page leaves a picture there."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from playwright.async_api import expect

from gateway.admin.auth.roles import Role
from tests.e2e.dashboard.browser import Scheme, chromium, page
from tests.e2e.dashboard.office import file_name, office, picture, sign_in

SCRIPT_BYTES_MAX = 200_000
"""gzip or brotli, for everything that the first view after signing in has loaded."""

# path: what has to be seen before the page counts as loaded.
PAGES = {
    "overview?period=30d": "Spend by model",
    "usage?period=30d": "Spend by model",
    "usage?period=30d&by=key&metric=tokens&provider=openai": "Tokens by key",
    "usage?provider=nobody": "Nothing matches",
    "usage?from=2026-11-15T00:00:00Z&to=2026-11-16T00:00:00Z": "in steps of an hour",
    "requests?period=30d": "web-production",
    "start": "Point your client here",
    "playground": "Ask something",
    "playground?beside=gpt-5-mini": "Beside it",
    "requests?period=30d&live=1": "Requests show here as they end",
    "keys": "nightly-batch",
    "keys?tab=budgets": "New budget",
    "keys?tab=budgets&budget=project:proj_shop:month": "A day, lately",
    "keys?new=1": "More limits",
    "models": "claude-sonnet-5",
    "models?price=openai/gpt-5-mini": "Set a price from now on",
    "models?add=1": "As in NAME/model",
    "models?limits=openai/gpt-5-mini": "Longer requests are not sent there",
    "routing": "No aliases yet",
    "routing?new=1": "Another deployment",
    "money": "Harbour Books",
    "money?tab=ledger": "Show older",
    "money?tab=ledger&kind=refund": "Nothing matches",
    "money?tab=invoices": "still open",
    "money?tab=invoices&invoice=2026-11/org_1": "Credit left",
    "money?tab=prices": "Compare a price list",
    "money?tab=reconcile": "Hold a bill against our rows",
    "money?do=topup": "A gift: nobody paid for it",
    "alerts": "Nobody is told anything",
    "alerts?new=1": "Once for each crossing",
    "guardrails": "Nothing is looked at",
    "guardrails?edit=new": "What a client is told",
    "engine": "No engine of your own",
    "audit": "Key create",
    "organisation": "No members yet",
    "organisation?tab=teams": "proj_shop",
    "organisation?tab=sign-on": "No SCIM token",
    "organisation?tab=passkeys": "No passkeys",
    "reference": "Signing in",
    "settings": "Your password",
    "settings?tab=people": "Signs in by",
    "settings?tab=tokens": "No tokens",
    "settings?tab=system": "This installation",
    "nowhere": "There is no such page",
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_page_is_quiet_local_and_accessible(scheme: Scheme, sqlite_template: Path, tmp_path: Path) -> None:
    async with (
        chromium() as browser,
        office(sqlite_template, tmp_path) as (made, base),
        page(browser, scheme) as watched,
    ):
        await sign_in(made, base, watched.page)
        wrong = []
        for path, seen in PAGES.items():
            await watched.page.goto(f"{base}/ui/{path}")
            await expect(watched.page.get_by_text(seen).first).to_be_visible()
            await watched.page.wait_for_load_state("networkidle")
            wrong += [f"{path}: {each}" for each in await watched.violations()]
            await picture(watched, file_name(path, scheme))
        # One request, with everything about it.
        await watched.page.goto(f"{base}/ui/requests?period=30d&outcome=completed")
        await watched.page.get_by_role("row", name="web-production").first.click()
        await expect(watched.page.get_by_text("Its way")).to_be_visible()
        wrong += [f"request: {each}" for each in await watched.violations()]
        await picture(watched, file_name("request", scheme))
        assert not wrong
        watched.check()


async def test_the_first_view_is_light_and_everything_fits_a_phone(sqlite_template: Path, tmp_path: Path) -> None:
    async with (
        chromium() as browser,
        office(sqlite_template, tmp_path, 100) as (made, base),
        page(browser, width=390, height=844) as watched,
    ):
        await sign_in(made, base, watched.page)
        await watched.page.wait_for_load_state("networkidle")
        script = sum(watched.script_bytes.values())
        print(f"the first view loads {script:,} bytes of script")
        assert 0 < script < SCRIPT_BYTES_MAX
        wide = []
        for path, seen in PAGES.items():
            await watched.page.goto(f"{base}/ui/{path}")
            await expect(watched.page.get_by_text(seen).first).to_be_attached()
            width = await watched.page.evaluate("document.documentElement.scrollWidth")
            if width > 390:
                wide.append((path, width))
            await picture(watched, file_name(path, "phone"))
        assert not wide
        await watched.page.goto(f"{base}/ui/overview")
        await watched.page.get_by_role("button", name="Navigation").click()
        await watched.page.get_by_role("link", name="Keys").click()
        await expect(watched.page.get_by_role("heading", name="Keys")).to_be_visible()
        watched.check()


async def test_it_works_by_keyboard_and_the_address_keeps_what_is_seen(sqlite_template: Path, tmp_path: Path) -> None:
    async with chromium() as browser, office(sqlite_template, tmp_path, 200) as (made, base), page(browser) as watched:
        visit = watched.page
        await sign_in(made, base, visit)
        await visit.keyboard.press("Control+k")
        await expect(visit.get_by_label("Search pages and commands")).to_be_focused()
        await visit.keyboard.type("usa")
        await visit.keyboard.press("ArrowDown")
        await visit.keyboard.press("Enter")
        await expect(visit.get_by_role("heading", name="Usage")).to_be_visible()
        await visit.get_by_text("30 days").click()
        await visit.get_by_role("button", name="gpt-5-mini", exact=True).click()
        await expect(visit).to_have_url(f"{base}/ui/usage?period=30d&alias=gpt-5-mini&by=key")
        await expect(visit.get_by_text("Spend by key")).to_be_visible()
        async with page(browser) as other:  # The address alone tells somebody else's browser the same.
            await sign_in(made, base, other.page)
            await other.page.goto(visit.url)
            await expect(other.page.get_by_text("Spend by key")).to_be_visible()
            await expect(other.page.get_by_text("Model: gpt-5-mini")).to_be_visible()
        await visit.get_by_role("button", name="Remove the filter Model").click()
        await expect(visit).to_have_url(f"{base}/ui/usage?period=30d&by=key")
        async with visit.expect_download() as saving:
            await visit.get_by_role("link", name="CSV").click()
        saved = await saving.value
        assert saved.suggested_filename == "usage-by-key.csv"
        # A row of the list opens by Enter.
        await visit.goto(f"{base}/ui/requests?period=30d")
        await visit.get_by_role("row", name="web-production").first.focus()
        await visit.keyboard.press("Enter")
        await expect(visit.get_by_role("dialog").get_by_text("Price, line by line")).to_be_visible()
        await visit.keyboard.press("Escape")
        await expect(visit.get_by_role("dialog")).to_have_count(0)
        watched.check()


async def test_a_role_is_offered_what_it_may_do_and_a_signed_out_page_asks_to_sign_in(
    sqlite_template: Path, tmp_path: Path
) -> None:
    async with chromium() as browser, office(sqlite_template, tmp_path, 20) as (made, base), page(browser) as watched:
        visit = watched.page
        await sign_in(made, base, visit, Role.VIEWER)
        for hidden in ("Money", "Audit", "Playground"):
            await expect(visit.get_by_role("link", name=hidden, exact=True)).to_have_count(0)
        await visit.goto(f"{base}/ui/keys?project=proj_shop")
        await expect(visit.get_by_text("web-production")).to_be_visible()
        await expect(visit.get_by_role("button", name="Create key")).to_have_count(0)
        await visit.get_by_role("button", name="Account of").click()
        await visit.get_by_role("menuitem", name="Sign out").click()
        await expect(visit.get_by_role("heading", name="Sign in")).to_be_visible()
        watched.check()
        # A deep link of somebody signed out comes back to itself.
        await visit.goto(f"{base}/ui/keys?project=proj_shop")
        await expect(visit.get_by_role("heading", name="Sign in")).to_be_visible()
        async with contextlib.AsyncExitStack():
            await visit.goto(f"{visit.url}#token={await made.link(Role.VIEWER)}")
            await visit.reload()
        await visit.get_by_role("button", name="Not now").click()
        await expect(visit).to_have_url(f"{base}/ui/keys?project=proj_shop")
