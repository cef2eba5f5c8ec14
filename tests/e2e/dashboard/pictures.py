"""The pictures in the README, made anew: `python -m tests.e2e.dashboard.pictures [FOLDER]` (deploy/pictures).

Sample traffic, made-up engines that answer like vLLM, and the dashboard as it is built here."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import json
import math
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import httpx
import msgspec
from playwright.async_api import Page, expect
from sqlalchemy import select, update

from billing.accounts import Scope, Window
from billing.db import writing
from billing.migrate import upgrade
from billing.schema import usage_records
from gateway.routing.explaining import Way
from tests.e2e.dashboard.browser import Scheme, chromium, page
from tests.e2e.dashboard.office import office, sign_in
from tests.e2e.dashboard.test_clicks import provider
from tests.gateway.admin.test_money import LIST
from tests.gateway.admin.world import DAY_NS, NOW_NS, USD, World

PICTURES = Path(__file__).parents[3] / "deploy" / "pictures"
REQUESTS = 1500
WAY = Way(
    "lowest_cost",
    (
        ("bedrock/claude-sonnet-5", "cheapest for this prompt: 0.0214 USD likely"),
        ("anthropic/claude-sonnet-5", "0.0226 USD likely, closed"),
    ),
    (("azure/claude-sonnet-5", "no tools"),),
    (("bedrock/claude-sonnet-5", "Throttled 429", 184), ("anthropic/claude-sonnet-5", "ok", 512)),
)


async def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fbx-pictures-") as scratch:
        work = Path(scratch)
        await upgrade(f"sqlite:///{work / 'template.db'}")
        async with chromium() as browser:
            for scheme in ("light", "dark"):
                (work / scheme).mkdir()
                async with (
                    httpx.AsyncClient(transport=httpx.MockTransport(Engines())) as http,
                    office(work / "template.db", work / scheme, REQUESTS) as (made, base),
                    page(browser, scheme, width=1200, height=780) as watched,
                ):
                    made.services = dataclasses.replace(made.services, http=http)
                    ident = await _furnish(made)
                    await sign_in(made, base, watched.page)
                    await _take(watched.page, base, folder, scheme, ident)


async def _furnish(made: World) -> str:
    """What an installation has after some weeks. Returns: id of a request that went a long way."""
    await made.keys.set_budget(
        Scope.PROJECT, "proj_shop", Window.MONTH, int(2.2 * USD), actor="ann", now_ns=NOW_NS - DAY_NS
    )
    for number in (1, 2, 3):
        await provider(made, f"gpu-{number}", f"http://10.0.0.{number}:8000/v1")
    rows = usage_records.c
    query = select(rows.id).where(rows.outcome == "completed", rows.attempts == 2, rows.alias == "claude-sonnet-5")
    async with writing(made.engine) as db:
        ident = str((await db.execute(query.order_by(rows.at_ns.desc()).limit(1))).scalar_one())
        way = msgspec.json.encode(WAY).decode()
        await db.execute(update(usage_records).where(rows.id == ident).values(way=way))
    return ident


async def _take(visit: Page, base: str, folder: Path, scheme: Scheme, ident: str) -> None:
    async def shot(name: str) -> None:
        await visit.wait_for_load_state("networkidle")
        await visit.screenshot(path=folder / f"{name}-{scheme}.png")

    for name, path, seen in (
        ("overview", "overview?period=30d", "Spend by model"),
        ("usage", "usage?period=30d&by=key", "Spend by key"),
        ("request", f"requests?period=30d&id={ident}", "Its way"),
        ("budget", "keys?tab=budgets&budget=project:proj_shop:month", "A day, lately"),
        ("models", "models", "claude-sonnet-5"),
    ):
        await visit.goto(f"{base}/ui/{path}")
        await expect(visit.get_by_text(seen).first).to_be_visible()
        await shot(name)
    await visit.goto(f"{base}/ui/engine?of=gpu-2")
    for seconds in range(2, 32, 2):
        async with visit.expect_response("**/admin/v1/engines"):
            at_s = NOW_NS // 10**9 + seconds
            await visit.clock.set_fixed_time(datetime.datetime.fromtimestamp(at_s, datetime.UTC))
    await shot("engine")
    await visit.goto(f"{base}/ui/money?tab=prices")
    file = {"name": "november.json", "mimeType": "application/json", "buffer": json.dumps(LIST).encode()}
    await visit.get_by_label("Price list file").set_input_files(file)  # type: ignore[arg-type]
    await expect(visit.get_by_role("row", name="openai/gpt-5-mini")).to_be_visible()
    await shot("prices")
    await visit.goto(f"{base}/ui/guardrails")
    await visit.get_by_role("button", name="Make the first").click()
    dialog = visit.get_by_role("dialog")
    await dialog.get_by_label("Name").fill("No personal data")
    await dialog.get_by_role("button", name="Set guardrail").click()
    await expect(dialog).to_have_count(0)
    toast = visit.locator(".mantine-Notification-root")
    await toast.get_by_role("button").click()
    await expect(toast).to_have_count(0)
    await visit.get_by_label("Text to try").fill("My card is 4111 1111 1111 1111, write to ann@harbour.example")
    await visit.get_by_role("button", name="Try it").click()
    await expect(visit.get_by_text("My card is [CARD]").first).to_be_visible()
    await shot("guardrails")


class Engines:
    """Three that answer like vLLM, each a little busier than the one before, and busier by the look."""

    def __init__(self) -> None:
        self._looks: defaultdict[int, int] = defaultdict(int)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        number = int((request.url.host or "0").rpartition(".")[2])
        self._looks[number] += 1
        look = self._looks[number]
        wave = 1 + 0.35 * math.sin(look / 2.2 + number)
        steps, running = 100 * look, 4 * number * wave
        said = {
            "num_requests_running": round(running), "num_requests_waiting": max(0, round(running) - 9),
            "kv_cache_usage_perc": 0.17 * number * wave, "prompt_tokens_total": steps * 31 * number,
            "generation_tokens_total": steps * 4 * number * (1 + wave / 30), "prefix_cache_queries_total": 1000 * look,
            "prefix_cache_hits_total": 620 * look + 40 * number, "time_to_first_token_seconds_sum": 0.21 * look,
            "time_to_first_token_seconds_count": look, "inter_token_latency_seconds_sum": 0.018 * look,
            "inter_token_latency_seconds_count": look,
        }  # fmt: skip
        lines = [f'vllm:{name}{{model_name="qwen3-8b"}} {value:.4f}' for name, value in said.items()]
        lines += ['vllm:cache_config_info{num_gpu_blocks="4096"} 1.0', f"farebox:engine_steps_total {steps}.0", ""]
        return httpx.Response(200, text="\n".join(lines))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURES))
