"""What a cluster's nodes say at a first look: late, and not all of them all there is."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import hiredis
import pytest

from gateway.admission import cluster
from gateway.admission.cluster import SLOTS, ClusterLink
from gateway.admission.link import Server
from gateway.errors import LimitsAway

LAST = SLOTS - 1


class Teller:
    """A node that takes every command, and says of the cluster what it was told to say."""

    def __init__(self) -> None:
        self.slots: list[Any] = []
        self.asked = asyncio.Event()
        self.says = asyncio.Event()
        self.says.set()
        self._server: asyncio.Server | None = None

    @property
    def address(self) -> tuple[str, int]:
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()
        return host, port

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)

    def close(self) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        commands = hiredis.Reader()
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                commands.feed(data)
                while (command := commands.gets()) is not False:
                    writer.write(await self._answer(command[:2]))
        writer.close()

    async def _answer(self, command: list[bytes]) -> bytes:
        match command:
            case [b"CLUSTER", what]:
                self.asked.set()
                await self.says.wait()
                info = b"cluster_state:ok\r\ncluster_current_epoch:3\r\n"
                return packed(info if what == b"INFO" else self.slots)
            case [b"INFO", _]:
                return packed(b"role:master\r\n")
        return b"+OK\r\n"


def packed(said: Any) -> bytes:
    if isinstance(said, list):
        return b"*%d\r\n" % len(said) + b"".join(map(packed, said))
    return b":%d\r\n" % said if isinstance(said, int) else b"$%d\r\n%b\r\n" % (len(said), said)


def told(start: int, end: int, teller: Teller) -> list[Any]:
    host, port = teller.address
    return [start, end, [host.encode(), port, b"id"]]


@pytest.fixture
async def tellers() -> AsyncIterator[list[Teller]]:
    tellers = [Teller() for _ in range(4)]
    for teller in tellers:
        await teller.open()
    yield tellers
    for teller in tellers:
        teller.says.set()
        teller.close()


async def test_whoever_knows_no_master_waits_for_the_first_answer(
    tellers: list[Teller], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "LOOK_S", 0.0)  # Over before anybody can have answered.
    only, mute, *_ = tellers
    only.slots = [told(0, LAST, only)]
    for teller in (only, mute):
        teller.says.clear()
    link = ClusterLink([only.address, mute.address], Server({}), reply_s=60.0)
    calling = asyncio.create_task(link.call("SET", "a", "1"))
    async with asyncio.timeout(60):
        await asyncio.gather(only.asked.wait(), mute.asked.wait())
        assert not calling.done()
        only.says.set()
        assert await calling == b"OK"
    await link.aclose()


async def test_of_two_as_late_the_one_that_knows_more_is_believed(tellers: list[Teller]) -> None:
    """One that has just joined knows all by name, and not yet whose the keys are."""
    whole, *others = tellers
    whole.slots = [told(0, LAST, whole)]
    for teller in others:
        teller.slots = [told(0, 99, whole)]
    link = ClusterLink([teller.address for teller in (*others, whole)], Server({}), reply_s=60.0)
    async with asyncio.timeout(60):
        assert await link.call("SET", "{foo}", "1") == b"OK"
    await link.aclose()


async def test_a_cluster_that_nobody_answers_for_is_away(tellers: list[Teller]) -> None:
    seeds = [teller.address for teller in tellers]
    for teller in tellers:
        teller.close()
    link = ClusterLink(seeds, Server({}), reply_s=60.0)
    with pytest.raises(LimitsAway, match="no server for these keys"):
        await link.call("SET", "a", "1")
    await link.aclose()
