"""Engines that join a gateway's provider and leave it: killed, drained, forgotten; seen by two gateways."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from msgspec.structs import replace

from gateway.config import DeploymentSettings, ModelSettings, ProviderSettings, ReplicaSettings, Secret
from tests.e2e.harness import PRICE, WITHIN_S, House, house, settings_for
from tests.gateway.cli.conftest import farebox_json
from tests.services import _die_with_parent

pytestmark = pytest.mark.asyncio(loop_scope="module")
TOKEN = "let-me-in-1"
LEASE_S = 5.0  # Renewed every 1.7 s: a busy machine keeps processes waiting for longer than one would think.


@dataclass
class Yard:
    one: House
    two: House
    folder: Path
    running: dict[str, asyncio.subprocess.Process] = field(default_factory=dict)

    async def start(self, name: str) -> None:
        self.running[name] = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.e2e.replica", f"{self.one.url},{self.two.url}", "gpus", name,
            env={"FAREBOX_ENGINE_REGISTER_TOKEN": TOKEN, "PYTHONPATH": ":".join(sys.path)},
            stderr=(self.folder / f"{name}.log").open("wb"), preexec_fn=_die_with_parent,
        )  # fmt: skip

    async def ask(self, gateway: House, alias: str = "chat", **headers: str) -> httpx.Response:
        body = {"model": alias, "messages": [{"role": "user", "content": "x-script: long=20"}], "max_tokens": 100}
        async with httpx.AsyncClient(timeout=WITHIN_S) as http:
            signed = {"authorization": f"Bearer {self.one.key}", **headers}
            return await http.post(f"{gateway.v1}/chat/completions", json=body, headers=signed)

    async def plan(self, gateway: House, alias: str = "chat") -> set[str]:
        answer = await self.ask(gateway, alias, **{"x-farebox-dry-run": "1"})
        return {leg["deployment"] for leg in answer.json()["legs"]} if answer.status_code == 200 else set()

    async def until(self, *names: str) -> None:
        """Until both gateways know exactly these replicas."""
        wanted = {f"gpus/echo-1@{name}" for name in names}
        async with asyncio.timeout(WITHIN_S):
            for gateway in (self.one, self.two):
                while await self.plan(gateway) != wanted:
                    await asyncio.sleep(0.05)

    def installation(self) -> Path:
        """A folder from which the command sees the same Redis."""
        folder = self.folder / "command"
        folder.mkdir()
        (folder / "farebox.toml").write_text(f"""
