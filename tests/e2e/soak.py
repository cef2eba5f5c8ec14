"""Mixed traffic for as long as you like, with every link spoilt now and then and one process killed each minute.

`python -m tests.e2e.soak --minutes 30 --json [--database sqlite|postgresql] [--processes 3] [--rate 40] [--seed N]`
Three dialects, streams and whole answers, tools, clients that leave, wrong keys and models; our TCP fault proxy stands
between clients and gateways, gateways and provider, gateways and Redis, gateways and PostgreSQL. The first gateway is
never killed: leaks are measured on it. Afterwards the books are compared as `tests.e2e.chaos` does; in addition:

faults              played, by link and kind
stuck               requests on a sound link that got no end within 30 s from a gateway that was up all that time
stuck_at            the same by what was waited for, path and gateway
in_flight_left      requests and open intents that the first gateway still counts when all clients are gone
rss_mb, rss_mb_hour its resident memory at the end, and the slope over the second half of the run
fds, fds_more       its open files at the end, and how many more than after the first tenth
redis_keys, redis_keys_more   the same of keys in Redis
statuses            answers by status
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy.engine import make_url

from tests import services
from tests.e2e import chaos, staging
from tests.e2e.faultproxy import Fault, FaultProxy, any_fault

PATIENCE_S = 30.0
CLIENTS = 40
SPOILT_SHARE = 0.05  # of connections, on the links that have many
TIMEOUTS = """
[timeouts]
connect_s = 2.0
first_byte_s = 4.0
between_bytes_s = 3.0
total_s = 20.0
[server]
body_timeout_s = 3.0
head_timeout_s = 3.0
stalled_client_s = 5.0
heartbeat_s = 1.0
"""
FINE = {200, 401, 404, 429, 502, 503, 504}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}


@dataclass
class Links:
    """The proxies behind the gateways. Those in front of them come with the replicas."""

    chance: random.Random
    stack: contextlib.AsyncExitStack
    behind: dict[str, FaultProxy] = field(default_factory=dict)

    async def open(self, upstream: str, database: str, redis: str) -> tuple[str, str, str]:
        provider = await self._proxy("upstream", _address(upstream))
        provider.choose = self.sometimes
        cache = await self._proxy("redis", redis.removeprefix("unix://").partition("?")[0])
        url = make_url(database)
        if url.get_backend_name() == "postgresql":
            folder = str(url.query["host"])
            sql = await self._proxy("sql", f"{folder}/.s.PGSQL.5432")
            # `ssl=disable`: a proxy of bytes cannot answer for a server that listens on a Unix socket.
            url = url.set(host="127.0.0.1", port=sql.port, query={"ssl": "disable"})
        shown = url.render_as_string(hide_password=False)
        return provider.url, shown, f"redis://127.0.0.1:{cache.port}/0"

    def sometimes(self) -> Fault | None:
        return any_fault(self.chance) if self.chance.random() < SPOILT_SHARE else None

    async def _proxy(self, name: str, target: tuple[str, int] | str) -> FaultProxy:
        made = self.behind[name] = await self.stack.enter_async_context(FaultProxy(target))
        return made


@dataclass
class Health:
    """Of the gateway that is never killed, and of Redis; one sample a second."""

    rss: list[tuple[float, float]] = field(default_factory=list)
    fds: list[int] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)


async def run(
    folder: Path, database_url: str, *, seconds: float, processes: int, rate: float, seed: int, kill_each_s: float = 60
) -> dict[str, Any]:
    started_s, chance = time.monotonic(), random.Random(seed)
    statuses: Counter[str] = Counter()
    health, stuck = Health(), Counter[str]()
    async with contextlib.AsyncExitStack() as stack:
        links = Links(random.Random(chance.random()), stack)
        async with staging.scene(folder, database_url, processes, through=links, config_more=TIMEOUTS) as stage:
            fronts = []
            for replica in stage.replicas:
                front = await stack.enter_async_context(FaultProxy(("127.0.0.1", replica.port)))
                front.choose = lambda: any_fault(links.chance)
                fronts.append(front)
            await staging.make_keys(stage, lots=int(seconds * rate / staging.LOT) + 4)
            until_s = time.monotonic() + seconds
            traffic = Traffic(stage, fronts, statuses, stuck)
            async with asyncio.TaskGroup() as group:
                group.create_task(_watch(stage, health, until_s))
                group.create_task(_spoil(links, random.Random(chance.random()), until_s))
                group.create_task(_kill(stage, random.Random(chance.random()), until_s, kill_each_s))
                group.create_task(traffic.run(random.Random(chance.random()), until_s, rate))
            left = await _settled(stage.replicas[0].url)
            health.fds.append(psutil.Process(stage.replicas[0].pid).num_fds())
            for replica in stage.replicas:
                replica.stop()
            found = await chaos.audit(stage)
        faults = {f"{name} {kind}": n for name, proxy in links.behind.items() for kind, n in proxy.played.items()}
        for front in fronts:
            for kind, n in front.played.items():
                faults[f"client {kind}"] = faults.get(f"client {kind}", 0) + n
    tenth = len(health.keys) // 10
    return found | {
        "faults": dict(sorted(faults.items())),
        "stuck": stuck.total(),
        "stuck_at": dict(sorted(stuck.items())),
        "in_flight_left": left,
        "rss_mb": round(health.rss[-1][1], 1),
        "rss_mb_hour": round(_slope(health.rss[len(health.rss) // 2 :]) * 3600, 1),
        "fds": health.fds[-1],
        "fds_more": health.fds[-1] - health.fds[tenth],
        "redis_keys": health.keys[-1],
        "redis_keys_more": health.keys[-1] - health.keys[tenth],
        "statuses": dict(sorted(statuses.items())),
        "seconds": round(time.monotonic() - started_s, 1),
        "seed": seed,
    }


class Traffic:
    """Clients of every kind. What they see goes into the stage's `seen`, which the audit reads."""

    def __init__(
        self, stage: staging.Scene, fronts: list[FaultProxy], statuses: Counter[str], stuck: Counter[str]
    ) -> None:
        self._stage = stage
        self._fronts = fronts
        self._statuses = statuses
        self._stuck = stuck

    async def run(self, chance: random.Random, until_s: float, rate: float) -> None:
        began_s, issued = time.monotonic(), 0
        asking: set[asyncio.Task[None]] = set()
        limits = httpx.Limits(max_connections=CLIENTS, max_keepalive_connections=CLIENTS)
        async with httpx.AsyncClient(timeout=PATIENCE_S, limits=limits) as sound:
            while (now_s := time.monotonic()) < until_s:
                issued += 1
                await asyncio.sleep(max(0, began_s + issued / rate - now_s))
                if len(asking) < CLIENTS:
                    asking.add(task := asyncio.create_task(self._one(sound, random.Random(chance.random()))))
                    task.add_done_callback(asking.discard)
            await asyncio.gather(*asking)

    async def _one(self, sound: httpx.AsyncClient, chance: random.Random) -> None:
        key = chance.choice(self._stage.keys)[0] if chance.random() > 0.03 else "fbx-nobody"
        self._stage.seen.sent += 1
        path, body, streams = _request(chance, f"u{self._stage.seen.sent}")
        headers = {"authorization": f"Bearer {key}", "anthropic-version": "2023-06-01"}
        if chance.random() < SPOILT_SHARE:
            # On a link of its own: a pooled one would spoil requests that are to be sound.
            async with httpx.AsyncClient(timeout=5.0) as spoilt:
                url = chance.choice(self._fronts).url
                with contextlib.suppress(httpx.HTTPError):
                    await self._ask(spoilt, url + path, body, headers, streams, leaves=False)
            return
        replica = chance.choice(self._stage.replicas)
        url = replica.url
        try:
            leaves = streams and chance.random() < 0.1
            status = await self._ask(sound, url + path, body, headers, streams, leaves=leaves)
            self._statuses[str(status)] += 1
            if status not in FINE:
                self._stage.seen.odd[f"{status} {path}"] += 1
        except httpx.TimeoutException as error:
            if time.monotonic() - replica.began_s < 2 * PATIENCE_S:
                self._statuses["cut"] += 1  # It waited before a door that a killed process has just opened again.
            else:
                self._stuck[f"{type(error).__name__} {path} gateway {self._stage.replicas.index(replica)}"] += 1
        except httpx.TransportError:
            self._statuses["cut"] += 1  # a process was killed

    async def _ask(
        self, http: httpx.AsyncClient, url: str, body: Any, headers: dict[str, str], streams: bool, *, leaves: bool
    ) -> int:
        user = body.get("user") or body["metadata"]["user_id"]
        async with http.stream("POST", url, json=body, headers=headers) as answer:
            if answer.status_code == 200:
                # With a heartbeat before it, a 200 may stand in front of a refusal: only text is an answer.
                said = b""
                async for piece in answer.aiter_bytes():
                    said += piece
                    if b"word" in said:
                        self._stage.seen.answered.add(user)
                    if leaves:
                        return 200
                if not streams or any(end in said for end in (b"data: [DONE]", b"message_stop", b"response.completed")):
                    self._stage.seen.finished.add(user)
            else:
                await answer.aread()
            return answer.status_code


