"""A flooder and a quiet tenant at one deployment that is asked two things at once."""

from __future__ import annotations

import asyncio
import shutil
import socket
import time
from pathlib import Path

import httpx

from billing import accounts
from billing.db import create_engine, writing
from gateway.admission.key_admin import KeyAdmin
from gateway.config import load
from gateway.embedded.prices import declare
from gateway.embedded.secrets import Secrets
from tests.e2e.test_crash import serving, written
from tests.emulators.openai import OpenAIEmulator

FLOOD, QUIET = 60, 4


async def test_a_flood_raises_nobody_elses_first_token_time(
    tmp_path: Path, sqlite_template: Path, redis_url: str
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"sqlite+aiosqlite:///{shutil.copy(sqlite_template, tmp_path)}"
    async with OpenAIEmulator() as upstream:
        config = written(tmp_path, upstream.url, url, redis_url, port)
        config.write_text(config.read_text().replace('model = "echo-1",', 'model = "echo-1", max_parallel = 2,'))
        settings = load(config, {})
        engine = create_engine(settings.database_url)
        async with writing(engine) as db:
            await declare(db, settings, time.time_ns())
            await accounts.create_organisation(db, "org_1", "org", at_ns=time.time_ns())
            await accounts.create_project(db, "proj_1", "org_1", "demo", at_ns=time.time_ns())
        admin = KeyAdmin(engine, None, Secrets.load(settings).key_pepper.encode())
        keys = [
            (await admin.create_key(project_id="proj_1", name=name, actor="test", now_ns=time.time_ns())).plain
            for name in ("flood", "quiet")
        ]
        await engine.dispose()
        arrived: list[str] = []
        async with serving(config, port), httpx.AsyncClient(timeout=60) as http:

            async def ask(who: str, key: str | None) -> None:
                body = {
                    "model": "echo",
                    "stream": True,
                    "messages": [{"role": "user", "content": "x-script: long=12 pace_ms=5"}],
                }
                headers = {"authorization": f"Bearer {key}"}
                url = f"http://127.0.0.1:{port}/v1/chat/completions"
                async with http.stream("POST", url, json=body, headers=headers) as answer:
                    assert answer.status_code == 200, await answer.aread()
                    pieces = answer.aiter_raw()
                    await anext(pieces)
                    arrived.append(who)
                    async for _ in pieces:
                        continue

            flood = [asyncio.create_task(ask("flood", keys[0])) for _ in range(FLOOD)]
            while len(upstream.requests) < 2:
                await asyncio.sleep(0.005)
            before = len(arrived)
            await asyncio.gather(*(ask("quiet", keys[1]) for _ in range(QUIET)))
            overtaken_by = arrived[before:].count("flood")
            await asyncio.gather(*flood)
    assert arrived.count("flood") == FLOOD
    # Turns alternate: the quiet tenant's four come among the first dozen, not behind sixty.
    assert overtaken_by <= 4 * QUIET, arrived
