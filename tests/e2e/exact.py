"""Volume without faults: at its end, the tokens that the providers counted are the tokens of the ledger, exactly.

`python -m tests.e2e.exact --minutes 5 --processes 4 --json [--database sqlite|postgresql] [--clients N]` starts its own
Valkey, SQL database, emulators of three providers and gateway processes, which share one data folder as on one host.
Clients ask as fast as they are answered, in two dialects, streamed and whole, with reasoning and caches; then the
gateways are told to stop, the journals are shipped, and one JSON line is printed:

requests, per_second   answers that clients read to their end
odd                    answers that nobody expected
providers              for each: what its emulator counted and what its rows hold, by kind of token
tokens_upstream, tokens_ledger  sums of those
missing, double        answers without a row; rows beyond one an answer
unpriced, estimated    rows
debits_minus_credits   of the trial balance, in pUSD; also not 0 where a kept balance is not the sum of its transfers
charged_differs_pusd   revenue less the charges of the rows
hours_differ           sums that the roll-ups say otherwise than the rows
holds_left             reservations still open in Redis
exact                  whether all of that is as it should be
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
from redis.asyncio import Redis
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from billing import accounts, journal, ledger, schema, sums
from billing.db import create_engine, reading, writing
from billing.migrate import upgrade
from billing.pricelist import load_prices
from billing.sums import Span
from billing.worker import Worker
from gateway.admission.key_admin import KeyAdmin, KeyTerms
from gateway.config import load
from gateway.embedded.prices import declare
from gateway.embedded.secrets import Secrets
from tests import services
from tests.clusters import Valkey
from tests.e2e.staging import Replica
from tests.emulators.anthropic import AnthropicEmulator
from tests.emulators.gemini import GeminiEmulator
from tests.emulators.openai import OpenAIEmulator
from tests.emulators.server import Emulator

ORGANISATION = "org_exact"
KEYS = 8
CACHE_READ = ("cache_read_tokens", "cache_read_audio_tokens", "cache_read_image_tokens")
CACHE_WRITE = ("cache_write_5m_tokens", "cache_write_1h_tokens")


def emulators() -> dict[str, Emulator]:
    return {"openai": OpenAIEmulator(), "anthropic": AnthropicEmulator(), "gemini": GeminiEmulator()}


async def run(
    folder: Path, database_url: str, *, processes: int, clients: int, seconds: float, most: int = sys.maxsize
) -> dict[str, Any]:
    """Ends after so long, or so many requests."""
    valkey = Valkey(folder)
    await valkey.start()
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(valkey.kill)
        upstream = emulators()
        for emulator in upstream.values():
            await stack.enter_async_context(emulator)
        config = folder / "farebox.toml"
        config.write_text(_config(folder, upstream, database_url, valkey.url))
        settings = load(config, {})
        await upgrade(database_url)
        engine = create_engine(database_url)
        stack.push_async_callback(engine.dispose)
        async with writing(engine) as db:
            await declare(db, settings, time.time_ns())
            await accounts.create_organisation(db, ORGANISATION, ORGANISATION, at_ns=time.time_ns())
            await accounts.create_project(db, "proj_exact", ORGANISATION, "exact", at_ns=time.time_ns())
        keys = await _make_keys(engine, valkey.url, Secrets.load(settings).key_pepper.encode())
        replicas = [Replica(config, port) for port in services.free_ports(processes)]
        keeping = [asyncio.create_task(replica.keep()) for replica in replicas]
        try:
            await asyncio.gather(*(replica.ready() for replica in replicas))
            begun_s = time.monotonic()
            seen = await _ask_all([replica.url for replica in replicas], keys, clients, begun_s + seconds, most)
            took_s = time.monotonic() - begun_s
        finally:
            for replica in replicas:
                replica.stop()
            _, late = await asyncio.wait(keeping, timeout=30)
            for replica in replicas:
                replica.kill()
            await asyncio.gather(*late)
        left = await _ship(engine, settings.data_dir / "journal")
        result = await _audit(engine, upstream, valkey.url, seen["answered"])
        per_second = round(seen["answered"] / took_s, 1)
        result |= {"requests": seen["answered"], "per_second": per_second, "processes": processes, "clients": clients}
        result |= {"seconds": round(took_s, 1), "shipped_after_the_end": left}
        result["odd"] = {name: count for name, count in seen.items() if name != "answered"}
        result["exact"] = bool(result["exact"]) and not result["odd"] and result["requests"] > 0
        return result


async def _make_keys(engine: AsyncEngine, redis_url: str, pepper: bytes) -> list[str]:
    redis = Redis.from_url(redis_url, protocol=3)
    admin = KeyAdmin(engine, redis, pepper)
    made = [
        await admin.create_key(
            project_id="proj_exact", name=f"key {n}", actor="exact", now_ns=time.time_ns(), terms=KeyTerms()
        )
        for n in range(KEYS)
    ]
    await redis.aclose()
    return [key.plain for key in made if key.plain is not None]


async def _ask_all(urls: list[str], keys: list[str], clients: int, until_s: float, most: int) -> Counter[str]:
    seen: Counter[str] = Counter()
    sent = 0

    async def ask(http: httpx.AsyncClient, chance: random.Random) -> None:
        nonlocal sent
        while time.monotonic() < until_s and sent < most:
            sent += 1
            seen[await _ask(http, chance, urls[sent % len(urls)], keys[sent % len(keys)])] += 1

    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(timeout=60, limits=limits) as http:
        await asyncio.gather(*(ask(http, random.Random(number)) for number in range(clients)))
    return seen


async def _ask(http: httpx.AsyncClient, chance: random.Random, url: str, key: str) -> str:
    """One request, read to its end. Returns: "answered", or what was odd."""
    script = f"x-script: long={chance.randint(1, 40)} cached={chance.randint(0, 10)} reasoning={chance.randint(0, 5)}"
    body: dict[str, Any] = {
        "model": chance.choice(("gpt", "claude", "gemini")),
        "max_tokens": 400,
        "messages": [{"role": "user", "content": f"{'word ' * chance.randint(10, 60)}\n{script}"}],
    }
    messages, streams = chance.random() < 0.4, chance.random() < 0.6
    headers, end = {"authorization": f"Bearer {key}"}, b"data: [DONE]"
    if messages:
        headers, end = {"x-api-key": key, "anthropic-version": "2023-06-01"}, b"event: message_stop"
    if streams:
        body["stream"] = True
    path = "/v1/messages" if messages else "/v1/chat/completions"
    try:
        answer = await http.post(f"{url}{path}", json=body, headers=headers)
    except httpx.HTTPError as error:
        return type(error).__name__
    if answer.status_code != 200:
        return f"{answer.status_code} {answer.text[:120]}"
    return "answered" if not streams or end in answer.content else "cut off"


async def _ship(engine: AsyncEngine, directory: Path) -> int:
    async with reading(engine) as db:
        prices = await load_prices(db)
    worker = Worker(directory, engine, prices)
    async with asyncio.timeout(120):
        while journal.runs(directory):
            await worker.recover()
            await asyncio.sleep(0.02)
    return worker.shipped


async def _audit(engine: AsyncEngine, upstream: dict[str, Emulator], redis_url: str, answered: int) -> dict[str, Any]:
    counted: dict[str, Counter[str]] = {name: Counter() for name in upstream}
    rows = charged = unpriced = estimated = tokens_in = tokens_out = 0
    table = schema.usage_records.c
    columns = (table.provider, table.quantities, table.input_tokens, table.output_tokens, table.charge_pusd)
    async with reading(engine) as db:
        async for row in await db.stream(select(*columns, table.estimated)):
            rows += 1
            charged += row.charge_pusd or 0
            unpriced += row.charge_pusd is None
            estimated += row.estimated
            tokens_in += row.input_tokens
            tokens_out += row.output_tokens
            found = counted[row.provider]
            found["input"] += row.input_tokens
            found["output"] += row.output_tokens
            found["cache_read"] += sum(row.quantities.get(name, 0) for name in CACHE_READ)
            found["cache_write"] += sum(row.quantities.get(name, 0) for name in CACHE_WRITE)
        trial = await ledger.trial_balance(db)
        revenue = sum(each.normal_pusd for each in await ledger.balances(db) if each.account == accounts.REVENUE)
        hours = await sums.totals(db, Span(), {})
    said = {name: _said(emulator) for name, emulator in upstream.items()}
    redis = Redis.from_url(redis_url)
    holds = await redis.zcard(f"fb:{{{ORGANISATION}}}:leases")
    await redis.aclose()
    compared = {name: {"upstream": said[name], "ledger": dict(counted[name])} for name in upstream}
    served = sum(emulator.stats.answers for emulator in upstream.values())
    differ = (hours.requests, hours.input_tokens, hours.output_tokens, hours.charge_pusd) != (
        rows, tokens_in, tokens_out, charged,
    )  # fmt: skip
    result: dict[str, Any] = {
        "tokens_upstream": sum(each["input"] + each["output"] for each in said.values()),
        "tokens_ledger": tokens_in + tokens_out,
        "missing": max(0, served - rows) + max(0, answered - rows),
        "double": max(0, rows - served),
        "unpriced": unpriced,
        "estimated": estimated,
        "debits_minus_credits": trial.debits_minus_credits_pusd or len(trial.differing),
        "charged_differs_pusd": revenue - charged,
        "hours_differ": int(differ),
        "holds_left": holds,
    }
    wrong = any(value for name, value in result.items() if not name.startswith("tokens_"))
    same = all(each["upstream"] == each["ledger"] for each in compared.values())
    exact = not wrong and same and result["tokens_upstream"] == result["tokens_ledger"] > 0
    return {**result, "revenue_pusd": revenue, "providers": compared, "exact": exact}


def _said(emulator: Emulator) -> dict[str, int]:
    stats = emulator.stats
    return {
        "input": stats.input_tokens,
        "output": stats.output_tokens,
        "cache_read": stats.cache_read_tokens,
        "cache_write": stats.cache_write_tokens,
    }


def _config(folder: Path, upstream: dict[str, Emulator], database_url: str, redis_url: str) -> str:
    paths = {"openai": "/v1", "anthropic": "", "gemini": ""}
    names = {"openai": ("gpt", "echo-1"), "anthropic": ("claude", "claude-x"), "gemini": ("gemini", "gemini-x")}
    credentials = {"openai": "sk-test", "anthropic": "sk-ant-test", "gemini": "test-key"}
    text = f"""
