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

from tests.e2e.dashboard.browser import chromium, page
from tests.emulators.openai import OpenAIEmulator

MODEL = "gpt-4o-mini"
PASSWORD = "tokens are paid for once"
BUDGET = "0.0005"


@asynccontextmanager
async def up(data: Path, upstream: OpenAIEmulator) -> AsyncIterator[dict[str, Any]]:
    """A running `farebox up` whose only provider is the emulator. Yields the JSON object of its last line."""
    environment = {n: v for n, v in os.environ.items() if not n.endswith(("_API_KEY", "_BASE_URL"))}
    environment |= {"OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": f"{upstream.url}/v1"}
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


@pytest.mark.timeout(180)
async def test_a_newcomer_gets_from_the_link_to_a_bill(tmp_path_factory: pytest.TempPathFactory) -> None:
    async with (
        chromium() as browser,
        OpenAIEmulator() as upstream,
        up(tmp_path_factory.mktemp("new"), upstream) as said,
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

        secret = await make_key(visit)
        cost = await ask(visit, base, secret)
        assert 0 < cost < Decimal(BUDGET)
        await visit.get_by_role("link", name="Details").click()
        drawer = visit.get_by_role("dialog")
        await expect(drawer.get_by_text("Price, line by line")).to_be_visible()
        charged = await drawer.get_by_role("row", name="Charged").locator("span").inner_text()
        assert Decimal(charged.lstrip("$")) == cost
        async with httpx.AsyncClient(base_url=base) as outside:  # The same key from outside, the same books.
            answer = await outside.post(
                "/v1/chat/completions",
                headers={"authorization": f"Bearer {secret}"},
                json={"model": MODEL, "messages": [{"role": "user", "content": "Say hi"}], "max_tokens": 20},
            )
            assert answer.status_code == 200

        await spend_it_all(visit, base, secret)
        await raise_budget(visit, base)
        assert await ask(visit, base, secret) > 0

        await visit.goto(f"{base}/ui/money")
        await visit.get_by_role("button", name="Add it all up").click()
        await expect(visit.get_by_text("Debits equal credits")).to_be_visible()

        await visit.goto(f"{base}/ui/audit")
        for action in ("Key create", "Key budget", "Password set", "Session begin"):
            await expect(visit.get_by_role("button", name=action).first).to_be_visible()
        await expect(visit.get_by_text("$0.0005 → $0.05")).to_be_visible()
        await visit.get_by_role("button", name="Verify the chain").click()
        await expect(visit.get_by_text(re.compile(r"Intact: \d+ rows"))).to_be_visible()

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
            await later.page.get_by_role("button", name="Sign in").click()
            await expect(later.page.get_by_role("heading", name="Overview")).to_be_visible()
            later.check()


async def make_key(visit: Page) -> str:
    """A key with a budget. Returns: its secret, which the page shows this once."""
    await visit.get_by_role("link", name="Keys").click()
    await visit.get_by_role("button", name="Create key").click()
    dialog = visit.get_by_role("dialog")
    await dialog.get_by_label("Name").fill("my first key")
    await dialog.get_by_label("Budget").fill(BUDGET)
    await dialog.get_by_role("button", name="Create key").click()
    secret = await dialog.get_by_label("secret", exact=True).inner_text()
    assert secret.startswith("fbx-")
    await dialog.get_by_role("button", name="Done").click()
    await expect(dialog).to_be_hidden()  # It fades, and the secret stays on the page as long.
    row = visit.get_by_role("row", name="my first key")
    await expect(row).to_contain_text(f"$0.00 of ${BUDGET}")
    assert secret not in await visit.content()
    return secret.strip()


async def ask(visit: Page, base: str, secret: str, text: str = "Say hello") -> Decimal:
    """One question in the playground. Returns: the cost that stands under the answer, in dollars."""
    if "/playground" not in visit.url:
        await visit.goto(f"{base}/ui/playground?model={MODEL}")
        await visit.get_by_label("Another key").fill(secret)
    costs = visit.get_by_test_id("cost")
    before = await costs.count()
    await visit.get_by_label("Message").fill(text)
    await visit.get_by_role("button", name="Send").click()
    await expect(costs).to_have_count(before + 1)
    exact = await costs.last.get_attribute("title")
    assert exact is not None
    return Decimal(exact.lstrip("$"))


async def spend_it_all(visit: Page, base: str, secret: str) -> None:
    """Ask for long answers until the budget does not cover another one; the page says so in the gateway's words."""
    await visit.goto(f"{base}/ui/playground?model={MODEL}")
    await visit.get_by_label("Another key").fill(secret)
    costs, refused = visit.get_by_test_id("cost"), visit.get_by_text("insufficient_quota")
    for _ in range(20):
        before = await costs.count()
        await visit.get_by_label("Message").fill("x-script: long=200")
        await visit.get_by_role("button", name="Send").click()
        await expect(costs.nth(before).or_(refused)).to_be_visible()
        if await refused.is_visible():
            return
    raise AssertionError("the budget never ended")


async def raise_budget(visit: Page, base: str) -> None:
    await visit.goto(f"{base}/ui/keys")
    await visit.get_by_role("button", name="Actions for my first key").click()
    await visit.get_by_role("menuitem", name="Set budget").click()
    dialog = visit.get_by_role("dialog")
    await dialog.get_by_label("Limit").fill("0.05")
    await dialog.get_by_role("button", name="Save").click()
    await expect(visit.get_by_role("row", name="my first key")).to_contain_text("of $0.05")
