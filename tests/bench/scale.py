"""Does a request cost more when there is more of everything? `python -m tests.bench.scale [--keys 1000000]`.

A whole gateway in this process, asked without a socket before it: CPU of the loop's thread a request, the best of some
rounds, since the least disturbed one tells most. A cold key is one that this process has not seen: it is read from SQL.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import uvloop
from sqlalchemy import insert

from billing.accounts import Window
from billing.db import writing
from billing.migrate import upgrade
from gateway.admission.key_admin import KeyTerms
from gateway.admission.minting import mint
from gateway.app import RequestIds
from gateway.embedded.secrets import Secrets
from gateway.ingress.hotpath import Asked
from gateway.schema import virtual_keys
from tests.bench.hotpath import wait_for
from tests.bench.load import request_of
from tests.e2e.harness import House, house, model, provider, settings_for
from tests.services import free_ports, valkey

AT_ONCE = 64
ROUND = 1_280
ROUNDS = 6
COLD = 200


async def fill(gateway: House, count: int) -> list[str]:
    """So many keys more. Returns: some of them, in plain, never used yet."""
    pepper = Secrets.load(gateway.settings).key_pepper.encode()
    plain: list[str] = []
    for start in range(0, count, 10_000):
        rows = []
        for number in range(start, min(count, start + 10_000)):
            known = mint(pepper) if number < COLD else None
            if known is not None:
                plain.append(known.plain)
            rows.append(
                {
                    "id": f"key_{number:012d}",
                    "public_id": known.public_id if known else f"p{number:011d}",
                    "secret_hash": known.hash if known else secrets.token_bytes(32),
                    "organisation_id": gateway.project.organisation_id,
                    "project_id": gateway.project.id,
                    "name": "filler",
                    "created_at_ns": time.time_ns(),
                    "created_by": "bench",
                }
            )
        async with writing(gateway.engine) as db:
            await db.execute(insert(virtual_keys), rows)
    return plain


class Asker:
    def __init__(self, gateway: House, key: str) -> None:
        assert gateway.app.hot is not None
        self._hot = gateway.app.hot
        self._ids = RequestIds()
        head, self._body = request_of(0, key, "alias-0", "chat", False).split(b"\r\n\r\n", 1)
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
        self._asked = Asked("POST", "/v1/chat/completions", "", fields, "127.0.0.1")
        route = self._hot.route_of("POST", "/v1/chat/completions", "")
        assert route is not None
        self._route = route

    async def one(self) -> None:
        reply = await self._hot.serve(self._asked, self._route, self._body, self._ids())
        assert reply.status == 200, reply.body

    async def best_us(self) -> float:
        async def some() -> None:
            for _ in range(ROUND // AT_ONCE):
                await self.one()

        took = []
        for _ in range(ROUNDS + 1):
            began = time.thread_time()
            await asyncio.gather(*(some() for _ in range(AT_ONCE)))
            took.append((time.thread_time() - began) / ROUND * 1e6)
        return min(took[1:])


async def measure(keys: int, deployments: int, upstream: int, redis_url: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="fbx-scale-") as folder:
        url = f"sqlite+aiosqlite:///{folder}/scale.db"
        await upgrade(url)
        models = tuple(model(f"alias-{n}", f"up/mock-{n}") for n in range(deployments))
        up = {"up": provider("openai_like", f"http://127.0.0.1:{upstream}/v1")}
        async with house(settings_for(Path(folder), url, redis_url, up, models)) as gateway:
            strangers = await fill(gateway, keys)
            made = await gateway.keys.create_key(
                project_id=gateway.project.id,
                name="measured",
                actor="bench",
                now_ns=time.time_ns(),
                terms=KeyTerms(rpm=10**9, tpm=10**10, parallel=10**6),
                budgets=((Window.TOTAL, 10**18),),
            )
            assert made.plain is not None
            warm_us = await Asker(gateway, made.plain).best_us()
            began = time.perf_counter()
            for key in strangers:
                await Asker(gateway, key).one()
            cold_ms = (time.perf_counter() - began) / max(1, len(strangers)) * 1000
    return {"warm_cpu_us": round(warm_us, 1), "cold_key_ms": round(cold_ms, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--deployments", type=int, default=1_000)
    args = parser.parse_args()
    [upstream] = free_ports(1)
    mock = subprocess.Popen([sys.executable, "-m", "tests.bench.mock", str(upstream)])
    try:
        wait_for(upstream)
        with valkey() as redis_url:
            for keys, deployments in ((COLD, 1), (args.keys, 1), (COLD, args.deployments)):
                found = uvloop.run(measure(keys, deployments, upstream, redis_url))
                print(json.dumps({"keys": keys, "deployments": deployments, **found}), flush=True)
    finally:
        mock.terminate()
        mock.wait()


if __name__ == "__main__":
    main()
