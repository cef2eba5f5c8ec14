"""The schema: what the migrations make is what the code declares, on both databases."""

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import (
    Boolean,
    Column,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    String,
    column,
    inspect,
    select,
    table,
    text,
)
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from billing import fresh, schema
from billing.db import async_url, create_engine, metadata, reading, writing
from billing.migrate import TRIES, by_migrations, configuration, is_current, migrations, newest, upgrade
from billing.pricelist import load_prices
from tests.services import Databases

OWN = {table.name for table in vars(schema).values() if getattr(table, "metadata", None) is metadata}


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/empty.db"
        return
    with request.getfixturevalue("databases").clone(migrated=False) as url:
        yield url


async def tables(url: str) -> set[str]:
    engine = create_engine(url)
    async with reading(engine) as db:
        names = await db.run_sync(lambda connection: inspect(connection).get_table_names())
    await engine.dispose()
    return set(names)


async def test_several_starts_at_once_migrate_once(empty_database_url: str) -> None:
    assert not await is_current(empty_database_url)
    await asyncio.gather(*(upgrade(empty_database_url) for _ in range(4)))
    assert await is_current(empty_database_url)
    assert await tables(empty_database_url) >= OWN | {"alembic_version"}
    engine = create_engine(empty_database_url)
    async with reading(engine) as db:
        assert len(await load_prices(db)) > 500
    await engine.dispose()


async def test_migrations_make_what_the_code_declares(fresh_database_url: str) -> None:
    def differences(connection: Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        return [change for change in compare_metadata(context, metadata) if concerns_billing(change)]

    engine = create_engine(fresh_database_url)
    async with reading(engine) as db:
        assert await db.run_sync(differences) == []
    await engine.dispose()


@pytest.mark.parametrize("newer", [False, True], ids=["as the file", "newer than the file"])
async def test_a_first_start_on_sqlite_makes_what_the_migrations_make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, newer: bool
) -> None:
    """Every table, index, trigger and row."""

    async def nothing(*_: object, **__: object) -> None:
        """Prices come after, and are the same."""

    monkeypatch.setattr("billing.migrate.seed_prices", nothing)
    if newer:
        (before,) = newest()
        with_one_more = shutil.copytree(migrations(), tmp_path / "migrations")
        (with_one_more / "versions" / "2099-01-01_one_more.py").write_text(ONE_MORE.format(before=before))
        monkeypatch.setattr("billing.migrate.migrations", lambda: with_one_more)
    await by_migrations(f"sqlite:///{tmp_path}/migrated.db")
    await upgrade(f"sqlite:///{tmp_path}/fresh.db")
    migrated, made = (standing(tmp_path / f"{name}.db") for name in ("migrated", "fresh"))
    assert made == migrated
    assert any("one_more" in lines[0] for lines in made) == newer


def standing(database: Path) -> list[list[str]]:
    """The lines of each statement, constraints last: where a table was altered their order is Alembic's by chance."""
    script = fresh.statements(fresh.read_off(database))
    lines = [[line.rstrip(", ") for line in statement.splitlines()] for statement in script]
    for each in lines:
        each.sort(key=lambda line: line.strip() if line.startswith("\tCONSTRAINT") else "")
    return sorted(lines)


ONE_MORE = """
from alembic import op

revision = "one_more"
down_revision = "{before}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("CREATE TABLE one_more (id int)")
"""


def concerns_billing(change: object) -> bool:
    """Other packages' tables are compared by their own tests."""
    if isinstance(change, list):
        return any(concerns_billing(part) for part in change)
    assert isinstance(change, tuple)
    names = {getattr(part, "name", part) for part in change if not isinstance(part, dict)}
    names |= {getattr(getattr(part, "table", None), "name", None) for part in change}
    return bool(names & OWN)


async def test_every_migration_can_be_taken_back(empty_database_url: str) -> None:
    await upgrade(empty_database_url)
    engine = create_engine(empty_database_url)
    async with writing(engine) as db:
        await db.run_sync(lambda connection: command.downgrade(configuration(connection), "base"))
    await engine.dispose()
    assert await tables(empty_database_url) <= {"alembic_version"}
    await upgrade(empty_database_url)
    assert await is_current(empty_database_url)


# Nothing wrote audit rows before there was a hash; links and sessions of the first form belonged to nobody; hours are
# made anew from rows.
NOT_KEPT = {"gateway_1": {"audit", "admin_sessions", "sign_in_links"}, "billing_3": {"usage_hours"}}


async def test_rows_of_every_revision_outlive_all_that_follow(empty_database_url: str) -> None:
    """Each migration meets two rows in every table that there is by then."""
    steps = [*ScriptDirectory.from_config(configuration()).walk_revisions()][::-1]
    filled: dict[str, list[dict[str, Any]]] = {}
    engine = create_engine(empty_database_url)
    for step in steps:
        # A transaction each, as where every release was installed.
        async with writing(engine) as db:
            await db.run_sync(lambda connection, to=step.revision: command.upgrade(configuration(connection), to))
            await db.run_sync(fill_new_tables, filled, NOT_KEPT.get(step.revision, set()))
    assert len(filled) > 40
    async with reading(engine) as db:
        for name, rows in filled.items():
            columns = list(rows[0])
            found = await db.execute(select(*(column(each) for each in columns)).select_from(table(name)))
            assert sorted(found.all()) == sorted(tuple(row.values()) for row in rows), name
    await engine.dispose()


