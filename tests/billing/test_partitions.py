"""Usage rows by the day: a filled database migrated, days made and dropped, an id once whatever its day."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import func, insert, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from billing import archive, days, exports, ledger, partitions, schema, statements
from billing.accounts import Scope
from billing.db import create_engine, reading, writing
from billing.migrate import configuration, upgrade
from billing.partitions import NS_PER_DAY, table_name
from billing.rating import Charge
from billing.worker import Worker, _row, book
from tests.billing.make import BOOK, record
from tests.billing.test_sums import ship

TODAY = time.time_ns() // NS_PER_DAY  # A fresh database has days from now on.
CHARGE = Charge(sale_pusd=10, cost_pusd=8)
ON_POSTGRESQL = pytest.mark.parametrize("fresh_database_url", ["postgresql"], indirect=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def old_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/old.db"
        return
    with request.getfixturevalue("databases").clone(migrated=False) as url:
        yield url


@pytest.fixture
async def old_engine(old_database_url: str) -> AsyncIterator[AsyncEngine]:
    """As the release before left it."""
    engine = create_engine(old_database_url)
    script = ScriptDirectory.from_config(configuration())
    before = script.get_revision("usage_partitions").down_revision
    assert isinstance(before, str)
    async with writing(engine) as db:
        await db.run_sync(lambda connection: command.upgrade(configuration(connection), before))
    yield engine
    await engine.dispose()


def at(day: int, ns: int = 5) -> int:
    return day * NS_PER_DAY + ns


async def fill(engine: AsyncEngine, moments: list[int]) -> None:
    """As the release before wrote rows, each waiting to be told of."""
    async with writing(engine) as db:
        rows = [_row(record(f"old{number}", at_ns=at_ns), None) for number, at_ns in enumerate(moments)]
        await db.execute(insert(schema.usage_records), rows)
        await exports.enqueue(db, ["lago"], rows[:2])


async def where(db: AsyncConnection) -> dict[str, list[str]]:
    """Ids by the table they lie in."""
    found: dict[str, list[str]] = {}
    for table, row_id in await db.execute(text("SELECT tableoid::regclass::text, id FROM usage_records ORDER BY id")):
        found.setdefault(table, []).append(row_id)
    return found


async def test_a_filled_database_is_migrated_and_counts_no_record_twice(
    old_engine: AsyncEngine, old_database_url: str, tmp_path: Path
) -> None:
    moments = [at(TODAY - 400), at(TODAY - 1), at(TODAY), at(TODAY + 1)]
    await fill(old_engine, moments)
    await old_engine.dispose()
    await upgrade(old_database_url)
    await upgrade(old_database_url)
    engine = create_engine(old_database_url)
    again = [record(f"old{number}", at_ns=at_ns + 3) for number, at_ns in enumerate(moments)]
    async with writing(engine) as db:
        # The same ids with other times, as where an estimate and the answer were both written down.
        assert await book(db, [(each, CHARGE) for each in again]) == []
        new = await book(db, [(record("new", at_ns=at(TODAY + 2)), CHARGE)])
        assert [each.id for each, _ in new] == ["new"]
    assert await partitions.make_days(engine, now_ns=at(TODAY)) == (6 if partitions.partitioned(engine) else 0)
    async with reading(engine) as db:
        assert (await db.execute(select(func.count()).select_from(schema.usage_records))).scalar_one() == 5
        if partitions.partitioned(engine):
            assert await where(db) == {
                "usage_records_before": ["old0", "old1", "old2", "old3"],
                table_name(TODAY + 2): ["new"],
            }
        assert await partitions.span_of(db, ["new", "old3"]) == (0, 2**63 - 1)
    # What was queued before is found where it lies.
    async with writing(engine) as db:
        await db.execute(schema.usage_records.update().values(charge_pusd=7))
    async with reading(engine) as db:
        assert {each.id for each in await exports.due(db, "lago", now_ns=1, most=10)} == {"old0", "old1"}
    await engine.dispose()


@pytest.mark.parametrize("old_database_url", ["postgresql"], indirect=True)
async def test_an_operator_may_have_the_old_rows_read_beforehand(
    old_engine: AsyncEngine, old_database_url: str
) -> None:
    """As billing/README.md says; then the migration reads none of them, and days begin where he said."""
    await fill(old_engine, [at(TODAY)])
    end = at(TODAY + 5, 0)
    async with writing(old_engine) as db:
        await db.execute(
            text(f"ALTER TABLE usage_records ADD CONSTRAINT usage_records_before CHECK (at_ns < {end}) NOT VALID")
        )
    async with writing(old_engine) as db:
        await db.execute(text("ALTER TABLE usage_records VALIDATE CONSTRAINT usage_records_before"))
    await upgrade(old_database_url)
    assert await partitions.make_days(old_engine, now_ns=at(TODAY)) == 3
    async with reading(old_engine) as db:
        assert await partitions.days_made(db) == [TODAY + 5, TODAY + 6, TODAY + 7]


@ON_POSTGRESQL
async def test_rows_that_came_before_their_table_move_into_it(fresh_engine: AsyncEngine, tmp_path: Path) -> None:
    moments = [at(TODAY - 1), at(TODAY, 0), at(TODAY + 1, 0) - 1, at(TODAY + 1, 0), at(TODAY + 30)]
    await ship(fresh_engine, tmp_path, [record(f"r{n}", at_ns=at_ns) for n, at_ns in enumerate(moments)])
    async with reading(fresh_engine) as db:
        assert await where(db) == {"usage_records_before": ["r0"], "usage_records_other": ["r1", "r2", "r3", "r4"]}
    assert await partitions.make_days(fresh_engine, now_ns=at(TODAY), ahead=1) == 2
    assert await partitions.make_days(fresh_engine, now_ns=at(TODAY), ahead=1) == 0
    async with reading(fresh_engine) as db:
        assert await where(db) == {
            "usage_records_before": ["r0"],
            table_name(TODAY): ["r1", "r2"],
            table_name(TODAY + 1): ["r3"],
            "usage_records_other": ["r4"],
        }
        assert await partitions.span_of(db, ["r1", "r3"]) == (moments[1], moments[3] + 1)
        plan = "\n".join(
            (
                await db.execute(
                    text(f"EXPLAIN SELECT * FROM usage_records WHERE at_ns >= {moments[1]} AND at_ns < {moments[3]}")
                )
            ).scalars()
        )
    assert table_name(TODAY) in plan
    assert table_name(TODAY + 1) not in plan


@ON_POSTGRESQL
async def test_an_id_counts_once_whatever_its_day(fresh_engine: AsyncEngine, tmp_path: Path) -> None:
    """A dead gateway's estimate and the answer that had been written after all: two days, one request."""
    await partitions.make_days(fresh_engine, now_ns=at(TODAY))
    await ship(fresh_engine, tmp_path / "one", [record("same", at_ns=at(TODAY))])
    for folder, moment in (("two", at(TODAY + 1)), ("three", at(TODAY - 3))):
        with pytest.raises(AssertionError):
            await ship(fresh_engine, tmp_path / folder, [record("same", at_ns=moment)])
    # Two workers that both have looked, and neither has seen it.
    row = _row(record("both", at_ns=at(TODAY)), None)
    with pytest.raises(IntegrityError):
        async with writing(fresh_engine) as one, writing(fresh_engine) as other:
            await partitions.claim(one, [row])
            await one.commit()
            assert await partitions.known(other, ["both"]) == {"both"}
            await partitions.claim(other, [row | {"at_ns": at(TODAY + 1)}])
    async with reading(fresh_engine) as db:
        assert await where(db) == {table_name(TODAY): ["same"]}
        assert (await ledger.trial_balance(db)).debits_minus_credits_pusd == 0


