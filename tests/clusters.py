"""Redis of a test's own: one server with its file, or a cluster, whose masters are killed and taken over from."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.admission.cluster import SLOTS, slot_of
from tests import services

# A busy machine is silent for so long and nobody is dead: tests say themselves who takes over.
NODE_TIMEOUT_MS: Final = 30_000


class Node:
    """A server that remembers its place in the cluster, and none of its data, when it is started again."""

    def __init__(self, folder: Path, port: int, bus: int) -> None:
        self.port = port
        self._bus = bus
        self._folder = folder / str(port)
        self._folder.mkdir()
        self._process: asyncio.subprocess.Process | None = None
        self.client = Redis(host="127.0.0.1", port=port)

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            services.valkey_server(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder),
            "--save", "", "--cluster-enabled", "yes", "--cluster-port", str(self._bus),
            "--cluster-node-timeout", str(NODE_TIMEOUT_MS), "--cluster-require-full-coverage", "no",
            "--repl-diskless-sync-delay", "0",
            stdout=asyncio.subprocess.DEVNULL, preexec_fn=services._die_with_parent,
        )  # fmt: skip
        await self.until(self._answers)

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        await self._process.wait()
        await self.client.connection_pool.disconnect()

    async def ask(self, *command: Any) -> Any:
        return await self.client.execute_command(*command)

    async def info(self, section: str) -> dict[str, Any]:
        said: dict[str, Any] = await self.client.info(section)
        return said

    async def close(self) -> None:
        if self.runs:
            await self.kill()
        await self.client.aclose()
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _answers(self) -> bool:
        assert self.runs, "Valkey did not start"
        return bool(await self.client.ping())

    async def until(self, condition: Any) -> None:
        """Bounded by what a server may take to start."""
        async with asyncio.timeout(services.START_TIMEOUT_S):
            while True:
                with contextlib.suppress(RedisError, OSError):
                    if await condition():
                        return
                await asyncio.sleep(0.02)


class Nodes:
    """`shards` masters, each with one replica that takes over when it is killed. `url` names two of them."""

    def __init__(self, folder: Path, shards: int = 3, seed: int = 0) -> None:
        ports = services.free_ports(4 * shards)
        nodes = [Node(folder, *pair) for pair in zip(ports[::2], ports[1::2], strict=True)]
        self.masters, self.replicas = nodes[:shards], nodes[shards:]
        self._chance = random.Random(seed)
        self._down: Node | None = None
        self.takeovers = 0

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in (*self.masters[:1], *self.replicas))

    async def start(self) -> None:
        """All of them; after `kill`, its replica takes over and the dead one comes back empty, as its replica."""
        if self._down is not None:
            at = self.masters.index(self._down)
            await self.take_over(at)
            await self._down.start()
            # It takes itself for the master until the others have told it.
            await self._down.until(lambda node=self._down: _is(node, "slave"))
            self._down = None
            return
        nodes = (*self.masters, *self.replicas)
        await asyncio.gather(*(node.start() for node in nodes))
        share = SLOTS // len(self.masters) + 1
        for at, node in enumerate(self.masters):
            await node.ask("CLUSTER", "ADDSLOTSRANGE", at * share, min(SLOTS, (at + 1) * share) - 1)
            await node.ask("CLUSTER", "SET-CONFIG-EPOCH", at + 1)
        for node in nodes[1:]:
            await node.ask("CLUSTER", "MEET", "127.0.0.1", nodes[0].port, nodes[0]._bus)
        for master, replica in zip(self.masters, self.replicas, strict=True):
            name = (await master.ask("CLUSTER", "MYID")).decode()
            # Not before it has heard of its master.
            await replica.until(lambda replica=replica, name=name: _done(replica, "CLUSTER", "REPLICATE", name))
        await asyncio.gather(*(node.until(lambda node=node: self._whole(node)) for node in nodes))

    async def kill(self, *, forget: bool = True, key: str | None = None) -> Node:
        """kill -9 of the master of a key, of any without one. (Its data is lost but for what its replica was told.)"""
        if key is None:
            victim = self._chance.choice(self.masters)
        else:
            victim = await self.master_of(key)
        await victim.kill()
        self._down = victim
        return victim

    async def take_over(self, at: int) -> None:
        """Its replica becomes the master, without asking the others; they hear of it."""
        old, new = self.masters[at], self.replicas[at]
        await new.until(lambda: _done(new, "CLUSTER", "FAILOVER", "TAKEOVER"))
        await new.until(lambda: _is(new, "master"))
        self.masters[at], self.replicas[at] = new, old
        self.takeovers += 1

    async def master_of(self, key: str) -> Node:
        share = SLOTS // len(self.masters) + 1
        return self.masters[slot_of(key) // share]

    async def client_of(self, key: str) -> Redis:
        return (await self.master_of(key)).client

    async def flushall(self) -> None:
        for node in self.masters:
            await node.client.flushall()

    async def close(self) -> None:
        for node in (*self.masters, *self.replicas):
            await node.close()

    async def _whole(self, node: Node) -> bool:
        info = await node.ask("CLUSTER", "INFO")
        text = info.decode() if isinstance(info, bytes) else str(info)
        if not ("cluster_state:ok" in text and f"cluster_known_nodes:{len(self.masters) * 2}" in text):
            return False
        if node in self.replicas:
            return str((await node.info("replication"))["master_link_status"]) == "up"
        shards = await node.ask("CLUSTER", "SLOTS")
        return len(shards) == len(self.masters)


class Valkey:
    """A server with an append-only file, killed and started again on the same socket."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._socket = folder / "v.sock"
        self.url = f"unix://{self._socket}?db=0"
        self._client = Redis.from_url(self.url)
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            services.valkey_server(), "--port", "0", "--unixsocket", str(self._socket), "--unixsocketperm", "700",
            "--dir", str(self._folder), "--save", "", "--appendonly", "yes",
            stdout=asyncio.subprocess.DEVNULL, preexec_fn=services._die_with_parent,
        )  # fmt: skip
        async with asyncio.timeout(services.START_TIMEOUT_S):
            while not await self._answers():
                assert self._process.returncode is None, "Valkey did not start"
                await asyncio.sleep(0.02)

    async def kill(self, *, forget: bool = False) -> None:
        """forget: it will come back empty."""
        assert self._process is not None
        self._process.kill()
        await self._process.wait()
        if forget:
            shutil.rmtree(self._folder / "appendonlydir")

    async def client_of(self, key: str) -> Redis:
        return self._client

    async def flushall(self) -> None:
        await self._client.flushall()

    async def close(self) -> None:
        await self.kill()
        await self._client.aclose()

    async def _answers(self) -> bool:
        try:
            return bool(await self._client.ping())
        except (RedisError, OSError):
            return False


@contextlib.asynccontextmanager
async def cluster(folder: Path, shards: int = 3) -> AsyncIterator[Nodes]:
    nodes = Nodes(folder, shards)
    try:
        await nodes.start()
        yield nodes
    finally:
        await nodes.close()


async def _done(node: Node, *command: Any) -> bool:
    await node.ask(*command)
    return True


async def _is(node: Node, role: str) -> bool:
    return str((await node.info("replication"))["role"]) == role
