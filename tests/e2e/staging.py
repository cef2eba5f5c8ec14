"""Gateways of a test's own that may be hurt: several processes on one data folder, Valkey, SQL and a provider, as on
one host. `chaos`, `overshoot` and `soak` play on it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import httpx
from sqlalchemy.ext.asyncio import AsyncEngine

from billing import accounts
from billing.accounts import Window
from billing.db import create_engine, writing
from billing.migrate import upgrade
from gateway.admission.key_admin import KeyAdmin, KeyTerms
from gateway.admission.store import store_from
from gateway.config import Settings, load
from gateway.embedded.prices import declare
from gateway.embedded.secrets import Secrets
from tests import services
from tests.clusters import Nodes, Valkey
from tests.emulators.openai import OpenAIEmulator

ORGANISATION = "org_chaos"
LOT = 40  # Requests that one key is used for.
KEYS_AT_ONCE = 4
CLIENTS = 48
WORDS = (8, 32)
# An average request: 12 tokens in at 1.5, 20 out at 7.25 pUSD x 10**6.
BUDGET_PUSD = LOT // 2 * (12 * 1_500_000 + 20 * 7_250_000)
LEASE_S = 3.0
ANSWER_S = 60.0  # A client's patience. Longer than any outage here, so that a request without an end would be seen.


@dataclass
class Seen:
    """What the clients and the destroyer know. Requests are told apart by their `user`, unique to each."""

    sent: int = 0
    refused: int = 0
    unavailable: int = 0
    killed: Counter[str] = field(default_factory=Counter)  # By kind of process: gateway, worker, valkey, connection.
    locks: int = 0
    losses: int = 0
    answered: set[str] = field(default_factory=set)  # A 200 was seen.
    finished: set[str] = field(default_factory=set)  # The last byte was read.
    odd: Counter[str] = field(default_factory=Counter)  # Answers that nobody expected.

    @property
    def kills(self) -> int:
        return self.killed.total()


class Process:
    """A `farebox` process that is started again whenever it ends. name: of its log beside the configuration."""

    def __init__(self, config: Path, name: str, *arguments: str) -> None:
        self._config = config
        self._log = config.with_name(f"{name}.log")
        self._arguments = arguments
        self._stopping = False
        self._process: asyncio.subprocess.Process | None = None
        self.began_s = 0.0
        """When the present one did, by the monotonic clock."""

    async def keep(self) -> None:
        while not self._stopping:
            self.began_s = time.monotonic()
            with self._log.open("ab") as log:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "gateway", *self._arguments, "--config", str(self._config),
                    stdout=log, stderr=log, preexec_fn=services._die_with_parent,
                )  # fmt: skip
            if self._stopping:  # `stop` came while this one was being made.
                self._process.terminate()
            await self._process.wait()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> bool:
        """Returns: whether there was one."""
        return self._signal(signal.SIGKILL)

    def stop(self) -> None:
        self._stopping = True
        self._signal(signal.SIGTERM)

    def _signal(self, number: signal.Signals) -> bool:
        if self._process is None or self._process.returncode is not None:
            return False
        self._process.send_signal(number)
        return True


class Replica(Process):
    """A gateway."""

    def __init__(self, config: Path, port: int) -> None:
        super().__init__(config, f"gateway-{port}", "serve", "--port", str(port))
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    async def ready(self) -> None:
        async with asyncio.timeout(180):
            while not await self.is_ready():
                await asyncio.sleep(0.05)

    async def is_ready(self) -> bool:
        async with httpx.AsyncClient() as http:
            with contextlib.suppress(httpx.HTTPError):
                return (await http.get(f"{self.url}/health/readiness")).status_code == 200
        return False


@dataclass
class Scene:
    folder: Path
    database: str  # A URL.
    valkey: Valkey | Nodes
    replicas: list[Replica]
    workers: list[Process]
    upstream: OpenAIEmulator
    engine: AsyncEngine
    settings: Settings
    keys: list[tuple[str, str]] = field(default_factory=list)  # (plain, id)
    seen: Seen = field(default_factory=Seen)


PATIENT = """
# A head that is sent before the request is admitted, only to break a silence, would be a 200 for nothing.
[server]
heartbeat_s = 3600
# The provider shares a process with all clients.
[timeouts]
connect_s = 60
"""


class Through(Protocol):
    """What stands between the gateways and the rest: the addresses of upstream, database and Redis as they see them."""

    async def open(self, upstream: str, database: str, redis: str) -> tuple[str, str, str]: ...


@contextlib.asynccontextmanager
async def scene(
    folder: Path,
    database_url: str,
    processes: int,
    *,
    through: Through | None = None,
    config_more: str = PATIENT,
    admission: str = "",
    cluster: bool = False,
    workers: int = 0,
) -> AsyncIterator[Scene]:
    """Everything up. The database is migrated here. config_more: TOML sections for the gateways; admission:
    more of theirs of that section. cluster: Valkey is three masters with a replica each. workers: processes of
    `farebox worker` beside the gateways, which ship too."""
    valkey = Nodes(folder) if cluster else Valkey(folder)
    try:
        await valkey.start()
        async with OpenAIEmulator() as upstream:
            config = folder / "farebox.toml"
            places = upstream.url, database_url, valkey.url
            if through is not None:
                places = await through.open(*places)
            more = f"admission = {{ lease_s = {LEASE_S}{admission} }}"
            config.write_text(config_text(folder / "data", *places, more) + config_more)
            settings = load(config, {})
            await upgrade(database_url)
            engine = create_engine(database_url)
            async with writing(engine) as db:
                await declare(db, settings, time.time_ns())
                await accounts.create_organisation(db, ORGANISATION, ORGANISATION, at_ns=time.time_ns())
                await accounts.create_project(db, "proj_chaos", ORGANISATION, "chaos", at_ns=time.time_ns())
            replicas = [Replica(config, port) for port in services.free_ports(processes)]
            shipping = [Process(config, f"worker-{number}", "worker") for number in range(workers)]
            kept = [*replicas, *shipping]
            keeping = [asyncio.create_task(process.keep()) for process in kept]
            try:
                await asyncio.gather(*(replica.ready() for replica in replicas))
                yield Scene(folder, database_url, valkey, replicas, shipping, upstream, engine, settings)
            finally:
                for process in kept:
                    process.stop()
                _, late = await asyncio.wait(keeping, timeout=30)
                for process in kept:
                    process.kill()
                await asyncio.gather(*late)
                await engine.dispose()
    finally:
        await valkey.close()


async def make_keys(stage: Scene, lots: int) -> None:
    admin = KeyAdmin(stage.engine, store_from(stage.valkey.url), Secrets.load(stage.settings).key_pepper.encode())
    for number in range(lots):
        made = await admin.create_key(
            project_id="proj_chaos", name=f"lot {number}", actor="chaos", now_ns=time.time_ns(), terms=KeyTerms(),
            budgets=[(Window.TOTAL, BUDGET_PUSD)],
        )  # fmt: skip
        assert made.plain is not None
        stage.keys.append((made.plain, made.key_id))


def config_text(data_dir: Path | str, upstream: str, database_url: str, redis_url: str, more: str = "") -> str:
    """A gateway's file with one model, `echo`, at an emulator. more: further keys, then sections."""
    return f"""
data_dir = "{data_dir}"
database_url = "{database_url}"
redis_url = "{redis_url}"
discover_providers = false
{more}
[log]
level = "warning"
[local]
enabled = false
[providers.up]
kind = "openai"
base_url = "{upstream}/v1"
credential = {{ api_key = "sk-test" }}
[[models]]
alias = "echo"
deployments = [{{ provider = "up", model = "echo-1", price = {{ input = "1.5", output = "7.25" }} }}]
"""
