"""The SQL engine: one MetaData for every table of the application, engine settings, and two kinds of transaction.

Which tables exist is in billing.schema and gateway.schema; how they came to be in migrations/.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from decimal import Decimal
from itertools import chain
from typing import Any, Final, TypeVar, cast
from weakref import WeakKeyDictionary

import aiosqlite
import msgspec
from sqlalchemy import (
    JSON,
    Boolean,
    ColumnElement,
    Dialect,
    Engine,
    MetaData,
    Numeric,
    String,
    Table,
    event,
    func,
    insert,
    text,
)
from sqlalchemy import create_engine as create_sync_engine
from sqlalchemy.engine import URL, Connection, CursorResult, make_url
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.pool import PoolProxiedConnection, StaticPool
from sqlalchemy.types import TypeDecorator, TypeEngine

from billing.async_engine import AsyncConnection as AsyncConnection
from billing.async_engine import AsyncEngine as AsyncEngine
from billing.money import PUSD_PER_USD

T = TypeVar("T")

# Named constraints, so that a migration can drop what it did not create in the same session.
metadata: Final = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# A writer waits this long for another one. Longer than any transaction here takes, shorter than a client's patience.
SQLITE_BUSY_MS: Final = 10_000

_DRIVERS: Final = {
    "sqlite": "sqlite+aiosqlite",
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
}
_READ_ONLY: Final = "farebox_read_only"


class WideAmount(TypeDecorator[int]):
    """An integer beyond 64 bits: NUMERIC on PostgreSQL, decimal text on SQLite, whose sums turn to floats at 2**63.

    For columns that Python reads, changes and writes under a lock; SQL does no arithmetic on them."""

    impl = String
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(Numeric(38, 0))
        return dialect.type_descriptor(String(40))

    def process_bind_param(self, value: int | None, dialect: Dialect) -> Any:
        if value is None:
            return None
        return Decimal(value) if dialect.name == "postgresql" else str(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> int | None:
        return None if value is None else int(value)


def async_url(url: str) -> URL:
    """The URL in its common form (DATABASE_URL as hosting services hand it out) with our async driver.

    Raises: ValueError for a database that is neither SQLite nor PostgreSQL."""
    parsed = make_url(url)
    driver = _DRIVERS.get(parsed.drivername.partition("+")[0])
    if driver is None:
        raise ValueError(f"neither SQLite nor PostgreSQL: {parsed.drivername}")
    parsed = parsed.set(drivername=driver)
    if driver == "postgresql+asyncpg" and "sslmode" in parsed.query:
        # libpq's name, in most URLs that one is given; asyncpg calls it ssl and takes the same values.
        mode = parsed.query["sslmode"]
        parsed = parsed.difference_update_query(["sslmode"]).update_query_dict({"ssl": mode})
    return parsed


def json_text(value: Any) -> str:
    """What a JSON column is given."""
    return msgspec.json.encode(value).decode()


def create_engine(url: str, *, pool_size: int = 5) -> AsyncEngine:
    """An engine for either database. The caller disposes of it.

    Use `reading` and `writing` for transactions: on SQLite a transaction that has not been said to be read-only takes
    the write lock at its start, since one that upgrades halfway fails with SQLITE_BUSY however long it waits."""
    parsed = async_url(url)
    sqlite = parsed.get_backend_name() == "sqlite"
    engine = AsyncEngine(
        create_sync_engine(
            parsed,
            json_serializer=json_text,
            json_deserializer=msgspec.json.decode,
            pool_size=pool_size,
            # The one given back last: each connection that was ever used keeps pages of SQLite's, and a thread.
            pool_use_lifo=sqlite,
            # A server that was restarted must not fail the first request after it. SQLite has no connection to lose.
            pool_pre_ping=not sqlite,
            connect_args={"async_creator_fn": _connect_sqlite} if sqlite else {},
        )
    )
    if sqlite:
        event.listen(engine.sync_engine, "connect", _configure_sqlite)
        event.listen(engine.sync_engine, "connect", _keep_few_pages)
        event.listen(engine.sync_engine, "begin", _begin_sqlite)
        if parsed.database not in (None, "", ":memory:"):
            beside = _beside[engine.sync_engine] = _Beside(parsed)
            event.listen(engine.sync_engine, "engine_disposed", beside.dispose)
    return engine


class _Beside:
    """The same SQLite file for `at_once`: one thread that writes, as SQLite has one writer anyhow, and one that reads.

    Asked by whichever thread came first, each of five connections came to hold 2 MB of pages, and its statements."""

    def __init__(self, url: URL) -> None:
        self.engine = create_sync_engine(
            url.set(drivername="sqlite"),
            json_serializer=json_text,
            json_deserializer=msgspec.json.decode,
            pool_use_lifo=True,  # As there.
        )
        event.listen(self.engine, "connect", _configure_sqlite)
        event.listen(self.engine, "begin", _begin_sqlite)
        self._threads: dict[bool, ThreadPoolExecutor] = {}

    def thread(self, read_only: bool) -> ThreadPoolExecutor:
        if (known := self._threads.get(read_only)) is None:
            name = f"sqlite-{'reads' if read_only else 'writes'}"
            known = self._threads[read_only] = ThreadPoolExecutor(1, name)
        return known

    def dispose(self, _: object) -> None:
        """As with an engine, whoever comes later begins anew."""
        self.engine.dispose()
        for thread in self._threads.values():
            thread.shutdown(wait=False)
        self._threads.clear()


_beside: Final[WeakKeyDictionary[Engine, _Beside]] = WeakKeyDictionary()


REHEARSAL: Final = "farebox_rehearsal"
"""Execution option of an engine whose changes are taken back."""


@asynccontextmanager
async def rehearsing(url: str) -> AsyncIterator[AsyncEngine]:
    """An engine for trying something out: whatever is written through it is seen through it, and gone at the end.

    It has one connection and one transaction, whose commits and rollbacks are left out; the connection's end rolls it
    back. On SQLite it holds the write lock meanwhile."""
    parsed = async_url(url)
    sqlite = parsed.get_backend_name() == "sqlite"
    engine = AsyncEngine(
        create_sync_engine(
            parsed,
            json_serializer=json_text,
            json_deserializer=msgspec.json.decode,
            poolclass=StaticPool,
            execution_options={REHEARSAL: True},
            connect_args={"async_creator_fn": _connect_sqlite} if sqlite else {},
        )
    )
    dialect = engine.sync_engine.dialect
    dialect.do_commit = dialect.do_rollback = _leave_out  # type: ignore[method-assign]
    if sqlite:
        event.listen(engine.sync_engine, "connect", _configure_sqlite)
    try:
        async with engine.connect() as connection:
            # The one transaction begins here, as one that may write: a reader that came first would make it read-only.
            await connection.exec_driver_sql("BEGIN IMMEDIATE" if sqlite else "SELECT 1")
        yield engine
    finally:
        await engine.dispose()


@asynccontextmanager
async def reading(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A snapshot that blocks nobody. On PostgreSQL a write in it fails, on SQLite it may: use `writing`."""
    async with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            await connection.execution_options(postgresql_readonly=True)
        else:
            await connection.execution_options(**{_READ_ONLY: True})
        async with connection.begin():
            yield connection


