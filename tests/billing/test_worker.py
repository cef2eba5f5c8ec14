"""From journal to ledger: each record once, whatever is interrupted, repeated or done twice at a time."""

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, delete, event, func, insert, select
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from billing import db as database
from billing import journal, ledger, partitions, schema, worker
from billing.accounts import INFERENCE_COST, REVENUE, customer, payable_to
from billing.db import create_engine, reading, writing
from billing.journal import Journal, runs, segments
from billing.money import MAX_AMOUNT_PUSD
from billing.pricelist import set_price
from billing.prices import PriceBook
from billing.usage import Meter, OrphanPolicy, Outcome, UsageRecord
from billing.worker import Worker, post_unpriced
from tests.billing.make import AT_NS, BOOK, RECORD_COST_PUSD, RECORD_SALE_PUSD, SALE, SHEET, intent, record
from tests.billing.test_journal import CHILD


@pytest.fixture
async def book(tmp_path: Path) -> AsyncIterator[Journal]:
    book = Journal.open(tmp_path / "journal", "gateway")
    yield book
    await book.close()


def worker_of(tmp_path: Path, engine: AsyncEngine, **options: Any) -> Worker:
    return Worker(tmp_path / "journal", engine, BOOK, **options)


async def request(book: Journal, request_id: str, **changes: Any) -> None:
    book.intent(intent(request_id))
    await book.settle(record(request_id, **changes))


async def until(condition: Callable[[], object]) -> None:
    for _ in range(5000):
        if condition():
            return
        await asyncio.sleep(0.001)
    pytest.fail("it did not come to that")


async def rows(engine: AsyncEngine) -> dict[str, Any]:
    async with reading(engine) as db:
        found = (await db.execute(select(schema.usage_records))).mappings().all()
    return {row["id"]: row for row in found}


async def assert_sound(engine: AsyncEngine) -> None:
    """What holds after anything: debits equal credits, and the ledger says what the usage rows say."""
    async with reading(engine) as db:
        assert (await ledger.trial_balance(db)).sound
        table = schema.usage_records.c
        charged, costing = (await db.execute(select(func.sum(table.charge_pusd), func.sum(table.cost_pusd)))).one()
        balances = {balance.account: balance.normal_pusd for balance in await ledger.balances(db)}
    assert balances.get(REVENUE, 0) == int(charged or 0)
    assert balances.get(INFERENCE_COST, 0) == int(costing or 0)


async def test_a_record_becomes_a_row_and_its_postings(
    fresh_engine: AsyncEngine, tmp_path: Path, book: Journal
) -> None:
    await request(book, "r1", tags=("team-a",), first_token_ms=12, duration_ms=340, upstream_id="chatcmpl-1")
    assert await worker_of(tmp_path, fresh_engine).ship_once() == 1
    row = (await rows(fresh_engine))["r1"]
    assert (row["charge_pusd"], row["cost_pusd"]) == (RECORD_SALE_PUSD, RECORD_COST_PUSD)
    assert (row["input_tokens"], row["output_tokens"], row["tags"]) == (90, 20, ["team-a"])
    assert row["quantities"] == {"input_tokens": 90, "output_tokens": 20, "requests": 1}
    assert (row["outcome"], row["estimated"], row["upstream_id"]) == ("completed", False, "chatcmpl-1")
    async with reading(fresh_engine) as db:
        balances = {balance.account: balance.normal_pusd for balance in await ledger.balances(db)}
    assert balances == {
        customer("org_1"): -RECORD_SALE_PUSD,
        REVENUE: RECORD_SALE_PUSD,
        INFERENCE_COST: RECORD_COST_PUSD,
        payable_to("openai"): RECORD_COST_PUSD,
    }
    await assert_sound(fresh_engine)


