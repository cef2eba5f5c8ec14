"""The SQL engine: one MetaData for every table of the application, engine settings, and two kinds of transaction.

Which tables exist is in billing.schema and gateway.schema; how they came to be in migrations/.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any, Final

import aiosqlite
import msgspec
from sqlalchemy import ColumnElement, Dialect, MetaData, Numeric, String, Table, event, func, insert, text
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import PoolProxiedConnection, StaticPool
from sqlalchemy.types import TypeDecorator, TypeEngine

from billing.money import PUSD_PER_USD

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


def create_engine(url: str, *, pool_size: int = 5) -> AsyncEngine:
    """An engine for either database. The caller disposes of it.

    Use `reading` and `writing` for transactions: on SQLite a transaction that has not been said to be read-only takes
    the write lock at its start, since one that upgrades halfway fails with SQLITE_BUSY however long it waits."""
    parsed = async_url(url)
    sqlite = parsed.get_backend_name() == "sqlite"
    engine = create_async_engine(
        parsed,
        json_serializer=lambda value: msgspec.json.encode(value).decode(),
        json_deserializer=msgspec.json.decode,
        pool_size=pool_size,
        # A server that was restarted must not fail the first request after it. SQLite has no connection to lose.
        pool_pre_ping=not sqlite,
        connect_args={"async_creator_fn": _connect_sqlite} if sqlite else {},
    )
    if sqlite:
        event.listen(engine.sync_engine, "connect", _configure_sqlite)
        event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


REHEARSAL: Final = "farebox_rehearsal"
"""Execution option of an engine whose changes are taken back."""


@asynccontextmanager
async def rehearsing(url: str) -> AsyncIterator[AsyncEngine]:
    """An engine for trying something out: whatever is written through it is seen through it, and gone at the end.

    It has one connection and one transaction, whose commits and rollbacks are left out; the connection's end rolls it
    back. On SQLite it holds the write lock meanwhile."""
    parsed = async_url(url)
    sqlite = parsed.get_backend_name() == "sqlite"
    engine = create_async_engine(
        parsed,
        json_serializer=lambda value: msgspec.json.encode(value).decode(),
        json_deserializer=msgspec.json.decode,
        poolclass=StaticPool,
        execution_options={REHEARSAL: True},
        connect_args={"async_creator_fn": _connect_sqlite} if sqlite else {},
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


async def insert_many(
    db: AsyncConnection, table: Table, names: tuple[str, ...], rows: Sequence[tuple[Any, ...]]
) -> None:
    """New rows, their values in the order of `names`, which is the table's, in one call of the driver. SQLAlchemy's own
    way makes a dictionary of parameters of every row, which costs more than all else about it."""
    if not rows:
        return
    statement, processors = _insert_of(db.dialect, table, names)
    if processors:
        made = []
        for row in rows:
            values = list(row)
            for at, process in processors:
                values[at] = process(values[at])
            made.append(tuple(values))
        rows = made
    await db.exec_driver_sql(statement, list(rows))


_Insert = tuple[str, Sequence[tuple[int, Callable[[Any], Any]]]]
_inserts: dict[tuple[str, Table, tuple[str, ...]], _Insert] = {}


def _insert_of(dialect: Dialect, table: Table, names: tuple[str, ...]) -> _Insert:
    """The driver's statement, and what makes its values of ours: at which place, by what."""
    key = (dialect.driver, table, names)
    if (known := _inserts.get(key)) is None:
        compiled = insert(table).compile(dialect=dialect, column_keys=list(names))
        if compiled.positiontup != list(names):
            raise ValueError(f"not in the order of {table.name}: {names}")
        found = [table.c[name].type.dialect_impl(dialect).bind_processor(dialect) for name in names]
        known = str(compiled), [(at, process) for at, process in enumerate(found) if process is not None]
        _inserts[key] = known
    return known


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