def _request(chance: random.Random, user: str) -> tuple[str, dict[str, Any], bool]:
    script = f"x-script: long={chance.randint(*staging.WORDS)} pace_ms={chance.choice((0, 2, 10, 40))}"
    if chance.random() < 0.1:
        script = "what is the weather? get_weather"
    model = "echo" if chance.random() > 0.03 else "no-such-model"
    streams = chance.random() < 0.6
    asked = {"model": model, "stream": streams}
    messages = {"messages": [{"role": "user", "content": script}], "max_tokens": staging.WORDS[1]}
    match chance.choice(("chat", "chat", "messages", "responses")):
        case "messages":
            return "/v1/messages", asked | messages | {"metadata": {"user_id": user}}, streams
        case "responses":
            return "/v1/responses", asked | {"input": script, "user": user, "store": False}, streams
    tools = {"tools": [TOOL]} if "get_weather" in script else {}
    options = {"stream_options": {"include_usage": True}} if streams else {}
    return "/v1/chat/completions", asked | messages | tools | options | {"user": user}, streams


async def _spoil(links: Links, chance: random.Random, until_s: float) -> None:
    """The links that live long are struck while they live, and heal after a while as networks do: all of them in turn,
    the first time without much ado, since a short run has to have hurt each."""
    order, most_s = list(links.behind), 0.5
    while time.monotonic() < until_s:
        chance.shuffle(order)
        for name in order:
            await _rest(chance.uniform(0.2, 2 * most_s), until_s)
            proxy = links.behind[name]
            proxy.strike(any_fault(chance))
            await _rest(chance.uniform(0.2, most_s), until_s)
            proxy.cut_all()
        most_s = 2.0