async def test_what_goes_beyond_the_hold_is_its_own_entry(
    fresh_engine: AsyncEngine, tmp_path: Path, book: Journal
) -> None:
    await request(book, "r1", hold_pusd=RECORD_SALE_PUSD - 7)
    await worker_of(tmp_path, fresh_engine).ship_once()
    async with reading(fresh_engine) as db:
        transfers = (await db.execute(select(schema.transfers))).mappings().all()
    assert {t["id"]: t["amount_pusd"] for t in transfers} == {
        "r1:charge": RECORD_SALE_PUSD - 7,
        "r1:overrun": 7,
        "r1:cost": RECORD_COST_PUSD,
    }
    await assert_sound(fresh_engine)


async def test_a_request_that_used_nothing_has_a_row_and_no_posting(
    fresh_engine: AsyncEngine, tmp_path: Path, book: Journal
) -> None:
    await request(book, "r1", quantities={}, outcome=Outcome.REJECTED, status=400)
    assert await worker_of(tmp_path, fresh_engine).ship_once() == 1
    assert (await rows(fresh_engine))["r1"]["charge_pusd"] == 0
    async with reading(fresh_engine) as db:
        assert await ledger.balances(db) == []


async def test_shipping_goes_on_where_it_stopped_and_twice_is_once(
    fresh_engine: AsyncEngine, tmp_path: Path, book: Journal
) -> None:
    shipper = worker_of(tmp_path, fresh_engine)
    for i in range(5):
        await request(book, f"r{i}")
    assert await shipper.ship_once() == 5
    assert await shipper.ship_once() == 0
    await request(book, "r5")
    assert await shipper.ship_once() == 1
    # As after a restore of an older database, or of an older journal.
    async with writing(fresh_engine) as db:
        await db.execute(delete(schema.journal_offsets))
    assert await shipper.ship_once() == 0
    assert len(await rows(fresh_engine)) == 6
    await assert_sound(fresh_engine)


async def test_a_record_that_stands_twice_counts_once(fresh_engine: AsyncEngine, tmp_path: Path, book: Journal) -> None:
    await request(book, "r1")
    await book.settle(record("r1", quantities={Meter.INPUT_TOKENS: 5}))
    assert await worker_of(tmp_path, fresh_engine).ship_once() == 1
    assert (await rows(fresh_engine))["r1"]["charge_pusd"] == RECORD_SALE_PUSD


async def test_full_segments_go_when_they_are_shipped(fresh_engine: AsyncEngine, tmp_path: Path) -> None:
    book = Journal.open(tmp_path / "journal", "gateway", segment_bytes=2000)
    book.intent(intent("long"))
    for i in range(30):
        await request(book, f"r{i}")
    (run,) = runs(tmp_path / "journal")
    assert len(segments(run)) > 3
    assert await worker_of(tmp_path, fresh_engine).ship_once() == 30
    assert len(segments(run)) == 1
    async with reading(fresh_engine) as db:
        offsets = (await db.execute(select(schema.journal_offsets.c.segment))).scalars().all()
    assert offsets in ([], [f"{run.name}/{segments(run)[0].name}"])
    await book.close()
    # The request that was open all the while is not forgotten with the segments.
    assert await worker_of(tmp_path, fresh_engine).ship_once() == 1
    assert (await rows(fresh_engine))["long"]["outcome"] == "killed"
    assert runs(tmp_path / "journal") == []
    async with reading(fresh_engine) as db:
        assert (await db.execute(select(func.count()).select_from(schema.journal_offsets))).scalar_one() == 0
    await assert_sound(fresh_engine)


async def test_offsets_of_a_segment_whose_shipper_died_beside_it_go_with_the_next(
    fresh_engine: AsyncEngine, tmp_path: Path
) -> None:
    """Killed between taking a segment off the disk and its offset out of SQL; another folder's stay what they are."""

    async def left() -> list[str]:
        async with reading(fresh_engine) as db:
            return list((await db.execute(select(schema.journal_offsets.c.segment))).scalars())

    book = Journal.open(tmp_path / "journal", "gate_way", segment_bytes=2000)
    (run,) = runs(tmp_path / "journal")
    others = run.name.replace("_", "x") + "/00000001.seg"
    gone = [f"{run.name}/00000000.seg", others]
    async with writing(fresh_engine) as db:
        await db.execute(insert(schema.journal_offsets), [{"segment": each, "offset_bytes": 9} for each in gone])
    shipper = worker_of(tmp_path, fresh_engine)
    for i in range(10):
        await request(book, f"r{i}")
    assert await shipper.ship_once() == 10
    assert gone[0] not in await left()
    # Of a run that is over nothing but its folder may be left.
    await book.close()
    for segment in segments(run):
        segment.unlink()
    await shipper.ship_once()
    assert (runs(tmp_path / "journal"), await left()) == ([], [others])


