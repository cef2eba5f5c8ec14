"""Requests as files, and out of the database after their time: nothing that was made of them changes."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from arro3.core import Table
from arro3.io import read_parquet
from sqlalchemy import func, insert, select
from sqlalchemy.ext.asyncio import AsyncEngine

from billing import accounts, archive, days, ledger, schema, statements, sums
from billing.accounts import Scope
from billing.archive import Form, retain
from billing.db import reading, writing
from billing.invoices import invoice
from billing.pricelist import load_prices, set_price
from billing.sums import NS_PER_DAY, Dimension, Span
from billing.usage import Meter
from billing.worker import post_unpriced
from tests.billing.make import SALE, record
from tests.billing.test_sums import DAY, MIDNIGHT_NS, rows_of, ship, some

PRICED = {Meter.INPUT_TOKENS: 7, Meter.OUTPUT_TOKENS: 1, Meter.REQUESTS: 1}
NOW_NS = MIDNIGHT_NS + 3 * NS_PER_DAY


def read(path: Path) -> list[dict[str, Any]]:
    """What is in the file, in the types of the database."""
    if path.suffix == ".parquet":
        table = Table(read_parquet(str(path)))
        columns = {name: table[name].to_pylist() for name in table.column_names}
        found = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    else:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
        found = [dict(row) for row in csv.DictReader(text.splitlines())]
        for row in found:
            for column in schema.usage_records.c:
                value = row[column.name]
                kind = column.type.python_type
                row[column.name] = None if value == "" and column.nullable else kind(value) if kind is int else value
                if kind is bool:
                    row[column.name] = value == "1"
    for row in found:
        row["quantities"], row["tags"] = json.loads(row["quantities"]), json.loads(row["tags"])
    return found


@pytest.mark.parametrize("form", ["csv", "parquet"])
async def test_files_have_every_request_and_everything_of_it(
    fresh_engine: AsyncEngine, tmp_path: Path, form: Form, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "_CHUNK", 7)  # Several, and instants that several rows share.
    records = [*some(50), *(record(f"same{n}", at_ns=MIDNIGHT_NS, alias='=1+"x",\n;é') for n in range(20))]
    await ship(fresh_engine, tmp_path / "journal", records)
    expected = sorted(await rows_of(fresh_engine), key=lambda row: (row["at_ns"], row["id"]))
    one = tmp_path / f"all.{form}"
    async with reading(fresh_engine) as db:
        assert await archive.write(db, one, 0, 2**62, form) == 70
        part = await archive.write(db, tmp_path / f"part.{form}", MIDNIGHT_NS, MIDNIGHT_NS + 1, form)
        files = await archive.write_days(db, tmp_path / "days", 0, 2**62, form)
    if form == "parquet":
        assert read(one) == expected
    else:  # A CSV tells no line feed in a name from one between lines; the csv module does.
        with one.open(newline="") as file:
            assert [row["id"] for row in csv.DictReader(file)] == [row["id"] for row in expected]
    assert part == 20 + sum(r["at_ns"] == MIDNIGHT_NS for r in expected if not r["id"].startswith("same"))
    assert len(files) == len({row["at_ns"] // NS_PER_DAY for row in expected})
    assert not list(tmp_path.glob("**/.usage*"))


async def test_after_their_time_rows_go_and_nothing_that_was_made_of_them(
    fresh_engine: AsyncEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "_DELETED_AT_ONCE", 10)
    await ship(fresh_engine, tmp_path / "journal", [
        record(f"r{n}", at_ns=MIDNIGHT_NS + (n % 4 - 3) * NS_PER_DAY + n, quantities=PRICED, end_user=f"u{n % 3}",
               first_token_ms=n, tags=("red", "blue") if n % 2 else ()) for n in range(100)
    ])  # fmt: skip
    async with writing(fresh_engine) as db:
        await db.execute(insert(schema.organisations).values(id="org_1", name="One", created_at_ns=1))
        await accounts.create_project(db, "project_1", "org_1", "Project", at_ns=1)
    # Not sealed: nothing goes.
    assert await retain(fresh_engine, days=2, now_ns=NOW_NS, archive=tmp_path / "a") == 0
    await days.seal_due(fresh_engine, now_ns=NOW_NS)
    before = await told(fresh_engine)
    assert before["spent_provider"] == before["spent_model"] == before["spent"] == 100 * price()
    assert (before["spent_tag"], before["spent_user"], before["spent_most"]) == (
        50 * price(),
        33 * price(),
        34 * price(),
    )
    kept = await rows_of(fresh_engine)
    # Three days are older than three before the last one.
    assert await retain(fresh_engine, days=3, now_ns=NOW_NS, archive=tmp_path / "a") == 3
    assert await retain(fresh_engine, days=3, now_ns=NOW_NS, archive=tmp_path / "a") == 0
    left = await rows_of(fresh_engine)
    assert len(left) == 25
    assert await told(fresh_engine) == before
    archived = [row for path in sorted((tmp_path / "a").iterdir()) for row in read(path)]
    gone = [row for row in kept if row not in left]
    assert archived == sorted(gone, key=lambda row: (row["at_ns"], row["id"]))
    # Late ones, of a day whose rows are gone: charged and counted, and nothing is counted twice.
    await ship(fresh_engine, tmp_path / "late", [record("late", at_ns=MIDNIGHT_NS - 3 * NS_PER_DAY, quantities=PRICED)])
    one = record("late").quantities
    assert one
    after = await told(fresh_engine)
    assert after["spent"] == before["spent"] + price()
    assert after["requests"] == before["requests"] == 100  # The day itself is made anew by the next sealing.
    await days.rebuild(fresh_engine, now_ns=NOW_NS)
    assert (await told(fresh_engine))["spent"] == before["spent"] + price()
    assert await retain(fresh_engine, days=3, now_ns=NOW_NS) == 0
    assert len(await rows_of(fresh_engine)) == 25


def price() -> int:
    return 7 * SALE[Meter.INPUT_TOKENS] + SALE[Meter.OUTPUT_TOKENS]


async def told(engine: AsyncEngine) -> dict[str, Any]:
    span = Span(MIDNIGHT_NS - 5 * NS_PER_DAY, NOW_NS)
    async with reading(engine) as db:
        return {
            "requests": (await sums.totals(db, span, {})).requests,
            "users": await sums.groups(db, Dimension.END_USER, span, {}),
            "waits": await sums.waits(db, span),
            "spent_user": await statements.spent(db, Scope.END_USER, "project_1", end_user="u1"),
            "spent_most": await statements.spent(db, Scope.END_USER, "project_1"),
            "spent_model": await statements.spent(db, Scope.MODEL, "project_1/gp*"),
            "spent_provider": await statements.spent(db, Scope.PROVIDER, "org_1/openai"),
            "spent_tag": await statements.spent(db, Scope.TAG, "org_1/red"),
            "spent": await statements.spent(db, Scope.KEY, "key_1"),
            "spent_late": await statements.spent(db, Scope.ORGANISATION, "org_1", since_ns=MIDNIGHT_NS - NS_PER_DAY),
            "sound": (await ledger.trial_balance(db)).sound,
            "invoice": (await invoice(db, "org_1", "2026-11")).differing_pusd if await _late(db) else 0,
        }


async def _late(db: Any) -> bool:
    found = await db.execute(select(func.count()).select_from(schema.usage_records).where(
        schema.usage_records.c.id == "late"))  # fmt: skip
    return bool(found.scalar_one())


async def test_a_day_in_which_something_waits_stays(fresh_engine: AsyncEngine, tmp_path: Path) -> None:
    unpriced = record("r1", at_ns=MIDNIGHT_NS, quantities={Meter.PAGES: 3})
    await ship(fresh_engine, tmp_path / "journal", [unpriced, record("r2", at_ns=MIDNIGHT_NS, quantities=PRICED)])
    await days.seal_due(fresh_engine, now_ns=NOW_NS)
    assert await retain(fresh_engine, days=2, now_ns=NOW_NS) == 0
    async with writing(fresh_engine) as db:
        await set_price(db, "openai", "gpt-test", {Meter.PAGES: 5}, {Meter.PAGES: 4}, at_ns=1)
        assert (await post_unpriced(db, await load_prices(db), at_ns=NOW_NS)).total() == 1
        await db.execute(insert(schema.export_queue).values(export="x", record_id="r2", due_ns=0))
    assert await retain(fresh_engine, days=2, now_ns=NOW_NS) == 0  # Its seal is off.
    await days.seal_due(fresh_engine, now_ns=NOW_NS)
    assert await retain(fresh_engine, days=2, now_ns=NOW_NS) == 0
    async with writing(fresh_engine) as db:
        await db.execute(schema.export_queue.delete())
    assert await retain(fresh_engine, days=2, now_ns=NOW_NS) == 1
    assert await rows_of(fresh_engine) == []
    async with reading(fresh_engine) as db:
        assert await statements.spent(db, Scope.PROJECT, "project_1") == 15 + price()
        pruned = (await db.execute(select(schema.usage_sealed.c.day).where(schema.usage_sealed.c.pruned))).scalars()
        assert list(pruned) == [DAY]
    # So does what comes after the day has gone: it would never be charged, and nobody would hear of it.
    late = [record("r3", at_ns=MIDNIGHT_NS, quantities={Meter.PAGES: 1, Meter.SEARCHES: 1}),
            record("r4", at_ns=MIDNIGHT_NS, quantities=PRICED)]  # fmt: skip
    await ship(fresh_engine, tmp_path / "late", late)
    async with writing(fresh_engine) as db:
        await db.execute(insert(schema.export_queue).values(export="x", record_id="r4", due_ns=0))
    for then in (schema.export_queue.delete(), schema.usage_records.update().values(charge_pusd=1)):
        await retain(fresh_engine, days=2, now_ns=NOW_NS)
        assert len(await rows_of(fresh_engine)) == 2
        async with writing(fresh_engine) as db:
            await db.execute(then)
    await retain(fresh_engine, days=2, now_ns=NOW_NS)
    assert await rows_of(fresh_engine) == []


async def test_where_the_file_can_not_be_written_the_rows_stay(fresh_engine: AsyncEngine, tmp_path: Path) -> None:
    await ship(fresh_engine, tmp_path / "journal", [record("r1", at_ns=MIDNIGHT_NS, quantities=PRICED)])
    await days.seal_due(fresh_engine, now_ns=NOW_NS)
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError):
        await retain(fresh_engine, days=2, now_ns=NOW_NS, archive=tmp_path / "file")
    assert len(await rows_of(fresh_engine)) == 1
