"""Several listeners at one socket: who takes a connection, and that none is left lying."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import pytest

from gateway.ingress import accepting
from gateway.ingress.accepting import Counts, Listener
from tests.emulators.tls import certificate, server_side

WITHIN_S = 30.0


@pytest.fixture
def counts() -> Iterator[list[Counts]]:
    """Of two workers beside a third, which has died before it took any."""
    with TemporaryFile() as file:
        file.truncate(Counts.size_for(3))
        yield [Counts(file.fileno(), place) for place in range(2)]


class Worker:
    """Says its number to whoever connects."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.connections: set[asyncio.Protocol] = set()

    def connection(self) -> asyncio.Protocol:
        return _Said(self)


class _Said(asyncio.Protocol):
    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._worker.connections.add(self)
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"%d" % self._worker.number)

    def connection_lost(self, exc: Exception | None) -> None:
        self._worker.connections.discard(self)


@asynccontextmanager
async def listening(
    counts: list[Counts], context: ssl.SSLContext | None = None, bound: socket.socket | None = None
) -> AsyncIterator[tuple[list[Worker], int]]:
    with bound or socket.socket() as ours:
        ours.bind(("127.0.0.1", 0))
        workers = [Worker(number) for number in range(len(counts))]
        # Each process has a descriptor of its own for it.
        own = [ours, *(ours.dup() for _ in workers[1:])]
        listeners = [
            Listener(each, worker.connection, context, 128, count, worker.connections)
            for each, worker, count in zip(own, workers, counts, strict=True)
        ]
        try:
            yield workers, ours.getsockname()[1]
        finally:
            for listener in listeners:
                listener.close()
            for each in own[1:]:
                each.close()


async def connect(port: int, context: ssl.SSLContext | None = None) -> tuple[bytes, asyncio.StreamWriter]:
    """Returns: who answered."""
    async with asyncio.timeout(WITHIN_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        return await reader.read(1), writer


async def test_a_new_connection_goes_to_whoever_has_fewest(counts: list[Counts]) -> None:
    async with listening(counts) as (workers, port):
        clients = [await connect(port) for _ in range(40)]
        # Not 20 each: where this process was not let run for a while, both have waited long enough.
        assert min(len(worker.connections) for worker in workers) >= 17
        for said, writer in clients:
            if said == b"0":
                writer.close()
        async with asyncio.timeout(WITHIN_S):
            while workers[0].connections:
                await asyncio.sleep(0.001)
        late = [await connect(port) for _ in range(16)]
        assert sum(said == b"0" for said, _ in late) >= 13


async def test_one_that_is_gone_is_not_waited_for(counts: list[Counts]) -> None:
    # The first says that it has none, and takes none.
    async with listening(counts[1:]) as (workers, port):
        clients = await asyncio.gather(*(connect(port) for _ in range(50)))
        assert len(workers[0].connections) == len(clients)


async def test_handshakes_are_made_and_those_that_fail_leave_nothing(counts: list[Counts], tmp_path: Path) -> None:
    pem = certificate(tmp_path / "own.pem")
    async with listening(counts, server_side(pem)) as (workers, port):
        for _ in range(4):
            _, plain = await asyncio.open_connection("127.0.0.1", port)
            plain.write(b"GET / HTTP/1.1\r\n\r\n")
            plain.close()
        known = ssl.create_default_context(cafile=pem)
        clients = [await connect(port, known) for _ in range(6)]
        assert sum(len(worker.connections) for worker in workers) == len(clients)


async def test_without_descriptors_it_takes_connections_later(
    counts: list[Counts], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Exhausted(socket.socket):
        refuses = 2

        def accept(self) -> tuple[socket.socket, Any]:
            if self.refuses:
                self.refuses -= 1
                raise OSError(errno.EMFILE, "too many open files")
            return super().accept()

    monkeypatch.setattr(accepting, "_EXHAUSTED_S", 0.01)
    bound = Exhausted()
    async with listening(counts[:1], bound=bound) as (workers, port):
        client = await connect(port)
        assert (client[0], len(workers[0].connections), bound.refuses) == (b"0", 1, 0)


async def test_the_end_waits_for_those_who_have_just_come(
    counts: list[Counts], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accepting, "_HANDSHAKE_S", 0.05)
    worker, context = Worker(0), server_side(certificate(tmp_path / "own.pem"))
    for asks, connections in ((None, 1), (context, 0)):
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            listener = Listener(bound, worker.connection, asks, 128, counts[0], worker.connections)
            # Without the loop, which is woken by hand and not asked again; and never a handshake.
            with socket.create_connection(bound.getsockname()) as client:
                listener._ready()
                listener.close()
                assert not worker.connections
                async with asyncio.timeout(WITHIN_S):
                    await listener.wait_closed()
                assert len(worker.connections) == connections
                if not connections:
                    client.settimeout(WITHIN_S)
                    with suppress(ConnectionError):
                        assert client.recv(1) == b""
        worker.connections.clear()