data_dir = "{folder / "data"}"
database_url = "{database_url}"
redis_url = "{redis_url}"
discover_providers = false
[log]
level = "warning"
[local]
enabled = false
"""
    price = '{ input = "1.5", output = "7.25", cache_read = "0.15", cache_write = "1.9" }'
    for name, emulator in upstream.items():
        text += f'[providers.{name}]\nbase_url = "{emulator.url}{paths[name]}"\n'
        text += f'credential = {{ api_key = "{credentials[name]}" }}\n'
        alias, model = names[name]
        text += f'[[models]]\nalias = "{alias}"\n'
        text += f'deployments = [{{ provider = "{name}", model = "{model}", price = {price} }}]\n'
    return text


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.exact", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--json", action="store_true", help="one line; without, one value a line")
    asked = parser.parse_args()
    with contextlib.ExitStack() as stack:
        # Not below a long path: a Unix socket's name may have 107 bytes.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fbx-exact-")))
        if asked.database == "postgresql":
            url = stack.enter_context(services.own_postgres())
        else:
            url = f"sqlite+aiosqlite:///{folder / 'farebox.db'}"
        seconds = asked.minutes * 60
        result = asyncio.run(run(folder, url, processes=asked.processes, clients=asked.clients, seconds=seconds))
    print(json.dumps(result) if asked.json else "\n".join(f"{name}: {value}" for name, value in result.items()))
    sys.exit(0 if result["exact"] else 1)


if __name__ == "__main__":
    main()
