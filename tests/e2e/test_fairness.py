"""One deployment that is asked two things at once: a flooder and a quiet tenant, weights of keys, who will not wait."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from billing import accounts
from billing.db import create_engine, writing
from gateway.admission.key_admin import KeyAdmin, KeyTerms
from gateway.config import load
from gateway.embedded.prices import declare
from gateway.embedded.secrets import Secrets
from tests.e2e.test_crash import serving, written
from tests.emulators.openai import OpenAIEmulator
from tests.services import free_ports

FLOOD, QUIET = 60, 4
HEAVY = 5
SAID = "x-script: long=12 pace_ms=5"
# Each dialect's request, and where its error names itself.
IMPATIENT: dict[str, tuple[str, dict[str, Any], Callable[[Any], object]]] = {
    "openai": (
        "/v1/chat/completions",
        {"model": "echo", "messages": [{"role": "user", "content": SAID}]},
        lambda said: said["error"]["type"],
    ),
    "anthropic": (
        "/v1/messages",
        {"model": "echo", "max_tokens": 20, "messages": [{"role": "user", "content": SAID}]},
        lambda said: said["error"]["type"],
    ),
    "gemini": (
        "/v1beta/models/echo:generateContent",
        {"contents": [{"role": "user", "parts": [{"text": SAID}]}]},
        lambda said: said["error"]["status"],
    ),
    "bedrock": (
        "/model/echo/converse",
        {"messages": [{"role": "user", "content": [{"text": SAID}]}]},
        lambda said: said["message"],
    ),
}


async def test_turns_at_a_saturated_deployment(tmp_path: Path, sqlite_template: Path, redis_url: str) -> None:
    [port] = free_ports(1)
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
        heavy = await admin.create_key(
            project_id="proj_1", name="heavy", actor="test", now_ns=time.time_ns(), terms=KeyTerms(weight=HEAVY)
        )
        await engine.dispose()
        arrived: list[str] = []
        async with serving(config, port), httpx.AsyncClient(timeout=60) as http:

            async def ask(who: str, key: str | None) -> None:
                body = {
                    "model": "echo",
                    "stream": True,
                    "messages": [{"role": "user", "content": SAID}],
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

            # By weight: while both wait, of six turns the heavy key has five.
            flood = [asyncio.create_task(ask("flood", keys[0])) for _ in range(FLOOD)]
            while len(upstream.requests) < FLOOD + QUIET + 2:
                await asyncio.sleep(0.005)
            before_heavy = len(arrived)
            await asyncio.gather(*(ask("heavy", heavy.plain) for _ in range(4 * HEAVY)))
            beside_heavy = arrived[before_heavy:].count("flood")

            # Who says that it will not wait is told at once, in its own words, and when to come again.
            for dialect, (path, body, kind) in IMPATIENT.items():
                headers = {"authorization": f"Bearer {keys[1]}", "x-farebox-queue-s": "0"}
                answer = await http.post(f"http://127.0.0.1:{port}{path}", json=body, headers=headers)
                said = answer.json()
                assert answer.status_code == 503, (dialect, said)
                assert int(answer.headers["retry-after"]) >= 1, dialect
                assert kind(said), (dialect, said)
                assert "no turn within 0 s" in str(said), dialect
            path, body, kind = IMPATIENT["openai"]
            headers["x-farebox-queue-s"] = "soon"
            answer = await http.post(f"http://127.0.0.1:{port}{path}", json=body, headers=headers)
            assert answer.status_code == 400
            assert answer.json()["error"]["param"] == "x-farebox-queue-s"
            await asyncio.gather(*flood)
    # Turns alternate: the quiet tenant's four come among the first dozen, not behind sixty.
    assert overtaken_by <= 4 * QUIET, arrived
    # 20 of the heavy key's beside 4, and what was in flight or on its way to the queue; one for one it would be 20.
    assert beside_heavy <= 12, arrived[before_heavy:]
