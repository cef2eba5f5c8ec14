"""Adding a provider in the browser: an emulated Bedrock, tried first wrongly, then rightly, changed and removed."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.async_api import expect

from tests.e2e.dashboard.browser import Scheme, chromium, page
from tests.e2e.dashboard.office import office, picture, sign_in
from tests.emulators.bedrock import ACCESS_KEY_ID, MODELS, SECRET_ACCESS_KEY, BedrockEmulator


@pytest.mark.timeout(180)
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
        await visit.get_by_role("option", name="AWS Bedrock").click()
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
