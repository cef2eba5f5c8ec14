"""Usage by the hour is what the rows add up to, whatever the time asked for, however the rows came and changed."""

import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from sqlalchemy import func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from billing import rollups, schema
from billing.db import reading, writing
from billing.journal import Journal
from billing.migrate import configuration
from billing.prices import PriceBook, Rates, make_sheet
from billing.rollups import NS_PER_HOUR
from billing.statements import Dimension, UsageLine, usage_by
from billing.usage import Meter
from billing.worker import Worker, post_unpriced
from tests.billing.make import AT_NS, BOOK, SALE, SHEET, record

BEGIN_NS = AT_NS // NS_PER_HOUR * NS_PER_HOUR
TIMES = [BEGIN_NS, BEGIN_NS + 1, BEGIN_NS + NS_PER_HOUR - 1, BEGIN_NS + NS_PER_HOUR, BEGIN_NS + 5 * NS_PER_HOUR // 2]
COLUMNS = {
    Dimension.KEY: "key_id", Dimension.MODEL: "model", Dimension.ALIAS: "alias", Dimension.PROVIDER: "provider",
    Dimension.PROJECT: "project_id", Dimension.ORGANISATION: "organisation_id",
}  # fmt: skip


async def ship(engine: AsyncEngine, folder: Path, count: int = 120) -> None:
    chance = random.Random(4)
    journal = Journal.open(folder, "gw")
    for number in range(count):
        # Up to some dollars each, so that the rest below a dollar carries over.
        used = {Meter.INPUT_TOKENS: chance.randrange(10**6), Meter.OUTPUT_TOKENS: 7, Meter.REQUESTS: 1}
        if chance.random() < 0.2:
            used[Meter.PAGES] = 1  # Without a price.
        await journal.settle(
            record(
                f"r{number}", at_ns=chance.choice(TIMES), key_id=f"key_{chance.randrange(3)}", quantities=used,
                alias="gpt\"\n" * chance.randrange(2) + "é", estimated=chance.random() < 0.3,
            )
        )  # fmt: skip
    await journal.close()
    assert await Worker(folder, engine, BOOK).ship_once() == count


async def rows_of(engine: AsyncEngine) -> list[dict[str, Any]]:
    async with reading(engine) as db:
        return [dict(row) for row in (await db.execute(select(schema.usage_records))).mappings()]


def added_up(rows: list[dict[str, Any]], column: str, since_ns: int, until_ns: int | None) -> list[UsageLine]:
    by: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if since_ns <= row["at_ns"] and (until_ns is None or row["at_ns"] < until_ns):
            by[row[column]].append(row)
    return [
        UsageLine(
            name=name, requests=len(found), input_tokens=sum(r["input_tokens"] for r in found),
            output_tokens=sum(r["output_tokens"] for r in found), charge_pusd=sum(r["charge_pusd"] or 0 for r in found),
            cost_pusd=sum(r["cost_pusd"] or 0 for r in found), estimated=sum(r["estimated"] for r in found),
            unpriced=sum(r["charge_pusd"] is None for r in found),
        )
        for name, found in sorted(by.items())
    ]  # fmt: skip


async def check(engine: AsyncEngine) -> None:
    rows = await rows_of(engine)
    async with reading(engine) as db:
        for dimension, column in COLUMNS.items():
            for since_ns in (0, *TIMES):
                for until_ns in (None, *TIMES):
                    found = await usage_by(db, dimension, since_ns=since_ns, until_ns=until_ns)
                    assert found == added_up(rows, column, since_ns, until_ns), (dimension, since_ns, until_ns)


async def test_any_stretch_of_time_adds_up_before_and_after_late_prices(
    fresh_engine: AsyncEngine, tmp_path: Path
) -> None:
    await ship(fresh_engine, tmp_path / "journal")
    await check(fresh_engine)
    paged = make_sheet("p2", "openai", "gpt-test", 0, Rates({**SALE, Meter.PAGES: 3}, {**SALE, Meter.PAGES: 2}), "test")
    async with writing(fresh_engine) as db:
        assert (await post_unpriced(db, PriceBook([SHEET, paged], []), at_ns=AT_NS)).total() > 0
    await check(fresh_engine)
    hours = schema.usage_hours.c
    async with reading(fresh_engine) as db:
        largest = (await db.execute(select(func.max(hours.charge_rest_pusd), func.sum(hours.unpriced)))).one()
        assert (largest[0] < 10**12, largest[1]) == (True, 0)


async def test_a_database_of_before_is_filled_by_the_migration(fresh_engine: AsyncEngine, tmp_path: Path) -> None:
    await ship(fresh_engine, tmp_path / "journal")
    async with writing(fresh_engine) as db:
        await db.run_sync(lambda connection: command.downgrade(configuration(connection), "billing_2"))
        await db.run_sync(lambda connection: command.upgrade(configuration(connection), "heads"))
    await check(fresh_engine)
    # And goes on from there in the same rows.
    async with writing(fresh_engine) as db:
        before = (await db.execute(select(func.count()).select_from(schema.usage_hours))).scalar_one()
        row = (await db.execute(select(schema.usage_records).limit(1))).mappings().one()
        copy = {**row, "id": "copy"}
        await db.execute(insert(schema.usage_records), [copy])
        await rollups.add(db, [copy])
        assert (await db.execute(select(func.count()).select_from(schema.usage_hours))).scalar_one() == before
    await check(fresh_engine)


async def test_a_transaction_that_fails_leaves_the_hours_alone(fresh_engine: AsyncEngine, tmp_path: Path) -> None:
    await ship(fresh_engine, tmp_path / "journal", count=20)
    with pytest.raises(RuntimeError):
        async with writing(fresh_engine) as db:
            row = (await db.execute(select(schema.usage_records).limit(1))).mappings().one()
            await rollups.add(db, [dict(row)])
            raise RuntimeError
    await check(fresh_engine)
    # It can fail: a row that was changed behind our back is noticed.
    async with writing(fresh_engine) as db:
        await db.execute(update(schema.usage_records).values(output_tokens=8))
    with pytest.raises(AssertionError):
        await check(fresh_engine)
