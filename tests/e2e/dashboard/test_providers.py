"""Adding a provider in the browser: an emulated Bedrock, tried first wrongly, then rightly, changed and removed; and an
alias, previewed, saved, removed and brought back."""

from __future__ import annotations

import datetime
from decimal import Decimal
from pathlib import Path

import pytest
from playwright.async_api import expect

from gateway.admission.principal import ProjectRouting
from gateway.admission.project_routing import ProjectRoutings
from gateway.catalogue.document import AliasEntry, DeploymentEntry, ProviderEntry, Target
from gateway.config import PriceSettings
from gateway.offered import SimilarSettings
from tests.e2e.dashboard.browser import Scheme, chromium, page
from tests.e2e.dashboard.office import office, picture, sign_in
from tests.emulators.bedrock import ACCESS_KEY_ID, MODELS, SECRET_ACCESS_KEY, BedrockEmulator
from tests.gateway.admin.world import NOW_NS


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_an_operator_adds_a_bedrock(scheme: Scheme, sqlite_template: Path, tmp_path: Path) -> None:
    async with (
        BedrockEmulator() as bedrock,
        chromium() as browser,
        office(sqlite_template, tmp_path, 0) as (made, base),
        page(browser, scheme) as watched,
    ):
        visit, wrong = watched.page, []
        await sign_in(made, base, visit)
        await visit.goto(f"{base}/ui/models")
        await visit.get_by_role("button", name="Add provider").click()
        form = visit.get_by_role("dialog", name="Add provider")
        await form.get_by_label("Kind").click()
        await visit.get_by_role("option", name="AWS Bedrock", exact=True).click()
        await form.get_by_label("Name").fill("east")
        await form.get_by_label("Region").fill("us-east-1")
        await form.get_by_label("Endpoint").fill(bedrock.url)
        await form.get_by_label("Access key ID").fill(ACCESS_KEY_ID)
        await form.get_by_label("Secret access key").fill("wrong")
        await form.get_by_role("button", name="Test").click()
        await expect(form.get_by_text("leads into a private network")).to_be_visible()
        await form.get_by_label("Allow private addresses").check()
        await form.get_by_role("button", name="Test").click()
        await expect(form.get_by_text("refuses the credential")).to_be_visible()
        wrong += await watched.violations()
        await picture(watched, f"provider-add-{scheme}")
        await form.get_by_label("Secret access key").fill(SECRET_ACCESS_KEY)
        await form.get_by_role("button", name="Test").click()
        await expect(form.get_by_text("It knows us")).to_be_visible()
        await form.get_by_role("button", name="Add provider").click()
        await expect(visit.get_by_role("button", name="Provider east")).to_be_visible()
        await visit.get_by_role("button", name="Provider east").click()
        await visit.get_by_role("button", name="Test east").click()
        await expect(visit.get_by_text("It works")).to_be_visible()
        await visit.get_by_role("button", name="List its models").click()
        await expect(visit.get_by_role("cell", name=MODELS[1], exact=True)).to_be_visible()
        wrong += await watched.violations()
        await picture(watched, f"provider-{scheme}")
        await visit.get_by_role("button", name="Change").click()
        change = visit.get_by_role("dialog", name="Change east")
        await change.get_by_label("Region").fill("eu-west-1")  # The secret is left as it is.
        await change.get_by_role("button", name="Save").click()
        await expect(change).to_be_hidden()
        await expect(visit.get_by_text("eu-west-1").first).to_be_visible()
        await visit.get_by_role("button", name="Remove", exact=True).click()
        await visit.get_by_role("button", name="Remove provider").click()
        await expect(visit.get_by_role("button", name="Provider east")).to_be_hidden()
        assert SECRET_ACCESS_KEY not in await visit.content()
        assert not wrong
        watched.check()
    assert (await made.services.yard.changes.view()).version.document.providers == {}


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_an_alias_is_edited_with_its_plan_in_view(scheme: Scheme, sqlite_template: Path, tmp_path: Path) -> None:
    async with (
        chromium() as browser,
        office(sqlite_template, tmp_path, 0) as (made, base),
        page(browser, scheme) as watched,
    ):
        visit, wrong = watched.page, []
        for name, price in (("north", "1"), ("south", "2")):
            where = ProviderEntry(kind="openai_like", base_url="http://127.0.0.1:9/v1", allow_private=True)
            cost = PriceSettings(input=Decimal(price), output=Decimal(price))
            place = DeploymentEntry(provider=name, model="m1", price=cost)
            await made.services.yard.changes.put("providers", name, where, actor="ann", now_ns=NOW_NS)
            await made.services.yard.changes.put("deployments", f"{name}/m1", place, actor="ann", now_ns=NOW_NS)
        await made.services.yard.offer.load()
        await sign_in(made, base, visit)
        await visit.goto(f"{base}/ui/routing")
        await expect(visit.get_by_text("No aliases yet")).to_be_visible()
        await visit.get_by_role("button", name="New alias").click()
        editor = visit.get_by_role("dialog", name="New alias")
        await editor.get_by_label("Alias").fill("fast")
        await editor.get_by_label("Strategy").click()
        await visit.get_by_role("option", name="Cheapest").click()
        await editor.get_by_label("Deployment 1").fill("south/m1")
        await editor.get_by_role("button", name="Another deployment").click()
        await editor.get_by_label("Deployment 2").fill("north/m1")
        await visit.keyboard.press("Tab")
        await editor.get_by_role("button", name="Preview").click()
        await expect(editor.get_by_role("row", name="north/m1").first).to_contain_text("1")
        wrong += await watched.violations()
        await picture(watched, f"routing-edit-{scheme}")
        await editor.get_by_role("button", name="Save alias").click()
        await expect(editor).to_be_hidden()
        await expect(visit.get_by_text("Cheapest")).to_be_visible()
        await expect(visit.get_by_text("aliases.put fast")).to_be_visible()
        wrong += await watched.violations()
        await picture(watched, f"routing-{scheme}")
        # Changed by somebody else while the form is open: the page hears of it, and does not overwrite it.
        await visit.get_by_role("button", name="Open fast").click()
        other = AliasEntry(targets=(Target(deployment="north/m1"),))
        await made.services.yard.changes.put("aliases", "fast", other, actor="bob", now_ns=NOW_NS)
        await made.services.yard.offer.load()
        await visit.clock.set_fixed_time(datetime.datetime.fromtimestamp(NOW_NS // 10**9 + 60, datetime.UTC))
        async with visit.expect_response("**/admin/v1/aliases"):
            await visit.evaluate("document.dispatchEvent(new Event('visibilitychange', { bubbles: true }))")
        watched.expected = ["412"]
        await visit.get_by_role("button", name="Save alias").click()
        await expect(visit.get_by_role("dialog").get_by_role("alert")).to_be_visible()
        assert (await made.services.yard.changes.view()).version.document.aliases["fast"] == other
        await visit.get_by_role("button", name="Remove alias").click()
        await expect(visit.get_by_text("No aliases yet")).to_be_visible()
        await visit.get_by_role("button", name="Bring version 5 back").click()
        await expect(visit.get_by_role("button", name="Open fast")).to_be_visible()
        assert not wrong
        watched.check()


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_what_auto_keeps_and_who_joins_is_said_in_forms(
    scheme: Scheme, sqlite_template: Path, tmp_path: Path
) -> None:
    async with (
        chromium() as browser,
        office(sqlite_template, tmp_path, 0) as (made, base),
        page(browser, scheme) as watched,
    ):
        visit, wrong = watched.page, []
        await sign_in(made, base, visit)
        await visit.goto(f"{base}/ui/models")
        await visit.get_by_role("button", name="Add provider").click()
        form = visit.get_by_role("dialog", name="Add provider")
        await form.get_by_label("Kind").click()
        await visit.get_by_role("option", name="OpenAI-compatible (vLLM").click()
        await form.get_by_label("Name").fill("own")
        await form.get_by_label("Engines join by themselves").check()
        await expect(form.get_by_label("Endpoint")).to_be_hidden()
        await form.get_by_label("API key", exact=True).fill("sk-own")
        await form.get_by_label("Probe every (seconds)").fill("10")
        wrong += await watched.violations()
        await picture(watched, f"provider-replicas-{scheme}")
        await form.get_by_role("button", name="Add provider").click()
        await expect(form).to_be_hidden()

        await visit.goto(f"{base}/ui/routing?new=1")
        editor = visit.get_by_role("dialog", name="New alias")
        await editor.get_by_label("Alias").fill("help")
        await editor.get_by_label("Strategy").click()
        await visit.get_by_role("option", name="Auto").click()
        await editor.get_by_label("Deployment 1").fill("own/m1")
        await editor.get_by_label("A second is worth, $").fill("0.02")
        await editor.get_by_label("Keep answers for (seconds)").fill("600")
        await editor.get_by_label("Also for questions that mean the same").check()
        await editor.get_by_label("Embedding model").fill("own/minilm")
        await editor.get_by_label("Likeness from").fill("0.97")
        wrong += await watched.violations()
        await picture(watched, f"routing-kept-{scheme}")
        await editor.get_by_role("button", name="Save alias").click()
        await expect(editor).to_be_hidden()

        await visit.goto(f"{base}/ui/organisation?tab=teams")
        await visit.get_by_role("button", name="Routing of shop").click()
        own = visit.get_by_role("dialog", name="Routing of shop")
        await own.get_by_label("A second is worth, $").fill("0.05")
        await own.get_by_text("On", exact=True).click()
        wrong += await watched.violations()
        await picture(watched, f"project-routing-{scheme}")
        await own.get_by_role("button", name="Save").click()
        await expect(own).to_be_hidden()
        assert not wrong
        watched.check()
    document = (await made.services.yard.changes.view()).version.document
    assert document.providers["own"].replicas
    assert document.providers["own"].probe_s == 10
    alias = document.aliases["help"]
    assert (alias.second_usd, alias.keep_answers_s) == (Decimal("0.02"), 600)
    assert alias.similar_answers == SimilarSettings(model="own/minilm", threshold=0.97)
    said = await ProjectRoutings(made.engine, made.services.keys.changed).read("proj_shop")
    assert said == ProjectRouting(50_000_000_000, True)