def fill_new_tables(connection: Connection, filled: dict[str, list[dict[str, Any]]], not_kept: set[str]) -> None:
    there = MetaData()
    there.reflect(connection)
    for each in there.sorted_tables:
        if each.name in filled or each.name in not_kept or each.name.startswith(("alembic_", "usage_records_")):
            continue
        if connection.execute(each.select()).first() is not None:
            continue  # Filled by the migration itself.
        parents = [child for child in each.columns if child.foreign_keys]
        rows: list[dict[str, Any]] = []
        for number in range(2):
            row = {needed.name: made_up(needed, number) for needed in each.columns if not needed.nullable}
            for shift, child in enumerate(parents):
                # A transfer has two accounts.
                (key,) = child.foreign_keys
                row[child.name] = filled[key.column.table.name][(number + shift) % 2][key.column.name]
            rows.append(row)
        connection.execute(each.insert(), rows)
        of_text = [kept.name for kept in each.columns if isinstance(kept.type, String | Integer)]
        filled[each.name] = [{name: row[name] for name in of_text if name in row} for row in rows]


def made_up(of: Column[Any], number: int) -> object:
    match of.type:
        case String(length=length):
            return f"{number}{of.name}"[:length]
        case LargeBinary():
            return bytes([number])
        case Boolean():
            return bool(number)
        case Integer() | Numeric():
            return number + 1
    return {}


async def test_a_migration_that_fails_leaves_nothing(empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("billing.migrate.read_seed", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        await upgrade(empty_database_url)
    assert await tables(empty_database_url) == set()


# A deadlock that the server ends with this transaction, as often as is said. A sequence counts on where all else is
# taken back.
DEADLOCKS = """
from alembic import op

revision = "deadlocks"
down_revision = "{before}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("CREATE TABLE half_done (id int)")
    op.execute(
        "DO $$ BEGIN IF nextval('met') <= {times} THEN "
        "RAISE EXCEPTION 'deadlock detected' USING ERRCODE = 'deadlock_detected'; END IF; END $$"
    )
"""


@pytest.mark.parametrize("times", [TRIES - 1, TRIES])
async def test_a_migration_that_met_a_deadlock_is_tried_again(
    databases: Databases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    (before,) = newest()
    newer = shutil.copytree(migrations(), tmp_path / "migrations")
    (newer / "versions" / "2099-01-01_deadlocks.py").write_text(DEADLOCKS.format(before=before, times=times))
    monkeypatch.setattr("billing.migrate.migrations", lambda: newer)
    with databases.clone() as url:
        engine = create_engine(url)
        async with writing(engine) as db:
            await db.execute(text("CREATE SEQUENCE met"))
        await engine.dispose()
        if times < TRIES:
            await upgrade(url)
        else:
            with pytest.raises(DBAPIError, match="deadlock detected"):
                await upgrade(url)
        assert await is_current(url) == ("half_done" in await tables(url)) == (times < TRIES)


@pytest.mark.parametrize(
    ("given", "driver"),
    [
        ("sqlite:///x.db", "sqlite+aiosqlite"),
        ("postgres://u:p@h/d", "postgresql+asyncpg"),
        ("postgresql://u:p@h/d?sslmode=require", "postgresql+asyncpg"),
        ("postgresql+psycopg://h/d", "postgresql+asyncpg"),
    ],
)
def test_a_database_url_as_hosting_services_write_it(given: str, driver: str) -> None:
    url = async_url(given)
    assert url.drivername == driver
    assert "sslmode" not in url.query
    assert ("ssl" in url.query) == ("sslmode" in given)


def test_other_databases_are_refused() -> None:
    with pytest.raises(ValueError, match="neither SQLite nor PostgreSQL: mysql"):
        async_url("mysql://h/d")


async def test_a_reader_neither_waits_for_a_writer_nor_sees_half_of_it(fresh_database_url: str) -> None:
    engine = create_engine(fresh_database_url)
    row = {"id": "org", "name": "One", "created_at_ns": 1}
    async with writing(engine) as writer:
        await writer.execute(schema.organisations.insert().values(row))
        async with reading(engine) as reader:
            assert (await reader.execute(schema.organisations.select())).all() == []
    async with reading(engine) as reader:
        assert len((await reader.execute(schema.organisations.select())).all()) == 1
    await engine.dispose()


async def test_writers_wait_for_each_other_even_after_reading(fresh_database_url: str) -> None:
    engine = create_engine(fresh_database_url)

    async def add(i: int) -> None:
        async with writing(engine) as db:
            await db.execute(schema.organisations.select())
            await asyncio.sleep(0.001)
            row = {"id": f"org_{i}", "name": f"{i}", "created_at_ns": 1}
            await db.execute(schema.organisations.insert().values(row))

    await asyncio.gather(*(add(i) for i in range(20)))
    async with reading(engine) as db:
        assert len((await db.execute(schema.organisations.select())).all()) == 20
    await engine.dispose()


def test_the_newest_revisions_are_read_off_the_files_as_alembic_reads_them() -> None:
    assert newest() == set(ScriptDirectory.from_config(configuration()).get_heads())
