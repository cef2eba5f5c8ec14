"""Everything is killed while it works; afterwards the books are compared with what the provider served.

`python -m tests.e2e.chaos --seconds 60 --processes 4 --json [--database sqlite|postgresql|both] [--kills 1000]
[--cluster] [--seed N]` starts its own Valkey (append-only file on), SQL database, provider emulator, gateway processes
and two of `farebox worker`, which share one data folder as on one host. Clients ask with keys whose hard budgets are
worth about half of what is asked. Meanwhile, at random: kill -9 of a gateway, of a worker or of Valkey (they come
back), of the server's process behind one SQL connection or all (PostgreSQL); on SQLite the write lock is held instead;
once FLUSHALL, and once Valkey comes back without its file. With --cluster a master is killed and its replica takes
over, with whatever it had been told by then. At the end the processes are told to stop, the journals are shipped, and
one JSON line is printed:

requests            sent by clients, whatever came of them
kills               processes killed: gateways, workers, Valkey, connections of PostgreSQL
lost                requests that reached the provider, or whose client saw a 200, without a usage row
double              usage rows beyond the first of a request, and rows whose transfers do not add up to their charge
holds_left          reservations still open in Redis once the leases of dead gateways have run out
debits_minus_credits  of the trial balance, in pUSD; also not 0 where a kept balance is not the sum of its transfers
overshoot_pusd      the most that any budget's charges exceed it
tokens_upstream     input and output that the provider counted for requests that completed: those that have a
                    `completed` row, and those whose client read the last byte
tokens_ledger       the same requests' tokens in their usage rows. Requests of killed gateways are rows of an estimate,
                    so they are in neither

and on the error output, to judge the run by: admitted (usage rows), refused (by budget), unavailable (503, no
connection or cut off), estimated (rows), killed (by kind), locks (of SQLite), losses (of Redis' data),
counters_off_pusd (the furthest that a budget's counter in Redis is from what SQL says), odd (answers that nobody
expected), seconds, seed. The exit status is 1 unless lost to overshoot are 0 and the tokens the same. With --kills
there is run after run, each with a new database and its books compared, until so many were killed; a run that is wrong
is the last.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from msgspec.structs import replace
from sqlalchemy import func, select, text

from billing import journal, ledger, schema, statements
from billing.accounts import Scope
from billing.db import reading
from billing.pricelist import load_prices
from billing.worker import Worker
from gateway.admission import Gate
from gateway.admission.owners import Owner
from gateway.admission.store import store_from
from tests import services
from tests.e2e.staging import (
    ANSWER_S,
    BUDGET_PUSD,
    CLIENTS,
    KEYS_AT_ONCE,
    LEASE_S,
    LOT,
    ORGANISATION,
    WORDS,
    Scene,
    Seen,
    make_keys,
    scene,
)
from tests.emulators import scripted
from tests.emulators.openai import OpenAIEmulator, prompt_of


@dataclass
class Term:
    """How long it goes on: for the given time, and then until enough has happened, but no longer than `most_s` more."""

    until_s: float
    most_s: float = 0.0
    enough: Callable[[Seen], bool] = lambda _: True

    def is_over(self, seen: Seen) -> bool:
        now_s = time.monotonic()
        return now_s >= self.until_s and (now_s >= self.until_s + self.most_s or self.enough(seen))


WORKERS = 2  # Processes of `farebox worker`, beside the gateways, which ship as well.
# What the line says; what else is known of a run is there to judge it by.
LINE = ("requests", "kills", "lost", "double", "holds_left", "debits_minus_credits", "overshoot_pusd",
        "tokens_upstream", "tokens_ledger")  # fmt: skip
FAULTS = LINE[2:7]


async def run(
    folder: Path,
    database_url: str,
    *,
    seconds: float,
    processes: int,
    rate: float,
    seed: int,
    pause_s: float = 1.0,
    lose_redis: bool = True,
    cluster: bool = False,
    most_s: float = 0.0,
    enough: Callable[[Seen], bool] = lambda _: True,
) -> dict[str, Any]:
    """One run. rate: requests a second, all clients together. lose_redis: FLUSHALL and a restart without its file.
    enough: it goes on until then, for `most_s` more at most: a slow machine takes longer to be hurt."""
    started_s = time.monotonic()
    chance = random.Random(seed)
    async with scene(folder, database_url, processes, cluster=cluster, workers=WORKERS) as stage:
        await make_keys(stage, lots=int((seconds + most_s) * rate / LOT) + KEYS_AT_ONCE)
        term = Term(time.monotonic() + seconds, most_s, enough)
        async with asyncio.TaskGroup() as group:
            group.create_task(_destroy(stage, random.Random(chance.random()), term, seconds, pause_s, lose_redis))
            group.create_task(_ask_all(stage, random.Random(chance.random()), term, rate))
        for process in (*stage.replicas, *stage.workers):
            process.stop()
        # `keep` has ended where the process has; the scene waits for it, we for the locks that died with it.
        result = await audit(stage)
    return result | {"seconds": round(time.monotonic() - started_s, 1), "seed": seed}


async def _destroy(
    stage: Scene, chance: random.Random, term: Term, seconds: float, pause_s: float, lose_redis: bool
) -> None:
    begun_s = term.until_s - seconds
    losses = [begun_s + seconds * part for part in (0.4, 0.7)] if lose_redis else []
    while not term.is_over(stage.seen):
        if losses and time.monotonic() >= losses[0]:
            losses.pop(0)
            stage.seen.losses += 1
            if losses:
                await stage.valkey.flushall()
            else:
                stage.seen.killed["valkey"] += 1
                await stage.valkey.kill(forget=True)
                await stage.valkey.start()
            continue
        match chance.choices(("gateway", "worker", "valkey", "sql"), (5, 2, 2, 2))[0]:
            case "gateway":
                victim = chance.choice(stage.replicas)
                # On a slow machine all would be starting for ever, and nothing would be in flight to be lost.
                if any([await other.is_ready() for other in stage.replicas if other is not victim]) and victim.kill():
                    stage.seen.killed["gateway"] += 1
            case "worker":
                stage.seen.killed["worker"] += chance.choice(stage.workers).kill()
            case "valkey":
                await stage.valkey.kill()
                stage.seen.killed["valkey"] += 1
                await asyncio.sleep(chance.uniform(0, 0.7))
                await stage.valkey.start()
            case "sql" if stage.engine.dialect.name == "postgresql":
                stage.seen.killed["connection"] += await _cut_connections(stage, chance.choice((1, 1, 1, None)))
            case "sql":
                # SQLite has no connection to cut: nobody else may write for a while. In a thread: it waits for others.
                stage.seen.locks += 1
                held = chance.uniform(0.2, 1.0)
                await asyncio.to_thread(_hold_write_lock, stage.engine.url.database or "", held)
        await asyncio.sleep(pause_s * chance.uniform(0.3, 1.7))


async def _cut_connections(stage: Scene, most: int | None) -> int:
    """Kill the server's process of some client, whatever it is doing, or of all. Returns: how many."""
    query = text(
        "SELECT pg_terminate_backend(pid) FROM (SELECT pid FROM pg_stat_activity WHERE datname = current_database() "
        "AND pid <> pg_backend_pid() ORDER BY random() LIMIT :most) AS victims"
    )
    async with stage.engine.connect() as db:
        return sum((await db.execute(query, {"most": most})).scalars())


