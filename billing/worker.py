"""Ships journals into SQL: usage rows, transfers and the read offset in one transaction, each record once.

Any number of workers may run at once. One run of a journal is shipped by whoever holds its ship lock; beneath that the
offset moves by compare-and-set and a record's id is unique (billing.partitions), so even without the lock nothing
doubles.
"""

import asyncio
import fcntl
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

from sqlalchemy import bindparam, delete, insert, select, update
from sqlalchemy.engine import RowMapping
from sqlalchemy.exc import SQLAlchemyError

from billing import exports, journal, ledger, partitions, rollups, schema
from billing.db import AsyncConnection, AsyncEngine, at_once, insert_many, writing
from billing.errors import UnknownPrice
from billing.money import MAX_AMOUNT_PUSD
from billing.pricelist import load_sheet
from billing.prices import PriceBook, PriceSheet
from billing.rating import Charge, charge
from billing.usage import (
    Intent,
    Meter,
    OrphanPolicy,
    Outcome,
    UsageRecord,
    input_tokens_total,
    output_tokens_total,
    settle_orphan,
)

log = logging.getLogger(__name__)

# Records in one transaction.
BATCH: Final = 400

# Records in a transaction, with which the next one waits twice as long.
FEW: Final = 32

_LOCK_POLL_S: Final = 0.005  # flock has no waiting that an event loop could await.


class OffsetMoved(Exception):
    """Somebody else has shipped these records meanwhile. Nothing was written."""


