"""How far can a budget be overdrawn? Gateway processes, many requests at once, budgets that cover half of them.

`python -m tests.e2e.overshoot --processes 8 --requests 2000 --json [--kinds "key, in all" ...]` starts its own Valkey,
SQLite, provider emulator and gateways, sends all requests of a kind at once, and prints for each kind of budget what
was admitted, what was refused, and how far the charges exceed the limit, in pUSD.

hard      0: what a request may cost at worst is reserved before it is sent, in one atomic step over all its budgets,
          and an answer cannot outgrow its reservation, since its output is limited to what was reserved.
throttle  the largest reservation x the requests that passed it: slow_rpm a minute, and the first.
soft      no bound: it tells (`x-farebox-budget-exceeded`, `farebox_budgets_passed`) and refuses nobody.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from msgspec import Struct
from redis.asyncio import Redis
from sqlalchemy import func, select

from billing import accounts, ledger, schema
from billing.accounts import Budget, BudgetKind, Scope, Window
from billing.db import reading, writing
from billing.pricelist import load_prices
from billing.worker import Worker
from gateway.admission.key_admin import KeyAdmin
from gateway.embedded.secrets import Secrets
from tests.e2e import staging

KEYS = 4
WORDS = 20
SLOW_RPM = 6
# 12 tokens in at 1.5 and the output at 7.25 USD a million. Held is a worst case: more input, and all that may be said.
CHARGE_PUSD = 12 * 1_500_000 + WORDS * 7_250_000
USER, TAG = "ann", "nightly"


class Asked(Struct, frozen=True):
    """One kind of budget. name: of the model, provider or tag."""

    scope: Scope
    window: Window = Window.TOTAL
    kind: BudgetKind = BudgetKind.HARD
    name: str = ""
    prepaid: bool = False


KINDS: dict[str, Asked] = {
    "key, in all": Asked(Scope.KEY),
    "key, an hour": Asked(Scope.KEY, Window.HOUR),
    "key, a day": Asked(Scope.KEY, Window.DAY),
    "project, a month": Asked(Scope.PROJECT, Window.MONTH),
    "team, in all": Asked(Scope.TEAM),
    "organisation, in all": Asked(Scope.ORGANISATION),
    "prepaid credit": Asked(Scope.ORGANISATION, prepaid=True),
    "end user, a day": Asked(Scope.END_USER, Window.DAY),
    "model, a day": Asked(Scope.MODEL, Window.DAY, name="ech*"),
    "provider, a day": Asked(Scope.PROVIDER, Window.DAY, name="up"),
    "tag, a day": Asked(Scope.TAG, Window.DAY, name=TAG),
    "key, throttle": Asked(Scope.KEY, kind=BudgetKind.THROTTLE),
    "key, soft": Asked(Scope.KEY, kind=BudgetKind.SOFT),
}


class Found(Struct, frozen=True):
    kind: str
    limit_pusd: int
    admitted: int
    refused: int
    spent_pusd: int
    overshoot_pusd: int
    bound_pusd: int | None
    seconds: float
    odd: dict[str, int]


async def prepare(stage: staging.Scene, number: int, asked: Asked, limit_pusd: int) -> list[str]:
    """An organisation with one project and some keys, under one budget. Returns: the keys."""
    now_ns = time.time_ns()
    organisation, project, team = f"org_over_{number}", f"proj_over_{number}", f"team_over_{number}"
    redis = Redis.from_url(stage.valkey.url, protocol=3)
    admin = KeyAdmin(stage.engine, redis, Secrets.load(stage.settings).key_pepper.encode())
    async with writing(stage.engine) as db:
        await accounts.create_organisation(
            db, organisation, organisation, at_ns=now_ns, credit_limit_pusd=0 if asked.prepaid else None
        )
        await accounts.create_project(db, project, organisation, project, at_ns=now_ns)
        await accounts.create_team(db, team, organisation, team, at_ns=now_ns)
        await accounts.join_team(db, project, team)
        if asked.prepaid:
            await ledger.top_up(db, organisation, limit_pusd, f"paid by {organisation}", at_ns=now_ns)
    made = [
        await admin.create_key(project_id=project, name=str(n), actor="overshoot", now_ns=now_ns)
        for n in range(1 if asked.scope is Scope.KEY else KEYS)
    ]
    owners = {Scope.KEY: made[0].key_id, Scope.TEAM: team, Scope.ORGANISATION: organisation}
    of = f"{organisation}/{asked.name}" if asked.name else owners.get(asked.scope, project)
    if not asked.prepaid:
        budget = Budget(
            asked.scope, of, asked.window, limit_pusd, asked.kind, SLOW_RPM if asked.kind is BudgetKind.THROTTLE else 0
        )
        async with writing(stage.engine) as db:
            await accounts.set_budget(db, budget, at_ns=now_ns)
    await redis.aclose()
    return [key.plain or "" for key in made]


async def flood(stage: staging.Scene, keys: list[str], requests: int) -> tuple[Counter[str], set[str]]:
    """All at once. Returns: how many answers of each kind there were, and the ids of those that were admitted."""
    said: Counter[str] = Counter()
    admitted: set[str] = set()
    body: dict[str, Any] = {
        "model": "echo",
        "max_tokens": WORDS + 8,
        "stream": True,
        "user": USER,
        "messages": [{"role": "user", "content": f"x-script: long={WORDS} pace_ms=20"}],
    }

    async def ask(http: httpx.AsyncClient, number: int) -> None:
        url = f"{stage.replicas[number % len(stage.replicas)].url}/v1/chat/completions"
        headers = {
            "authorization": f"Bearer {keys[number // len(stage.replicas) % len(keys)]}",
            "x-farebox-tags": f"other, {TAG}",
        }
        try:
            async with http.stream("POST", url, json=body, headers=headers) as answer:
                await answer.aread()
                said[str(answer.status_code)] += 1
                if answer.status_code == 200:
                    admitted.add(answer.headers["x-request-id"])
        except httpx.HTTPError as error:
            said[type(error).__name__] += 1

    async with httpx.AsyncClient(timeout=240, limits=httpx.Limits(max_connections=requests)) as http:
        await asyncio.gather(*(ask(http, number) for number in range(requests)))
    return said, admitted


async def run(folder: Path, *, processes: int, requests: int, kinds: Sequence[str] = tuple(KINDS)) -> list[Found]:
    """One flood after the other, each on a budget of its own."""
    found = []
    limit_pusd = requests // 2 * CHARGE_PUSD
    async with staging.scene(folder, f"sqlite+aiosqlite:///{folder / 'farebox.db'}", processes) as stage:
        async with reading(stage.engine) as db:
            worker = Worker(stage.settings.data_dir / "journal", stage.engine, await load_prices(db))
        for number, kind in enumerate(kinds):
            asked, began_s = KINDS[kind], time.monotonic()
            said, admitted = await flood(stage, await prepare(stage, number, asked, limit_pusd), requests)
            await worker.recover()
            rows = schema.usage_records.c
            query = select(func.sum(rows.charge_pusd), func.count(), func.max(rows.hold_pusd)).where(
                rows.organisation_id == f"org_over_{number}"
            )
            async with reading(stage.engine) as db:
                spent, count, hold = (await db.execute(query)).one()
            seconds = time.monotonic() - began_s
            slow = hold * (1 + int(seconds * SLOW_RPM / 60 + 1))
            odd = dict(said - Counter({name: said[name] for name in ("200", "429")}))
            if count != len(admitted):
                odd["rows without an answer"] = count - len(admitted)
            found.append(
                Found(
                    kind,
                    limit_pusd,
                    said["200"],
                    said["429"],
                    int(spent),
                    max(0, int(spent) - limit_pusd),
                    {BudgetKind.HARD: 0, BudgetKind.THROTTLE: slow, BudgetKind.SOFT: None}[asked.kind],
                    round(seconds, 1),
                    odd,
                )
            )
    return found


def table(found: Sequence[Found]) -> str:
    lines = [
        f"{'budget':<22}{'limit':>17}{'admitted':>10}{'refused':>9}{'spent':>17}{'overshoot':>17}{'bound':>17}  pUSD"
    ]
    for each in found:
        bound = "none" if each.bound_pusd is None else str(each.bound_pusd)
        lines.append(
            f"{each.kind:<22}{each.limit_pusd:>17}{each.admitted:>10}{each.refused:>9}{each.spent_pusd:>17}"
            f"{each.overshoot_pusd:>17}{bound:>17}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.overshoot", description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--kinds", nargs="*", choices=tuple(KINDS), default=tuple(KINDS))
    parser.add_argument("--json", action="store_true", help="one line; without, a table")
    asked = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fbx-over-")))
        found = asyncio.run(run(folder, processes=asked.processes, requests=asked.requests, kinds=asked.kinds))
    worst = max((each.overshoot_pusd for each in found if each.bound_pusd == 0), default=0)
    if asked.json:
        kinds = {each.kind: {n: getattr(each, n) for n in each.__struct_fields__ if n != "kind"} for each in found}
        print(json.dumps({"hard_overshoot_pusd": worst, "kinds": kinds}))
    else:
        print(table(found))


if __name__ == "__main__":
    main()