def _hold_write_lock(path: str, hold_s: float) -> None:
    with contextlib.closing(sqlite3.connect(path, timeout=10)) as file:
        file.execute("BEGIN IMMEDIATE")
        time.sleep(hold_s)
        file.rollback()


async def _ask_all(stage: Scene, chance: random.Random, term: Term, rate: float) -> None:
    tickets: asyncio.Queue[str] = asyncio.Queue(CLIENTS)

    async def issue() -> None:
        """At the given rate, a few keys at a time, so that each is used at many gateways at once."""
        lots = [stage.keys[i : i + KEYS_AT_ONCE] for i in range(0, len(stage.keys), KEYS_AT_ONCE)]
        started_s, issued = time.monotonic(), 0
        for lot in lots:
            uses = [plain for plain, _ in lot for _ in range(LOT)]
            chance.shuffle(uses)
            for plain in uses:
                if term.is_over(stage.seen):
                    return
                issued += 1
                await asyncio.sleep(max(0, started_s + issued / rate - time.monotonic()))
                await tickets.put(plain)

    async def ask(http: httpx.AsyncClient) -> None:
        while (plain := await tickets.get()) != "":
            await _ask(stage, http, chance, plain)

    limits = httpx.Limits(max_connections=CLIENTS, max_keepalive_connections=CLIENTS)
    async with httpx.AsyncClient(timeout=ANSWER_S, limits=limits) as http:
        clients = [asyncio.create_task(ask(http)) for _ in range(CLIENTS)]
        await issue()
        for _ in clients:
            await tickets.put("")
        await asyncio.gather(*clients)