async def _kill(stage: staging.Scene, chance: random.Random, until_s: float, each_s: float) -> None:
    while True:
        await _rest(each_s * chance.uniform(0.8, 1.2), until_s)
        if time.monotonic() >= until_s:
            return
        stage.seen.killed["process"] += 1
        if chance.random() < 0.3:
            await stage.valkey.kill()
            await stage.valkey.start()
        else:
            chance.choice(stage.replicas[1:]).kill()


async def _watch(stage: staging.Scene, health: Health, until_s: float) -> None:
    process = psutil.Process(stage.replicas[0].pid)
    redis = Redis.from_url(stage.valkey.url)
    while (now_s := time.monotonic()) < until_s:
        health.rss.append((now_s, process.memory_info().rss / 2**20))
        health.fds.append(process.num_fds())
        with contextlib.suppress(RedisError, OSError):
            health.keys.append(await redis.dbsize())
        await _rest(1.0, until_s)
    await redis.aclose()


async def _rest(seconds: float, until_s: float) -> None:
    await asyncio.sleep(max(0.0, min(seconds, until_s - time.monotonic())))


async def _settled(url: str) -> int:
    """What the gateway still counts as being served, once it has had time to notice that nobody is there."""
    pattern = re.compile(r"^farebox_(?:in_flight|open_intents) (\S+)$", re.MULTILINE)
    left = -1
    async with httpx.AsyncClient(timeout=10) as http:
        for _ in range(150):
            left = int(sum(map(float, pattern.findall((await http.get(f"{url}/metrics")).text))))
            if left == 0:
                break
            await asyncio.sleep(0.1)
    return left


def _slope(points: list[tuple[float, float]]) -> float:
    """Least squares, units a second."""
    if len(points) < 2:
        return 0.0
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)


def _address(url: str) -> tuple[str, int]:
    host, _, port = url.rpartition("://")[2].partition(":")
    return host, int(port)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="postgresql")
    parser.add_argument("--rate", type=float, default=40, help="requests a second")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--json", action="store_true", help="one line; without, one value a line")
    asked = parser.parse_args()
    seed = int.from_bytes(os.urandom(3), "big") if asked.seed is None else asked.seed
    with contextlib.ExitStack() as stack:
        # Not below a long path: a Unix socket's name may have 107 bytes.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fbx-soak-")))
        url = f"sqlite+aiosqlite:///{folder / 'farebox.db'}"
        if asked.database == "postgresql":
            url = stack.enter_context(services.own_postgres())
        result = asyncio.run(
            run(folder, url, seconds=asked.minutes * 60, processes=asked.processes, rate=asked.rate, seed=seed)
        )
    print(json.dumps(result) if asked.json else "\n".join(f"{name}: {value}" for name, value in result.items()))


if __name__ == "__main__":
    main()
