"""Usage rows by the day on PostgreSQL, so that a day goes as a table goes. On SQLite they are one table.

A unique key of a partitioned table has its day in it, and what makes a record count once is its id alone. So ids stand
in `usage_ids`, written in the transaction of their rows; its primary key is what a second row of an id fails at. Rows
from before there were days lie in `usage_records_before`, whose primary key is still their id.

    usage_records                 what everybody asks and writes
      usage_records_before        up to the day the database was migrated, or a day later
      usage_records_20261123      one UTC day, made a week ahead by a chore (`make_days`)
      usage_records_other         rows of a day that has no table: none, unless no worker ran for a week
"""

import datetime
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    MetaData,
    Select,
    String,
    Table,
    delete,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import insert

from billing import schema
from billing.db import AsyncConnection, AsyncEngine, writing

NS_PER_DAY: Final = 86_400 * 10**9
AHEAD_DAYS: Final = 7
# Who would make or drop a day waits for reports (or a backup) to end, and everybody waits behind him.
_WAITS: Final = "2s"
_FOR_EVER: Final = 2**63 - 1

# Not of the metadata that both databases have. migrations/versions/*_usage_partitions.py makes it.
_ids: Final = Table("usage_ids", MetaData(), Column("id", String(128), primary_key=True), Column("at_ns", BigInteger))
# All ids in one parameter: the statement of an IN is written anew for each list, by SQLAlchemy and by the driver.
_KNOWN: Final = text("SELECT id FROM usage_records WHERE id IN (SELECT value FROM json_each(:ids))")
# The parent is named first, though it gives nothing: who locks a partition before it meets a migration, which locks it
# before its partitions, in a deadlock when he writes.
_KNOWN_BY_DAYS: Final = text(
    "SELECT id FROM ONLY usage_records WHERE false"
    " UNION ALL SELECT id FROM usage_ids WHERE id = ANY (cast(:ids AS text[]))"
    " UNION ALL SELECT id FROM usage_records_before WHERE id = ANY (cast(:ids AS text[]))"
)
_CLAIM: Final = text("INSERT INTO usage_ids SELECT * FROM unnest(cast(:ids AS text[]), cast(:ats AS bigint[]))")


def partitioned(db: AsyncConnection | AsyncEngine | Connection) -> bool:
    return db.dialect.name == "postgresql"


async def known(db: AsyncConnection, ids: Sequence[str]) -> set[str]:
    """Which of these have a row."""
    if not ids:
        return set()
    if partitioned(db):
        found = await db.execute(_KNOWN_BY_DAYS, {"ids": list(ids)})
    else:
        found = await db.execute(_KNOWN, {"ids": msgspec.json.encode(ids).decode()})
    return set(found.scalars())


async def claim(db: AsyncConnection, rows: Sequence[Mapping[str, Any]]) -> None:
    """With the rows, in their transaction. Raises: IntegrityError where one of them is there; roll back then."""
    if partitioned(db):
        await db.execute(_CLAIM, {"ids": [row["id"] for row in rows], "ats": [row["at_ns"] for row in rows]})


async def forget(db: AsyncConnection, of: Select[Any]) -> None:
    """Rows go: their ids go first. of: a query for the ids."""
    if partitioned(db):
        await db.execute(delete(_ids).where(_ids.c.id.in_(of)))


async def span_of(db: AsyncConnection, ids: Sequence[str]) -> tuple[int, int]:
    """[since, until) in which the rows of these ids lie, so that not every day is searched for them."""
    if partitioned(db):
        found = list((await db.execute(select(_ids.c.at_ns).where(_ids.c.id.in_(ids)))).scalars())
        if found and len(found) == len(set(ids)):
            return min(found), max(found) + 1
    return 0, _FOR_EVER  # Others are older than `usage_ids`, if they are anywhere.


def located(db: AsyncConnection, query: Select[Any], record_id: ColumnElement[str]) -> Select[Any]:
    """A query that joins rows to these ids, told the day of each. Ids that are not in `usage_ids` find nothing: what is
    written since there are days is there, older rows after `locate`."""
    if not partitioned(db):
        return query
    return query.join(_ids, _ids.c.id == record_id).where(schema.usage_records.c.at_ns == _ids.c.at_ns)


async def locate(db: AsyncConnection, since_ns: int, until_ns: int) -> None:
    """Have the ids of older rows, too, stand in `usage_ids`."""
    if partitioned(db):
        rows = schema.usage_records.c
        query = select(rows.id, rows.at_ns).where(rows.at_ns >= since_ns, rows.at_ns < until_ns)
        await db.execute(insert(_ids).from_select(["id", "at_ns"], query).on_conflict_do_nothing())