async def _ask(stage: Scene, http: httpx.AsyncClient, chance: random.Random, plain: str) -> None:
    seen = stage.seen
    seen.sent += 1
    user = f"u{seen.sent}"
    script = f"x-script: long={chance.randint(*WORDS)} pace_ms={chance.choice((0, 2, 10))}"
    body: dict[str, Any] = {"model": "echo", "user": user, "max_tokens": WORDS[1], "messages": [
        {"role": "user", "content": script}
    ]}  # fmt: skip
    if streams := chance.random() < 0.6:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    leaves = streams and chance.random() < 0.05
    headers = {"authorization": f"Bearer {plain}"}
    try:
        async with _opened(stage, http, chance, body, headers) as answer:
            if answer.status_code != 200:
                problem = json.loads(await answer.aread())["error"]
                if problem["code"] in ("quota_exceeded", "insufficient_quota", "budget_exceeded"):
                    seen.refused += 1
                elif answer.status_code == 503:
                    seen.unavailable += 1
                else:
                    seen.odd[f"{answer.status_code} {problem['code']} {problem['message'][:80]}"] += 1
                return
            seen.answered.add(user)
            said = b""
            async for piece in answer.aiter_bytes():
                said += piece
                if leaves:
                    return
            if b"data: [DONE]" in said if streams else said:
                seen.finished.add(user)
    except (httpx.ConnectError, httpx.NetworkError, httpx.RemoteProtocolError):
        seen.unavailable += 1
    except httpx.TimeoutException:
        seen.odd["no answer in time"] += 1


@contextlib.asynccontextmanager
async def _opened(
    stage: Scene, http: httpx.AsyncClient, chance: random.Random, body: Any, headers: dict[str, str]
) -> AsyncIterator[httpx.Response]:
    """From the first replica that takes the connection, as behind a load balancer. Raises: httpx.ConnectError."""
    *others, last = chance.sample(stage.replicas, len(stage.replicas))
    for replica in others:
        request = http.build_request("POST", f"{replica.url}/v1/chat/completions", json=body, headers=headers)
        with contextlib.suppress(httpx.ConnectError):
            answer = await http.send(request, stream=True)
            break
    else:
        request = http.build_request("POST", f"{last.url}/v1/chat/completions", json=body, headers=headers)
        answer = await http.send(request, stream=True)
    try:
        yield answer
    finally:
        await answer.aclose()


async def audit(stage: Scene) -> dict[str, Any]:
    """Ship what the dead left behind and add everything up."""
    seen, engine = stage.seen, stage.engine
    async with reading(engine) as db:
        prices = await load_prices(db)
    worker = Worker(stage.settings.data_dir / "journal", engine, prices)
    async with asyncio.timeout(180):
        # A gateway that drains holds its run's owner lock until its last answer; then it is there to be shipped.
        while journal.runs(stage.settings.data_dir / "journal"):
            await worker.recover()
            await asyncio.sleep(0.05)
    table, moves = schema.usage_records.c, schema.transfers.c
    async with reading(engine) as db:
        rows = (await db.execute(select(schema.usage_records))).mappings().all()
        sold = select(moves.record_id, func.sum(moves.amount_pusd)).where(moves.kind.in_(("charge", "overrun")))
        moved = {row[0]: int(row[1]) for row in await db.execute(sold.group_by(moves.record_id))}
        trial = await ledger.trial_balance(db)
        spent = await statements.spent_by(db, Scope.KEY, [key_id for _, key_id in stage.keys])
    by_user: dict[str, list[Any]] = {}
    for row in rows:
        by_user.setdefault(row[table.end_user.name], []).append(row)
    served = _served(stage.upstream)
    double = sum(len(found) - 1 for found in by_user.values())
    double += sum(moved.get(row["id"], 0) != row["charge_pusd"] for row in rows)
    completed = {user for user, found in by_user.items() if found[0]["outcome"] == "completed"}
    # An answer that failed on its way here may have been sent again by the gateway; the provider bills the one read.
    compared = (completed | seen.finished) & served.keys()
    differing = len(trial.differing)
    holds_left, counters_off = await _reservations(stage, spent)
    return {
        "requests": seen.sent,
        "kills": seen.kills,
        "lost": len((served.keys() | seen.answered) - by_user.keys()),
        "double": double,
        "holds_left": holds_left,
        "debits_minus_credits": trial.debits_minus_credits_pusd or differing,
        "overshoot_pusd": max(0, *(amount - BUDGET_PUSD for amount in spent.values())),
        "tokens_upstream": sum(served[user] for user in compared),
        "tokens_ledger": sum(
            row["input_tokens"] + row["output_tokens"] for user in compared for row in by_user.get(user, ())
        ),
        "admitted": len(rows),
        "refused": seen.refused,
        "unavailable": seen.unavailable,
        "estimated": sum(row["estimated"] for row in rows),
        "killed": dict(seen.killed),
        "locks": seen.locks,
        "losses": seen.losses,
        "counters_off_pusd": counters_off,
        "odd": dict(seen.odd),
    }