@pytest.mark.parametrize(
    ("policy", "charged"),
    [
        (OrphanPolicy.WHOLE_ESTIMATE, 100 * SALE[Meter.INPUT_TOKENS] + 1000 * SALE[Meter.OUTPUT_TOKENS]),
        (OrphanPolicy.INPUT_ONLY, 100 * SALE[Meter.INPUT_TOKENS]),
        (OrphanPolicy.WAIVE, 0),
    ],
)
async def test_an_intent_without_settlement_is_estimated_by_policy(
    fresh_engine: AsyncEngine, tmp_path: Path, policy: OrphanPolicy, charged: int
) -> None:
    book = Journal.open(tmp_path / "journal", "gateway")
    book.intent(intent("r1"))
    await request(book, "r2")
    shipper = worker_of(tmp_path, fresh_engine, orphans=policy)
    assert await shipper.ship_once() == 1, "its gateway lives"
    await book.close()
    assert await shipper.ship_once() == 1
    assert (shipper.shipped, shipper.estimated) == (2, 1)
    row = (await rows(fresh_engine))["r1"]
    assert (row["estimated"], row["outcome"], row["charge_pusd"]) == (True, "killed", charged)
    assert await shipper.ship_once() == 0
    await assert_sound(fresh_engine)


class Crash(Exception):
    """The worker dies here."""


def engines(engine: AsyncEngine) -> list[Engine]:
    """By which a worker writes: for SQLite there is another one, for threads."""
    return [engine.sync_engine, *[each.engine for of, each in database._beside.items() if of is engine.sync_engine]]


@contextlib.contextmanager
def crash_at(engine: AsyncEngine, n: int) -> Iterator[list[str]]:
    """The n-th write from now on does not reach the database. n counts from 1; commits count as writes."""
    writes: list[str] = []

    def count(what: str) -> None:
        writes.append(what)
        if len(writes) == n:
            raise Crash

    def statement(_connection: Any, _cursor: Any, sql: str, *_: Any) -> None:
        if sql.lstrip().split()[0].upper() in ("INSERT", "UPDATE", "DELETE"):
            count(sql)

    def commit(_connection: Any) -> None:
        count("COMMIT")

    for each in engines(engine):
        event.listen(each, "before_cursor_execute", statement)
        event.listen(each, "commit", commit)
    try:
        yield writes
    finally:
        for each in engines(engine):
            event.remove(each, "before_cursor_execute", statement)
            event.remove(each, "commit", commit)


async def test_a_crash_at_every_single_write(
    fresh_engine: AsyncEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "BATCH", 2)
    made, n = 0, 0
    while True:
        n += 1
        # A run with several segments and batches, one orphan, and nobody who lives.
        book = Journal.open(tmp_path / "journal", "gateway", segment_bytes=1000)
        for i in range(4):
            await request(book, f"r{n}-{i}")
        book.intent(intent(f"orphan{n}"))
        await book.close()
        made += 5
        shipper = worker_of(tmp_path, fresh_engine)
        crashed = False
        with crash_at(fresh_engine, n):
            try:
                await shipper.ship_once()
            except Crash:
                crashed = True
        await assert_sound(fresh_engine)
        await shipper.ship_once()
        assert len(await rows(fresh_engine)) == made
        assert runs(tmp_path / "journal") == []
        await assert_sound(fresh_engine)
        if not crashed:
            break
    assert n > 20, "the fault was injected everywhere"
    found = await rows(fresh_engine)
    assert len([row for row in found.values() if row["estimated"]]) == n


