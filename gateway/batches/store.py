"""Files, batches and their lines in SQL. Every method is one transaction; what one of several gateways does here the
others see. Rows of one project are invisible to every other."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any, Final, Protocol

import msgspec
from msgspec import Struct
from sqlalchemy import Row, and_, case, delete, func, insert, or_, select, update

from billing.db import AsyncConnection, AsyncEngine, at_once, reading, writing
from billing.schema import usage_records
from gateway import schema
from gateway.batches.forms import Unrun
from gateway.batches.lines import BACKGROUND, ENDPOINTS, Fault, Line

PIECE_BYTES: Final = 1024 * 1024
_ROWS_AT_ONCE: Final = 200
_files: Final = schema.files
_pieces: Final = schema.file_pieces
_batches: Final = schema.batches
_lines: Final = schema.batch_lines
RESULTS: Final = "message_batch_results"
"""The purpose of a file that only its batch's own path shows."""
# A line's life.
WAITING, RUNNING, DONE = "waiting", "running", "done"
LIVE: Final = ("in_progress", "cancelling", "finalizing")


class Work(Struct, frozen=True):
    """A line to run. tries: how often somebody began it before. metadata: of its batch."""

    batch_id: str
    number: int
    custom_id: str
    body: bytes
    endpoint: str
    key_id: str
    tries: int
    metadata: bytes | None = None


class Blobs(Protocol):
    """Where the bytes of files lie. Another home for them (a bucket, a shared folder) need only speak this."""

    async def put(self, ident: str, pieces: AsyncIterator[bytes]) -> int:
        """Replaces what was there. Returns: bytes."""

    def read(self, ident: str) -> AsyncIterator[bytes]: ...

    async def remove(self, idents: Sequence[str]) -> None: ...