@asynccontextmanager
async def writing(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A transaction: committed when the block ends, rolled back when it raises."""
    async with engine.begin() as connection:
        yield connection


async def take_turn(db: AsyncConnection, number: int) -> None:
    """Wait until no other transaction has this turn; it is ours until we end. On SQLite one writes at a time anyhow.

    number: of this purpose alone, the same in every process."""
    if db.dialect.name == "postgresql":
        await db.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": number})


async def at_once(
    engine: AsyncEngine, work: Callable[[AsyncConnection], Coroutine[None, None, T]], *, read_only: bool = False
) -> T:
    """What `work` returns, done in one transaction; it waits for nothing but the database.

    On SQLite all of it is one call of a thread: through the event loop each statement is handed over and back four
    times, which costs more than the statement. Cancelled, it ends what it has begun before it says so."""
    if (beside := _beside.get(engine.sync_engine)) is None:
        async with reading(engine) if read_only else writing(engine) as db:
            return await work(db)
    running = asyncio.get_running_loop().run_in_executor(
        beside.thread(read_only), _in_thread, beside.engine, work, read_only
    )
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])  # Whoever cancels may dispose of the engine next.
        running.exception()
        raise


def _in_thread(engine: Engine, work: Callable[[AsyncConnection], Coroutine[None, None, T]], read_only: bool) -> T:
    with engine.connect() as connection:
        connection.execution_options(**{_READ_ONLY: read_only})
        with connection.begin():
            at_work = work(cast(AsyncConnection, _Here(connection)))
            try:
                at_work.send(None)
            except StopIteration as done:
                return cast(T, done.value)
            finally:
                at_work.close()
            raise RuntimeError("it waits for something else than the database")


class _Here:
    """A connection as a coroutine of the event loop sees one, and nobody waits: a call has ended when it returns."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.dialect = connection.dialect

    async def execute(self, statement: Any, parameters: Any = None) -> CursorResult[Any]:
        return self._connection.execute(statement, parameters)

    async def exec_driver_sql(self, statement: str, parameters: Any = None) -> CursorResult[Any]:
        return self._connection.exec_driver_sql(statement, parameters)


async def insert_many(
    db: AsyncConnection, table: Table, names: tuple[str, ...], rows: Sequence[tuple[Any, ...]]
) -> None:
    """New rows, their values in the order of `names`, which is the table's. SQLAlchemy's own way makes a dictionary of
    parameters of every row, and the drivers' `executemany` works and answers row by row.

    Raises: as `execute`."""
    if not rows:
        return
    insert = _insert_of(db.dialect, table, names)
    if insert.processors:
        made = []
        for row in rows:
            values = list(row)
            for at, process in insert.processors:
                values[at] = process(values[at])
            made.append(tuple(values))
        rows = made
    if db.dialect.name == "postgresql":
        await _copy(db, table.name, names, rows)
        return
    done, size = 0, _ROWS_AT_ONCE
    while (left := len(rows) - done) > 0:
        while size > left:
            size //= 2
        # One step of the statement for all of them: the interpreter is let go of, and asked for again, but once.
        await db.exec_driver_sql(insert.of(size), tuple(chain.from_iterable(rows[done : done + size])))
        done += size


# 29 columns of as many rows are 1,856 parameters; SQLite takes 32,766. Halves of it take the rest, so that few
# statements are ever made.
_ROWS_AT_ONCE: Final = 64


class _Insert:
    """The statement on one database, and what makes the driver's values of ours: at which place, by what."""

    def __init__(self, statement: str, processors: Sequence[tuple[int, Callable[[Any], Any]]]) -> None:
        self.processors = processors
        self._head, _, values = statement.partition(" VALUES ")
        self._values = values
        self._of: dict[int, str] = {}

    def of(self, rows: int) -> str:
        if (known := self._of.get(rows)) is None:
            known = self._of[rows] = f"{self._head} VALUES {', '.join([self._values] * rows)}"
        return known


_inserts: dict[tuple[str, Table, tuple[str, ...]], _Insert] = {}


def _insert_of(dialect: Dialect, table: Table, names: tuple[str, ...]) -> _Insert:
    key = (dialect.driver, table, names)
    if (known := _inserts.get(key)) is None:
        compiled = insert(table).compile(dialect=dialect, column_keys=list(names))
        if compiled.positiontup != list(names):
            raise ValueError(f"not in the order of {table.name}: {names}")
        types = [table.c[name].type for name in names]
        found = [_processor_of(each, dialect) for each in types]
        processors = [(at, process) for at, process in enumerate(found) if process is not None]
        known = _inserts[key] = _Insert(str(compiled), processors)
    return known


def _processor_of(kind: TypeEngine[Any], dialect: Dialect) -> Callable[[Any], Any] | None:
    """SQLAlchemy's own looks for nulls in JSON, which these rows have not, and checks what is a Boolean."""
    if isinstance(kind, JSON):
        return json_text
    return None if isinstance(kind, Boolean) else kind.dialect_impl(dialect).bind_processor(dialect)


async def _copy(db: AsyncConnection, table: str, names: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> None:
    """PostgreSQL's COPY, in the transaction."""
    driver: Any = (await db.get_raw_connection()).driver_connection
    if not driver.is_in_transaction():  # SQLAlchemy begins one with its first statement.
        await db.exec_driver_sql("SELECT 1")
    import asyncpg  # Here, because whoever has SQLite need not load it.

    try:
        await driver.copy_records_to_table(table, records=rows, columns=names)
    except asyncpg.IntegrityConstraintViolationError as error:
        raise IntegrityError(f"COPY {table}", None, error) from error
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise OperationalError(f"COPY {table}", None, error) from error


SPLIT: Final = 10**9
"""Amounts are added up in two columns, above and below it, so that neither leaves 64 bits before 10**9 rows."""


def parts(amount: ColumnElement[int]) -> tuple[ColumnElement[int], ColumnElement[int]]:
    """One amount as the two columns that are added up."""
    return amount // SPLIT, amount % SPLIT


def kept_parts(usd: ColumnElement[int], rest_pusd: ColumnElement[int]) -> tuple[ColumnElement[int], ColumnElement[int]]:
    """The same of an amount that is kept as whole dollars and the rest."""
    return usd * (PUSD_PER_USD // SPLIT) + rest_pusd // SPLIT, rest_pusd % SPLIT


def wide_sum(amount: ColumnElement[int]) -> tuple[ColumnElement[Any], ColumnElement[Any]]:
    """The sum of an amount column in two: SQLite's own sum() fails beyond 64 bits. See `add_up`."""
    return _sums(parts(amount))


def wide_sum_kept(
    usd: ColumnElement[int], rest_pusd: ColumnElement[int]
) -> tuple[ColumnElement[Any], ColumnElement[Any]]:
    """`wide_sum` of an amount that is kept as whole dollars and the rest."""
    return _sums(kept_parts(usd, rest_pusd))


def add_up(above: Any, below: Any) -> int:
    """What the two columns of `wide_sum` mean."""
    return int(above) * SPLIT + int(below)


def _sums(columns: tuple[ColumnElement[int], ColumnElement[int]]) -> tuple[ColumnElement[Any], ColumnElement[Any]]:
    above, below = columns
    return func.coalesce(func.sum(above), 0), func.coalesce(func.sum(below), 0)


def _leave_out(dbapi_connection: PoolProxiedConnection) -> None:
    """A commit or a rollback that does not take place."""


class _SqliteConnection(aiosqlite.Connection):
    """Stopped once. Its thread ends at the first `stop`, and would leave whoever awaits a second one waiting for ever:
    SQLAlchemy stops a connection whose user was cancelled twice while it was being closed for the first time, and then
    the loop, and so the process, would not end. Source: aiosqlite 0.22.1, SQLAlchemy 2.1.9, read 2026-11."""

    _stops = False
    _stopped: asyncio.Future[Any] | None = None  # None too where it was stopped outside of any loop.

    def stop(self) -> asyncio.Future[Any] | None:
        if not self._stops:
            self._stops, self._stopped = True, super().stop()
        return self._stopped


def _connect_sqlite(database: str, **settings: Any) -> _SqliteConnection:
    connection = _SqliteConnection(lambda: sqlite3.connect(database, **settings), iter_chunk_size=64)
    connection._thread.daemon = True  # As SQLAlchemy does with those it makes itself.
    return connection


def _configure_sqlite(connection: Any, _record: object) -> None:
    # The driver would begin transactions by itself, and only before the first write; _begin_sqlite does it instead.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={SQLITE_BUSY_MS}")
    _enter_wal(cursor)
    # FULL: a journal segment is deleted once its rows are committed, so the commit must outlive a power cut.
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _keep_few_pages(connection: Any, _record: object) -> None:
    """Of 0.5 MB, not 2: what `at_once` has written meanwhile empties this cache, so it serves one report at most."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA cache_size=-512")
    cursor.close()


def _enter_wal(cursor: Any) -> None:
    """WAL is a property of the file: asked for once, and not at all where it already is.

    The change needs the file alone, and SQLite's busy handler does not wait for that; so it is tried again."""
    for last in (False,) * 50 + (True,):
        cursor.execute("PRAGMA journal_mode")
        if cursor.fetchone()[0] in ("wal", "memory"):
            return
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            cursor.fetchone()
        except sqlite3.OperationalError:
            if last:
                raise


def _begin_sqlite(connection: Connection) -> None:
    read_only = connection.get_execution_options().get(_READ_ONLY, False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")
