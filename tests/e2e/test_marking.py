"""Prompts of clients that mark nothing are kept in the provider's cache, where the alias asks for it, and the bill says
so: written once at the dear price, read at the cheap one."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from anthropic import AsyncAnthropic
from msgspec.structs import replace
from openai import AsyncOpenAI

from gateway.admission.principal import ProjectRouting
from gateway.admission.project_routing import ProjectRoutings
from gateway.config import DeploymentSettings, ModelSettings, PriceSettings
from tests.e2e.harness import House, house, provider, settings_for
from tests.emulators.anthropic import AnthropicEmulator

pytestmark = pytest.mark.asyncio(loop_scope="module")
PRICE = PriceSettings(input=Decimal("3"), output=Decimal("15"), cache_read=Decimal("0.3"), cache_write=Decimal("3.75"))
MODEL = "claude-sonnet-5"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(
    tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, _valkey: str
) -> AsyncIterator[House]:
    data = tmp_path_factory.mktemp("marking")
    database = data / "farebox.db"
    database.write_bytes(sqlite_template.read_bytes())
    place = DeploymentSettings(provider="claudes", model=MODEL, price=PRICE)
    plain = ModelSettings(alias="plain", deployments=(place,))
    async with AnthropicEmulator() as upstream:
        providers = {"claudes": provider("anthropic", upstream.url, {"api_key": "sk-ant-test"})}
        models = (plain, replace(plain, alias="cached", cache_prompts=True))
        async with house(settings_for(data, f"sqlite:///{database}", _valkey, providers, models)) as built:
            yield built


def talk(seed: str, turns: int) -> list[dict[str, Any]]:
    roles = ("user", "assistant")
    said = [{"role": roles[n % 2], "content": f"turn {n} of {seed}: " + "word " * 2000} for n in range(turns)]
    return [{"role": "system", "content": f"You are {seed}. " * 1500}, *said]


async def test_what_one_turn_wrote_the_next_one_reads(gateway: House) -> None:
    async with AsyncOpenAI(base_url=gateway.v1, api_key=gateway.key, max_retries=0) as client:
        usages = []
        for alias, turns in (("plain", 1), ("plain", 3), ("cached", 1), ("cached", 3)):
            answer = await client.chat.completions.create(
                model=alias,
                messages=talk(alias, turns),
                max_tokens=50,  # type: ignore[arg-type]
            )
            assert answer.usage is not None
            details = answer.usage.prompt_tokens_details
            usages.append((answer.usage.prompt_tokens, (details.cached_tokens or 0) if details else 0))
    assert [cached for _, cached in usages[:3]] == [0, 0, 0]
    # The emulator finds what stands before a marker of its own; Anthropic also looks a few blocks back.
    assert usages[3][1] > 4000
    rows = [row for row in await gateway.rows(4) if row["alias"] == "cached"]
    assert rows[0]["quantities"]["cache_write_5m_tokens"] > 0
    assert rows[1]["quantities"]["cache_read_tokens"] > 0
    assert not any(row["estimated"] for row in rows)


async def test_a_project_asks_for_marks_where_its_alias_does_not(gateway: House) -> None:
    projects = ProjectRoutings(gateway.engine, gateway.keys.changed)
    for alias, said, writes in (("plain", True, True), ("cached", False, False), ("cached", None, True)):
        now_ns = time.time_ns()
        await projects.set(gateway.project.id, ProjectRouting(cache_prompts=said), actor="test", now_ns=now_ns)
        async with AsyncOpenAI(base_url=gateway.v1, api_key=gateway.key, max_retries=0) as client:
            await client.chat.completions.create(
                model=alias,
                messages=talk(f"{alias} {said}", 1),  # type: ignore[arg-type]
                max_tokens=50,
            )
        rows = await gateway.rows()
        assert (rows[-1]["quantities"].get("cache_write_5m_tokens", 0) > 0) is writes


async def test_a_client_that_marks_is_left_alone(gateway: House) -> None:
    async with AsyncAnthropic(base_url=gateway.url, api_key=gateway.key, max_retries=0) as client:
        marked = {"type": "text", "text": "mine " * 3000, "cache_control": {"type": "ephemeral"}}
        rest = {"type": "text", "text": "not this " * 3000}
        answer = await client.messages.create(
            model="cached",
            max_tokens=50,
            messages=[
                {"role": "user", "content": [marked]},  # type: ignore[list-item]
                {"role": "assistant", "content": "go on"},
                {"role": "user", "content": [rest]},  # type: ignore[list-item]
            ],
        )
    written = answer.usage.cache_creation_input_tokens or 0
    assert 0 < written < answer.usage.input_tokens + written
    assert answer.usage.input_tokens > written / 2
