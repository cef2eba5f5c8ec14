"""The engine under Ray Serve, on a Ray of this machine: answers, streams, grows by waiting tokens, shrinks again. Each
engine joins a gateway by lease, which asks it past Ray."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import httpx
import pytest

from gateway.config import DeploymentSettings, ModelSettings, ProviderSettings, ReplicaSettings, Secret, TimeoutSettings
from tests.conformance.environments import python_of
from tests.e2e.harness import PRICE, WITHIN_S, House, house, settings_for
from tests.local_backend.support import make_tiny_model

ROOT = Path(__file__).parents[2]
NEEDS = ("ray[serve]==2.60.0",)
OWN = "own"
TOKEN = "let-me-in-1"
SLOW = TimeoutSettings(connect_s=5, first_byte_s=300, between_bytes_s=300, total_s=600)


async def run(*argv: str | Path, **environ: str) -> str:
    """What it printed."""
    process = await asyncio.create_subprocess_exec(
        *map(str, argv), env=os.environ | environ, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, said = await process.communicate()
    assert process.returncode == 0, (out + said[-4000:]).decode()
    return out.decode()


async def is_alone(gateway: House) -> bool:
    body = {"model": OWN, "messages": [{"role": "user", "content": "hello"}]}
    async with httpx.AsyncClient(timeout=WITHIN_S, headers={"authorization": f"Bearer {gateway.key}"}) as http:
        return (await http.post(f"{gateway.v1}/chat/completions", json=body)).status_code == 503


@pytest.mark.skipif(
    os.environ.get("FAREBOX_TEST_SLOW") != "1",
    reason="NOT RUN: Ray is 500 MB and a minute; FAREBOX_TEST_SLOW=1 fetches and runs it",
)
@pytest.mark.timeout(1800)
async def test_engines_come_with_the_tokens_that_wait_and_go_again(
    tmp_path: Path, sqlite_template: Path, redis_url: str
) -> None:
    make_tiny_model(tmp_path / "tiny", max_position_embeddings=32768)
    python = await asyncio.to_thread(python_of, tmp_path / "venv", NEEDS)
    (tmp_path / "farebox.db").write_bytes(sqlite_template.read_bytes())
    place = DeploymentSettings(provider=OWN, model="tiny", price=PRICE)
    settings = settings_for(
        tmp_path,
        f"sqlite+aiosqlite:///{tmp_path / 'farebox.db'}",
        redis_url,
        {OWN: ProviderSettings(kind="local", replicas=True)},
        (ModelSettings(alias=OWN, deployments=(place,), strategy="prefix"),),
        replicas=ReplicaSettings(token=Secret(TOKEN, {}), lease_s=10.0),
        timeouts=SLOW,
    )
    async with house(settings) as gateway:
        script = ROOT / "tests" / "deploy" / "ray_engines.py"
        told = await run(
            python, script, tmp_path / "tiny", sys.executable, gateway.url, gateway.key, OWN,
            FAREBOX_ENGINE_REGISTER_TOKEN=TOKEN,
        )  # fmt: skip
        sys.stdout.write(told)
        assert json.loads(told.splitlines()[-1])["began_with"] == 1
        async with asyncio.timeout(WITHIN_S):  # Ray is gone, and its engines have left.
            while not await is_alone(gateway):
                await asyncio.sleep(0.2)
