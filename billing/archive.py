"""Single requests as files, and out of the database after their time: CSV, or Parquet with the `parquet` extra.

What was made of the rows stays: hours, days, ledger, invoices. A day goes only after it was sealed, when nothing in it
waits for a price or for an export, and after its file is on the disk where an archive is wanted.
"""

import asyncio
import csv
import gzip
import io
import os
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from sqlalchemy import BigInteger, Boolean, ColumnElement, Integer, and_, delete, exists, or_, select, tuple_, update

from billing import partitions, schema
from billing.db import AsyncConnection, AsyncEngine, reading, writing
from billing.statements import day_name
from billing.sums import NS_PER_DAY

Form = Literal["csv", "parquet"]
COLUMNS: Final = tuple(column.name for column in schema.usage_records.c)

_CHUNK: Final = 20_000
# Rows in one transaction when they go: on SQLite nobody else writes meanwhile.
_DELETED_AT_ONCE: Final = 5_000


class NoParquet(Exception):
    """The package that writes Parquet is not installed."""

    def __init__(self) -> None:
        super().__init__("Parquet needs the extra: pip install 'farebox[parquet]'")


async def write(db: AsyncConnection, path: Path, since_ns: int, until_ns: int, form: Form) -> int:
    """The requests of [since, until) in one file, in the order of time; the file is whole and on the disk, or not
    there. A name that ends in .gz is compressed. JSON columns are text. Returns: how many rows. Raises: NoParquet."""
    making = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        count = await (_parquet if form == "parquet" else _csv)(db, making, path.suffix == ".gz", since_ns, until_ns)
        await asyncio.to_thread(_finish, making, path)
    finally:
        await asyncio.to_thread(making.unlink, missing_ok=True)
    return count


def _finish(making: Path, path: Path) -> None:
    with making.open("rb") as file:
        os.fsync(file.fileno())
    making.replace(path)


