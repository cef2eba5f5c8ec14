"""What is done with one button, in a browser: a deployment's limits, a key's new secret, files that are taken home, a
body that is read; engines side by side; and what an organisation's own administrator is shown."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path

import httpx
import msgspec
import pytest
from msgspec.structs import replace
from playwright.async_api import Page, Route, expect
from sqlalchemy import insert, select

from billing import accounts
from billing.accounts import Budget, BudgetKind, Scope, Window
from billing.db import reading, writing
from billing.schema import usage_records
from gateway import schema
from gateway.admin.auth import memberships, people
from gateway.admin.auth.memberships import Held
from gateway.admin.auth.roles import Role
from gateway.admission.key_admin import KeyChanges
from gateway.bodies.store import of_row
from gateway.catalogue.document import ProviderEntry
from gateway.kept import key_ring
from tests.e2e.dashboard.browser import chromium, page
from tests.e2e.dashboard.office import office, picture, sign_in
from tests.gateway.admin.world import DAY_NS, NOW_NS, USD, World

SAID = "Where is the harbour?"


async def provider(made: World, name: str, base_url: str, *, private: bool = True) -> None:
    entry = ProviderEntry(kind="openai_like", base_url=base_url, allow_private=private)
    await made.services.yard.changes.put("providers", name, entry, actor="ann", now_ns=NOW_NS)
    await made.services.yard.offer.load()


async def log_a_body(made: World) -> str:
    """Of the newest request that went well. Returns: its id."""
    table = usage_records.c
    async with reading(made.engine) as db:
        query = select(table.id).where(table.outcome == "completed").order_by(table.at_ns.desc()).limit(1)
        ident = str((await db.execute(query)).scalar_one())
    body = msgspec.json.encode({"request": {"messages": [SAID]}, "response": {"text": "There."}})
    sealed = key_ring(made.services.settings).seal(body, of_row(ident))
    async with writing(made.engine) as db:
        row = {"request_id": ident, "project_id": "proj_shop", "at_ns": NOW_NS, "expires_at_ns": NOW_NS + DAY_NS}
        await db.execute(insert(schema.body_logs).values(row | msgspec.structs.asdict(sealed)))
    return ident


async def raised_throttle(made: World, key_id: str) -> Budget:
    """On a key, for a day from now on."""
    of = (Scope.KEY, key_id, Window.MONTH)
    more = {"kind": BudgetKind.THROTTLE, "slow_rpm": 5, "slow_from_percent": 80}
    await made.keys.set_budget(*of, 100 * USD, actor="ann", now_ns=NOW_NS, **more)
    await made.keys.raise_budget(*of, 20 * USD, NOW_NS + DAY_NS, actor="ann", now_ns=NOW_NS)
    (budget,) = await budgets_of(made, key_id)
    return budget


async def budgets_of(made: World, key_id: str) -> list[Budget]:
    async with reading(made.engine) as db:
        return await accounts.budgets(db, [key_id])


async def taken_home(visit: Page, role: str, name: str) -> bytes:
    async with visit.expect_download() as saving:
        await visit.get_by_role("link" if role == "link" else "button", name=name, exact=True).click()
    return Path(await (await saving.value).path()).read_bytes()


@pytest.mark.timeout(240)
async def test_what_one_button_does(sqlite_template: Path, tmp_path: Path) -> None:
    async with (
        chromium() as browser,
        office(sqlite_template, tmp_path, 60) as (made, base),
        page(browser) as watched,
    ):
        visit, wrong = watched.page, []
        await provider(made, "openai", "http://127.0.0.1:9/v1")
        ident = await log_a_body(made)
        await sign_in(made, base, visit)

        # A deployment's limits, set and forgotten.
        await visit.goto(f"{base}/ui/models")
        await visit.get_by_role("button", name="Limits of openai/gpt-5-mini").click()
        drawer = visit.get_by_role("dialog", name="Limits of openai/gpt-5-mini")
        await drawer.get_by_label("At once, from each gateway").fill("8")
        await drawer.get_by_label("Longest answer, tokens").fill("2048")
        await drawer.get_by_label("Data stays in").fill("eu")
        wrong += await watched.violations()
        await picture(watched, "deployment-limits")
        await drawer.get_by_role("button", name="Save").click()
        await expect(drawer).to_be_hidden()
        await visit.get_by_role("button", name="Limits of openai/gpt-5-mini").click()
        await expect(drawer.get_by_label("At once, from each gateway")).to_have_value("8")
        document = (await made.services.yard.changes.view()).version.document
        entry = document.deployments["openai/gpt-5-mini"]
        assert (entry.max_parallel, entry.max_output_tokens, entry.residency) == (8, 2048, "eu")
        await drawer.get_by_role("button", name="Forget all this").click()
        await expect(drawer).to_be_hidden()
        assert (await made.services.yard.changes.view()).version.document.deployments == {}

        # A key's new secret, shown once.
        await visit.goto(f"{base}/ui/keys?project=proj_shop")
        await visit.get_by_role("button", name="Actions for web-production").click()
        await visit.get_by_role("menuitem", name="Rotate the secret").click()
        dialog = visit.get_by_role("dialog")
        await dialog.get_by_role("button", name="Rotate", exact=True).click()
        secret = (await dialog.get_by_label("secret", exact=True).inner_text()).strip()
        assert secret.startswith("fbx-")
        await dialog.get_by_role("button", name="Done").click()
        await expect(dialog).to_be_hidden()
        assert secret not in await visit.content()

        # What bounds it, in the form that made it; its share beside other keys.
        await visit.get_by_role("button", name="Actions for web-production").click()
        await visit.get_by_role("menuitem", name="Change limits").click()
        await dialog.get_by_label("Weight").fill("3")
        await dialog.get_by_label("Models").fill("gpt-*")
        await dialog.get_by_label("Models").press("Enter")
        await dialog.get_by_label("Expires").fill("2027-01-31")
        wrong += await watched.violations()
        await picture(watched, "key-limits")
        await dialog.get_by_role("button", name="Save").click()
        await expect(dialog).to_be_hidden()
        await expect(visit.get_by_role("row", name="web-production")).to_contain_text("weight 3 · gpt-*")
        terms = (await made.keys.key(made.key_ids["web-production"])).terms
        assert (terms.weight, terms.models, terms.expires_at_ns) == (3, ("gpt-*",), 1_801_439_999 * 10**9)

        # Bodies: which project, and one request's.
        await visit.goto(f"{base}/ui/guardrails")
        await visit.get_by_role("button", name="Log a project").click()
        await dialog.get_by_label("Project").click()
        await visit.get_by_role("option", name="Shop").click()
        await dialog.get_by_label("Keep each for, days").fill("7")
        wrong += await watched.violations()
        await picture(watched, "body-logs-new")
        await dialog.get_by_role("button", name="Log from now on").click()
        await expect(visit.get_by_role("row", name="Shop")).to_contain_text("7 days")
        await visit.goto(f"{base}/ui/requests?period=30d&id={ident}")
        await visit.get_by_role("button", name="Read the logged bodies").click()
        await expect(visit.get_by_text(SAID)).to_be_visible()
        wrong += await watched.violations()
        await picture(watched, "bodies")

        # What is taken home.
        await visit.goto(f"{base}/ui/usage?period=30d")
        assert b"gpt-5-mini" in await taken_home(visit, "link", "CSV")
        await visit.goto(f"{base}/ui/audit")
        rows = [json.loads(line) for line in (await taken_home(visit, "link", "Export")).splitlines()]
        assert [row["action"] for row in rows[-4:]] == ["key.rotate", "key.update", "bodies.set", "bodies.read"]

        # What is saved as it came stays as it is, whoever changed something else meanwhile.
        await visit.goto(f"{base}/ui/keys?project=proj_shop")
        await visit.get_by_role("button", name="Actions for web-production").click()
        await visit.get_by_role("menuitem", name="Change limits").click()
        await made.keys.update_key(made.key_ids["web-production"], KeyChanges(rpm=77), actor="bob", now_ns=NOW_NS)
        await dialog.get_by_role("button", name="Save").click()
        await expect(dialog).to_be_hidden()
        assert (await made.keys.key(made.key_ids["web-production"])).terms == replace(terms, rpm=77)
        throttle = await raised_throttle(made, made.key_ids["web-production"])
        await visit.goto(f"{base}/ui/keys?project=proj_shop")
        await visit.get_by_role("button", name="Actions for web-production").click()
        await visit.get_by_role("menuitem", name="Set budget").click()
        await dialog.get_by_role("button", name="Save").click()
        await expect(dialog).to_be_hidden()
        assert await budgets_of(made, made.key_ids["web-production"]) == [throttle]
        await visit.goto(f"{base}/ui/keys?tab=budgets")
        await visit.get_by_role("button", name="Actions for the budget of web-production, month").click()
        await visit.get_by_role("menuitem", name="Change", exact=True).click()
        await dialog.get_by_role("button", name="Save").click()
        await expect(dialog).to_be_hidden()
        assert await budgets_of(made, made.key_ids["web-production"]) == [throttle]
        assert rows[-1]["subject"] == ident
        assert not wrong
        watched.check()


async def test_a_change_is_sent_once_and_its_dialog_stays_until_it_is_there(
    sqlite_template: Path, tmp_path: Path
) -> None:
    """However long the answer takes and whatever is pressed meanwhile: else the new secret would be shown to nobody."""
    async with chromium() as browser, office(sqlite_template, tmp_path, 0) as (made, base), page(browser) as watched:
        visit, sent, answered = watched.page, [], asyncio.Event()

        async def slowly(route: Route) -> None:
            sent.append(route.request.url)
            await answered.wait()
            await route.continue_()

        await sign_in(made, base, visit)
        await visit.goto(f"{base}/ui/keys?project=proj_shop")
        await visit.route("**/admin/v1/keys/*/rotate", slowly)
        await visit.get_by_role("button", name="Actions for web-production").click()
        await visit.get_by_role("menuitem", name="Rotate the secret").click()
        dialog = visit.get_by_role("dialog")
        rotate = dialog.get_by_role("button", name="Rotate", exact=True)
        # The gateway may be on this machine: a browser without a network asks all the same.
        await visit.evaluate("dispatchEvent(new Event('offline'))")
        await rotate.evaluate("button => { button.click(); button.click() }")
        await expect(dialog.get_by_role("button", name="Cancel")).to_be_disabled()
        await visit.keyboard.press("Escape")
        answered.set()
        await expect(dialog.get_by_label("secret", exact=True)).to_contain_text("fbx-")
        assert len(sent) == 1
        watched.check()


async def test_a_page_from_before_an_upgrade_loads_itself_anew(sqlite_template: Path, tmp_path: Path) -> None:
    """Its parts have other names in the new version; what is missing for another reason is told, not tried for ever."""
    async with chromium() as browser, office(sqlite_template, tmp_path, 20) as (made, base), page(browser) as watched:
        visit, loads = watched.page, []
        watched.expected = ["/ui/assets/usage-", "Failed to fetch dynamically imported module"]
        visit.on("load", lambda _: loads.append(1))
        await sign_in(made, base, visit)
        before, gone = len(loads), "**/ui/assets/usage-*.js"
        await visit.route(gone, lambda route: route.fulfill(status=404), times=1)
        await visit.get_by_role("link", name="Usage").click()
        await expect(visit.get_by_text("Spend by model").first).to_be_visible()
        async with asyncio.timeout(30):
            while len(loads) == before:  # The new one may show its text before all of it is there.
                await asyncio.sleep(0.05)
        assert len(loads) == before + 1
        await visit.goto(f"{base}/ui/overview")
        await visit.route(gone, lambda route: route.fulfill(status=404))
        await visit.get_by_role("link", name="Usage").click()
        await expect(visit.get_by_text("This page broke.")).to_be_visible()
        watched.check()


METRICS = """# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{model_name="qwen3-8b"} 3.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{model_name="qwen3-8b"} 0.25
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{num_gpu_blocks="4096"} 1.0
# TYPE vllm:prefix_cache_queries counter
vllm:prefix_cache_queries_total{model_name="qwen3-8b"} 1000.0
# TYPE vllm:prefix_cache_hits counter
vllm:prefix_cache_hits_total{model_name="qwen3-8b"} 620.0
"""


def engine(request: httpx.Request) -> httpx.Response:
    if request.url.host == "10.0.0.3":
        raise httpx.ConnectError("nobody is there")
    return httpx.Response(200, text=METRICS)


@pytest.mark.timeout(180)
async def test_engines_stand_side_by_side(sqlite_template: Path, tmp_path: Path) -> None:
    async with (
        httpx.AsyncClient(transport=httpx.MockTransport(engine)) as http,
        chromium() as browser,
        office(sqlite_template, tmp_path, 0) as (made, base),
        page(browser) as watched,
    ):
        made.services = dataclasses.replace(made.services, http=http)
        for number in (1, 2, 3):
            await provider(made, f"gpu-{number}", f"http://10.0.0.{number}:8000/v1")
        visit = watched.page
        await sign_in(made, base, visit, Role.VIEWER)
        await visit.goto(f"{base}/ui/engine")
        await expect(visit.get_by_role("row", name="gpu-1")).to_contain_text("1,024 of 4,096")
        await expect(visit.get_by_role("row", name="gpu-2")).to_contain_text("62%")
        await expect(visit.get_by_role("row", name="gpu-3")).to_contain_text("does not answer")
        await visit.get_by_role("button", name="Engine gpu-3").click()
        await expect(visit).to_have_url(f"{base}/ui/engine?of=gpu-3")
        await expect(visit.get_by_text("gpu-3 does not answer")).to_be_visible()
        await visit.get_by_role("button", name="Engine gpu-2").click()
        await expect(visit.get_by_text("KV blocks in use")).to_be_visible()
        await picture(watched, "engines")
        assert not await watched.violations()
        watched.check()


@pytest.mark.timeout(240)
async def test_whoever_belongs_somewhere_is_offered_nothing_that_is_refused(
    sqlite_template: Path, tmp_path: Path
) -> None:
    """Every page in the navigation of each role in an organisation and in a project: no answer is a refusal."""
    async with chromium() as browser, office(sqlite_template, tmp_path, 40) as (made, base):
        for role, scope, ident in (
            (Role.ADMIN, "organisation", "org_1"),
            (Role.ADMIN, "project", "proj_shop"),
            (Role.DEVELOPER, "project", "proj_shop"),
            (Role.VIEWER, "project", "proj_shop"),
        ):
            async with page(browser) as watched:
                visit, refused = watched.page, []
                visit.on("response", lambda said, to=refused: to.append(said.url) if said.status >= 400 else None)
                async with writing(made.engine) as db:
                    user = await people.create_user(db, f"{role.value}-of-{ident}", Role.MEMBER, at_ns=made.now_ns)
                    held = Held(user.id, scope, ident, memberships.MANUAL, role, None)
                    await memberships.put(db, held, at_ns=made.now_ns)
                    link = await people.issue_link(db, user.id, at_ns=made.now_ns)
                await visit.goto(f"{base}/ui/sign-in#token={link}")
                await visit.get_by_role("button", name="Not now").click()
                places = visit.get_by_role("navigation", name="Main").get_by_role("link")
                await expect(places.first).to_be_visible()
                paths = [await place.get_attribute("href") for place in await places.all()]
                assert ("/ui/audit" in paths) is (role is Role.ADMIN), paths
                for path in paths:
                    await visit.goto(f"{base}{path}")
                    await expect(visit.get_by_role("heading", level=1)).to_be_visible()
                    await expect(visit.get_by_role("status", name="Loading")).to_have_count(0)
                    tabs = visit.get_by_role("tab")
                    for number in range(await tabs.count()):
                        await tabs.nth(number).click()
                        await expect(visit.get_by_role("status", name="Loading")).to_have_count(0)
                    if path == "/ui/audit":
                        whole = scope == "organisation"
                        await expect(visit.get_by_text("Kept by the organisation")).to_have_count(0 if whole else 1)
                if role is Role.VIEWER:  # Nor by an address that somebody else sent them.
                    await visit.goto(f"{base}/ui/money?tab=prices")
                    await expect(visit.get_by_text("Not for your role")).to_be_visible()
                    await visit.goto(f"{base}/ui/settings?tab=tokens")
                    await expect(visit.get_by_role("heading", name="Your password")).to_be_visible()
                    await visit.goto(f"{base}/ui/keys?new=1")
                    await expect(visit.get_by_text("web-production")).to_be_visible()
                    await expect(visit.get_by_role("dialog")).to_have_count(0)
                assert not refused
                watched.check()
