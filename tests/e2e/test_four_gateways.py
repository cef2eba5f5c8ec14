"""Four gateways on four networks of their own, one shared Redis and PostgreSQL: one is killed and one is cut off in the
middle. Nobody else notices, and the limits that they share are exact to the request.

Needs root and Linux's network namespaces; where they are not to be had the test says so and is skipped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from redis.asyncio import Redis
from sqlalchemy import func, select

from billing import accounts, ledger, schema
from billing.accounts import Window
from billing.db import create_engine, reading, writing
from billing.migrate import upgrade
from billing.pricelist import load_prices
from billing.worker import Worker
from gateway.admission.key_admin import KeyAdmin, KeyTerms
from gateway.config import load
from gateway.embedded.prices import declare
from gateway.embedded.secrets import Secrets
from tests import services
from tests.e2e.staging import config_text
from tests.emulators.openai import OpenAIEmulator

COUNT = 4
NET = "10.213.77"
BRIDGE = f"fbx{os.getpid() % 100_000}"
REQUESTS = 400
RPM = 60


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def _may_make_networks() -> str | None:
    if sys.platform != "linux" or os.geteuid() != 0:
        return "NOT RUN: four gateways on networks of their own need root on Linux"
    try:
        _ip("netns", "add", f"{BRIDGE}-try")
        _ip("netns", "del", f"{BRIDGE}-try")
    except (OSError, subprocess.CalledProcessError) as error:
        return f"NOT RUN: no network namespaces here ({error})"
    return None


@contextlib.contextmanager
def networks() -> Iterator[list[str]]:
    """Their names. Each is behind a link of its own on one bridge, where `NET.1` is us."""
    names = [f"{BRIDGE}-{n}" for n in range(COUNT)]
    _ip("link", "add", BRIDGE, "type", "bridge")
    try:
        _ip("addr", "add", f"{NET}.1/24", "dev", BRIDGE)
        _ip("link", "set", BRIDGE, "up")
        for n, name in enumerate(names):
            _ip("netns", "add", name)
            _ip("link", "add", f"{BRIDGE}v{n}", "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("link", "set", f"{BRIDGE}v{n}", "master", BRIDGE, "up")
            _ip("-n", name, "addr", "add", f"{NET}.{n + 10}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", BRIDGE], capture_output=True, check=False)


@contextlib.asynccontextmanager
async def door(target: str | int) -> AsyncIterator[int]:
    """A port on the bridge that leads to a Unix socket, or to a port of 127.0.0.1."""
    links: set[asyncio.Task[None]] = set()

    async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            while data := await source.read(65_536):
                sink.write(data)
                await sink.drain()
        sink.close()

    async def link(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        links.add(task)
        try:
            if isinstance(target, int):
                back = await asyncio.open_connection("127.0.0.1", target)
            else:
                back = await asyncio.open_unix_connection(target)
            await asyncio.gather(copy(reader, back[1]), copy(back[0], writer))
        finally:
            links.discard(task)

    server = await asyncio.start_server(link, f"{NET}.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(links):
            task.cancel()
        await asyncio.gather(*links, return_exceptions=True)


class Replica:
    def __init__(self, n: int, network: str, folder: Path, config: str) -> None:
        self.n = n
        self.url = f"http://{NET}.{n + 10}:4000"
        self.well = True
        self._network = network
        self._folder = folder
        self._folder.mkdir()
        (folder / "farebox.toml").write_text(config.replace("DATA", str(folder / "data")))
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with (self._folder / "log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                "ip", "netns", "exec", self._network, sys.executable, "-m", "gateway", "serve",
                "--config", str(self._folder / "farebox.toml"), "--host", "0.0.0.0", "--port", "4000",
                stdout=log, stderr=log, preexec_fn=services._die_with_parent,
            )  # fmt: skip

    async def ready(self) -> None:
        async with asyncio.timeout(90), httpx.AsyncClient(timeout=5) as http:
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    if (await http.get(f"{self.url}/health/readiness")).status_code == 200:
                        return
                assert self._process is not None
                assert self._process.returncode is None, (self._folder / "log").read_text()[-2000:]
                await asyncio.sleep(0.05)

    def kill(self) -> None:
        self.well = False
        self._signal(signal.SIGKILL)

    def cut(self) -> None:
        self.well = False
        _ip("link", "set", f"{BRIDGE}v{self.n}", "down")

    def mend(self) -> None:
        _ip("link", "set", f"{BRIDGE}v{self.n}", "up")

    async def stop(self) -> None:
        if self._process is not None:
            self._signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(30):
                    await self._process.wait()
            except TimeoutError:
                self._signal(signal.SIGKILL)
                await self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        # `ip netns exec` becomes the command: there is one process.
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)


@dataclass
class Seen:
    """What clients saw. failed: by replica that was well, which is what may not happen."""

    statuses: Counter[int] = field(default_factory=Counter)
    lost: int = 0
    failed: list[str] = field(default_factory=list)
    asked: int = 0


async def ask(http: httpx.AsyncClient, replicas: list[Replica], n: int, key: str, seen: Seen) -> None:
    """As behind any load balancer: who does not take the connection is passed over."""
    for step in range(COUNT):
        replica = replicas[(n + step) % COUNT]
        if not replica.well:
            continue
        body = {"model": "echo", "messages": [{"role": "user", "content": f"number {n}"}], "max_tokens": 10}
        headers = {"authorization": f"Bearer {key}"}
        seen.asked += 1
        try:
            answer = await http.post(f"{replica.url}/v1/chat/completions", json=body, headers=headers)
        except httpx.HTTPError as error:
            if replica.well:
                seen.failed.append(f"{replica.n}: {type(error).__name__}")
            seen.lost += 1
            return
        seen.statuses[answer.status_code] += 1
        if answer.status_code not in (200, 429):
            seen.failed.append(f"{replica.n}: {answer.status_code} {answer.text[:200]}")
        return


def config(database: int, redis: int, upstream: int) -> str:
    return config_text(
        "DATA",
        f"http://{NET}.1:{upstream}",
        f"postgresql+asyncpg://postgres@{NET}.1:{database}/four",
        f"redis://{NET}.1:{redis}/0",
    )


@pytest.mark.timeout(240)
async def test_one_killed_and_one_cut_off_are_missed_by_nobody(tmp_path: Path) -> None:
    if reason := _may_make_networks():
        pytest.skip(reason)
    async with contextlib.AsyncExitStack() as stack:
        names = stack.enter_context(networks())
        socket_url = stack.enter_context(services.own_postgres())
        redis_url = stack.enter_context(services.valkey())
        upstream = await stack.enter_async_context(OpenAIEmulator())
        folder = socket_url.partition("host=")[2]
        redis_socket = redis_url.removeprefix("unix://").partition("?")[0]
        sql_port = await stack.enter_async_context(door(f"{folder}/.s.PGSQL.5432"))
        redis_port = await stack.enter_async_context(door(redis_socket))
        model_port = await stack.enter_async_context(door(int(upstream.url.rpartition(":")[2])))

        admin = create_engine(socket_url)
        async with admin.connect() as db:
            await (await db.execution_options(isolation_level="AUTOCOMMIT")).exec_driver_sql("CREATE DATABASE four")
        await admin.dispose()
        url = socket_url.replace("/postgres?", "/four?")
        await upgrade(url)
        text = config(sql_port, redis_port, model_port)
        replicas = [Replica(n, name, tmp_path / str(n), text) for n, name in enumerate(names)]
        settings = load(tmp_path / "0" / "farebox.toml", {})
        secrets = Secrets.load(settings)
        for replica in replicas[1:]:  # One installation has one pepper: an operator shares it by FAREBOX_KEY_PEPPER.
            Secrets.load(load(tmp_path / str(replica.n) / "farebox.toml", {}))
            shutil.copytree(
                tmp_path / "0" / "data" / "secrets", tmp_path / str(replica.n) / "data" / "secrets", dirs_exist_ok=True
            )
        engine = create_engine(url)
        stack.push_async_callback(engine.dispose)
        now_ns = time.time_ns()
        async with writing(engine) as db:
            await declare(db, settings, now_ns)
            await accounts.create_organisation(db, "org", "org", at_ns=now_ns)
            await accounts.create_project(db, "proj", "org", "four", at_ns=now_ns)
        redis = Redis.from_url(redis_url, protocol=3)
        stack.push_async_callback(redis.aclose)
        keys = KeyAdmin(engine, redis, secrets.key_pepper.encode())

        async def new_key(name: str, terms: KeyTerms, budget_pusd: int | None = None) -> tuple[str, str]:
            budgets = [(Window.TOTAL, budget_pusd)] if budget_pusd else []
            made = await keys.create_key(
                project_id="proj", name=name, actor="test", now_ns=now_ns, terms=terms, budgets=budgets
            )
            assert made.plain is not None
            return made.plain, made.key_id

        for replica in replicas:
            await replica.start()
            stack.push_async_callback(replica.stop)
        await asyncio.gather(*(replica.ready() for replica in replicas))

        limited, _ = await new_key("limited", KeyTerms(rpm=RPM))
        http = await stack.enter_async_context(httpx.AsyncClient(timeout=10))
        seen, began = Seen(), time.monotonic()
        await asyncio.gather(*(ask(http, replicas, n, limited, seen) for n in range(2 * RPM)))
        refilled = int((time.monotonic() - began) * RPM / 60)  # A minute's allowance comes back by the second.
        assert seen.failed == []
        assert RPM <= seen.statuses[200] <= RPM + refilled

        # A budget for about half of what is asked. Its holds are worst cases, so the last few may be refused early.
        budget = 16_000_000_000
        plain, key_id = await new_key("spends", KeyTerms(), budget)
        seen = Seen()
        async with asyncio.timeout(60):  # All four are asked what they hold before a counter is made: a busy machine's
            while not seen.statuses[200]:  # are told to come back. From here on nobody is.
                seen.failed.clear()
                await ask(http, replicas, 0, plain, seen)
        waves = [range(at, at + 40) for at in range(0, REQUESTS, 40)]
        for number, wave in enumerate(waves):
            asking = asyncio.gather(*(ask(http, replicas, n, plain, seen) for n in wave))
            if number == 3:
                await asyncio.sleep(0)
                replicas[1].kill()
            if number == 6:
                await asyncio.sleep(0)
                replicas[2].cut()
            await asking
        assert seen.failed == []
        assert seen.lost <= 30  # Those that were on their way to the two: the second had the first one's share by then.

        replicas[2].mend()
        await replicas[1].start()
        await asyncio.gather(replicas[1].ready(), replicas[2].ready())
        await asyncio.gather(*(replica.stop() for replica in replicas))
        async with reading(engine) as db:
            prices = await load_prices(db)
        for replica in replicas:
            await Worker(tmp_path / str(replica.n) / "data" / "journal", engine, prices).recover()
        async with reading(engine) as db:
            rows = schema.usage_records
            spent, count = (
                await db.execute(
                    select(func.coalesce(func.sum(rows.c.charge_pusd), 0), func.count()).where(rows.c.key_id == key_id)
                )
            ).one()
            assert (await ledger.trial_balance(db)).sound
        assert seen.statuses[429] > 0
        assert int(spent) <= budget
        assert seen.statuses[200] <= count <= seen.statuses[200] + seen.lost
