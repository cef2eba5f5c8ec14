"""Providers asked for nothing: by one gateway of all, believed by all, before a client has to find out."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from msgspec.structs import replace
from redis.asyncio import Redis

from gateway.config import ProviderSettings
from gateway.routing.probing import FOUND, TURN
from tests.e2e.harness import WITHIN_S, House, house, model, provider, settings_for
from tests.emulators.openai import OpenAIEmulator
from tests.emulators.server import Out, Request
from tests.gateway.cli.conftest import farebox_json

pytestmark = pytest.mark.asyncio(loop_scope="module")
SELDOM_S = 3600.0


class Frail(OpenAIEmulator):
    """What it answers each GET with, whatever else it is asked goes well."""

    status = 200

    async def handle(self, request: Request, out: Out) -> None:
        if request.method == "GET" and self.status != 200:
            await out.json(self.status, {"error": {"message": "no", "type": "server_error"}})
            return
        await super().handle(request, out)

    @property
    def probes(self) -> list[str]:
        return [request.path for request in self.requests if request.method == "GET"]


@dataclass
class Yard:
    """Two gateways of one installation."""

    one: House
    two: House
    frail: Frail
    seldom: Frail
    never: Frail

    async def ask(self, gateway: House, alias: str, **headers: str) -> httpx.Response:
        body = {"model": alias, "messages": [{"role": "user", "content": "hi"}]}
        async with httpx.AsyncClient(timeout=WITHIN_S) as http:
            signed = {"authorization": f"Bearer {self.one.key}", **headers}
            return await http.post(f"{gateway.v1}/chat/completions", json=body, headers=signed)

    async def leg(self, gateway: House, alias: str, name: str) -> dict[str, Any]:
        told = (await self.ask(gateway, alias, **{"x-farebox-dry-run": "1"})).json()
        found: dict[str, Any] = next(each for each in told["legs"] if each["deployment"] == name)
        return found

    async def until(self, gateway: House, alias: str, name: str, condition: str) -> dict[str, Any]:
        """Returns: the plan's leg, once a probe has found it so."""
        async with asyncio.timeout(WITHIN_S):
            while (leg := await self.leg(gateway, alias, name))["condition"] != condition or not leg["probe"]:
                await asyncio.sleep(0.05)
        return leg


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def yard(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, _valkey: str) -> AsyncIterator[Yard]:
    data = tmp_path_factory.mktemp("probing")
    (data / "farebox.db").write_bytes(sqlite_template.read_bytes())
    async with AsyncExitStack() as stack:
        frail, seldom, never = [await stack.enter_async_context(Frail()) for _ in range(3)]

        def named(upstream: Frail, **more: Any) -> ProviderSettings:
            return provider("openai_like", f"{upstream.url}/v1", **more)

        providers = {
            "frail": named(frail, probe_s=1.0),
            "seldom": named(seldom, probe_s=SELDOM_S),
            "health": named(seldom, probe_s=SELDOM_S, probe_path="/health"),
            "never": named(never),
            "mute": provider("azure_ai", never.url, probe_s=1.0),
        }
        models = (
            model("first-frail", "frail/echo-1", "never/echo-1"),
            model("seldom", "seldom/echo-1", "health/echo-1"),
            model("mute", "mute/echo-1", "never/echo-1"),
        )
        settings = settings_for(data, f"sqlite:///{data / 'farebox.db'}", _valkey, providers, models)
        one = await stack.enter_async_context(house(settings))
        other = tmp_path_factory.mktemp("probing-too")
        shutil.copytree(data, other, dirs_exist_ok=True, ignore=shutil.ignore_patterns("journal"))
        two = await stack.enter_async_context(house(replace(settings, data_dir=other)))
        yield Yard(one, two, frail, seldom, never)


async def test_two_gateways_ask_no_more_than_one_and_both_know(yard: Yard) -> None:
    for gateway in (yard.one, yard.two):
        for name in ("seldom", "health"):
            leg = await yard.until(gateway, "seldom", f"{name}/echo-1", "closed")
            assert leg["probe"].startswith("well in ")
    assert sorted(yard.seldom.probes) == ["/health", "/v1/models"]


async def test_one_that_goes_away_is_missed_before_any_client_finds_out(yard: Yard) -> None:
    for gateway in (yard.one, yard.two):
        await yard.until(gateway, "first-frail", "frail/echo-1", "closed")
    yard.frail.status = 503
    try:
        for gateway in (yard.one, yard.two):
            leg = await yard.until(gateway, "first-frail", "frail/echo-1", "absent")
            assert leg["probe"].startswith("Overloaded 503, ")
            assert "absent for" in leg["why"]
            assert leg["place"] == 2
            answer = await yard.ask(gateway, "first-frail")
            assert (answer.status_code, answer.headers["x-farebox-provider"]) == (200, "never")
            assert answer.headers["x-farebox-attempts"] == "1"
        async with httpx.AsyncClient(timeout=WITHIN_S) as http:
            metrics = (await http.get(f"{yard.one.url}/metrics")).text
        assert 'farebox_breaker{deployment="frail/echo-1"} 4.0' in metrics
    finally:
        yard.frail.status = 200
    for gateway in (yard.one, yard.two):
        await yard.until(gateway, "first-frail", "frail/echo-1", "closed")
        assert (await yard.ask(gateway, "first-frail")).headers["x-farebox-provider"] == "frail"


async def test_the_command_knows_what_was_found(yard: Yard, tmp_path: Path) -> None:
    await yard.until(yard.one, "first-frail", "frail/echo-1", "closed")
    (tmp_path / "farebox.toml").write_text(f"""
discover_providers = false
redis_url = "{yard.one.settings.redis_url}"
local = {{ enabled = false }}
[providers.frail]
kind = "openai_like"
base_url = "{yard.frail.url}/v1"
probe_s = 1
[[models]]
alias = "first-frail"
deployments = [{{ provider = "frail", model = "echo-1", price = {{ input = "1", output = "1" }} }}]
""")
    await asyncio.to_thread(farebox_json, "migrate", cwd=tmp_path)
    told = await asyncio.to_thread(farebox_json, "route", "explain", "first-frail", cwd=tmp_path)
    assert told["legs"][0]["probe"].startswith("well in ")


async def test_who_is_not_to_be_probed_or_cannot_be_is_left_alone(yard: Yard) -> None:
    await yard.until(yard.one, "first-frail", "frail/echo-1", "closed")
    assert yard.never.probes == []
    async with Redis.from_url(yard.one.settings.redis_url or "") as redis:
        assert await redis.exists(f"{TURN}never") == 0
        assert b"mute" not in await redis.hgetall(FOUND)  # type: ignore[misc]
    assert (await yard.leg(yard.one, "mute", "mute/echo-1"))["probe"] is None