discover_providers = false
redis_url = "{self.one.settings.redis_url}"
local = {{ enabled = false }}
replicas = {{ lease_s = {LEASE_S} }}
[providers.gpus]
kind = "openai_like"
replicas = true
[[models]]
alias = "chat"
deployments = [{{ provider = "gpus", model = "echo-1", price = {{ input = "1", output = "1" }} }}]
""")
        farebox_json("migrate", cwd=folder)
        return folder

    async def door(self, method: str, path: str, token: str | None = TOKEN, **body: Any) -> httpx.Response:
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(timeout=WITHIN_S) as http:
            return await http.request(method, f"{self.one.url}{path}", json=body or None, headers=headers)


@asynccontextmanager
async def gone(yard: Yard) -> AsyncIterator[None]:
    try:
        yield
    finally:
        for process in yard.running.values():
            if process.returncode is None:
                process.kill()
            await process.wait()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def yard(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, _valkey: str) -> AsyncIterator[Yard]:
    data = tmp_path_factory.mktemp("replicas")
    (data / "farebox.db").write_bytes(sqlite_template.read_bytes())
    gpus = ProviderSettings(kind="openai_like", replicas=True, credential={"api_key": Secret("sk-test", {})})
    chat = DeploymentSettings(provider="gpus", model="echo-1", price=PRICE)
    settings = settings_for(
        data,
        f"sqlite:///{data / 'farebox.db'}",
        _valkey,
        {"gpus": gpus, "closed": replace(gpus, replicas=False, base_url="http://127.0.0.1:9/v1")},
        (
            ModelSettings(alias="chat", deployments=(chat,), strategy="least_busy"),
            ModelSettings(alias="other", deployments=(replace(chat, model="other-1"),)),
        ),
        replicas=ReplicaSettings(token=Secret(TOKEN, {}), lease_s=LEASE_S),
    )
    other = tmp_path_factory.mktemp("replicas-too")
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(house(settings))
        shutil.copytree(data, other, dirs_exist_ok=True, ignore=shutil.ignore_patterns("journal"))
        two = await stack.enter_async_context(house(replace(settings, data_dir=other)))
        built = Yard(one, two, data)
        await stack.enter_async_context(gone(built))
        yield built


async def test_they_come_are_asked_and_leave_without_a_failed_request(yard: Yard) -> None:
    nobody = await yard.ask(yard.two)
    assert (nobody.status_code, nobody.headers["retry-after"]) == (503, "5")
    assert "no replica that serves 'chat'" in nobody.json()["error"]["message"]
    await asyncio.gather(*(yard.start(name) for name in ("a", "b", "c")))
    await yard.until("a", "b", "c")
    assert await yard.plan(yard.one, "gpus/echo-1") == await yard.plan(yard.one), "what is priced has its plain name"
    assert await yard.plan(yard.one, "other") == set(), "who does not serve a model is not asked for it"

    seen: Counter[int] = Counter()
    failed: list[str] = []
    stopped = asyncio.Event()

    async def load(gateway: House) -> None:
        while not stopped.is_set():
            answer = await yard.ask(gateway)
            seen[answer.status_code] += 1
            if answer.status_code != 200 or answer.headers["x-farebox-attempts"] != "1":
                failed.append(f"{answer.status_code} {answer.headers.get('x-farebox-attempts')} {answer.text[:200]}")

    async with asyncio.TaskGroup() as clients:
        for gateway in (yard.one, yard.two) * 2:
            clients.create_task(load(gateway))
        yard.running["b"].send_signal(signal.SIGTERM)
        await yard.until("a", "c")
        async with asyncio.timeout(WITHIN_S):
            assert await yard.running["b"].wait() == 0
        stopped.set()
    assert failed == [], "it was drained: nobody had to be asked twice"
    assert seen[200] > 0
    rows = await yard.one.rows()
    assert {row["deployment"] for row in rows} <= {f"gpus/echo-1@{name}" for name in "abc"}
    assert len({row["price_id"] for row in rows if row["charge_pusd"]}) == 1, "all are sold at their provider's price"

    folder = await asyncio.to_thread(yard.installation)
    found = await asyncio.to_thread(farebox_json, "route", "explain", "chat", cwd=folder)
    assert {leg["deployment"] for leg in found["legs"]} == {f"gpus/echo-1@{name}" for name in "ac"}

    yard.running["a"].kill()
    await yard.until("c")
    for gateway in (yard.one, yard.two):
        answer = await yard.ask(gateway)
        assert (answer.status_code, answer.headers["x-farebox-attempts"]) == (200, "1")

    await yard.start("b")
    await yard.until("b", "c")


async def test_who_may_not_join_is_told_why(yard: Yard) -> None:
    said = {"base_url": "http://127.0.0.1:9/v1"}
    for answer, status, code in (
        (await yard.door("PUT", "/replicas/gpus/x", None, **said), 401, "bad_token"),
        (await yard.door("PUT", "/replicas/gpus/x", "wrong", **said), 401, "bad_token"),
        (await yard.door("PUT", "/replicas/closed/x", **said), 404, "no_such_provider"),
        (await yard.door("PUT", "/replicas/nobody/x", **said), 404, "no_such_provider"),
        (await yard.door("PUT", "/replicas/gpus/a@b", **said), 422, "bad_name"),
        (await yard.door("PUT", "/replicas/gpus/x", base_url="ftp://x"), 422, "bad_body"),
        (await yard.door("PUT", "/replicas/gpus/x", base_url="http://169.254.169.254/v1"), 422, "bad_address"),
        (await yard.door("PUT", "/replicas/gpus/x", models=["m"]), 422, "bad_body"),
        *[
            (await yard.door("PUT", "/replicas/gpus/x", **said, **{name: address}), 422, "bad_address")
            for name in ("kv_events", "kv_events_replay")
            for address in (
                "tcp://169.254.169.254:5557",
                "tcp://10.0.0.1:6379",
                "ipc:///run/engine",
                "http://127.0.0.1:5557",
                "tcp://127.0.0.1",
                "tcp://127.0.0.1:99999",
                "tcp://127.0.0.1:5557/x",
                "tcp://a@127.0.0.1:5557",
            )
        ],
    ):
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    joined = await yard.door("PUT", "/replicas/gpus/x", base_url="http://127.0.0.1:9/v1", models=["else"])
    assert joined.json() == {"lease_s": LEASE_S, "renew_s": LEASE_S / 3}
    assert (await yard.door("DELETE", "/replicas/gpus/x")).json()["quiet_s"] > 1
