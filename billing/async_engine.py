"""SQLAlchemy's engine and connection for coroutines: of `sqlalchemy.ext.asyncio` as much as is used here.

That package loads the whole ORM, of which nothing is used: 5 MB of each process, and 0.08 s of CPU of each start
(2026-11). SQLAlchemy's own pages tell what the methods do; what is missing here, the type checker misses, too.

Source: SQLAlchemy 2.1.9, ext/asyncio/engine.py, util/concurrency.py, read 2026-11."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, TypeVar

from sqlalchemy import Dialect, Engine
from sqlalchemy.engine import URL, Connection, CursorResult, Transaction
from sqlalchemy.pool import PoolProxiedConnection
from sqlalchemy.util.concurrency import greenlet_spawn

T = TypeVar("T")


class AsyncEngine:
    __slots__ = ("__weakref__", "sync_engine")

    def __init__(self, sync_engine: Engine) -> None:
        self.sync_engine = sync_engine

    @property
    def dialect(self) -> Dialect:
        return self.sync_engine.dialect

    @property
    def url(self) -> URL:
        return self.sync_engine.url

    def get_execution_options(self) -> Mapping[str, Any]:
        return self.sync_engine.get_execution_options()

    def connect(self) -> AsyncConnection:
        return AsyncConnection(self)

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        async with self.connect() as connection, connection.begin():
            yield connection

    def dispose(self) -> Awaitable[None]:
        return greenlet_spawn(self.sync_engine.dispose)


class AsyncConnection:
    __slots__ = ("_connection", "engine")

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self._connection: Connection | None = None

    async def __aenter__(self) -> AsyncConnection:
        self._connection = await greenlet_spawn(self.engine.sync_engine.connect)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await _to_its_end(greenlet_spawn(self.sync_connection.close))

    @property
    def sync_connection(self) -> Connection:
        if self._connection is None:
            raise RuntimeError("a connection is to be entered before it is used")
        return self._connection

    @property
    def dialect(self) -> Dialect:
        return self.engine.dialect

    def begin(self) -> _Begun:
        return _Begun(self.sync_connection)

    def commit(self) -> Awaitable[None]:
        return greenlet_spawn(self.sync_connection.commit)

    def rollback(self) -> Awaitable[None]:
        return greenlet_spawn(self.sync_connection.rollback)

    def execute(self, statement: Any, parameters: Any = None) -> Awaitable[CursorResult[*tuple[Any, ...]]]:
        return greenlet_spawn(self.sync_connection.execute, statement, parameters)

    def exec_driver_sql(self, statement: str, parameters: Any = None) -> Awaitable[CursorResult[*tuple[Any, ...]]]:
        return greenlet_spawn(self.sync_connection.exec_driver_sql, statement, parameters)

    def stream(self, statement: Any) -> Any:
        """Row by row, for what is too long to be read whole: an export can wait for the ORM to be loaded."""
        from sqlalchemy.ext import asyncio as whole

        return whole.AsyncConnection(whole.AsyncEngine(self.engine.sync_engine), self.sync_connection).stream(statement)

    async def execution_options(self, **options: Any) -> AsyncConnection:
        await greenlet_spawn(self.sync_connection.execution_options, **options)
        return self

    def get_raw_connection(self) -> Awaitable[PoolProxiedConnection]:
        return greenlet_spawn(getattr, self.sync_connection, "connection")

    def run_sync(self, work: Callable[..., T], *args: Any) -> Awaitable[T]:
        return greenlet_spawn(work, self.sync_connection, *args)


class _Begun:
    """A transaction from here to the end of the block."""

    __slots__ = ("_connection", "_transaction")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def __aenter__(self) -> Transaction:
        self._transaction = await greenlet_spawn(self._connection.begin)
        return self._transaction.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await greenlet_spawn(self._transaction.__exit__, kind, error, trace)


async def _to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """However often we are cancelled meanwhile: a connection that is not given back is one less for ever."""
    task, cancelled = asyncio.create_task(work), None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.done():
                raise
            cancelled = error
    if cancelled is not None:
        raise cancelled