def _served(upstream: OpenAIEmulator) -> dict[str, int]:
    """Tokens that the provider counted for each request it got."""
    served = {}
    for request in upstream.requests:
        if request.path.endswith("/chat/completions"):
            try:
                body = request.json()
            except ValueError:  # Spoilt on its way: nobody was served.
                continue
            reply = scripted.answer(prompt_of(body))
            served[body["user"]] = reply.input_tokens + reply.output_tokens
    return served


async def _reservations(stage: Scene, spent: dict[str, int]) -> tuple[int, int]:
    """What a gateway that starts now finds and puts right by itself. Returns: still open, counters' error."""
    prefix = f"fb:{{{ORGANISATION}}}"
    owner = Owner(*Owner.of(None).name.split("."), stage.settings.data_dir / "journal")
    owner = replace(owner, folder=(stage.settings.data_dir / "journal" / "folder.id").read_text())
    redis = await stage.valkey.client_of(f"{prefix}:leases")
    gate = Gate(stage.engine, store_from(stage.valkey.url), owner=owner)
    async with gate:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(20 * LEASE_S):
                while await redis.zcard(f"{prefix}:leases"):
                    await gate.correct_expired([ORGANISATION])
                    await asyncio.sleep(0.05)
    off = 0
    for key_id, amount in spent.items():
        kept, limit = await redis.hmget(f"{prefix}:m:key:{key_id}:total:total", "a", "l")
        if limit is not None:
            off = max(off, abs(BUDGET_PUSD - amount - int(kept)))
    return await redis.zcard(f"{prefix}:leases"), off


def together(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Several runs as one: what was counted is added up; of overshoots and of counters the furthest."""
    furthest = ("overshoot_pusd", "counters_off_pusd")
    whole: dict[str, Any] = {}
    for name, value in runs[0].items():
        values = [run[name] for run in runs]
        match value:
            case dict():
                whole[name] = dict(sum((Counter(each) for each in values), Counter()))
            case _ if name == "seed":
                whole["seeds"] = values
            case _:
                whole[name] = max(values) if name in furthest else sum(values)
    return whole


def is_right(found: dict[str, Any]) -> bool:
    return not any(found[name] for name in FAULTS) and found["tokens_upstream"] == found["tokens_ledger"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.chaos", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--kills", type=int, default=1, help="run after run, until so many were killed")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--database", choices=("sqlite", "postgresql", "both"), default="sqlite")
    parser.add_argument("--rate", type=float, default=100, help="requests a second")
    parser.add_argument("--pause", type=float, default=1, help="seconds between two blows, about")
    parser.add_argument("--seed", type=int, default=None, help="of the first run; each further one has the next")
    parser.add_argument("--keep-redis", action="store_true", help="neither FLUSHALL nor a restart without its file")
    parser.add_argument("--cluster", action="store_true", help="Valkey as three masters with a replica each")
    parser.add_argument("--json", action="store_true", help="one line; without, one value a line")
    asked = parser.parse_args()
    seed = int.from_bytes(os.urandom(3), "big") if asked.seed is None else asked.seed
    databases = itertools.cycle(("postgresql", "sqlite") if asked.database == "both" else (asked.database,))
    runs: list[dict[str, Any]] = []
    while not runs or (sum(run["kills"] for run in runs) < asked.kills and is_right(runs[-1])):
        with contextlib.ExitStack() as stack:
            # Not below a long path: a Unix socket's name may have 107 bytes.
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fbx-chaos-")))
            if next(databases) == "postgresql":
                url = stack.enter_context(services.own_postgres())
            else:
                url = f"sqlite+aiosqlite:///{folder / 'farebox.db'}"
            found = asyncio.run(
                run(
                    folder, url, seconds=asked.seconds, processes=asked.processes, rate=asked.rate,
                    seed=seed + len(runs), pause_s=asked.pause, lose_redis=not asked.keep_redis, cluster=asked.cluster,
                )
            )  # fmt: skip
        runs.append(found)
        if asked.kills > 1:
            print(json.dumps(found), file=sys.stderr, flush=True)
    whole = together(runs)
    line = {name: whole[name] for name in LINE}
    rest = {name: value for name, value in whole.items() if name not in LINE}
    if asked.json:
        print(json.dumps(rest), file=sys.stderr)
        print(json.dumps(line))
    else:
        print("\n".join(f"{name}: {value}" for name, value in {**line, **rest}.items()))
    sys.exit(0 if is_right(whole) else 1)


if __name__ == "__main__":
    main()
