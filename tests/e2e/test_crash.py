"""kill -9 at the worst moment: every admitted request stands in the ledger exactly once, and the next start serves."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from redis.asyncio import Redis
from sqlalchemy import select

from billing import accounts, ledger, schema
from billing.db import create_engine, reading, writing
from billing.pricelist import load_prices
from billing.rating import charge
from billing.usage import Meter
from gateway.admission.key_admin import KeyAdmin
from gateway.config import Settings, load
from gateway.embedded.prices import declare
from gateway.embedded.secrets import Secrets
from tests.e2e.staging import config_text
from tests.emulators.openai import OpenAIEmulator
from tests.services import free_ports

STREAMS = 100


def written(folder: Path, upstream: str, database_url: str, redis_url: str, port: int) -> Path:
    path = folder / "farebox.toml"
    path.write_text(config_text(folder / "data", upstream, database_url, redis_url, f"[server]\nport = {port}"))
    return path


@asynccontextmanager
async def serving(config: Path, port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """`farebox serve` as a process of its own, up when it says so."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway", "serve", "--config", str(config), stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with httpx.AsyncClient() as http:
            while True:
                assert process.returncode is None, "the gateway ended while starting"
                try:
                    if (await http.get(f"http://127.0.0.1:{port}/health/readiness")).status_code == 200:
                        break
                except httpx.TransportError:
                    await asyncio.sleep(0.05)
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
        await process.wait()


async def prepare(settings: Settings, **of_key: Any) -> str:
    """Prices, a project and a key, as `farebox up` would make them. of_key: as create_key. Returns: the key."""
    engine, now_ns = create_engine(settings.database_url), time.time_ns()
    redis = Redis.from_url(settings.redis_url or "", protocol=3)
    async with writing(engine) as db:
        await declare(db, settings, now_ns)
        await accounts.create_organisation(db, "org_1", "org", at_ns=now_ns)
        await accounts.create_project(db, "proj_1", "org_1", "demo", at_ns=now_ns)
    keys = KeyAdmin(engine, redis, Secrets.load(settings).key_pepper.encode())
    made = await keys.create_key(project_id="proj_1", name="k", actor="test", now_ns=now_ns, **of_key)
    await redis.aclose()
    await engine.dispose()
    assert made.plain is not None
    return made.plain


async def open_streams(url: str, key: str, count: int, admitted: list[str], started: asyncio.Semaphore) -> None:
    """Each stream is read until something cuts it. `admitted` gets the request ids as clients saw them."""
    body = {
        "model": "echo",
        "stream": True,
        "messages": [{"role": "user", "content": "x-script: long=5000 pace_ms=20"}],
    }
    limits = httpx.Limits(max_connections=count)
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {key}"}, limits=limits, timeout=60) as http:

        async def one() -> None:
            try:
                async with http.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
                    assert answer.status_code == 200
                    admitted.append(answer.headers["x-request-id"])
                    pieces = 0
                    async for _ in answer.aiter_raw():
                        pieces += 1
                        if pieces == 1:
                            started.release()
            except httpx.TransportError:
                return

        await asyncio.gather(*(one() for _ in range(count)))


async def test_kill_9_with_a_hundred_open_streams_loses_no_request_and_bills_none_twice(
    tmp_path: Path, fresh_database_url: str, redis_url: str
) -> None:
    [port] = free_ports(1)
    async with OpenAIEmulator() as upstream:
        config = written(tmp_path, upstream.url, fresh_database_url, redis_url, port)
        settings = load(config, {})
        key = await prepare(settings)
        admitted: list[str] = []
        async with serving(config, port) as gateway:
            started = asyncio.Semaphore(0)
            streams = asyncio.create_task(open_streams(f"http://127.0.0.1:{port}", key, STREAMS, admitted, started))
            async with asyncio.timeout(60):
                for _ in range(STREAMS):
                    await started.acquire()
            os.kill(gateway.pid, signal.SIGKILL)
            await gateway.wait()
            await streams
        assert len(set(admitted)) == STREAMS
        # The next start finds the dead owner's journal before it takes its first request.
        async with serving(config, port):
            async with httpx.AsyncClient(headers={"authorization": f"Bearer {key}"}, timeout=30) as http:
                answer = await http.post(
                    f"http://127.0.0.1:{port}/v1/chat/completions",
                    json={"model": "echo", "messages": [{"role": "user", "content": "hello"}]},
                )
            assert answer.status_code == 200
            admitted.append(answer.headers["x-request-id"])
            engine = create_engine(settings.database_url)
            table = schema.usage_records
            async with asyncio.timeout(20):
                while True:
                    async with reading(engine) as db:
                        rows = [dict(r) for r in (await db.execute(select(table))).mappings()]
                    if len(rows) > STREAMS:
                        break
                    await asyncio.sleep(0.05)
        assert sorted(row["id"] for row in rows) == sorted(admitted)
        killed = [row for row in rows if row["outcome"] == "killed"]
        assert len(killed) == STREAMS
        assert all(row["estimated"] for row in killed)
        async with reading(engine) as db:
            assert (await ledger.trial_balance(db)).sound
            prices = await load_prices(db)
            revenue = {b.account: b.normal_pusd for b in await ledger.balances(db)}["revenue"]
        due = 0
        for row in rows:
            sheet = prices.by_id(row["price_id"])
            assert sheet is not None
            used = {Meter(name): count for name, count in row["quantities"].items()}
            due += charge(used, sheet).sale_pusd
        assert due == revenue == sum(int(row["charge_pusd"]) for row in rows)
        await engine.dispose()
