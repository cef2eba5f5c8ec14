"""Where a request goes and why, as a client sees it: in its own dialect, over real sockets."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import anthropic
import httpx
import msgspec
import pytest
import pytest_asyncio
from msgspec.structs import replace
from openai import AsyncOpenAI

from gateway.admission.principal import ProjectRouting
from gateway.admission.project_routing import ProjectRoutings
from gateway.config import DeploymentSettings, ModelSettings, PriceSettings, Strategy
from tests.e2e.harness import PRICE, House, house, provider, settings_for
from tests.emulators.openai import OpenAIEmulator

pytestmark = pytest.mark.asyncio(loop_scope="module")
NAMES = ("north", "south", "east", "west")


def alias(strategy: Strategy) -> ModelSettings:
    places = tuple(
        DeploymentSettings(provider=name, model="echo-1", price=PRICE, region=name, zdr=name == "south")
        for name in NAMES
    )
    return ModelSettings(alias=f"by-{strategy}", deployments=places, strategy=strategy)


DEAR = PriceSettings(input=Decimal(100), output=Decimal(100))
SLOW_OR_DEAR = ModelSettings(
    alias="slow-or-dear",
    deployments=(
        DeploymentSettings(provider="north", model="echo-2", price=PRICE),
        DeploymentSettings(provider="south", model="echo-2", price=DEAR),
    ),
    strategy="auto",
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(
    tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, _valkey: str
) -> AsyncIterator[House]:
    data = tmp_path_factory.mktemp("switchyard")
    database = data / "farebox.db"
    database.write_bytes(sqlite_template.read_bytes())
    async with OpenAIEmulator() as upstream:
        settings = settings_for(
            data,
            f"sqlite:///{database}",
            _valkey,
            {name: provider("openai_like", f"{upstream.url}/v1") for name in NAMES},
            (alias("prefix"), alias("sticky"), alias("auto"), alias("weighted"), SLOW_OR_DEAR),
        )
        async with house(settings) as built:
            yield built


def talk(turns: int, seed: str = "a") -> list[dict[str, Any]]:
    """A conversation so far: each turn a few hundred tokens."""
    roles = ("user", "assistant")
    said = [{"role": roles[n % 2], "content": f"turn {n} of {seed}: " + "word " * 300} for n in range(turns)]
    return [{"role": "system", "content": f"You are {seed}. " * 200}, *said]


async def provider_of(gateway: House, **body: Any) -> tuple[str, str]:
    """Who answered, and why."""
    headers = {"authorization": f"Bearer {gateway.key}", **body.pop("headers", {})}
    async with httpx.AsyncClient(timeout=20) as http:
        answer = await http.post(f"{gateway.v1}/chat/completions", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.headers["x-farebox-provider"], answer.headers["x-farebox-route"]


async def test_a_conversation_stays_where_its_beginning_was_read(gateway: House) -> None:
    firsts = set()
    for seed in ("a", "b", "c", "d", "e", "f"):
        stream = seed in "abc"
        first, _ = await provider_of(gateway, model="by-prefix", messages=talk(1, seed), stream=stream)
        for turns in (3, 5, 7):
            asked = {"model": "by-prefix", "messages": talk(turns, seed), "stream": stream}
            again, why = await provider_of(gateway, **asked)
            assert again == first
            assert "tokens cached" in why
        firsts.add(first)
    assert len(firsts) > 1


async def test_another_gateway_knows_what_this_one_has_learned(gateway: House, tmp_path: Path) -> None:
    first, _ = await provider_of(gateway, model="by-prefix", messages=talk(1, "z"))
    settings = replace(gateway.settings, data_dir=tmp_path)
    shutil.copytree(gateway.settings.data_dir, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("journal"))
    async with house(settings) as other:
        other.key = gateway.key
        async with asyncio.timeout(10):
            told, why = "", ""
            while "tokens cached" not in why:
                told, why = await provider_of(other, model="by-prefix", messages=talk(1, "z"))
    assert told == first


async def test_a_session_stays_where_it_began(gateway: House) -> None:
    for session in "abcdefgh":
        went = {
            (await provider_of(gateway, model="by-sticky", messages=talk(n), headers={"x-farebox-session": session}))[0]
            for n in (1, 2, 3)
        }
        assert len(went) == 1


async def test_a_request_says_where_it_may_go(gateway: House) -> None:
    client = AsyncOpenAI(base_url=gateway.v1, api_key=gateway.key, max_retries=0)
    async with client:
        for wanted in NAMES:
            raw = await client.chat.completions.with_raw_response.create(
                model="by-weighted",
                messages=[{"role": "user", "content": "hi"}],
                extra_body={"provider": {"only": [wanted]}},
            )
            assert raw.headers["x-farebox-provider"] == wanted
        raw = await client.chat.completions.with_raw_response.create(
            model="by-weighted",
            messages=[{"role": "user", "content": "hi"}],
            extra_body={"provider": {"data_collection": "deny"}},
        )
        assert raw.headers["x-farebox-provider"] == "south"
        with pytest.raises(Exception, match="not marked zdr") as refused:
            await client.chat.completions.create(
                model="by-weighted",
                messages=[{"role": "user", "content": "hi"}],
                extra_body={"provider": {"zdr": True, "ignore": ["south"]}},
            )
        assert refused.value.status_code == 400  # type: ignore[attr-defined]


async def test_anthropics_clients_say_it_in_a_header(gateway: House) -> None:
    async with anthropic.AsyncAnthropic(base_url=gateway.url, api_key=gateway.key, max_retries=0) as client:
        raw = await client.messages.with_raw_response.create(
            model="by-weighted",
            max_tokens=50,
            messages=[{"role": "user", "content": "hi"}],
            extra_headers={"x-farebox-preferences": '{"regions": ["east"]}'},
        )
        assert raw.headers["x-farebox-provider"] == "east"
        with pytest.raises(anthropic.BadRequestError, match="not JSON"):
            await client.messages.create(
                model="by-weighted",
                max_tokens=50,
                messages=[{"role": "user", "content": "hi"}],
                extra_headers={"x-farebox-preferences": "east, please"},
            )


@pytest.mark.parametrize("path", ["chat/completions", "responses", "messages"])
async def test_a_dry_run_tells_the_plan_and_costs_nothing(gateway: House, path: str) -> None:
    said = {"messages": talk(1)} if path != "responses" else {"input": "hi"}
    headers = {"authorization": f"Bearer {gateway.key}", "x-farebox-dry-run": "1"}
    body = {"model": "by-weighted", "max_tokens": 100, "provider": {"ignore": ["west"]}, **said}
    if path == "messages":
        headers["x-farebox-preferences"] = msgspec.json.encode(body.pop("provider")).decode()
    rows = len(await gateway.rows())
    async with httpx.AsyncClient(timeout=20) as http:
        answer = await http.post(f"{gateway.v1}/{path}", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert {leg["deployment"] for leg in told["legs"]} == {f"{name}/echo-1" for name in NAMES if name != "west"}
    assert told["left_out"] == [{"deployment": "west/echo-1", "why": "among `ignore`"}]
    assert all(leg["why"] and 0 < leg["likely_pusd"] <= leg["most_pusd"] for leg in told["legs"])
    assert len(await gateway.rows()) == rows


async def test_what_a_second_is_worth_is_said_by_the_nearest(gateway: House) -> None:
    """The alias', the project's, the request's own word: each changes the plan, and the plan tells what counted."""
    assert gateway.app.health_table is not None
    gateway.app.health_table.of("north/echo-2").read(2_000, 20.0)
    gateway.app.health_table.of("south/echo-2").read(2_000, 0.1)
    projects = ProjectRoutings(gateway.engine, gateway.keys.changed)

    async def first(said: ProjectRouting | None = None, **provider: float) -> tuple[str, int]:
        if said is not None:
            await projects.set(gateway.project.id, said, actor="test", now_ns=time.time_ns())
        body: dict[str, Any] = {"model": "slow-or-dear", "messages": talk(1), "max_tokens": 100}
        headers = {"authorization": f"Bearer {gateway.key}", "x-farebox-dry-run": "1"}
        async with httpx.AsyncClient(timeout=20) as http:
            answer = await http.post(
                f"{gateway.v1}/chat/completions", json=body | {"provider": provider}, headers=headers
            )
        told = answer.json()
        return told["legs"][0]["deployment"], told["second_pusd"]

    assert await first() == ("north/echo-2", 10**9)
    assert await first(ProjectRouting(second_pusd=10**12)) == ("south/echo-2", 10**12)
    assert await first(second_usd=0) == ("north/echo-2", 0)
    assert await first(ProjectRouting(second_pusd=0)) == ("north/echo-2", 0)
    assert await first(second_usd=1) == ("south/echo-2", 10**12)
    assert await first(ProjectRouting()) == ("north/echo-2", 10**9)


async def test_auto_tells_money_and_seconds(gateway: House) -> None:
    _, why = await provider_of(gateway, model="by-auto", messages=talk(1))
    assert "USD and" in why
