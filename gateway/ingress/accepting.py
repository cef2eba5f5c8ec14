"""Connections of one port shared out among its workers: a new one goes to whoever has the fewest.

Processes that wait at one socket are woken together, and those that went to sleep last are first: of 200 connections,
opened one by one, two of four workers had 177 (Linux 6.18, 2026-11). So a worker lets those that have fewer go first, a
moment for each of them; one that stands still or has died keeps nobody waiting for longer than that."""

from __future__ import annotations

import asyncio
import mmap
import os
import socket
import ssl
from collections.abc import Callable, Sized
from typing import Final

import structlog

log = structlog.get_logger(__name__)

PATIENCE_S: Final = 0.002
_MOMENTS_MAX: Final = 8
# Where the process has no descriptors left: those that others close meanwhile are enough to go on.
_EXHAUSTED_S: Final = 1.0
# How long the end of a worker waits for those who have just come.
_HANDSHAKE_S: Final = 1.0
_AT_ONCE: Final = 64
_BYTES_EACH: Final = 4


class Counts:
    """How many connections each worker has, in memory that all of them share. Each writes its own number alone; what
    it reads of others may be a moment old, which costs some balance and nothing else."""

    def __init__(self, file: int, place: int) -> None:
        """file: of `size_for(workers)` bytes, open for reading and writing. place: whose number is ours."""
        self._all = memoryview(mmap.mmap(file, os.fstat(file).st_size)).cast("I")
        self._place = place
        self._all[place] = 0

    @staticmethod
    def size_for(workers: int) -> int:
        return workers * _BYTES_EACH

    def with_fewer(self, mine: int) -> int:
        """Tell our number. Returns: how many workers have a lower one."""
        self._all[self._place] = mine
        return sum(other < mine for other in self._all)

    def told(self) -> bytes:
        """All numbers as they stand, to be compared: whoever takes or loses a connection changes them."""
        return bytes(self._all)


class Listener:
    """Takes connections where other processes take them, too. What uvicorn asks of an asyncio.Server, it has."""

    def __init__(
        self,
        bound: socket.socket,
        connection: Callable[[], asyncio.Protocol],
        context: ssl.SSLContext | None,
        backlog: int,
        counts: Counts,
        connections: Sized,
    ) -> None:
        """connections: those that this worker has, wherever they came from."""
        bound.setblocking(False)
        bound.listen(backlog)
        self._bound = bound
        self._connection = connection
        self._context = context
        self._counts = counts
        self._connections = connections
        self._opening: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(bound, self._ready)

    def close(self) -> None:
        """Take no more; those that are being opened go on."""
        self._loop.remove_reader(self._bound)
        if self._pause is not None:
            self._pause.cancel()

    async def wait_closed(self) -> None:
        """All that were taken are open then, but for handshakes that take too long: these are given up."""
        if self._opening:
            _, late = await asyncio.wait(self._opening, timeout=_HANDSHAKE_S)
            for opening in late:
                opening.cancel()
            if late:
                await asyncio.wait(late)

    def _ready(self) -> None:
        if fewer := self._with_fewer():
            self._wait(PATIENCE_S * min(fewer, _MOMENTS_MAX), self._counts.told())
        else:
            self._take()

    def _take(self) -> None:
        """Those that nobody else has taken: until somebody has fewer, or one, if somebody has fewer already."""
        for _ in range(_AT_ONCE):
            try:
                accepted, _ = self._bound.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                break
            except OSError as error:
                log.warning("takes no connections for a moment; raise the limit on open files", problem=str(error))
                self._wait(_EXHAUSTED_S, None)
                break
            accepted.setblocking(False)
            opening = self._loop.create_task(self._open(accepted), name="open a connection")
            self._opening.add(opening)
            opening.add_done_callback(self._opening.discard)
            if self._with_fewer():
                break

    def _with_fewer(self) -> int:
        return self._counts.with_fewer(len(self._connections) + len(self._opening))

    def _wait(self, seconds: float, told: bytes | None) -> None:
        """told: what the numbers are as long as nobody who has fewer takes what is there."""
        self._loop.remove_reader(self._bound)
        self._pause = self._loop.call_later(seconds, self._go_on, told)

    def _go_on(self, told: bytes | None) -> None:
        self._pause = None
        self._loop.add_reader(self._bound, self._ready)
        if told == self._counts.told():
            self._take()

    async def _open(self, accepted: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._connection, accepted, ssl=self._context)
        except (OSError, asyncio.CancelledError):  # A handshake that failed is the client's affair.
            accepted.close()
