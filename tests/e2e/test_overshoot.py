"""How far can a budget be overdrawn? Several gateway processes, many requests at once, a budget for half of them.

The bound that holds for every kind: 0. What a request may cost at worst is reserved before it is sent, in one atomic
step over all of its budgets, and an answer cannot outgrow its reservation, since its output is limited to what was
reserved. Prints a table; `python -m pytest tests/e2e/test_overshoot.py -s` shows it.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from billing import accounts, ledger, schema
from billing.accounts import Budget, Scope, Window
from billing.db import reading, writing
from billing.pricelist import load_prices
from billing.worker import Worker
from gateway.admission.key_admin import KeyAdmin
from gateway.embedded.secrets import Secrets
from tests.e2e import chaos

PROCESSES = 3
REQUESTS = 200  # For each kind, all at once.
KEYS = 4
WORDS = 20
# 12 tokens in at 1.5 and 20 out at 7.25 USD a million, for half of the requests.
LIMIT_PUSD = REQUESTS // 2 * (12 * 1_500_000 + WORDS * 7_250_000)

Declare = Callable[[AsyncConnection, str], Awaitable[object]]


def budget_of(scope: Scope, window: Window) -> Declare:
    async def declare(db: AsyncConnection, scope_id: str) -> None:
        await accounts.set_budget(db, Budget(scope, scope_id, window, LIMIT_PUSD), at_ns=time.time_ns())

    return declare


async def pay_in(db: AsyncConnection, organisation_id: str) -> None:
    await ledger.top_up(db, organisation_id, LIMIT_PUSD, f"paid by {organisation_id}", at_ns=time.time_ns())


KINDS: dict[str, tuple[Scope, Declare, int | None]] = {
    "key, in all": (Scope.KEY, budget_of(Scope.KEY, Window.TOTAL), None),
    "key, a day": (Scope.KEY, budget_of(Scope.KEY, Window.DAY), None),
    "project, a month": (Scope.PROJECT, budget_of(Scope.PROJECT, Window.MONTH), None),
    "organisation, in all": (Scope.ORGANISATION, budget_of(Scope.ORGANISATION, Window.TOTAL), None),
    "prepaid credit": (Scope.ORGANISATION, pay_in, 0),
}


async def prepare(stage: chaos.Scene, number: int, kind: str) -> list[str]:
    """An organisation with one project and some keys, under one budget. Returns: the keys."""
    scope, declare, credit_limit = KINDS[kind]
    now_ns = time.time_ns()
    organisation, project = f"org_over_{number}", f"proj_over_{number}"
    redis = Redis.from_url(stage.valkey.url, protocol=3)
    admin = KeyAdmin(stage.engine, redis, Secrets.load(stage.settings).key_pepper.encode())
    async with writing(stage.engine) as db:
        await accounts.create_organisation(db, organisation, kind, at_ns=now_ns, credit_limit_pusd=credit_limit)
        await accounts.create_project(db, project, organisation, kind, at_ns=now_ns)
    made = [
        await admin.create_key(project_id=project, name=str(n), actor="test", now_ns=now_ns)
        for n in range(1 if scope is Scope.KEY else KEYS)
    ]
    scope_id = {Scope.KEY: made[0].key_id, Scope.PROJECT: project, Scope.ORGANISATION: organisation}[scope]
    async with writing(stage.engine) as db:
        await declare(db, scope_id)
    await redis.aclose()
    return [key.plain or "" for key in made]


async def flood(stage: chaos.Scene, keys: list[str]) -> Counter[int]:
    """All at once. Returns: how many answers of each status there were."""
    said: Counter[int] = Counter()
    body: dict[str, Any] = {
        "model": "echo",
        "max_tokens": WORDS + 8,
        "stream": True,
        "messages": [{"role": "user", "content": f"x-script: long={WORDS} pace_ms=20"}],
    }

    async def ask(http: httpx.AsyncClient, number: int) -> None:
        url = f"{stage.replicas[number % PROCESSES].url}/v1/chat/completions"
        headers = {"authorization": f"Bearer {keys[number // PROCESSES % len(keys)]}"}
        async with http.stream("POST", url, json=body, headers=headers) as answer:
            await answer.aread()
            said[answer.status_code] += 1

    async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=REQUESTS)) as http:
        await asyncio.gather(*(ask(http, number) for number in range(REQUESTS)))
    return said


@pytest.mark.timeout(240)
async def test_no_kind_of_budget_is_overdrawn_by_many_requests_at_many_processes(sqlite_template: Path) -> None:
    lines = [f"{'budget':<22}{'limit':>16}{'admitted':>10}{'refused':>9}{'spent':>16}{'overshoot':>11}  (pUSD)"]
    with tempfile.TemporaryDirectory(prefix="fbx-over-") as name:
        database = shutil.copy(sqlite_template, name)
        async with chaos.scene(Path(name), f"sqlite+aiosqlite:///{database}", PROCESSES) as stage:
            async with reading(stage.engine) as db:
                worker = Worker(stage.settings.data_dir / "journal", stage.engine, await load_prices(db))
            for number, kind in enumerate(KINDS):
                said = await flood(stage, await prepare(stage, number, kind))
                await worker.recover()
                rows = schema.usage_records.c
                query = select(func.sum(rows.charge_pusd), func.count()).where(
                    rows.organisation_id == f"org_over_{number}"
                )
                async with reading(stage.engine) as db:
                    spent, count = (await db.execute(query)).one()
                over = max(0, spent - LIMIT_PUSD)
                lines.append(f"{kind:<22}{LIMIT_PUSD:>16}{said[200]:>10}{said[429]:>9}{spent:>16}{over:>11}")
                print("\n".join(lines[-1:]))
                assert said[200] + said[429] == REQUESTS, said
                assert count == said[200], "a row for each admitted request and for no other"
                assert over == 0
                # Not by refusing everybody: holds are a worst case, so fewer than half fit at once.
                assert REQUESTS // 10 < said[200] <= REQUESTS * 0.6, said
    print("\n".join(lines))