async def write_days(db: AsyncConnection, folder: Path, since_ns: int, until_ns: int, form: Form) -> list[Path]:
    """One file for each day that has requests: usage-2026-11-23.parquet or .csv.gz. Returns: them."""
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    made = []
    hours = schema.usage_hours.c
    day = (hours.hour // 24).label("day")
    query = select(day).where(hours.hour >= since_ns // (NS_PER_DAY // 24), hours.hour * (NS_PER_DAY // 24) < until_ns)
    for (number,) in (await db.execute(query.distinct().order_by(day))).all():
        path = folder / file_name(number, form)
        start_ns, end_ns = max(since_ns, number * NS_PER_DAY), min(until_ns, (number + 1) * NS_PER_DAY)
        if await write(db, path, start_ns, end_ns, form):
            made.append(path)
    return made


def file_name(day: int, form: Form) -> str:
    return f"usage-{day_name(day)}.{'parquet' if form == 'parquet' else 'csv.gz'}"


async def retain(
    engine: AsyncEngine, *, days: int, now_ns: int, archive: Path | None = None, form: Form = "csv"
) -> int:
    """Let go of days that ended more than `days` days ago. Returns: how many went; those in which a request waits for
    a price or for an export, or that are not sealed, stay, and so do rows that came after their day had gone and wait
    for one of these. Raises: NoParquet, OSError: then the day stays as well."""
    sealed = schema.usage_sealed
    before = now_ns // NS_PER_DAY - days
    async with reading(engine) as db:
        query = select(sealed.c.day).where(sealed.c.day < before, sealed.c.pruned.is_(False)).order_by(sealed.c.day)
        due = list((await db.execute(query)).scalars())
    gone = 0
    for day in due:
        gone += await _let_go(engine, day, archive, form)
    rows = schema.usage_records.c
    async with reading(engine) as db:
        # Of a run that was killed in between, or shipped when their day was gone already.
        left = exists().where(_of_day(rows, sealed.c.day))
        query = select(sealed.c.day).where(sealed.c.pruned.is_(True), left)
        late = list((await db.execute(query)).scalars())
    for day in late:
        async with reading(engine) as db:
            waits = await _waits(db, day)
        if not waits:
            await _remove(engine, day)
    return gone


async def _let_go(engine: AsyncEngine, day: int, archive: Path | None, form: Form) -> bool:
    sealed = schema.usage_sealed
    async with reading(engine) as db:
        if await _waits(db, day):
            return False
        if archive is not None:
            await asyncio.to_thread(archive.mkdir, parents=True, exist_ok=True)
            await write(db, archive / file_name(day, form), day * NS_PER_DAY, (day + 1) * NS_PER_DAY, form)
    async with writing(engine) as db:
        # From here on sums over this day never ask its rows. Not if a late row has just taken the seal off.
        marked = await db.execute(
            update(sealed).where(sealed.c.day == day, sealed.c.pruned.is_(False)).values(pruned=True)
        )
        if not marked.rowcount:
            return False
    await _remove(engine, day)
    return True


async def _waits(db: AsyncConnection, day: int) -> bool:
    """Whether one of its requests has no price yet, or an export has not heard of it."""
    rows = schema.usage_records.c
    untold = exists().where(schema.export_queue.c.record_id == rows.id)
    waiting = select(rows.id).where(_of_day(rows, day), or_(rows.charge_pusd.is_(None), untold)).limit(1)
    return (await db.execute(waiting)).first() is not None


async def _remove(engine: AsyncEngine, day: int) -> None:
    """Raises: DBAPIError while somebody reads what is to be dropped; the next `retain` tries again."""
    if not await partitions.drop_day(engine, day):
        await _delete_rows(engine, day)


async def _delete_rows(engine: AsyncEngine, day: int) -> None:
    rows, queue, went = schema.usage_records, schema.export_queue, _DELETED_AT_ONCE
    while went == _DELETED_AT_ONCE:
        async with writing(engine) as db:
            await partitions.hold(db)
            some = (
                select(rows.c.id).where(_of_day(rows.c, day)).order_by(rows.c.at_ns, rows.c.id).limit(_DELETED_AT_ONCE)
            )
            await db.execute(delete(queue).where(queue.c.record_id.in_(some)))
            await partitions.forget(db, some)
            went = (await db.execute(delete(rows).where(rows.c.id.in_(some), _of_day(rows.c, day)))).rowcount


def _of_day(rows: Any, day: Any) -> ColumnElement[bool]:
    return and_(rows.at_ns >= day * NS_PER_DAY, rows.at_ns < (day + 1) * NS_PER_DAY)


async def _chunks(db: AsyncConnection, since_ns: int, until_ns: int) -> AsyncIterator[Sequence[Sequence[Any]]]:
    """By position, not by offset: each chunk costs the same."""
    table = schema.usage_records.c
    at = (since_ns, "")
    while True:
        query = (
            select(schema.usage_records)
            .where(table.at_ns >= at[0], table.at_ns < until_ns, tuple_(table.at_ns, table.id) > at)
            .order_by(table.at_ns, table.id)
            .limit(_CHUNK)
        )
        found = (await db.execute(query)).all()
        if found:
            yield found
        if len(found) < _CHUNK:
            return
        at = (found[-1].at_ns, found[-1].id)


async def _csv(db: AsyncConnection, path: Path, compressed: bool, since_ns: int, until_ns: int) -> int:
    count = 0

    def write_rows(rows: Sequence[Sequence[Any]]) -> None:
        # A gateway may do this beside its requests: not in its event loop.
        file.write(_lines([[_plain(value) for value in row] for row in rows]))

    with path.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) if compressed else raw as file:
        write_rows([COLUMNS])
        async for found in _chunks(db, since_ns, until_ns):
            await asyncio.to_thread(write_rows, found)
            count += len(found)
    return count


def _lines(rows: Sequence[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerows(rows)
    return text.getvalue().encode()


def _plain(value: Any) -> Any:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, dict | list):
        return msgspec.json.encode(value).decode()
    return value


async def _parquet(db: AsyncConnection, path: Path, compressed: bool, since_ns: int, until_ns: int) -> int:
    try:
        from arro3.core import Array, DataType, Field, RecordBatch, RecordBatchReader, Schema
        from arro3.io import write_parquet
    except ImportError as error:
        raise NoParquet from error
    kinds = {
        column.name: _kind(column.type, DataType.int64, DataType.bool, DataType.utf8)()
        for column in schema.usage_records.c
    }
    table = Schema([Field(name, kind, nullable=True) for name, kind in kinds.items()])

    def batch(rows: Sequence[Sequence[Any]]) -> Any:
        columns = zip(zip(*rows, strict=True), kinds.values(), strict=True)
        arrays = [Array([_text(value) for value in column], kind) for column, kind in columns]
        return RecordBatch.from_arrays(arrays, schema=table)

    batches, count = [], 0
    async for found in _chunks(db, since_ns, until_ns):
        batches.append(await asyncio.to_thread(batch, found))
        count += len(found)
    reader = RecordBatchReader.from_batches(table, batches)
    await asyncio.to_thread(write_parquet, reader, str(path), compression="zstd(3)")
    return count


def _kind(column: Any, whole: Callable[[], Any], truth: Callable[[], Any], text: Callable[[], Any]) -> Any:
    if isinstance(column, Boolean):
        return truth
    return whole if isinstance(column, BigInteger | Integer) else text


def _text(value: Any) -> Any:
    return msgspec.json.encode(value).decode() if isinstance(value, dict | list) else value
