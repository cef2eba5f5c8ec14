"""What the database driver does to us when a request, or the whole process, ends in the middle of a statement."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from billing import schema
from billing.db import at_once, create_engine, insert_many, reading, writing
from billing.rating import Charge
from billing.worker import _COLUMNS, _row, _values
from tests.billing.make import record

WITHIN_S = 30.0


class Regret(Exception):
    pass


async def test_many_rows_are_their_values_and_go_with_their_transaction(fresh_engine: AsyncEngine) -> None:
    """As the first thing of a transaction, too: on PostgreSQL they are no statement of SQLAlchemy's."""
    many = [_row(record(f"r{n}", tags=("a", 'ü"\\')), Charge(n, 1)) for n in range(64 + 8 + 4 + 1)]
    with contextlib.suppress(Regret):
        async with writing(fresh_engine) as db:
            await insert_many(db, schema.usage_records, _COLUMNS, [_values(row) for row in many])
            raise Regret
    async with reading(fresh_engine) as db:
        assert (await db.execute(select(func.count()).select_from(schema.usage_records))).scalar_one() == 0
    async with writing(fresh_engine) as db:
        await insert_many(db, schema.usage_records, _COLUMNS, [_values(row) for row in many])
    async with reading(fresh_engine) as db:
        found = (await db.execute(select(schema.usage_records))).mappings().all()
    assert {row["id"]: dict(row) for row in found} == {row["id"]: row for row in many}
    with pytest.raises(IntegrityError):
        async with writing(fresh_engine) as db:
            await insert_many(db, schema.usage_records, _COLUMNS, [_values(many[0])] * 2)


async def test_what_is_done_at_once_is_a_transaction(fresh_engine: AsyncEngine) -> None:
    async def count(db: AsyncConnection) -> int:
        return int((await db.execute(select(func.count()).select_from(schema.usage_records))).scalar_one())

    async def write(db: AsyncConnection) -> int:
        await insert_many(db, schema.usage_records, _COLUMNS, [_values(_row(record("r1"), None))])
        return await count(db)

    async def regret(db: AsyncConnection) -> None:
        await write(db)
        raise Regret

    with pytest.raises(Regret):
        await at_once(fresh_engine, regret)
    assert await at_once(fresh_engine, count, read_only=True) == 0
    assert await at_once(fresh_engine, write) == 1
    assert await at_once(fresh_engine, count, read_only=True) == 1


async def test_work_that_is_cancelled_ends_before_it_says_so(tmp_path: Path) -> None:
    runs, goes_on = threading.Event(), threading.Event()
    engine = create_engine(f"sqlite:///{tmp_path / 'farebox.db'}")

    async def write(db: AsyncConnection) -> None:
        await db.exec_driver_sql("CREATE TABLE made (at INTEGER)")
        runs.set()
        goes_on.wait(WITHIN_S)

    async def wait(db: AsyncConnection) -> None:
        await asyncio.sleep(0)

    writer = asyncio.create_task(at_once(engine, write))
    await asyncio.to_thread(runs.wait, WITHIN_S)
    writer.cancel()
    for _ in range(20):
        await asyncio.sleep(0)
    assert not writer.done()
    goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await writer
    async with reading(engine) as db:
        assert (await db.exec_driver_sql("SELECT count(*) FROM made")).scalar_one() == 0
    with pytest.raises(RuntimeError, match="something else than the database"):
        await at_once(engine, wait)
    await engine.dispose()


def test_a_writer_cancelled_twice_does_not_keep_the_loop_from_ending(tmp_path: Path) -> None:
    runs, goes_on = threading.Event(), threading.Event()

    def block() -> int:
        runs.set()
        return int(goes_on.wait(WITHIN_S))

    async def work() -> None:
        engine = create_engine(f"sqlite:///{tmp_path / 'farebox.db'}")

        async def write() -> None:
            async with writing(engine) as db:
                driver: Any = (await db.get_raw_connection()).driver_connection
                await driver.create_function("block", 0, block)
                await db.exec_driver_sql("SELECT block()")

        writer = asyncio.create_task(write())
        await asyncio.to_thread(runs.wait, WITHIN_S)
        # Cancelled in the statement, it waits for its connection's thread to say that it has closed; and again in that.
        for _ in range(2):
            writer.cancel()
            for _ in range(20):
                await asyncio.sleep(0)
        with contextlib.suppress(asyncio.CancelledError):
            await writer
        # The loop ends while the closing still waits for the thread, as when a process stops.
        asyncio.get_running_loop().call_soon(threading.Timer(0.2, goes_on.set).start)

    ended = threading.Thread(target=asyncio.run, args=(work(),), daemon=True)
    ended.start()
    ended.join(WITHIN_S)
    assert not ended.is_alive()
    assert runs.is_set()
