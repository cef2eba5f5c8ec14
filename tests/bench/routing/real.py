"""Four engine processes on this machine behind one gateway: rounds of conversations by each strategy, seen by a client.

The engine is ours with a small random model (`MODEL`), whose answers mean nothing and cost what they cost. Each
strategy has conversations of its own, so that no engine has read any of them, and they go one after the other. Measured
is the gateway's own `prefix` against what its aliases offer besides, not the rules of others: those are simulated."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import httpx
from msgspec.structs import replace

from billing.migrate import upgrade
from gateway.config import TimeoutSettings
from tests.clusters import Valkey
from tests.e2e.harness import House, house, model, provider, settings_for
from tests.local_backend.support import EngineProcess, make_tiny_model

REPLICAS = 4
STRATEGIES = ("weighted", "least_busy", "sticky", "prefix")
MODEL = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "max_position_embeddings": 16384}
TALKS, ROUNDS, TURNS = 6, 4, 1
START_S = 600
# Characters, which are tokens to this model.
SYSTEM, DOCUMENT, QUESTION = 600, 3000, 150
SLOW = TimeoutSettings(connect_s=10, first_byte_s=300, between_bytes_s=300, total_s=600)


@dataclass(frozen=True)
class Measured:
    """first_token_s: mean of rounds after the first; cached: share of all prompt tokens that engines found."""

    strategy: str
    requests: int
    first_token_s: float
    cached: float


def words(rng: random.Random, count: int) -> str:
    return "".join(rng.choices("abcdefgh ijklmnop", k=count))


Answer = tuple[float, str, dict[str, Any]]
"""Seconds to its first token, its text, its usage."""


async def ask(http: httpx.AsyncClient, alias: str, said: list[dict[str, str]], session: str) -> Answer:
    body = {"model": alias, "messages": said, "max_tokens": 24, "stream": True, "temperature": 0}
    body["stream_options"] = {"include_usage": True}
    began, first, text, usage = time.monotonic(), 0.0, "", {}
    async with http.stream("POST", "/chat/completions", json=body, headers={"x-farebox-session": session}) as answer:
        if answer.status_code != 200:
            raise RuntimeError((await answer.aread()).decode())
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            first = first or time.monotonic() - began
            text += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
            usage = chunk.get("usage") or usage
    return first, text, usage


async def talk(http: httpx.AsyncClient, alias: str, seed: int) -> list[tuple[int, float, int, int]]:
    """By round: its number, seconds to the first token, prompt tokens, those found."""
    rng = random.Random(seed)
    said = [{"role": "system", "content": words(random.Random(alias), SYSTEM)}]
    seen = []
    await asyncio.sleep(rng.random())
    for number in range(ROUNDS):
        asked = words(rng, QUESTION if number else DOCUMENT)
        said.append({"role": "user", "content": asked})
        first, text, usage = await ask(http, alias, said, f"{alias}{seed}")
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        seen.append((number, first, usage["prompt_tokens"], cached))
        said.append({"role": "assistant", "content": text or "."})
        await asyncio.sleep(rng.random() * 0.5)
    return seen


async def measured(gateway: House) -> list[Measured]:
    rounds: dict[str, list[tuple[int, float, int, int]]] = {name: [] for name in STRATEGIES}
    headers = {"authorization": f"Bearer {gateway.key}"}
    async with httpx.AsyncClient(base_url=gateway.v1, timeout=600, headers=headers) as http:
        for turn in range(TURNS):
            for name in STRATEGIES:
                talks = (talk(http, name, 1000 * turn + n) for n in range(TALKS))
                rounds[name] += [one for seen in await asyncio.gather(*talks) for one in seen]
    return [
        Measured(
            name,
            len(seen),
            fmean(first for number, first, *_ in seen if number),
            sum(cached for *_, cached in seen) / sum(tokens for _, _, tokens, _ in seen),
        )
        for name, seen in rounds.items()
    ]


async def run(folder: Path) -> list[Measured]:
    make_tiny_model(folder / "model", **MODEL)
    async with AsyncExitStack() as stack:
        engines = []
        for _ in range(REPLICAS):
            limits = ("--served-name", "tiny", "--dtype", "float32", "--kv-cache-bytes", "256MiB", "--threads", "1")
            engine = EngineProcess(str(folder / "model"), "--port", "0", "--die-with-parent", *limits)
            stack.callback(engine.process.kill)
            engines.append(engine)
        for engine in engines:
            await asyncio.to_thread(engine.start, START_S)
        valkey = Valkey(folder)
        await valkey.start()
        stack.push_async_callback(valkey.kill)
        url = f"sqlite+aiosqlite:///{folder / 'farebox.db'}"
        await upgrade(url)
        providers = {f"r{n}": provider("local", f"{engine.url}/v1") for n, engine in enumerate(engines)}
        models = []
        for name in STRATEGIES:
            alias = replace(model(name, *(f"{place}/tiny" for place in providers)), strategy=name)
            models.append(replace(alias, deployments=tuple(replace(d, priority=0) for d in alias.deployments)))
        settings = settings_for(folder / "data", url, valkey.url, providers, tuple(models), timeouts=SLOW)
        return await measured(await stack.enter_async_context(house(settings)))


def main(as_json: bool) -> int:
    with TemporaryDirectory(prefix="fbx-routing-") as folder:
        found = asyncio.run(run(Path(folder)))
    by_name = {one.strategy: one.first_token_s for one in found}
    ours = by_name.pop("prefix")
    ratio = round(ours / min(by_name.values()), 3)
    if as_json:
        sys.stdout.write(json.dumps({"ratio": ratio, "measured": [asdict(one) for one in found]}) + "\n")
    else:
        for one in found:
            sys.stdout.write(f"{one.strategy:12} {one.first_token_s * 1e3:9.1f} ms {one.cached:6.1%} cached\n")
        sys.stdout.write(f"prefix to the best of the others: {ratio}\n")
    return 0
