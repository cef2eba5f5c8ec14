"""Something of ours is away: a clear no, nothing sent, nothing owed, and all is well when it comes back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import signal
from pathlib import Path

import httpx
import pytest
import redis
from sqlalchemy import text

from billing.db import create_engine
from tests import services
from tests.e2e.harness import House, house, model, provider, settings_for
from tests.emulators.openai import OpenAIEmulator

BODY = {"model": "echo", "messages": [{"role": "user", "content": "count from 1 to 5"}]}


async def ask(gateway: House, key: str | None = None, name: str = "echo") -> httpx.Response:
    headers = {"authorization": f"Bearer {key or gateway.key}"}
    async with httpx.AsyncClient(timeout=20) as http:
        return await http.post(f"{gateway.v1}/chat/completions", json=BODY | {"model": name}, headers=headers)


async def served_again(gateway: House, key: str) -> None:
    async with asyncio.timeout(10):
        while (await ask(gateway, key)).status_code != 200:
            await asyncio.sleep(0.02)


async def test_without_redis_nothing_is_let_through_and_its_return_is_noticed(
    upstream: OpenAIEmulator, tmp_path: Path, sqlite_template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = shutil.copy(sqlite_template, tmp_path)
    providers = {"up": provider("openai", f"{upstream.url}/v1")}
    monkeypatch.delenv("TEST_REDIS_URL", raising=False)  # a server of our own, which may be stopped
    with services.valkey() as url:
        with contextlib.closing(redis.Redis.from_url(url)) as client:
            pid = int(client.info("server")["process_id"])
        settings = settings_for(
            tmp_path, f"sqlite+aiosqlite:///{database}", url, providers, (model("echo", "up/echo-1"),)
        )
        async with house(settings) as gateway:
            limited = await gateway.new_key(rpm=1000)
            assert (await ask(gateway, limited)).status_code == 200
            os.kill(pid, signal.SIGSTOP)
            try:
                refused = await ask(gateway, limited)
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "service_unavailable")
                assert "retry-after" in refused.headers
            finally:
                os.kill(pid, signal.SIGCONT)
            await served_again(gateway, limited)
            rows = await gateway.rows()
            assert len(rows) == len(upstream.requests)


async def test_without_the_database_known_keys_ride_on_and_their_rows_arrive_later(
    upstream: OpenAIEmulator, tmp_path: Path, databases: services.Databases, redis_url: str
) -> None:
    with databases.clone() as url:
        name = url.rpartition("/")[2].partition("?")[0]
        providers = {"up": provider("openai", f"{upstream.url}/v1")}
        async with house(settings_for(tmp_path, url, redis_url, providers, (model("echo", "up/echo-1"),))) as gateway:
            assert (await ask(gateway)).status_code == 200
            stranger = await gateway.new_key()
            # The engine of the gateway loses every connection and gets no new one.
            admin = create_engine(url.replace(f"/{name}", "/postgres"))
            async with admin.connect() as db:
                await db.execution_options(isolation_level="AUTOCOMMIT")
                await db.execute(text(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false'))
                await db.execute(
                    text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
                )
                try:
                    assert (await ask(gateway)).status_code == 200
                    refused = await ask(gateway, stranger)
                    assert refused.status_code == 503
                    assert refused.json()["error"]["code"] == "service_unavailable"
                finally:
                    await db.execute(text(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true'))
            await admin.dispose()
            rows = await gateway.rows(at_least=2)
            assert len(rows) == 2 == len(upstream.requests)


async def test_a_full_disk_refuses_new_requests_until_there_is_room_again(
    gateway: House, upstream: OpenAIEmulator
) -> None:
    assert (await ask(gateway)).status_code == 200
    await gateway.rows(at_least=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # No file of this process may grow beyond a few bytes: write() fails as it does on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, hard))
    try:
        refused = await ask(gateway)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "service_unavailable")
    assert len(upstream.requests) == 1
    await served_again(gateway, gateway.key)
    rows = await gateway.rows(at_least=2)
    assert len(rows) == len(upstream.requests) == 2


async def test_a_provider_that_is_down_is_an_error_that_names_it(
    tmp_path: Path, sqlite_template: Path, redis_url: str
) -> None:
    database = shutil.copy(sqlite_template, tmp_path)
    providers = {"gone": provider("openai", "http://127.0.0.1:9/v1")}
    settings = settings_for(
        tmp_path, f"sqlite+aiosqlite:///{database}", redis_url, providers, (model("echo", "gone/echo-1"),)
    )
    async with house(settings) as gateway:
        answer = await ask(gateway)
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_unreachable")
        assert "gone/echo-1" in answer.json()["error"]["message"]
        (row,) = await gateway.rows(at_least=1)
        assert row["outcome"] == "upstream_failed"
        assert await gateway.charged_pusd() == 0


@pytest.mark.parametrize("path", ["/health/liveness", "/health/liveliness", "/health/readiness", "/"])
async def test_health_is_told_without_a_key(gateway: House, path: str) -> None:
    async with httpx.AsyncClient() as http:
        assert (await http.get(gateway.url + path)).status_code == 200
        assert (await http.head(gateway.url + "/")).status_code == 200
        metrics = (await http.get(gateway.url + "/metrics")).text
    assert "farebox_in_flight" in metrics