@pytest.mark.parametrize("locked", [True, False], ids=["with the lock", "by the database alone"])
async def test_several_workers_at_once(
    fresh_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locked: bool
) -> None:
    if not locked:
        monkeypatch.setattr(worker, "_ship_lock", lambda _run: contextlib.nullcontext(worker.Lock.OURS))
    monkeypatch.setattr(worker, "BATCH", 7)
    book = Journal.open(tmp_path / "journal", "gateway")
    engines = [create_engine(fresh_database_url) for _ in range(3)]
    shippers = [worker_of(tmp_path, engine) for engine in engines]
    writing_on = True

    async def write() -> None:
        nonlocal writing_on
        for i in range(20):
            await asyncio.gather(*(request(book, f"r{i}-{k}") for k in range(10)))
        writing_on = False

    async def ship(shipper: Worker) -> int:
        shipped, last = 0, False
        while not last:
            last = not writing_on
            await asyncio.sleep(0)
            try:
                shipped += await shipper.ship_once()
            except* (worker.OffsetMoved, SQLAlchemyError):
                last = False  # Somebody else was faster; what was read is shipped by them.
        return shipped

    async with asyncio.TaskGroup() as group:
        group.create_task(write())
        shipping = [group.create_task(ship(shipper)) for shipper in shippers]
    assert sum(shipper.shipped for shipper in shippers) == 200
    assert sum(task.result() for task in shipping) <= 200
    assert len(await rows(engines[0])) == 200
    await assert_sound(engines[0])
    await book.close()
    for engine in engines:
        await engine.dispose()


async def test_recovery_waits_for_a_run_that_another_worker_has(
    fresh_engine: AsyncEngine, tmp_path: Path, book: Journal
) -> None:
    await request(book, "r1")
    shipper = worker_of(tmp_path, fresh_engine)
    with worker._ship_lock(book.run) as lock:
        assert lock is worker.Lock.OURS
        assert await shipper.ship_once() == 0
        recovering = asyncio.create_task(shipper.recover())
        done, _ = await asyncio.wait([recovering], timeout=4 * worker._LOCK_POLL_S)
        assert not done
    assert await recovering == 1
    assert await shipper.recover() == 0


def statements(engine: AsyncEngine) -> list[str]:
    """What the workers of this engine say to the database from now on."""
    said: list[str] = []
    for each in engines(engine):
        event.listen(each, "before_cursor_execute", lambda _connection, _cursor, sql, *_: said.append(sql))
    return said