class Worker:
    """Reads `journal_dir`, writes to `engine`; owns neither."""

    def __init__(
        self,
        journal_dir: Path,
        engine: AsyncEngine,
        prices: PriceBook,
        *,
        orphans: OrphanPolicy = OrphanPolicy.WHOLE_ESTIMATE,
        exports: Sequence[str] = (),
        idle_s: float = 0.2,
        retry_s: float = 5.0,
    ) -> None:
        """exports: names of the queues of billing.exports that each row goes into. idle_s: between two looks while
        much comes; twice that while little does."""
        self._directory = journal_dir
        self._engine = engine
        self._prices = prices
        self._late_prices: dict[str, PriceSheet] = {}
        self._orphans = orphans
        self._exports = exports
        self._idle_s = idle_s
        self._retry_s = retry_s
        # How far living runs were read. Hints: whether a record counts is decided in SQL, as is from where it is read
        # once a hint has been wrong about a run, which others ship as well then.
        self._marks: dict[Path, journal.Mark] = {}
        self._shared: set[Path] = set()
        self.shipped = 0  # For metrics, as are the next two.
        self.estimated = 0
        self.failures_in_a_row = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Ship until told to stop, and once more then. A database that is away, or a segment that can not be read, is
        logged and tried again; the journals keep what has not been shipped."""
        while True:
            stopping = stop.is_set()
            shipped = 0
            try:
                # By files alone, without a lock or a thread: it is what a gateway does all night.
                if stopping or not journal.at_rest(self._directory, self._marks):
                    shipped = await self.ship_once()
                self.failures_in_a_row = 0
            except* (SQLAlchemyError, OSError, ValueError, OffsetMoved) as group:
                self.failures_in_a_row += 1
                for error in group.exceptions:
                    log.error("usage not shipped, will try again: %s", error, exc_info=error)
            if stopping:
                return
            # Also after many: a transaction has its price, and what comes meanwhile shares the next one. The fewer
            # come, the more of each is that price; but who has asked sees the row within half a second.
            pause_s = min(self._idle_s * 2 ** (self.failures_in_a_row + (shipped < FEW)), self._retry_s)
            try:
                await asyncio.wait_for(stop.wait(), pause_s)
            except TimeoutError:
                continue

    async def ship_once(self) -> int:
        """What stands in the journals now, but for runs that another worker is just shipping. Returns: usage rows
        written, those of dead owners included.

        Raises: ExceptionGroup of what went wrong, after every run has been tried; what was shipped stays shipped."""
        return await self._ship(wait=False)

    async def recover(self) -> int:
        """Everything that stood in this folder's journals at the call is in SQL on return, whoever shipped it: for
        whoever is about to count what has been spent. Runs of dead owners are closed. Returns and raises as ship_once.

        Waits for another worker as long as that one works; the caller sets a bound."""
        return await self._ship(wait=True)

    async def _ship(self, *, wait: bool) -> int:
        shipped: int = 0
        errors: list[Exception] = []
        runs = journal.runs(self._directory)
        for gone in self._marks.keys() - set(runs):
            del self._marks[gone]
        self._shared.intersection_update(runs)
        for run in runs:
            try:
                while (new := await self._ship_if_free(run, ask=wait)) is None and wait:  # noqa: ASYNC110 - _LOCK_POLL_S
                    await asyncio.sleep(_LOCK_POLL_S)
                shipped += new or 0
            except (SQLAlchemyError, OSError, ValueError, OffsetMoved) as error:
                errors.append(error)
        if errors:
            raise ExceptionGroup("journal runs not shipped", errors)
        return shipped

    async def _ship_if_free(self, run: Path, *, ask: bool) -> int | None:
        """ask: SQL how far it has been read, whatever we remember. Returns: None, somebody else is at it."""
        with _ship_lock(run) as lock:
            match lock:
                case Lock.OURS:
                    mark = self._marks.pop(run, None)
                    return await self._ship_run(run, None if ask or run in self._shared else mark)
                case Lock.BUSY:
                    return None
                case Lock.GONE:
                    return 0

    async def _ship_run(self, run: Path, mark: journal.Mark | None) -> int:
        # Asked before reading: a run without an owner gets no more frames, so what is read then is all there is.
        alive = journal.owner_alive(run)
        shipped = 0
        segments = journal.segments(run)
        for segment in segments:
            # A segment that has a successor is complete as well.
            complete = not alive or segment != segments[-1]
            new, end = await self._ship_segment(segment, complete, mark)
            shipped += new
            if not complete:
                self._marks[run] = journal.Mark(segment, end)
            elif alive:
                # Its open intents stand at the head of the next one.
                await self._forget(run, [segment])
        if not alive:
            shipped += await self._ship_orphans(segments)
            await self._forget(run, segments)
            journal.remove_run(run)
        return shipped

    async def _ship_segment(self, segment: Path, complete: bool, mark: journal.Mark | None) -> tuple[int, int]:
        """Returns: usage rows written, and how far it has been read."""
        if mark is not None and mark.segment == segment and mark.offset > 0:
            try:
                return await self._ship_from(mark.offset, segment, complete)
            except OffsetMoved:
                self._shared.add(segment.parent)
        offset = await at_once(self._engine, partial(_offset, name=_name(segment)), read_only=True)
        return await self._ship_from(offset, segment, complete)

    async def _ship_from(self, offset: int, segment: Path, complete: bool) -> tuple[int, int]:
        """As `_ship_segment`. Raises: OffsetMoved if SQL has been elsewhere."""
        name, shipped = _name(segment), 0
        for end, entries in _batches(segment, offset, complete):
            records = [entry for entry in entries if isinstance(entry, UsageRecord)]
            new = await at_once(self._engine, partial(self._post, records=records, moves=(name, offset, end)))
            offset = end
            shipped += new
            self.shipped += new
        return shipped, offset

    async def _ship_orphans(self, segments: Sequence[Path]) -> int:
        """Intents that no segment settles. Posting one that had been settled after all changes nothing: same id."""
        intents: dict[str, Intent] = {}
        settled: set[str] = set()
        for segment in segments:
            for _, entries in _batches(segment, 0, complete=True):
                for entry in entries:
                    if isinstance(entry, Intent):
                        intents[entry.id] = entry
                    else:
                        settled.add(entry.id)
                await asyncio.sleep(0)  # A run that was never shipped may be long, and requests are being served.
        records = [settle_orphan(intent, self._orphans) for id_, intent in intents.items() if id_ not in settled]
        written = 0
        for start in range(0, len(records), BATCH):
            new = await at_once(self._engine, partial(self._post, records=records[start : start + BATCH]))
            written += new
            self.shipped += new
            self.estimated += new
        if written:
            log.warning("%d requests of a gateway that died were settled by estimate", written)
        return written

    async def _forget(self, run: Path, segments: Sequence[Path]) -> None:
        """With the offsets of all that is gone, whoever took it away: he may have died before he came to them."""
        for segment in segments:
            segment.unlink()
        ours = _offsets.segment.startswith(f"{run.name}/", autoescape=True)
        left = [_name(each) for each in journal.segments(run)]
        async with writing(self._engine) as db:
            await db.execute(delete(schema.journal_offsets).where(ours, _offsets.segment.not_in(left)))

    async def _post(
        self, db: AsyncConnection, records: Sequence[UsageRecord], moves: tuple[str, int, int] | None = None
    ) -> int:
        """Rows and transfers of those records that are not there yet. moves: a segment, from where to where it has been
        read with them. Returns: how many those were."""
        new = await _unknown(db, records)
        for price_id in {record.price_id for record in new}:
            if self._sheet(price_id) is None and (late := await load_sheet(db, price_id)) is not None:
                self._late_prices[price_id] = late
        await _write(db, [(record, self._price(record)) for record in new], self._exports)
        if moves is not None:
            await _advance(db, *moves)
        return len(new)

    def _sheet(self, price_id: str) -> PriceSheet | None:
        return self._prices.by_id(price_id) or self._late_prices.get(price_id)

    def _price(self, record: UsageRecord) -> Charge | None:
        """None: this can not be priced now. The row is written without a charge: it must neither be lost nor guessed,
        nor keep back those behind it."""
        if (sheet := self._sheet(record.price_id)) is None:
            log.error("record %s names price %s, which does not exist", record.id, record.price_id)
            return None
        if sheet.variant != record.variant:
            log.error("record %s is of tier %r and names a price of %r", record.id, record.variant, sheet.variant)
            return None
        try:
            price = charge(record.quantities, sheet)
        except (UnknownPrice, ValueError) as error:
            log.error("record %s can not be priced: %s", record.id, error)
            return None
        if max(price.sale_pusd, price.cost_pusd) > MAX_AMOUNT_PUSD:
            log.error("record %s would cost %d pUSD; taken for a wrong count", record.id, price.sale_pusd)
            return None
        return price


Charged = tuple[UsageRecord, Charge]


async def book(
    db: AsyncConnection,
    charged: Sequence[Charged],
    beside: Callable[[Sequence[Charged]], Sequence[ledger.Transfer]] = lambda new: (),
) -> list[Charged]:
    """Usage that was charged before it came here (another gateway's, samples): rows, roll-ups and transfers, of those
    that are not there yet. Nobody else is told of it. beside: what is posted along with these. Returns: those."""
    unknown = {record.id for record in await _unknown(db, [record for record, _ in charged])}
    new = [(record, charge) for record, charge in charged if record.id in unknown]
    await _write(db, new, (), beside(new))
    return new


async def post_unpriced(db: AsyncConnection, prices: PriceBook, *, at_ns: int) -> Counter[str]:
    """Charge rows that came without a price, at what is in force at `at_ns`. Returns: how many now have one, by
    organisation; those stand in `late_charges` from the commit on."""
    table = schema.usage_records
    await partitions.hold(db)
    waiting = select(table).where(table.c.charge_pusd.is_(None)).order_by(table.c.at_ns, table.c.id).with_for_update()
    priced: list[tuple[RowMapping, UsageRecord, Charge]] = []
    for row in (await db.execute(waiting)).mappings().all():
        record = _record(row)
        # The price that it was admitted at, which is that of another tier, says where it was answered.
        admitted_at = prices.by_id(record.price_id)
        try:
            sheet = prices.sheet(
                record.provider,
                record.model,
                at_ns,
                variant=record.variant,
                organisation_id=record.organisation_id,
                region=None if admitted_at is None else admitted_at.region,
            )
            price = charge(record.quantities, sheet)
        except (UnknownPrice, ValueError):
            continue
        if max(price.sale_pusd, price.cost_pusd) > MAX_AMOUNT_PUSD:
            continue
        await db.execute(
            update(table)
            .where(table.c.id == record.id, table.c.at_ns == record.at_ns)
            .values(charge_pusd=price.sale_pusd, cost_pusd=price.cost_pusd, price_id=sheet.id)
        )
        priced.append((row, record, price))
    # As shippers do: all hours, then all balances. Row by row we would hold a balance while we wait for an hour.
    await rollups.price(db, [(dict(row), price) for row, _, price in priced])
    await ledger.post_new(db, [each for _, record, price in priced for each in ledger.usage_transfers(record, price)])
    whose = Counter(record.organisation_id for _, record, _ in priced)
    if whose:
        await db.execute(insert(schema.late_charges), [{"organisation_id": each} for each in sorted(whose)])
    return whose


async def _unknown(db: AsyncConnection, records: Sequence[UsageRecord]) -> list[UsageRecord]:
    """Each id once, and only those that have no row."""
    offered: dict[str, UsageRecord] = {}
    for record in records:
        offered.setdefault(record.id, record)
    for record_id in await partitions.known(db, list(offered)):
        del offered[record_id]
    return list(offered.values())


async def _write(
    db: AsyncConnection,
    charged: Sequence[tuple[UsageRecord, Charge | None]],
    targets: Sequence[str],
    beside: Sequence[ledger.Transfer] = (),
) -> None:
    """targets: exports that are to hear of it. beside: new transfers that go along.

    Locks ids, rows, hours, seals and balances, in this order: so does whoever else changes two of these."""
    if not charged:
        return
    rows = [_row(record, price) for record, price in charged]
    await partitions.claim(db, rows)
    await insert_many(db, schema.usage_records, _COLUMNS, [_values(row) for row in rows])
    await rollups.add(db, rows)
    await exports.enqueue(db, targets, rows)
    # Made only now: each wait in between lets a gateway's own event loop look after its streams.
    transfers = [each for record, price in charged if price for each in ledger.usage_transfers(record, price)]
    await ledger.post_new(db, [*transfers, *beside])


class Lock(Enum):
    OURS = 1
    BUSY = 2
    GONE = 3  # Another worker has just finished with the run.


@contextmanager
def _ship_lock(run: Path) -> Iterator[Lock]:
    """Whoever has it ships the run alone; a dead holder's lock is gone with it."""
    try:
        file = os.open(run / journal.SHIP_LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        yield Lock.GONE
        return
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock = Lock.OURS
        except BlockingIOError:
            lock = Lock.BUSY
        yield lock
    finally:
        os.close(file)


def _batches(segment: Path, offset: int, complete: bool) -> Iterator[tuple[int, list[journal.Entry]]]:
    """Entries from `offset` on, some hundred at a time, each time with the offset after them.

    In a complete segment, what lies behind a damaged frame is read as well."""
    entries: list[journal.Entry] = []
    while True:
        for end, entry in journal.read_segment(segment, offset):
            offset = end
            entries.append(entry)
            if len(entries) == BATCH:
                yield offset, entries
                entries = []
        found = journal.next_frame(segment, offset) if complete and offset < segment.stat().st_size else None
        if found is None:
            break
        log.error("%s is damaged from byte %d to %d; what lies behind is shipped", segment, offset, found)
        offset = found
    if entries:
        yield offset, entries


def _name(segment: Path) -> str:
    """A segment's name in SQL. The run's name is random enough to be no other host's."""
    return f"{segment.parent.name}/{segment.name}"


_offsets: Final = schema.journal_offsets.c
# Made once: to make them anew for each batch of rows costs more than to run them.
_OFFSET: Final = select(_offsets.offset_bytes).where(_offsets.segment == bindparam("name"))
_ADVANCED: Final = (
    update(schema.journal_offsets)
    .where(_offsets.segment == bindparam("name"), _offsets.offset_bytes == bindparam("before"))
    .values(offset_bytes=bindparam("after"))
)


async def _offset(db: AsyncConnection, name: str) -> int:
    found = await db.execute(_OFFSET, {"name": name})
    return found.scalar_one_or_none() or 0


async def _advance(db: AsyncConnection, name: str, before: int, after: int) -> None:
    """Raises: OffsetMoved, or IntegrityError where two begin a segment at once; roll back then."""
    if before == 0:
        await db.execute(insert(schema.journal_offsets).values(segment=name, offset_bytes=after))
        return
    moved = await db.execute(_ADVANCED, {"name": name, "before": before, "after": after})
    if moved.rowcount != 1:
        raise OffsetMoved(f"{name} is no longer at byte {before}")


_COLUMNS: Final = tuple(column.name for column in schema.usage_records.columns)
_values: Final[Callable[[dict[str, Any]], tuple[Any, ...]]] = itemgetter(*_COLUMNS)


def _row(record: UsageRecord, price: Charge | None) -> dict[str, Any]:
    return {
        "id": record.id,
        "at_ns": record.at_ns,
        "organisation_id": record.organisation_id,
        "project_id": record.project_id,
        "key_id": record.key_id,
        "end_user": record.end_user and _storable(record.end_user),
        "alias": _storable(record.alias),
        "provider": record.provider,
        "model": _storable(record.model),
        "deployment": record.deployment,
        "price_id": record.price_id,
        "quantities": record.quantities,
        "input_tokens": min(input_tokens_total(record.quantities), MAX_AMOUNT_PUSD),
        "output_tokens": min(output_tokens_total(record.quantities), MAX_AMOUNT_PUSD),
        "charge_pusd": None if price is None else price.sale_pusd,
        "cost_pusd": None if price is None else price.cost_pusd,
        "hold_pusd": record.hold_pusd,
        "estimated": record.estimated,
        "outcome": record.outcome.value,
        "finish_reason": record.finish_reason and _storable(record.finish_reason),
        "first_token_ms": record.first_token_ms,
        "duration_ms": record.duration_ms,
        "status": record.status,
        "dialect": record.dialect,
        "tags": [_storable(tag) for tag in record.tags],
        "attempts": record.attempts,
        "upstream_id": record.upstream_id and _storable(record.upstream_id),
        "variant": _storable(record.variant),
        "way": record.way and _storable(record.way),
    }


def _record(row: RowMapping) -> UsageRecord:
    values = {name: row[name] for name in UsageRecord.__struct_fields__}
    values["quantities"] = {Meter(name): quantity for name, quantity in row["quantities"].items()}
    values["outcome"] = Outcome(row["outcome"])
    values["tags"] = tuple(row["tags"])
    return UsageRecord(**values)


def _storable(text: str) -> str:
    """PostgreSQL refuses U+0000 in a text, and a client's text must not stop everybody's billing."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")
