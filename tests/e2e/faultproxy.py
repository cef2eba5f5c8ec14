"""A TCP proxy between two parties that spoils what passes: delays, drips, cuts, resets, half-closes, rubbish, silence.

One proxy stands on one link (client and gateway, gateway and provider, gateway and Redis or PostgreSQL). Which fault a
connection gets is asked anew for each: `proxy.choose`. What passed is counted and can be watched."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Self

Kind = Literal["delay", "drip", "cut", "reset", "half_close", "garbage", "black_hole"]
KINDS: tuple[Kind, ...] = ("delay", "drip", "cut", "reset", "half_close", "garbage", "black_hole")
READ_BYTES = 64 * 1024


@dataclass(frozen=True)
class Fault:
    """kind: what happens. after: bytes from the server that still pass whole. pause_s: of a delay for each read, of a
    drip for each byte. up: the client's bytes are spoiled, not the server's."""

    kind: Kind
    after: int = 0
    pause_s: float = 0.01
    up: bool = False


def any_fault(chance: random.Random, kinds: tuple[Kind, ...] = KINDS) -> Fault:
    """Early or late in the talk, in either direction."""
    after = chance.choice((0, chance.randint(1, 300), chance.randint(300, 5_000)))
    return Fault(chance.choice(kinds), after, chance.choice((0.001, 0.01, 0.05)), chance.random() < 0.3)


class FaultProxy:
    """target: (host, port), or the path of a Unix socket. Leaving it cuts every connection."""

    def __init__(self, target: tuple[str, int] | str, *, port: int = 0) -> None:
        self.choose: Callable[[], Fault | None] = lambda: None
        self.watch: Callable[[bytes], object] = lambda data: None
        """Called with the server's bytes before they are passed on."""
        self.played: Counter[str] = Counter()
        self.bytes_up = 0
        self.bytes_down = 0
        self._target = target
        self._port = port
        self._server: asyncio.Server | None = None
        self._links: set[asyncio.Task[None]] = set()
        self._spoilt: set[_Link] = set()

    @property
    def port(self) -> int:
        return self._port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def open(self) -> int:
        return len(self._links)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._link, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut_all()
        await asyncio.gather(*self._links, return_exceptions=True)

    def cut_all(self) -> None:
        for link in tuple(self._links):
            link.cancel()

    def strike(self, fault: Fault) -> None:
        """Spoil the connections that are open now: for links that live for hours."""
        self.played[fault.kind] += 1
        for link in self._spoilt:
            link.fault = fault

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        fault = self.choose()
        if fault is not None:
            self.played[fault.kind] += 1
        try:
            if isinstance(self._target, str):
                far_reader, far_writer = await asyncio.open_unix_connection(self._target)
            else:
                far_reader, far_writer = await asyncio.open_connection(*self._target)
        except (OSError, asyncio.CancelledError):
            writer.transport.abort()
            self._links.discard(task)
            return
        link = _Link(self, fault, writer, far_writer)
        self._spoilt.add(link)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(link.pump(reader, far_writer, up=True))
                group.create_task(link.pump(far_reader, writer, up=False))
        except* (ConnectionError, _Over):
            pass
        except* asyncio.CancelledError:
            pass  # `cut_all`, or the test is over: whoever waits for this link has nothing to learn from it.
        finally:
            writer.transport.abort()
            far_writer.transport.abort()
            self._spoilt.discard(link)
            self._links.discard(task)


class _Over(Exception):
    """This link has ended, as its fault wanted it or because both sides are through."""


class _Link:
    def __init__(
        self, proxy: FaultProxy, fault: Fault | None, near: asyncio.StreamWriter, far: asyncio.StreamWriter
    ) -> None:
        self._proxy = proxy
        self.fault = fault
        self._near = near
        self._far = far
        self._ended = 0

    async def pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool) -> None:
        passed = 0
        while data := await reader.read(READ_BYTES):
            if up:
                self._proxy.bytes_up += len(data)
            else:
                self._proxy.bytes_down += len(data)
                self._proxy.watch(data)
            fault = self.fault
            if fault is None or fault.up != up:
                passed += len(data)
                writer.write(data)
                await writer.drain()
                continue
            good, bad = data[: max(0, fault.after - passed)], data[max(0, fault.after - passed) :]
            passed += len(data)
            writer.write(good)
            await writer.drain()
            if bad and not await self._spoil(fault, bad, writer):
                return
        with contextlib.suppress(OSError):
            writer.write_eof()
        self._ended += 1
        if self._ended == 2:
            raise _Over

    async def _spoil(self, fault: Fault, data: bytes, writer: asyncio.StreamWriter) -> bool:
        """Returns: whether this direction goes on."""
        match fault.kind:
            case "delay":
                await asyncio.sleep(fault.pause_s)
                writer.write(data)
            case "drip":
                for at in range(0, len(data), 7):
                    writer.write(data[at : at + 7])
                    await writer.drain()
                    await asyncio.sleep(fault.pause_s / 10)
            case "cut":
                raise _Over
            case "reset":
                for each in (self._near, self._far):
                    sock = each.get_extra_info("socket")
                    if sock.family != socket.AF_UNIX:
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                raise _Over
            case "half_close":
                with contextlib.suppress(OSError):
                    writer.write_eof()
                return False
            case "garbage":
                writer.write(bytes(byte ^ 0xA5 for byte in data))
            case "black_hole":
                pass  # read and forgotten; the connection stays
        await writer.drain()
        return True
