"""The newcomer's journey in a real browser: from the link that `farebox up` prints to a bill that can be proved."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.async_api import Page, expect

from tests.e2e.dashboard.browser import Watched, chromium, page
from tests.emulators.bedrock import ACCESS_KEY_ID, SECRET_ACCESS_KEY, BedrockEmulator
from tests.emulators.bedrock import MODELS as BEDROCKS

MODEL = f"east/{BEDROCKS[0]}"
PASSWORD = "tokens are paid for once"
BUDGET = "1"
# At 16.50 dollars a million, such an answer could cost more than the whole budget.
LONG = 64_000


@asynccontextmanager
async def up(data: Path) -> AsyncIterator[dict[str, Any]]:
    """A running `farebox up` that knows no provider yet. Yields the JSON object of its last line."""
    environment = {n: v for n, v in os.environ.items() if not n.startswith("AWS_")}
    environment = {n: v for n, v in environment.items() if not n.endswith(("_API_KEY", "_BASE_URL"))}
    command = [sys.executable, "-m", "gateway", "up", "--no-local", "--port", "0", "--data", str(data)]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, env=environment, limit=1 << 20
    )
    assert process.stdout is not None
    try:
        async for line in process.stdout:
            if line.startswith(b'{"base_url"'):
                yield json.loads(line)
                break
        else:
            pytest.fail(f"`farebox up` ended with {await process.wait()} before it was ready")
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        rest = asyncio.create_task(process.stdout.read())
        assert await asyncio.wait_for(process.wait(), 60) == 0
        await rest


@pytest.mark.timeout(300)
async def test_a_newcomer_gets_from_the_link_to_a_bill(tmp_path_factory: pytest.TempPathFactory) -> None:
    async with (
        chromium() as browser,
        BedrockEmulator() as bedrock,
        up(tmp_path_factory.mktemp("new")) as said,
        page(browser) as watched,
    ):
        # The refusal that the journey is about is an answer of its own, which the browser's console tells of.
        watched.expected.append("/v1/chat/completions")
        visit = watched.page
        base: str = said["base_url"]

        await visit.goto(said["dashboard"])
        await expect(visit.get_by_role("heading", name="Welcome, owner")).to_be_visible()
        assert "token" not in visit.url  # Taken out of the address before anything else.
        await visit.get_by_label("New password").fill(PASSWORD)
        await visit.get_by_role("button", name="Set password").click()
        await expect(visit.get_by_text("No requests yet")).to_be_visible()

        await add_bedrock(visit, bedrock.url)
        secret = await make_key(visit)
        cost = await ask(visit, base, secret)
        assert 0 < cost < Decimal(BUDGET)
        await visit.get_by_role("link", name="Details").click()
        drawer = visit.get_by_role("dialog")
        await expect(drawer.get_by_text("Price, line by line")).to_be_visible()
        charged = await drawer.get_by_role("row", name="Charged").locator("span").inner_text()
        assert Decimal(charged.lstrip("$")) == cost
        await expect(drawer.get_by_label("Way").get_by_text("Posted")).to_be_visible()

        await spend_it_all(base, secret)
        await be_refused(visit, base, secret)
        await raise_budget(visit, base)
        assert await ask(visit, base, secret, longest=LONG) > 0

        await bill(watched, base)
        await visit.goto(f"{base}/ui/audit")
        for action in ("Providers put", "Projects create", "Key create", "Key budget", "Password set"):
            await expect(visit.get_by_role("button", name=action).first).to_be_visible()
        await visit.get_by_role("button", name="Verify the chain").click()
        await expect(visit.get_by_text(re.compile(r"Intact: \d+ rows"))).to_be_visible()
        assert SECRET_ACCESS_KEY not in await visit.content()

        await visit.goto(f"{base}/ui/overview")
        await expect(visit.get_by_text(MODEL).first).to_be_visible()
        watched.check()

        # Back another day, by name and password; the link is spent.
        async with page(browser, "dark") as later:
            later.expected.append("/auth/link")
            await later.page.goto(said["dashboard"])
            await expect(later.page.get_by_text("the link is unknown, used or too old")).to_be_visible()
            await later.page.get_by_label("Name").fill("owner")
            await later.page.get_by_label("Password", exact=True).fill(PASSWORD)
            await later.page.get_by_role("button", name="Sign in", exact=True).click()
            await expect(later.page.get_by_role("heading", name="Overview")).to_be_visible()
            later.check()


async def add_bedrock(visit: Page, url: str) -> None:
    await visit.get_by_role("link", name="Models & providers").click()
    await visit.get_by_role("button", name="Add provider").click()
    form = visit.get_by_role("dialog", name="Add provider")
    await form.get_by_label("Kind").click()
    await visit.get_by_role("option", name="AWS Bedrock", exact=True).click()
    await form.get_by_label("Name").fill("east")
    await form.get_by_label("Region").fill("us-east-1")
    await form.get_by_label("Endpoint").fill(url)
    await form.get_by_label("Allow private addresses").check()
    await form.get_by_label("Access key ID").fill(ACCESS_KEY_ID)
    await form.get_by_label("Secret access key").fill(SECRET_ACCESS_KEY)
    await form.get_by_role("button", name="Test").click()
    await expect(form.get_by_text("It works")).to_be_visible()
    await form.get_by_role("button", name="Add provider").click()
    await expect(visit.get_by_role("button", name="Provider east")).to_be_visible()


async def make_key(visit: Page) -> str:
    """A project, and in it a key with a budget. Returns: its secret, which the page shows this once."""
    await visit.get_by_role("link", name="Keys & quotas").click()
    await visit.get_by_role("button", name="New project").click()
    dialog = visit.get_by_role("dialog")
    await dialog.get_by_label("Name").fill("Shop")
    await dialog.get_by_role("button", name="Save").click()
    await expect(dialog).to_have_count(0)
    await visit.get_by_role("button", name="Create key").click()
    await dialog.get_by_label("Name").fill("my first key")
    await dialog.get_by_role("combobox", name="Project").click()
    await visit.get_by_role("option", name="Shop").click()
    await dialog.get_by_label("Budget").fill(BUDGET)
    await dialog.get_by_role("button", name="Create key").click()
    secret = await dialog.get_by_label("secret", exact=True).inner_text()
    assert secret.startswith("fbx-")
    await dialog.get_by_role("button", name="Done").click()
    await expect(dialog).to_be_hidden()  # It fades, and the secret stays on the page as long.
    row = visit.get_by_role("row", name="my first key")
    await expect(row).to_contain_text("Shop")
    await expect(row).to_contain_text("$0.00 of $1.00")
    assert secret not in await visit.content()
    return secret.strip()


async def ask(visit: Page, base: str, secret: str, text: str = "Say hello", longest: int = 256) -> Decimal:
    """One question in the playground. Returns: the cost that stands under the answer, in dollars."""
    await open_playground(visit, base, secret, longest)
    costs = visit.get_by_test_id("cost")
    before = await costs.count()
    await visit.get_by_label("Message").fill(text)
    await visit.get_by_role("button", name="Send").click()
    await expect(costs).to_have_count(before + 1)
    exact = await costs.last.get_attribute("title")
    assert exact is not None
    return Decimal(exact.lstrip("$"))


async def open_playground(visit: Page, base: str, secret: str, longest: int) -> None:
    await visit.goto(f"{base}/ui/playground?model={MODEL}")
    await visit.get_by_label("Another key").fill(secret)
    await visit.get_by_label("Longest answer, tokens").fill(str(longest))


async def spend_it_all(base: str, secret: str) -> None:
    """An application reads long documents with the same key, until the gateway says that the budget is used up."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "word " * 24_000}], "max_tokens": 20}
    async with httpx.AsyncClient(base_url=base, timeout=60) as outside:
        for _ in range(40):
            answer = await outside.post(
                "/v1/chat/completions", headers={"authorization": f"Bearer {secret}"}, json=body
            )
            if answer.status_code != 200:
                assert answer.json()["error"]["code"] == "insufficient_quota"
                return
    raise AssertionError("the budget never ended")


