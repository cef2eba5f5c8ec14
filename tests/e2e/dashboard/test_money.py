"""Money and alerts in a browser: paid in, given back, billed, held against a list and a bill; somebody is told."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from msgspec.structs import replace
from playwright.async_api import expect

from tests.e2e.dashboard.browser import Scheme, chromium, page
from tests.e2e.dashboard.office import office, picture, sign_in
from tests.gateway.admin.test_money import LIST
from tests.gateway.test_alerting import Ear


async def test_money_is_paid_in_given_back_and_billed(sqlite_template: Path, tmp_path: Path) -> None:
    async with chromium() as browser, office(sqlite_template, tmp_path, 60) as (made, base), page(browser) as watched:
        visit = watched.page
        await sign_in(made, base, visit)
        await visit.get_by_role("link", name="Money").click()
        await visit.get_by_role("button", name="Top up").click()
        dialog = visit.get_by_role("dialog")
        await dialog.get_by_label("Amount").fill("1250.5")
        await dialog.get_by_label("Note").fill("Bank transfer, November")
        await dialog.get_by_role("button", name="Review").click()
        await expect(dialog.get_by_text("$1250.5 to Harbour Books: Bank transfer, November")).to_be_visible()
        await picture(watched, "money-confirm")
        await dialog.get_by_role("button", name="Confirm").click()
        await expect(dialog).to_have_count(0)
        await visit.get_by_role("tab", name="Ledger").click()
        await expect(visit.get_by_role("row", name="Bank transfer, November")).to_contain_text("$1,250.50")

        # A charge leads to its request, the request to its refund.
        await visit.goto(f"{base}/ui/money?tab=ledger&kind=charge")
        await visit.get_by_role("row").nth(1).get_by_role("link").click()
        charged = await visit.get_by_role("dialog").get_by_role("row", name="Charged").locator("span").inner_text()
        await visit.get_by_role("dialog").get_by_role("link", name="Refund").click()
        await expect(dialog.get_by_label("Request id")).to_have_value(re.compile("^req_"))
        await dialog.get_by_label("Note").fill("it was wrong")
        await dialog.get_by_role("button", name="Review").click()
        await dialog.get_by_role("button", name="Confirm").click()
        await expect(dialog).to_have_count(0)
        await visit.goto(f"{base}/ui/money?tab=ledger&kind=refund")
        await expect(visit.get_by_role("row").nth(1).get_by_title(charged, exact=True)).to_be_visible()

        await visit.get_by_role("tab", name="Invoices").click()
        async with visit.expect_download() as saving:
            await visit.get_by_role("link", name="PDF of 2026-11/org_1").click()
        saved = await saving.value
        assert saved.suggested_filename == "invoice-2026-11-org_1.pdf"
        assert Path(await saved.path()).read_bytes().startswith(b"%PDF-")
        await visit.get_by_role("button", name="Invoice 2026-11/org_1").click()
        await expect(visit.get_by_role("dialog").get_by_text("Topup, Bank transfer, November")).to_be_visible()
        watched.check()


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_a_list_and_a_bill_are_held_against_the_books_and_somebody_is_told(
    scheme: Scheme, sqlite_template: Path, tmp_path: Path
) -> None:
    async with (
        chromium() as browser,
        Ear() as ear,
        office(sqlite_template, tmp_path, 400) as (made, base),
        page(browser, scheme) as watched,
    ):
        settings = made.services.settings
        private = replace(settings, alerts=replace(settings.alerts, private_targets=True))
        object.__setattr__(made.services, "settings", private)
        visit, wrong = watched.page, []
        await sign_in(made, base, visit)
        await visit.goto(f"{base}/ui/money?tab=prices")
        upload = {"name": "november.json", "mimeType": "application/json", "buffer": json.dumps(LIST).encode()}
        await visit.get_by_label("Price list file").set_input_files(upload)  # type: ignore[arg-type]
        await expect(visit.get_by_role("row", name="openai/gpt-5-mini")).to_contain_text("+20%")
        wrong += await watched.violations()
        await picture(watched, f"money-list-{scheme}")
        await visit.get_by_role("button", name="Take over 1 price").click()
        await expect(visit.get_by_text("1 price taken over")).to_be_visible()
        await expect(visit.get_by_role("row", name="groq/brand-new-1")).to_have_count(0)

        await visit.goto(f"{base}/ui/money?tab=reconcile")
        await visit.get_by_role("combobox", name="Provider").click()
        await visit.get_by_role("option", name="anthropic").click()
        days = "".join(f"2026-11-{day:02},claude-sonnet-5,90000,9000,{day / 10}\n" for day in range(8, 18))
        bill = f"date,model,input_tokens,output_tokens,cost_usd\n{days}"
        upload = {"name": "usage.csv", "mimeType": "text/csv", "buffer": bill.encode()}
        await visit.get_by_label("Bill file").set_input_files(upload)  # type: ignore[arg-type]
        await expect(visit.get_by_role("row", name="2026-11-17")).to_contain_text("$1.70")
        wrong += await watched.violations()
        await picture(watched, f"money-bill-{scheme}")

        await visit.goto(f"{base}/ui/alerts?new=1")
        dialog = visit.get_by_role("dialog")
        await dialog.get_by_label("Percent of the budget").fill("80")
        await dialog.get_by_label("Address").fill(ear.url)
        await dialog.get_by_role("button", name="Set alert").click()
        await visit.get_by_role("button", name="Send a test").click()
        await expect(visit.get_by_text("Taken: the test message has arrived.")).to_be_visible()
        assert len(ear.requests) == 1
        wrong += await watched.violations()
        await picture(watched, f"alerts-rule-{scheme}")
        await visit.get_by_role("button", name="Remove Budget used").click()
        await dialog.get_by_role("button", name="Remove").click()
        await expect(visit.get_by_text("Nobody is told anything")).to_be_visible()
        assert not wrong
        watched.check()