async def hold(db: AsyncConnection) -> None:
    """For whoever reads rows and changes them afterwards: he is taken for a writer from the beginning on, so that
    nobody makes or drops a day in between who would wait for his reading, and he for that one's table."""
    if partitioned(db):
        await db.execute(text("LOCK TABLE ONLY usage_records IN ROW EXCLUSIVE MODE"))


async def make_days(engine: AsyncEngine, *, now_ns: int, ahead: int = AHEAD_DAYS) -> int:
    """Tables for today and the days to come. Rows that could not wait for theirs move into it. Returns: how many.

    Raises: DBAPIError while somebody reads for longer than a moment what a new day may have rows in."""
    if not partitioned(engine):
        return 0
    today = now_ns // NS_PER_DAY
    made = 0
    for day in range(today, today + ahead + 1):
        async with writing(engine) as db:
            made += await _make(db, day)
    return made


async def drop_day(engine: AsyncEngine, day: int) -> bool:
    """A day that has a table goes with it, and its ids. Returns: False where it has none: its rows are to be deleted.

    Raises: DBAPIError while somebody reads from it for longer than a moment; then it stays."""
    if not partitioned(engine):
        return False
    name = table_name(day)
    async with writing(engine) as db:
        if not await _exists(db, name):
            return False
        await db.execute(text(f"SET LOCAL lock_timeout = '{_WAITS}'"))
        # Of two that change what days there are, the second waits before it reads what the first one takes away.
        await db.execute(text("LOCK TABLE ONLY usage_records IN SHARE UPDATE EXCLUSIVE MODE"))
        queue = schema.export_queue
        rows = schema.usage_records.c
        its = select(rows.id).where(rows.at_ns >= day * NS_PER_DAY, rows.at_ns < (day + 1) * NS_PER_DAY)
        await db.execute(delete(queue).where(queue.c.record_id.in_(its)))
        await db.execute(text(f"DROP TABLE {name}"))
        # BRIN: they stand in the order of time, so this reads little more than what goes.
        gone = delete(_ids).where(_ids.c.at_ns >= day * NS_PER_DAY, _ids.c.at_ns < (day + 1) * NS_PER_DAY)
        await db.execute(gone)
    return True


async def days_made(db: AsyncConnection) -> list[int]:
    """Days that have a table of their own, in order."""
    query = text(
        "SELECT substr(child.relname, 15) FROM pg_inherits JOIN pg_class AS child ON child.oid = inhrelid "
        "WHERE inhparent = 'usage_records'::regclass AND child.relname ~ '^usage_records_[0-9]{8}$' ORDER BY 1"
    )
    found: Iterable[str] = (await db.execute(query)).scalars() if partitioned(db) else ()
    return [_day(name) for name in found]


def table_name(day: int) -> str:
    return f"usage_records_{datetime.date.fromordinal(_EPOCH + day):%Y%m%d}"


_EPOCH: Final = datetime.date(1970, 1, 1).toordinal()


def _day(name: str) -> int:
    return datetime.datetime.strptime(name, "%Y%m%d").date().toordinal() - _EPOCH  # noqa: DTZ007 - a day of UTC


async def _exists(db: AsyncConnection, name: str) -> bool:
    return (await db.execute(text("SELECT to_regclass(:name)"), {"name": name})).scalar_one() is not None


async def _make(db: AsyncConnection, day: int) -> bool:
    name, start_ns, end_ns = table_name(day), day * NS_PER_DAY, (day + 1) * NS_PER_DAY
    if await _exists(db, name) or start_ns < await _end_of_before(db):
        return False
    await db.execute(text(f"SET LOCAL lock_timeout = '{_WAITS}'"))
    # Who writes waits for the few milliseconds: a row on its way to `other` would be refused there afterwards.
    await db.execute(text("LOCK TABLE ONLY usage_records IN SHARE ROW EXCLUSIVE MODE"))
    if await _exists(db, name):
        return False
    await db.execute(text(f"CREATE TABLE {name} (LIKE usage_records_other INCLUDING ALL)"))
    await db.execute(
        text(
            f"WITH moved AS (DELETE FROM usage_records_other WHERE at_ns >= {start_ns} AND at_ns < {end_ns} "  # noqa: S608
            f"RETURNING *) INSERT INTO {name} SELECT * FROM moved"
        )
    )
    bounds = f"FOR VALUES FROM ({start_ns}) TO ({end_ns})"
    await db.execute(text(f"ALTER TABLE usage_records ATTACH PARTITION {name} {bounds}"))
    return True


async def _end_of_before(db: AsyncConnection) -> int:
    """When the time of days begins."""
    query = text("SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE oid = 'usage_records_before'::regclass")
    bounds: str = (await db.execute(query)).scalar_one()  # FOR VALUES FROM (MINVALUE) TO ('1795046400000000000')
    return int("".join(filter(str.isdigit, bounds.partition(" TO ")[2])))
