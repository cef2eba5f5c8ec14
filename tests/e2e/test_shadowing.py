"""Requests asked again of another model: its rows are there to compare, and no client waits or pays for them."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from msgspec.structs import replace

from gateway.offered import DeploymentSettings, ModelSettings, ShadowSettings
from gateway.shadowing import TAG
from tests.e2e.harness import PRICE, House, house, model, provider, settings_for
from tests.emulators.anthropic import AnthropicEmulator
from tests.emulators.openai import OpenAIEmulator


async def ask(gateway: House, alias: str, *, stream: bool = False, key: str | None = None) -> httpx.Response:
    body: dict[str, Any] = {"model": alias, "stream": stream, "max_tokens": 50}
    body["messages"] = [{"role": "user", "content": "hi there"}]
    async with httpx.AsyncClient(timeout=20) as http:
        headers = {"authorization": f"Bearer {key or gateway.key}"}
        return await http.post(f"{gateway.v1}/chat/completions", json=body, headers=headers)


async def test_the_copy_is_paid_by_the_operators_key_and_seen_by_nobody(
    tmp_path: Path, sqlite_template: Path, redis_url: str
) -> None:
    (tmp_path / "farebox.db").write_bytes(sqlite_template.read_bytes())
    url = f"sqlite+aiosqlite:///{tmp_path / 'farebox.db'}"
    async with OpenAIEmulator() as upstream, AnthropicEmulator(api_key=None) as claude:
        providers = {"openai": provider("openai", f"{upstream.url}/v1"), "anthropic": provider("anthropic", claude.url)}
        main, other = model("chat", "openai/echo-1"), model("other", "anthropic/claude-haiku-4-5")
        settings = settings_for(tmp_path, url, redis_url, providers, (main, other))
        async with house(settings) as first:
            budget_pusd = 4 * 10**9
            await first.new_key(budget_pusd=budget_pusd)
            shadow_id = next(info.id for info in await first.keys.list_keys() if info.name == "test" and info.budgets)
        shadow = ShadowSettings(model="other", share=1.0, key_id=shadow_id)
        # Asked for the other way round, too: a copy makes no copies.
        back = replace(other, shadow=ShadowSettings(model="chat", share=1.0, key_id=shadow_id))
        async with house(replace(settings, models=(replace(main, shadow=shadow), back))) as gateway:
            for number in range(6):
                answer = await ask(gateway, "chat", stream=number % 2 == 0)
                assert answer.status_code == 200
                assert answer.headers["x-farebox-provider"] == "openai"
            sdk = openai.AsyncOpenAI(base_url=gateway.v1, api_key=gateway.key)
            async with sdk:
                await sdk.responses.create(model="chat", input="hi there", max_output_tokens=50)
            rows = await gateway.rows(at_least=14)
            mine = [row for row in rows if row["key_id"] != shadow_id]
            copies = [row for row in rows if row["key_id"] == shadow_id]
            assert len(mine) == len(copies) == 7
            assert {row["provider"] for row in mine} == {"openai"}
            assert {(row["provider"], row["alias"], row["outcome"]) for row in copies} == {
                ("anthropic", "other", "completed")
            }
            assert Counter(row["tags"][0] for row in copies) == Counter(TAG + row["id"] for row in mine)
            async with httpx.AsyncClient() as http:
                told = (await http.get(f"{gateway.url}/metrics")).text
            assert 'farebox_shadow_requests_total{model="other",result="ok"}' in told

            # What its key may spend is what copies may cost; the client's answers go on.
            for _ in range(200):
                assert (await ask(gateway, "chat")).status_code == 200
                async with httpx.AsyncClient() as http:
                    told = (await http.get(f"{gateway.url}/metrics")).text
                if 'result="insufficient_quota"' in told:
                    break
            else:
                pytest.fail("the copies' budget never ran out")
            spent = sum(row["charge_pusd"] for row in await gateway.rows() if row["key_id"] == shadow_id)
            assert 0 < spent <= budget_pusd


async def test_a_split_gives_each_key_one_side_by_weight(tmp_path: Path, sqlite_template: Path, redis_url: str) -> None:
    (tmp_path / "farebox.db").write_bytes(sqlite_template.read_bytes())
    url = f"sqlite+aiosqlite:///{tmp_path / 'farebox.db'}"
    async with OpenAIEmulator() as upstream:
        providers = {name: provider("openai", f"{upstream.url}/v1") for name in ("a", "b")}
        sides = tuple(
            DeploymentSettings(provider=name, model="echo-1", price=PRICE, weight=weight)
            for name, weight in (("a", 3), ("b", 1))
        )
        models = tuple(ModelSettings(alias=alias, deployments=sides, strategy="split") for alias in ("one", "two"))
        async with house(settings_for(tmp_path, url, redis_url, providers, models)) as gateway:
            keys = [await gateway.new_key() for _ in range(60)]
            sides_of: dict[str, list[str]] = {}
            for alias in ("one", "two"):
                for _ in range(2):
                    answers = await asyncio.gather(*(ask(gateway, alias, key=key) for key in keys))
                    sides_of.setdefault(alias, []).append("".join(a.headers["x-farebox-provider"] for a in answers))
            for first, again in sides_of.values():
                assert first == again, "a key stays on its side"
                assert 30 <= first.count("a") <= 56, "about three of four"
            assert sides_of["one"] != sides_of["two"], "tests of two aliases do not share their halves"
