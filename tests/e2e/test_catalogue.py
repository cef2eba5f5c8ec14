"""What operators change while the gateway runs: no request fails, no stream drops, requests go where they now say."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import pytest_asyncio

from billing.db import create_engine, writing
from gateway.app import create_app
from gateway.catalogue.changes import Changes, Sealing
from gateway.catalogue.declared import declare_deployments
from gateway.catalogue.document import AliasEntry, DeploymentEntry, ProviderEntry
from gateway.config import Settings, Source
from gateway.kept import key_ring
from gateway.routing.catalog import Catalog
from tests.e2e import harness
from tests.e2e.harness import House, house, settings_for, until
from tests.emulators.openai import OpenAIEmulator
from tests.emulators.server import Request

pytestmark = pytest.mark.asyncio(loop_scope="module")
PATIENCE_S = 60.0
ROUNDS = 50
FILE = """
[providers.filed]
kind = "openai_like"
base_url = "{url}/v1"
[[models]]
alias = "filed"
deployments = [{{ provider = "filed", model = "{model}", price = {{ input = "1", output = "1" }} }}]
"""


class Keyring(OpenAIEmulator):
    """Takes every key but one."""

    def _authorised(self, request: Request) -> bool:
        return request.headers.get("authorization") != "Bearer sk-expired"


class Yard:
    """A gateway, two upstreams, and an operator in another process as far as the gateway can tell."""

    def __init__(self, gateway: House, one: OpenAIEmulator, two: OpenAIEmulator, file: Path) -> None:
        self.gateway, self.one, self.two, self.file = gateway, one, two, file
        self.engine = create_engine(gateway.settings.database_url)
        settings = gateway.settings
        self.changes = Changes(self.engine, lambda: settings, lambda: key_ring(settings), {})

    async def put(self, kind: Any, name: str, said: dict[str, Any], **more: Any) -> int:
        entry = {"providers": ProviderEntry, "deployments": DeploymentEntry, "aliases": AliasEntry}[kind]
        converted = msgspec.convert(said, entry)
        return (await self.changes.put(kind, name, converted, actor="ann", now_ns=time.time_ns(), **more)).number

    @staticmethod
    def place(name: str, emulator: OpenAIEmulator) -> dict[str, Any]:
        return {"kind": "openai_like", "base_url": f"{emulator.url}/v1", "allow_private": True, "credential": name}

    async def upstream(self, name: str, emulator: OpenAIEmulator, key: str = "sk-test") -> None:
        await self.put(
            "providers", name, self.place(name, emulator), sealing=Sealing(name, "openai_like", {"api_key": key})
        )
        price = {"input": "1.5", "output": "7.25"}
        await self.put("deployments", f"{name}/echo-1", {"provider": name, "model": "echo-1", "price": price})

    async def alias(self, *names: str) -> int:
        return await self.put("aliases", "live", {"targets": [{"deployment": f"{name}/echo-1"} for name in names]})

    async def in_force(self, number: int) -> None:
        assert self.gateway.app.offer is not None
        await until(lambda: self.gateway.app.offer.number >= number, PATIENCE_S)  # type: ignore[union-attr]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def yard(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, _valkey: str) -> AsyncIterator[Yard]:
    data = tmp_path_factory.mktemp("catalogue")
    database, file = data / "farebox.db", data / "farebox.toml"
    database.write_bytes(sqlite_template.read_bytes())
    async with Keyring() as one, Keyring() as two:
        file.write_text(FILE.format(url=one.url, model="echo-1"))
        settings = settings_for(data, f"sqlite:///{database}", _valkey, {}, ())
        source = Source(file, {}, data_dir=data)
        said = source.read()
        settings = msgspec.structs.replace(settings, providers=said.providers, models=said.models)

        def followed(given: Settings, *more: Any) -> Any:
            return create_app(given, None, source)

        patch = pytest.MonkeyPatch()
        patch.setattr(harness, "create_app", followed)
        async with house(settings) as built:
            made = Yard(built, one, two, file)
            yield made
            await made.engine.dispose()
        patch.undo()


async def asked(http: httpx.AsyncClient, gateway: House, prompt: str = "hi", model: str = "live") -> str:
    """Who answered. Raises: AssertionError for anything but a whole answer."""
    body = {"model": model, "messages": [{"role": "user", "content": prompt}]}
    answer = await http.post(f"{gateway.v1}/chat/completions", json=body, headers=headers(gateway))
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["finish_reason"] == "stop"
    return answer.headers["x-farebox-provider"]


async def streamed(http: httpx.AsyncClient, gateway: House, words: int, begun: asyncio.Event | None = None) -> str:
    """As `asked`, of a stream that takes its time. begun: set once the first part is here."""
    prompt = f"x-script: long={words} pace_ms=5"
    body = {"model": "live", "stream": True, "messages": [{"role": "user", "content": prompt}]}
    parts = []
    async with http.stream("POST", f"{gateway.v1}/chat/completions", json=body, headers=headers(gateway)) as answer:
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            parts.append(line)
            if begun is not None and '"content"' in line:
                begun.set()
    assert "data: [DONE]" in parts
    assert sum('"content"' in part for part in parts) >= words
    return answer.headers["x-farebox-provider"]


def headers(gateway: House) -> dict[str, str]:
    return {"authorization": f"Bearer {gateway.key}"}


@pytest.mark.timeout(240)
async def test_fifty_changes_under_load_lose_nothing(yard: Yard) -> None:
    await yard.upstream("one", yard.one)
    await yard.upstream("two", yard.two)
    await yard.put(
        "providers", "three", yard.place("three", yard.two), sealing=Sealing("three", "x", {"api_key": "sk-3"})
    )
    price = {"input": "1.5", "output": "7.25"}
    entry = msgspec.convert({"provider": "three", "model": "echo-1", "price": price}, DeploymentEntry)
    async with writing(yard.engine) as db:  # A price of its own, while the alias names it as `provider/model`.
        await declare_deployments(db, [entry], time.time_ns())
    await yard.in_force(await yard.alias("one"))
    done, went = asyncio.Event(), {"whole": 0, "streams": 0}

    async with httpx.AsyncClient(timeout=PATIENCE_S) as http:

        async def whole() -> None:
            while not done.is_set():
                assert await asked(http, yard.gateway) in ("one", "two", "three")
                went["whole"] += 1

        async def streams() -> None:
            while not done.is_set():
                assert await streamed(http, yard.gateway, 40) in ("one", "two", "three")
                went["streams"] += 1

        async def operator() -> None:
            for n in range(ROUNDS):
                match n % 5:
                    case 0:
                        number = await yard.alias("two")
                    case 1:
                        number = await yard.alias("three", "one")
                    case 2:  # A new secret for a provider in use.
                        sealing = Sealing("one", "openai_like", {"api_key": f"sk-round-{n}"})
                        kept = await yard.changes.keep(sealing, actor="ann", now_ns=time.time_ns())
                        number = kept.number
                    case 3:
                        number = await yard.alias("two", "one")
                    case _:  # Away with the one that was being asked, and here it is again at the end of the round.
                        gone = await yard.changes.remove("providers", "three", actor="ann", now_ns=time.time_ns())
                        number = gone.number
                        await yard.put("providers", "three", yard.place("three", yard.two))
                if n % 10 == 9:
                    await yard.in_force(number)
            done.set()

        async with asyncio.TaskGroup() as group:
            for each in (whole, whole, streams, operator):
                group.create_task(each())
        assert went["whole"] > ROUNDS / 5
        assert went["streams"] > 1
        await yard.in_force(await yard.alias("one"))
        assert await asked(http, yard.gateway) == "one"
        assert yard.one.last.headers["authorization"] == f"Bearer sk-round-{ROUNDS - 3}"
    rows = await yard.gateway.rows(went["whole"] + went["streams"])
    assert {row["outcome"] for row in rows} == {"completed"}
    assert await yard.gateway.charged_pusd() > 0


async def test_a_stream_outlives_its_provider(yard: Yard) -> None:
    await yard.upstream("one", yard.one)
    await yard.upstream("two", yard.two)
    await yard.in_force(await yard.alias("one"))
    begun = asyncio.Event()
    async with httpx.AsyncClient(timeout=PATIENCE_S) as http:
        streaming = asyncio.create_task(streamed(http, yard.gateway, 300, begun))
        await asyncio.wait_for(begun.wait(), PATIENCE_S)
        await yard.alias("two")
        await yard.changes.remove("deployments", "one/echo-1", actor="ann", now_ns=time.time_ns())
        gone = await yard.changes.remove("providers", "one", actor="ann", now_ns=time.time_ns())
        await yard.in_force(gone.number)
        assert await asked(http, yard.gateway) == "two"
        assert await streaming == "one"


async def test_a_mended_credential_serves_at_once(yard: Yard) -> None:
    """A refused one opens the breaker for a minute; a new one begins anew."""
    await yard.upstream("mended", yard.one, "sk-expired")
    await yard.in_force(await yard.alias("mended"))
    health = yard.gateway.app.health_table
    assert health is not None
    async with httpx.AsyncClient(timeout=PATIENCE_S) as http:
        body = {"model": "live", "messages": [{"role": "user", "content": "hi"}]}
        refused = await http.post(f"{yard.gateway.v1}/chat/completions", json=body, headers=headers(yard.gateway))
        assert refused.status_code == 502
        assert health.of("mended/echo-1").breaker.condition(time.monotonic()) == "open"
        before = yard.gateway.app.offer.catalog.endpoints["mended"]  # type: ignore[union-attr]
        await yard.changes.keep(
            Sealing("mended", "openai_like", {"api_key": "sk-good"}), actor="ann", now_ns=time.time_ns()
        )
        await until(lambda: yard.gateway.app.offer.catalog.endpoints["mended"] != before, PATIENCE_S)  # type: ignore[union-attr]
        assert health.of("mended/echo-1").breaker.condition(time.monotonic()) == "closed"
        assert await asked(http, yard.gateway) == "mended"


async def test_the_file_is_followed_and_a_bad_one_changes_nothing(yard: Yard) -> None:
    offer = yard.gateway.app.offer
    assert offer is not None
    live = offer.live

    def catalog() -> Catalog:
        return offer.catalog

    async with httpx.AsyncClient(timeout=PATIENCE_S) as http:
        assert await asked(http, yard.gateway, model="filed") == "filed"
        yard.file.write_text(FILE.format(url=yard.two.url, model="echo-2"))
        await until(lambda: catalog().deployments("filed")[0].model == "echo-2", PATIENCE_S)
        assert await asked(http, yard.gateway, model="filed") == "filed"
        assert yard.two.last.json()["model"] == "echo-2"
        yard.file.write_text(FILE.format(url=yard.one.url, model="echo-3").replace('"openai_like"', '"openai_lik"'))
        await until(lambda: bool(live.faults), PATIENCE_S)
        assert "openai_lik" in str(live.faults)
        assert await asked(http, yard.gateway, model="filed") == "filed"
        assert yard.two.last.json()["model"] == "echo-2"
        yard.file.write_text("[providers.filed\n")
        await until(lambda: "parse" in str(live.faults), PATIENCE_S)
        yard.file.write_text(FILE.format(url=yard.one.url, model="echo-3"))
        await until(lambda: catalog().deployments("filed")[0].model == "echo-3", PATIENCE_S)
        assert not live.faults
        assert await asked(http, yard.gateway, model="filed") == "filed"
        assert yard.one.last.json()["model"] == "echo-3"


async def test_a_second_gateway_starts_with_what_it_can_and_says_what_is_left_out(yard: Yard, tmp_path: Path) -> None:
    await yard.upstream("two", yard.two)
    number = await yard.alias("two")
    # The second one's file has the name as well: faults there stop nobody's start.
    said = Source(yard.file, {}, data_dir=tmp_path).read()
    (tmp_path / "secrets").mkdir()
    for name in ("key_pepper", "key_ring"):
        text = (yard.gateway.settings.data_dir / "secrets" / name).read_text()
        (tmp_path / "secrets" / name).write_text(text)
    providers = {"two": said.providers["filed"]}
    settings = msgspec.structs.replace(yard.gateway.settings, data_dir=tmp_path, providers=providers, models=())
    async with house(settings) as other:
        other.key = yard.gateway.key
        live = other.app.offer.live  # type: ignore[union-attr]
        assert live.number == number
        assert "two" not in live.document.providers
        async with httpx.AsyncClient(timeout=PATIENCE_S) as http:
            assert await asked(http, other, model="two/echo-1") == "two"