class SqlBlobs:
    """In rows of a megabyte: every gateway reaches them, and a backup of the database has them."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def put(self, ident: str, pieces: AsyncIterator[bytes]) -> int:
        await self.remove([ident])
        held, place, size = bytearray(), 0, 0
        async for piece in pieces:
            held += piece
            while len(held) >= PIECE_BYTES:
                await self._write(ident, place, bytes(held[:PIECE_BYTES]))
                del held[:PIECE_BYTES]
                place, size = place + 1, size + PIECE_BYTES
        if held:
            await self._write(ident, place, bytes(held))
        return size + len(held)

    async def read(self, ident: str) -> AsyncIterator[bytes]:
        place = 0
        while True:
            wanted = select(_pieces.c.data).where(_pieces.c.file_id == ident, _pieces.c.place == place)
            async with reading(self._engine) as db:
                data = (await db.execute(wanted)).scalar_one_or_none()
            if data is None:
                return
            yield data
            place += 1

    async def remove(self, idents: Sequence[str]) -> None:
        async with writing(self._engine) as db:
            await db.execute(delete(_pieces).where(_pieces.c.file_id.in_(idents)))

    async def _write(self, ident: str, place: int, data: bytes) -> None:
        async with writing(self._engine) as db:
            await db.execute(insert(_pieces).values(file_id=ident, place=place, data=data))


class Store:
    def __init__(self, engine: AsyncEngine, blobs: Blobs | None = None) -> None:
        self._engine = engine
        self.blobs: Blobs = blobs or SqlBlobs(engine)

    # Files.

    async def add_file(self, row: dict[str, Any]) -> None:
        """Its bytes are there already. Said twice, it stands once."""
        async with writing(self._engine) as db:
            await db.execute(delete(_files).where(_files.c.id == row["id"]))
            await db.execute(insert(_files).values(row))

    async def file(self, project_id: str, ident: str, now_ns: int) -> Row[Any] | None:
        mine = and_(_files.c.project_id == project_id, _files.c.id == ident, _files.c.expires_at_ns > now_ns)
        return await self._one(select(_files).where(mine))

    async def files(self, project_id: str, now_ns: int, after: str | None, limit: int, purpose: str) -> list[Row[Any]]:
        wanted = select(_files).where(_files.c.project_id == project_id, _files.c.expires_at_ns > now_ns)
        wanted = wanted.where(_files.c.purpose != RESULTS)
        if purpose:
            wanted = wanted.where(_files.c.purpose == purpose)
        return await self._page(wanted, _files, after, limit)

    async def forget_file(self, project_id: str, ident: str) -> bool:
        async with writing(self._engine) as db:
            gone = delete(_files).where(_files.c.project_id == project_id, _files.c.id == ident)
            found = (await db.execute(gone)).rowcount > 0
        if found:
            await self.blobs.remove([ident])
        return found

    async def forget_expired(self, now_ns: int) -> int:
        """Returns: how many files are gone."""
        async with reading(self._engine) as db:
            old = (await db.execute(select(_files.c.id).where(_files.c.expires_at_ns <= now_ns).limit(100))).scalars()
            idents = list(old)
        if idents:
            await self.blobs.remove(idents)
            async with writing(self._engine) as db:
                await db.execute(delete(_files).where(_files.c.id.in_(idents)))
        return len(idents)

    # Batches.

    async def add_batch(self, row: dict[str, Any], lines: Sequence[Line]) -> None:
        async with writing(self._engine) as db:
            await db.execute(insert(_batches).values(row))
            for start in range(0, len(lines), _ROWS_AT_ONCE):
                part = enumerate(lines[start : start + _ROWS_AT_ONCE], start + 1)
                await db.execute(
                    insert(_lines),
                    [
                        {"batch_id": row["id"], "number": n, "custom_id": line.custom_id, "body": line.body}
                        for n, line in part
                    ],
                )

    async def batch(self, project_id: str, ident: str) -> Row[Any] | None:
        return await self._one(select(_batches).where(_batches.c.project_id == project_id, _batches.c.id == ident))

    async def batches(
        self, project_id: str, after: str | None, limit: int, endpoint: str | None = None, before: str | None = None
    ) -> list[Row[Any]]:
        """endpoint: of Anthropic's batches; None: OpenAI's."""
        kind = _batches.c.endpoint.in_(ENDPOINTS) if endpoint is None else _batches.c.endpoint == endpoint
        wanted = select(_batches).where(_batches.c.project_id == project_id, kind)
        return await self._page(wanted, _batches, after, limit, before)

    async def forget_batch(self, project_id: str, ident: str) -> None:
        """One that has ended, and what came of it."""
        row = await self.batch(project_id, ident)
        if row is None:
            return
        if row.output_file_id is not None:
            await self.forget_file(project_id, row.output_file_id)
        async with writing(self._engine) as db:
            await db.execute(delete(_batches).where(_batches.c.project_id == project_id, _batches.c.id == ident))

    async def counts(self, ident: str) -> tuple[int, int]:
        """Lines that went well and lines that did not, of a batch that still has its lines."""
        async with reading(self._engine) as db:
            good = func.coalesce(func.sum(case((_lines.c.good.is_(True), 1), else_=0)), 0)
            done = select(func.count(), good).where(_lines.c.batch_id == ident, _lines.c.state == DONE)
            total, well = (await db.execute(done)).one()
        return int(well), int(total) - int(well)

    async def ask_to_cancel(self, ident: str, now_ns: int) -> None:
        async with writing(self._engine) as db:
            running = and_(_batches.c.id == ident, _batches.c.status == "in_progress")
            await db.execute(update(_batches).where(running).values(status="cancelling", cancelling_at_ns=now_ns))

    # Work.

    async def any_live(self) -> bool:
        """Without a write: asked every second by every process."""
        return await at_once(self._engine, _any_live, read_only=True)

    async def take(self, owner: str, count: int, lease_ns: int, now_ns: int) -> list[Work]:
        """Lines that nobody runs, or whose runner has not been heard of: first what somebody waits for, then the
        oldest batch."""
        free = or_(
            and_(_lines.c.state == WAITING, _lines.c.not_before_ns <= now_ns),
            and_(_lines.c.state == RUNNING, _lines.c.lease_until_ns <= now_ns),
        )
        wanted = (
            select(_lines, _batches.c.endpoint, _batches.c.key_id, _batches.c.metadata)
            .join(_batches, _batches.c.id == _lines.c.batch_id)
            .where(_batches.c.status == "in_progress", _batches.c.expires_at_ns > now_ns, free)
            .order_by(case((_batches.c.endpoint == BACKGROUND, 0), else_=1), _batches.c.created_at_ns, _lines.c.number)
            .limit(count)
            .with_for_update(of=_lines, skip_locked=True)
        )
        async with writing(self._engine) as db:
            found = (await db.execute(wanted)).all()
            for row in found:
                mine = {"state": RUNNING, "owner": owner, "lease_until_ns": now_ns + lease_ns, "tries": row.tries + 1}
                await db.execute(_this(row.batch_id, row.number).values(mine))
        return [
            Work(row.batch_id, row.number, row.custom_id, row.body, row.endpoint, row.key_id, row.tries, row.metadata)
            for row in found
        ]

    async def renew(self, owner: str, lease_ns: int, now_ns: int) -> None:
        mine = and_(_lines.c.owner == owner, _lines.c.state == RUNNING)
        async with writing(self._engine) as db:
            await db.execute(update(_lines).where(mine).values(lease_until_ns=now_ns + lease_ns))

    async def finish_line(self, owner: str, work: Work, result: bytes, good: bool) -> bool:
        """Returns: False if somebody else has taken the line over meanwhile; then theirs counts."""
        mine = _this(work.batch_id, work.number).where(_lines.c.owner == owner, _lines.c.state == RUNNING)
        async with writing(self._engine) as db:
            done = await db.execute(mine.values(state=DONE, good=good, result=result, body=b""))
        return done.rowcount > 0

    async def put_back(self, owner: str, work: Work, not_before_ns: int) -> None:
        """It has not been run, so it counts as not begun."""
        mine = _this(work.batch_id, work.number).where(_lines.c.owner == owner, _lines.c.state == RUNNING)
        async with writing(self._engine) as db:
            await db.execute(mine.values(state=WAITING, owner=None, not_before_ns=not_before_ns, tries=work.tries))

    async def end_overdue(self, now_ns: int, say: Callable[[Unrun, str, str, str], bytes]) -> None:
        """What still waits in a batch that is cancelled is dropped; in one past its time it becomes an error line.

        say: code, endpoint, batch id and custom id -> the line."""
        over = and_(_batches.c.status == "in_progress", _batches.c.expires_at_ns <= now_ns)
        wanted = (
            select(_lines.c.batch_id, _lines.c.number, _lines.c.custom_id, _batches.c.status, _batches.c.endpoint)
            .join(_batches, _batches.c.id == _lines.c.batch_id)
            .where(or_(over, _batches.c.status == "cancelling"))
            .where(or_(_lines.c.state == WAITING, and_(_lines.c.state == RUNNING, _lines.c.lease_until_ns <= now_ns)))
            .limit(1000)
            # Whoever is just ending one, late, has answered it: his answer stands.
            .with_for_update(of=_lines, skip_locked=True)
        )
        async with writing(self._engine) as db:
            for row in (await db.execute(wanted)).all():
                code: Unrun = "batch_cancelled" if row.status == "cancelling" else "batch_expired"
                line = say(code, row.endpoint, row.batch_id, row.custom_id)
                await db.execute(_this(row.batch_id, row.number).values(state=DONE, good=False, result=line, body=b""))

    async def take_finished(self, owner: str, lease_ns: int, now_ns: int) -> Row[Any] | None:
        """A batch all of whose lines are done, to be closed by this owner alone."""
        unfinished = select(_lines.c.number).where(_lines.c.batch_id == _batches.c.id, _lines.c.state != DONE)
        wanted = (
            select(_batches)
            .where(_batches.c.status.in_(LIVE), _batches.c.lease_until_ns <= now_ns, ~unfinished.exists())
            .order_by(_batches.c.created_at_ns)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        async with writing(self._engine) as db:
            row = (await db.execute(wanted)).one_or_none()
            if row is None:
                return None
            ending = {"lease_until_ns": now_ns + lease_ns, "owner": owner}
            if row.status == "in_progress" and row.expires_at_ns > now_ns:
                ending |= {"status": "finalizing", "finalizing_at_ns": now_ns}
            await db.execute(update(_batches).where(_batches.c.id == row.id).values(ending))
        return row

    async def results(self, ident: str, good: bool | None) -> AsyncIterator[bytes]:
        """The lines of an output file, in the order of the input. good: None for all of them."""
        last = 0
        while True:
            wanted = (
                select(_lines.c.number, _lines.c.result, _lines.c.good)
                .where(_lines.c.batch_id == ident, _lines.c.number > last)
                .order_by(_lines.c.number)
                .limit(_ROWS_AT_ONCE)
            )
            async with reading(self._engine) as db:
                found = (await db.execute(wanted)).all()
            if not found:
                return
            for row in found:
                last = row.number
                if good is None or row.good is good:
                    yield row.result + b"\n"

    async def close_batch(self, ident: str, owner: str, values: dict[str, Any]) -> None:
        """Its lines have become files."""
        async with writing(self._engine) as db:
            mine = update(_batches).where(_batches.c.id == ident, _batches.c.owner == owner)
            if (await db.execute(mine.values(values))).rowcount:
                await db.execute(delete(_lines).where(_lines.c.batch_id == ident))

    async def charged(self, request_id: str) -> str | None:
        """How a request of that id ended, if it stands in the ledger's rows."""
        rows = usage_records
        async with reading(self._engine) as db:
            return (await db.execute(select(rows.c.outcome).where(rows.c.id == request_id))).scalar_one_or_none()

    async def _one(self, query: Any) -> Row[Any] | None:
        async with reading(self._engine) as db:
            found: Row[Any] | None = (await db.execute(query)).one_or_none()
        return found

    async def _page(
        self, query: Any, table: Any, after: str | None, limit: int, before: str | None = None
    ) -> list[Row[Any]]:
        """Newest first, one more than the limit if there are more: those behind `after`, or just before `before`."""
        order = (table.c.created_at_ns.desc(), table.c.id.desc())
        if before is not None:
            order = (table.c.created_at_ns, table.c.id)
        async with reading(self._engine) as db:
            if (cursor := before if before is not None else after) is not None:
                query = await _beyond(db, query, table, cursor, newer=before is not None)
            found = list((await db.execute(query.order_by(*order).limit(limit + 1))).all())
        if before is None:
            return found
        return [*reversed(found[:limit]), *found[limit:]]


async def _beyond(db: AsyncConnection, query: Any, table: Any, cursor: str, *, newer: bool) -> Any:
    at = (await db.execute(select(table.c.created_at_ns).where(table.c.id == cursor))).scalar_one_or_none()
    when, ident = (0 if at is None else at), table.c.id
    if newer:
        return query.where(or_(table.c.created_at_ns > when, and_(table.c.created_at_ns == when, ident > cursor)))
    return query.where(or_(table.c.created_at_ns < when, and_(table.c.created_at_ns == when, ident < cursor)))


_LIVE: Final = select(_batches.c.id).where(_batches.c.status.in_(LIVE)).limit(1)


async def _any_live(db: AsyncConnection) -> bool:
    return (await db.execute(_LIVE)).first() is not None


def _this(batch_id: str, number: int) -> Any:
    return update(_lines).where(_lines.c.batch_id == batch_id, _lines.c.number == number)


def faults_of(text: bytes | None) -> list[Fault]:
    return [] if not text else msgspec.json.decode(text, type=list[Fault])


def faults_as(faults: Iterable[Fault]) -> bytes:
    return msgspec.json.encode(list(faults))
