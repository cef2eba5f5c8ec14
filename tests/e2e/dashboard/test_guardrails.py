"""Guardrails in a browser: made, tried, switched off, removed; in both themes nothing that axe finds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.async_api import expect

from tests.e2e.dashboard.browser import Scheme, chromium, page
from tests.e2e.dashboard.office import office, picture, sign_in


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_a_rule_is_made_tried_and_removed(scheme: Scheme, sqlite_template: Path, tmp_path: Path) -> None:
    async with (
        chromium() as browser,
        office(sqlite_template, tmp_path, 0) as (made, base),
        page(browser, scheme) as watched,
    ):
        visit = watched.page
        await sign_in(made, base, visit)
        await visit.goto(f"{base}/ui/guardrails")
        await visit.get_by_role("button", name="Make the first").click()
        dialog = visit.get_by_role("dialog")
        await dialog.get_by_label("Name").fill("No personal data")
        await expect(dialog.get_by_text("Card numbers")).to_be_visible()
        wrong = await watched.violations()
        await picture(watched, f"guardrail-new-{scheme}")
        await dialog.get_by_role("button", name="Set guardrail").click()
        await expect(dialog).to_have_count(0)
        await visit.get_by_label("Text to try").fill("My card is 4111 1111 1111 1111")
        await visit.get_by_role("button", name="Try it").click()
        await expect(visit.get_by_text("My card is [CARD]")).to_be_visible()
        wrong += await watched.violations()
        await picture(watched, f"guardrails-{scheme}")
        await visit.get_by_role("button", name="Edit No personal data").click()
        await dialog.get_by_role("switch", name="On").click()
        await dialog.get_by_role("combobox", name="Then").click()
        await visit.get_by_role("option", name="Block").click()
        await dialog.get_by_role("button", name="Save").click()
        await expect(dialog).to_have_count(0)
        await expect(visit.get_by_text("off", exact=True)).to_be_visible()
        # By its address, it is the same rule.
        await visit.get_by_role("button", name="Edit No personal data").click()
        await visit.reload()
        await expect(dialog.get_by_role("combobox", name="Then")).to_have_value(re.compile("^Block"))
        await dialog.get_by_role("button", name="Cancel").click()
        await visit.get_by_role("button", name="Remove No personal data").click()
        await dialog.get_by_role("button", name="Remove").click()
        await expect(visit.get_by_text("Nothing is looked at")).to_be_visible()
        assert not wrong
        watched.check()
