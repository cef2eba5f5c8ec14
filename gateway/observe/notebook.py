"""What is written down beside requests and may be lost: what guardrails said, bodies. Never money, which has a journal.

An answer waits for none of it: a note is left in memory and leaves in a batch, made ready in a thread. Where notes come
faster than the database takes them, or it is away, they are lost and counted."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import groupby
from typing import Any, Final

import structlog
from sqlalchemy import Table, insert
from sqlalchemy.exc import SQLAlchemyError

from billing.db import AsyncEngine, writing
from gateway.observe.metrics import METRICS

log = structlog.get_logger(__name__)

AT_ONCE: Final = 200
LAST_S: Final = 3.0
"""How long a stop waits for what is left."""


class _Note:
    __slots__ = ("kind", "row", "size", "table")

    def __init__(self, kind: str, table: Table, row: Callable[[], Mapping[str, Any]], size: int) -> None:
        self.kind = kind
        self.table = table
        self.row = row
        self.size = size


class Notebook:
    """One a process. Run `run` as a task; `aclose` writes what is left and ends it."""

    def __init__(self, engine: AsyncEngine, *, most: int = 10_000, most_bytes: int = 64 * 1024 * 1024) -> None:
        self._engine = engine
        self._most = most
        self._room = most_bytes
        self._notes: deque[_Note] = deque()
        self._wake = asyncio.Event()
        self._stopping = False

    def put(self, kind: str, table: Table, row: Callable[[], Mapping[str, Any]], size: int = 0) -> None:
        """row: made in a thread, so it may take its time. size: bytes that the note holds in memory until then."""
        if len(self._notes) >= self._most or size > self._room:
            METRICS.note_lost(kind)
            return
        self._room -= size
        self._notes.append(_Note(kind, table, row, size))
        self._wake.set()

    async def run(self) -> None:
        """Until `aclose`, and until nothing is left."""
        while self._notes or not self._stopping:
            if not self._notes:
                self._wake.clear()
                await self._wake.wait()
                continue
            notes = [self._notes.popleft() for _ in range(min(AT_ONCE, len(self._notes)))]
            try:
                await self._write(notes)
            finally:
                self._room += sum(note.size for note in notes)

    async def aclose(self, task: asyncio.Task[None]) -> None:
        self._stopping = True
        self._wake.set()
        with suppress(TimeoutError):
            await asyncio.wait_for(task, LAST_S)

    async def _write(self, notes: list[_Note]) -> None:
        made = await asyncio.to_thread(_rows, notes)
        for table, group in groupby(made, key=lambda each: each[0].table):
            rows = list(group)
            try:
                async with writing(self._engine) as db:
                    await db.execute(insert(table), [row for _, row in rows])
            except (SQLAlchemyError, OSError) as error:
                log.warning("notes lost", table=table.name, count=len(rows), reason=type(error).__name__)
                for note, _ in rows:
                    METRICS.note_lost(note.kind)


def _rows(notes: list[_Note]) -> list[tuple[_Note, Mapping[str, Any]]]:
    rows = []
    for note in sorted(notes, key=lambda each: each.table.name):
        try:
            rows.append((note, note.row()))
        except Exception as error:
            # One that cannot be made ready must not take the others along.
            METRICS.note_lost(note.kind)
            log.error("note lost", kind=note.kind, reason=type(error).__name__, exc_info=error)
    return rows
