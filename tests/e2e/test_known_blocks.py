"""Two engines of ours behind one alias: what each tells of its prefix cache decides, to the token."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec.structs import replace

from billing import accounts
from billing.db import writing
from gateway.config import (
    DeploymentSettings,
    ModelSettings,
    ProviderSettings,
    ReplicaSettings,
    Secret,
    TimeoutSettings,
)
from gateway.routing.known_blocks import LONG_BYTES
from tests.e2e.harness import PRICE, House, house, model, provider, settings_for
from tests.local_backend.support import EngineProcess, make_tiny_model

WITHIN_S = 100
BLOCK = 16
# An engine's first step on a busy machine.
PATIENT = TimeoutSettings(first_byte_s=WITHIN_S, between_bytes_s=WITHIN_S)
ANY = "tcp://127.0.0.1:*"
LIMITS = ("--block-size", str(BLOCK), "--dtype", "float32", "--kv-cache-bytes", "24MiB", "--served-name", "tiny")


class Engine:
    def __init__(self, folder: Path, port: str = "0", events: str = ANY, replay: str = ANY) -> None:
        told = ("--kv-events", events, "--kv-events-replay", replay)
        self.process = EngineProcess(str(folder), "--port", port, "--die-with-parent", *LIMITS, *told)

    def ready(self) -> Engine:
        self.events, self.replay = self.process.wait_for("kv_events")["urls"]
        self.process.start()
        return self

    def kill(self) -> None:
        self.process.process.kill()


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[Engine]]]:
    folder = tmp_path_factory.mktemp("tiny") / "tiny"
    make_tiny_model(folder, max_position_embeddings=16384)
    with ExitStack() as exits:
        started = [Engine(folder) for _ in range(2)]
        for engine in started:
            exits.callback(engine.kill)
        yield folder, [engine.ready() for engine in started]


def talk(seed: str, turns: int) -> list[dict[str, Any]]:
    said = [{"role": "user", "content": f"{seed} turn {n} " + f"{seed} " * (LONG_BYTES * 3 // 4)} for n in range(turns)]
    return [message for one in said for message in (one, {"role": "assistant", "content": "yes"})][:-1]


async def ask(gateway: House, messages: list[dict[str, Any]], key: str = "", **headers: str) -> httpx.Response:
    body = {"model": "fleet", "messages": messages, "max_tokens": 2}
    async with httpx.AsyncClient(timeout=WITHIN_S) as http:
        headers = {"authorization": f"Bearer {key or gateway.key}", **headers}
        answer = await http.post(f"{gateway.v1}/chat/completions", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer


def found_by(answer: httpx.Response) -> int:
    """How many tokens of the prompt its engine had."""
    return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])


async def thought(gateway: House, messages: list[dict[str, Any]], key: str = "") -> dict[str, int]:
    """How many tokens of it the gateway thinks each engine has."""
    plan = (await ask(gateway, messages, key, **{"x-farebox-dry-run": "1"})).json()
    return {leg["deployment"]: leg["cached_tokens"] for leg in plan["legs"]}


async def until_thought(gateway: House, messages: list[dict[str, Any]], wanted: dict[str, int], key: str = "") -> None:
    """A prompt that is not tokenised in time is guessed by bytes, so a busy machine is asked again."""
    seen: dict[str, int] = {}
    try:
        async with asyncio.timeout(WITHIN_S):
            while (seen := await thought(gateway, messages, key)) != wanted:
                await asyncio.sleep(0.1)
    except TimeoutError:
        assert seen == wanted


@pytest.mark.timeout(300)
async def test_engines_that_joined_are_followed_to_where_they_said(
    engines: tuple[Path, list[Engine]], tmp_path: Path, sqlite_template: Path, redis_url: str
) -> None:
    """Nobody wrote their addresses down."""
    (tmp_path / "farebox.db").write_bytes(sqlite_template.read_bytes())
    place = DeploymentSettings(provider="own", model="tiny", price=PRICE)
    settings = settings_for(
        tmp_path,
        f"sqlite+aiosqlite:///{tmp_path / 'farebox.db'}",
        redis_url,
        {"own": ProviderSettings(kind="local", replicas=True)},
        (ModelSettings(alias="fleet", deployments=(place,), strategy="prefix"),),
        replicas=ReplicaSettings(token=Secret("let-me-in-1", {}), lease_s=300.0),
        timeouts=PATIENT,
    )
    async with house(settings) as gateway, httpx.AsyncClient(timeout=WITHIN_S) as http:
        for name, engine in zip(("one", "two"), engines[1], strict=True):
            said = {"base_url": f"{engine.process.url}/v1", "models": ["tiny"]}
            said |= {"kv_events": engine.events, "kv_events_replay": engine.replay}
            headers = {"authorization": "Bearer let-me-in-1"}
            answer = await http.put(f"{gateway.url}/replicas/own/{name}", json=said, headers=headers)
            assert answer.status_code == 200, answer.text
        for seed, home in (("join-a", "one"), ("join-b", "two")):
            only = {"x-farebox-preferences": f'{{"only": ["own/tiny@{home}"]}}'}
            assert found_by(await ask(gateway, talk(seed, 1), **only)) == 0
            tokens = found_by(await ask(gateway, talk(seed, 1), **only))
            assert tokens % BLOCK == 0
            away = "two" if home == "one" else "one"
            await until_thought(gateway, talk(seed, 1), {f"own/tiny@{home}": tokens, f"own/tiny@{away}": 0})


@pytest.mark.timeout(300)
async def test_each_prompt_goes_where_its_blocks_are(
    engines: tuple[Path, list[Engine]], tmp_path: Path, sqlite_template: Path, redis_url: str
) -> None:
    folder, (one, two) = engines
    (tmp_path / "farebox.db").write_bytes(sqlite_template.read_bytes())
    providers = {
        name: provider(
            "local", f"{engine.process.url}/v1", options={"kv_events": engine.events, "kv_events_replay": engine.replay}
        )
        for name, engine in (("one", one), ("two", two))
    }
    fleet = replace(model("fleet", "one/tiny", "two/tiny"), strategy="prefix")
    fleet = replace(fleet, deployments=tuple(replace(d, priority=0) for d in fleet.deployments))
    url = f"sqlite+aiosqlite:///{tmp_path / 'farebox.db'}"
    async with house(settings_for(tmp_path, url, redis_url, providers, (fleet,), timeouts=PATIENT)) as gateway:
        for seed, home in (("a", "one"), ("b", "two"), ("c", "one")):
            only = {"x-farebox-preferences": f'{{"only": ["{home}"]}}'}
            assert found_by(await ask(gateway, talk(seed, 1), **only)) == 0
            # The engine says how much it finds of the same prompt; the gateway comes to say the same, block by block.
            tokens = found_by(await ask(gateway, talk(seed, 1), **only))
            assert tokens > LONG_BYTES // 2
            assert tokens % BLOCK == 0
            away = "two" if home == "one" else "one"
            await until_thought(gateway, talk(seed, 1), {f"{home}/tiny": tokens, f"{away}/tiny": 0})
            answer = await ask(gateway, talk(seed, 2))
            assert answer.headers["x-farebox-provider"] == home
            assert f"{found_by(answer)} tokens cached" in answer.headers["x-farebox-route"]

        # To these engines another project's same words are another prompt, and the gateway knows that too.
        async with writing(gateway.engine) as db:
            other = await accounts.create_project(db, "proj_o", gateway.project.organisation_id, "other", at_ns=1)
        made = await gateway.keys.create_key(project_id=other.id, name="other", actor="test", now_ns=time.time_ns())
        assert made.plain is not None
        assert (await thought(gateway, talk("a", 1))).get("one/tiny", 0) > 0
        await until_thought(gateway, talk("a", 1), {"one/tiny": 0, "two/tiny": 0}, made.plain)

        # An engine that is started anew holds nothing, and nobody needs to be told.
        port = one.process.url.rpartition(":")[2]
        one.process.stop()
        again = Engine(folder, port, one.events, one.replay)
        try:
            await asyncio.to_thread(again.ready)
            await until_thought(gateway, talk("c", 1), {"one/tiny": 0, "two/tiny": 0})
            known = await thought(gateway, talk("b", 1))
            assert known["two/tiny"] > 0, "the other one's are as they were"
        finally:
            again.kill()