async def test_a_worker_at_rest_asks_files_alone(
    fresh_engine: AsyncEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[bool] = []
    at_rest, stop = journal.at_rest, asyncio.Event()

    def look(*arguments: Any) -> bool:
        looks.append(at_rest(*arguments))
        return looks[-1]

    monkeypatch.setattr(journal, "at_rest", look)
    said = statements(fresh_engine)

    async def rests_after(condition: Callable[[], bool]) -> None:
        await until(condition)
        looks.clear()
        await until(lambda: looks and looks[-1])
        said.clear()
        looks.clear()
        await until(lambda: len(looks) > 2)
        assert all(looks)
        assert said == []

    first = Journal.open(tmp_path / "journal", "gateway", segment_bytes=500)
    shipper = worker_of(tmp_path, fresh_engine, idle_s=0.001)
    running = asyncio.create_task(shipper.run(stop))
    await rests_after(lambda: True)
    for i in range(9):  # Over several segments, and nothing in the old one says so.
        await first.settle(record(f"r{i}"))
        await rests_after(lambda i=i: shipper.shipped == i + 1)  # type: ignore[misc]
    second = Journal.open(tmp_path / "journal", "another")
    second.intent(intent("orphan"))
    await request(second, "late")
    await rests_after(lambda: shipper.shipped == 10)
    await second.close()
    await rests_after(lambda: shipper.estimated == 1)
    assert runs(tmp_path / "journal") == [first.run]
    stop.set()
    await running
    await first.close()
    await assert_sound(fresh_engine)


async def test_a_hint_is_not_believed(fresh_engine: AsyncEngine, tmp_path: Path, book: Journal) -> None:
    """Two workers of one folder: what one remembers of a run, the other has passed."""
    one, other = worker_of(tmp_path, fresh_engine), worker_of(tmp_path, fresh_engine)
    for i, shipper in enumerate((one, other, one, other, other, one)):
        await request(book, f"r{i}")
        assert await shipper.ship_once() == 1
    assert one._shared == other._shared == {book.run}
    # As after a restore of an older database.
    async with writing(fresh_engine) as db:
        await db.execute(delete(schema.journal_offsets))
        await db.execute(delete(schema.usage_records))
        await db.execute(delete(schema.transfers))
        if partitions.partitioned(db):
            await partitions.forget(db, select(partitions._ids.c.id))
    assert await one.recover() == 6


async def test_what_lies_behind_damage_is_shipped(fresh_engine: AsyncEngine, tmp_path: Path) -> None:
    book = Journal.open(tmp_path / "journal", "gateway")
    for i in range(5):
        await request(book, f"r{i}")
    await book.close()
    (segment,) = segments(book.run)
    data = bytearray(segment.read_bytes())
    ends = {entry.id: end for end, entry in journal.read_segment(segment) if isinstance(entry, UsageRecord)}
    data[ends["r2"] - 10] ^= 0xFF
    segment.write_bytes(bytes(data) + b"\x07torn")
    assert await worker_of(tmp_path, fresh_engine).ship_once() == 5
    found = await rows(fresh_engine)
    # The damaged one was a settlement: its intent stands for it.
    assert {request_id for request_id, row in found.items() if row["estimated"]} == {"r2"}
    await assert_sound(fresh_engine)


async def test_a_segment_that_can_not_be_read_does_not_hold_up_the_others(
    fresh_engine: AsyncEngine, tmp_path: Path, book: Journal
) -> None:
    stranger = tmp_path / "journal" / "another-run"
    stranger.mkdir()
    (stranger / "00000001.seg").write_bytes(b"from a version to come")
    await request(book, "r1")
    shipper = worker_of(tmp_path, fresh_engine)
    with pytest.raises(ExceptionGroup) as caught:
        await shipper.ship_once()
    assert caught.group_contains(ValueError, match="not a journal segment")
    assert "r1" in await rows(fresh_engine)
    assert (stranger / "00000001.seg").exists()


async def test_texts_and_counts_that_a_database_refuses(
    fresh_engine: AsyncEngine, tmp_path: Path, book: Journal
) -> None:
    await request(book, "r1", end_user="a\0b" + "x" * 10_000, tags=("\0",), finish_reason="\0", upstream_id="\0" * 400)
    await request(book, "r2", quantities={Meter.INPUT_TOKENS: 2**63 - 1}, duration_ms=2**40)
    await request(book, "r3")
    assert await worker_of(tmp_path, fresh_engine).ship_once() == 3
    found = await rows(fresh_engine)
    assert found["r1"]["end_user"].startswith("a\N{REPLACEMENT CHARACTER}b")
    assert found["r2"]["charge_pusd"] is None, "nine million dollars are a wrong count"
    assert found["r2"]["input_tokens"] == MAX_AMOUNT_PUSD
    await assert_sound(fresh_engine)


async def test_a_price_set_after_the_worker_began(fresh_engine: AsyncEngine, tmp_path: Path, book: Journal) -> None:
    async with writing(fresh_engine) as db:
        sheet = await set_price(db, "openai", "new", {Meter.INPUT_TOKENS: 2}, {Meter.INPUT_TOKENS: 1}, at_ns=AT_NS)
    await request(book, "r1", price_id=sheet.id, quantities={Meter.INPUT_TOKENS: 10})
    await worker_of(tmp_path, fresh_engine).ship_once()
    row = (await rows(fresh_engine))["r1"]
    assert (row["charge_pusd"], row["cost_pusd"]) == (20, 10)


async def test_what_has_no_price_is_kept_and_charged_when_it_has(
    fresh_engine: AsyncEngine, tmp_path: Path, book: Journal
) -> None:
    await request(book, "r1", price_id="price_of_nothing")
    await request(book, "r2", quantities={Meter.SEARCHES: 3})
    await request(book, "r3")
    assert await worker_of(tmp_path, fresh_engine).ship_once() == 3
    found = await rows(fresh_engine)
    assert [found[request_id]["charge_pusd"] for request_id in ("r1", "r2", "r3")] == [None, None, RECORD_SALE_PUSD]
    await assert_sound(fresh_engine)
    async with writing(fresh_engine) as db:
        assert (await post_unpriced(db, PriceBook([], []), at_ns=AT_NS)).total() == 0
        assert (await post_unpriced(db, BOOK, at_ns=AT_NS)).total() == 1
        assert (await post_unpriced(db, BOOK, at_ns=AT_NS)).total() == 0
    row = (await rows(fresh_engine))["r1"]
    assert (row["charge_pusd"], row["price_id"]) == (RECORD_SALE_PUSD, SHEET.id)
    await assert_sound(fresh_engine)


async def test_a_database_that_is_away_delays_and_loses_nothing(
    fresh_engine: AsyncEngine, tmp_path: Path, book: Journal
) -> None:
    away = True

    def refuse(*_: Any) -> None:
        if away:
            raise OperationalError("connect", None, Exception("the database is away"))

    for each in engines(fresh_engine):
        event.listen(each, "before_cursor_execute", refuse)
    shipper, stop = worker_of(tmp_path, fresh_engine, idle_s=0.001, retry_s=0.002), asyncio.Event()
    running = asyncio.create_task(shipper.run(stop))
    await request(book, "r1")
    await until(lambda: shipper.failures_in_a_row >= 3)
    away = False
    await until(lambda: shipper.shipped)
    await request(book, "r2")
    stop.set()
    await running
    assert sorted(await rows(fresh_engine)) == ["r1", "r2"], "what was there when it was told to stop is shipped"
    assert shipper.failures_in_a_row == 0
    await assert_sound(fresh_engine)


SHIPPER = """
import asyncio, sys
from pathlib import Path
from billing import worker
from billing.db import create_engine
from tests.billing.make import BOOK

advance = worker._advance

async def told(*arguments):
    print("about to commit", flush=True)
    await advance(*arguments)

async def main():
    worker.BATCH, worker._advance = 20, told
    shipper = worker.Worker(Path(sys.argv[1]), create_engine(sys.argv[2]), BOOK)
    while True:
        await shipper.ship_once()

asyncio.run(main())
"""


def spawn(program: str, *arguments: str) -> "subprocess.Popen[str]":
    root = Path(__file__).parents[2]
    return subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True, cwd=root)