@ON_POSTGRESQL
async def test_a_shipper_takes_the_table_before_its_partitions_as_a_migration_does(fresh_engine: AsyncEngine) -> None:
    """Otherwise each gets what the other one waits for."""
    async with (
        fresh_engine.connect() as shipper,
        fresh_engine.connect() as migration,
        reading(fresh_engine) as onlooker,
    ):
        for _ in range(8):  # Until the server has a plan for all times, which takes the locks anew.
            async with shipper.begin():
                await partitions.known(shipper, ["any"])
        async with migration.begin():
            await migration.execute(text("LOCK TABLE ONLY usage_records IN ACCESS EXCLUSIVE MODE"))
            async with shipper.begin():
                asking = asyncio.create_task(partitions.known(shipper, ["any"]))
                waits = text("SELECT count(*) FROM pg_locks WHERE relation = 'usage_records'::regclass AND NOT granted")
                async with asyncio.timeout(60):
                    while not (await onlooker.execute(waits)).scalar_one():
                        await asyncio.sleep(0.01)
                await migration.execute(text("LOCK TABLE usage_records_before IN ACCESS EXCLUSIVE MODE NOWAIT"))
                await migration.rollback()
                assert await asking == set()


@ON_POSTGRESQL
async def test_retention_drops_the_day_with_its_table(fresh_engine: AsyncEngine, tmp_path: Path) -> None:
    await partitions.make_days(fresh_engine, now_ns=at(TODAY), ahead=2)
    records = [record(f"r{n}", at_ns=at(TODAY + n % 3, n)) for n in range(12)]
    await ship(fresh_engine, tmp_path / "journal", records)
    now_ns = at(TODAY + 3, NS_PER_DAY // 2)
    await days.seal_due(fresh_engine, now_ns=now_ns)
    async with reading(fresh_engine) as db:
        spent = await statements.spent(db, Scope.KEY, "key_1")
        assert len((await db.execute(select(schema.usage_records.c.id))).all()) == 12
        # Somebody reads for longer than a drop waits: it stays, and nobody was kept waiting behind it for long.
        with pytest.raises(DBAPIError):
            await archive.retain(fresh_engine, days=2, now_ns=now_ns)
    async with reading(fresh_engine) as db:
        assert await partitions.days_made(db) == [TODAY, TODAY + 1, TODAY + 2]
    await archive.retain(fresh_engine, days=2, now_ns=now_ns, archive=tmp_path / "archive")
    async with reading(fresh_engine) as db:
        assert await partitions.days_made(db) == [TODAY + 1, TODAY + 2]
        assert await partitions.known(db, [each.id for each in records]) == {f"r{n}" for n in range(12) if n % 3}
        assert await statements.spent(db, Scope.KEY, "key_1") == spent
    # One that comes after its day has gone is charged, and goes again.
    await ship(fresh_engine, tmp_path / "late", [record("late", at_ns=at(TODAY, 7))])
    assert await archive.retain(fresh_engine, days=2, now_ns=now_ns) == 0
    async with reading(fresh_engine) as db:
        assert len((await db.execute(select(schema.usage_records.c.id))).all()) == 8
        assert await statements.spent(db, Scope.KEY, "key_1") == spent + spent // 12


@ON_POSTGRESQL
async def test_days_are_made_beside_shippers(fresh_engine: AsyncEngine, tmp_path: Path) -> None:
    await ship(fresh_engine, tmp_path / "first", [record(f"a{n}", at_ns=at(TODAY + n % 9)) for n in range(90)])

    async def go_on(number: int) -> int:
        folder = tmp_path / f"run{number}"
        await ship(fresh_engine, folder, [record(f"b{number}_{n}", at_ns=at(TODAY + n % 9)) for n in range(90)])
        return await Worker(folder, fresh_engine, BOOK).ship_once()

    made, *_ = await asyncio.gather(
        partitions.make_days(fresh_engine, now_ns=at(TODAY)), *(go_on(number) for number in range(4))
    )
    assert made == 8
    async with reading(fresh_engine) as db:
        lie = await where(db)
        assert {name: len(ids) for name, ids in lie.items()} == {
            "usage_records_other": 50, **{table_name(TODAY + n): 50 for n in range(8)}
        }  # fmt: skip