async def be_refused(visit: Page, base: str, secret: str) -> None:
    """The page says so in the gateway's words."""
    await open_playground(visit, base, secret, LONG)
    await visit.get_by_label("Message").fill("Write a novel")
    await visit.get_by_role("button", name="Send").click()
    await expect(visit.get_by_text("insufficient_quota")).to_be_visible()


async def raise_budget(visit: Page, base: str) -> None:
    await visit.goto(f"{base}/ui/keys?tab=budgets")
    await visit.get_by_role("button", name="Actions for the budget of my first key").click()
    await visit.get_by_role("menuitem", name="Raise for a time").click()
    dialog = visit.get_by_role("dialog")
    await dialog.get_by_label("By").fill("5")
    await dialog.get_by_role("button", name="Raise").click()
    await expect(visit.get_by_role("row", name="my first key")).to_contain_text("$6.00")


async def bill(watched: Watched, base: str) -> None:
    """The books are sound, and what a month comes to goes home as a document."""
    visit = watched.page
    await visit.goto(f"{base}/ui/money")
    await visit.get_by_role("button", name="Add it all up").click()
    await expect(visit.get_by_text("Debits equal credits")).to_be_visible()
    await visit.get_by_role("tab", name="Invoices").click()
    async with visit.expect_download() as saving:
        await visit.get_by_role("link", name=re.compile("^PDF of ")).first.click()
    saved = await saving.value
    assert saved.suggested_filename.endswith(".pdf")
    content = await asyncio.to_thread(Path(await saved.path()).read_bytes)
    assert content.startswith(b"%PDF-")