async def test_kill_9_of_gateway_and_worker_leaves_each_request_once(
    fresh_database_url: str, fresh_engine: AsyncEngine, tmp_path: Path
) -> None:
    directory = tmp_path / "journal"
    admitted: set[str] = set()
    settled: set[str] = set()
    for round_, batches in enumerate((1, 4, 11)):
        with (
            spawn(CHILD, str(directory), f"r{round_}-") as gateway,
            spawn(SHIPPER, str(directory), fresh_database_url) as shipper,
        ):
            assert gateway.stdout is not None
            assert shipper.stdout is not None
            for _ in range(batches):
                assert shipper.stdout.readline() == "about to commit\n"
            shipper.kill()
            gateway.kill()
            said = [line.split() for line in gateway.stdout.readlines() if line.endswith("\n")]
        # What is left was written at least; what the children said was acknowledged.
        left = [e for run in runs(directory) for s in segments(run) for _, e in journal.read_segment(s)]
        admitted |= {entry.id for entry in left} | {name for _, name in said}
        settled |= {entry.id for entry in left if isinstance(entry, UsageRecord)}
        settled |= {name for kind, name in said if kind == "settled"}
        await worker_of(tmp_path, fresh_engine).recover()
        found = await rows(fresh_engine)
        assert found.keys() == admitted
        assert {name for name, row in found.items() if not row["estimated"]} == settled
        assert runs(directory) == []
        await assert_sound(fresh_engine)
    assert len(settled) < len(admitted), "some were in flight when they died"
