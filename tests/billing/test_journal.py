"""The journal: what was acknowledged is there, whatever broke."""

import asyncio
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing import journal
from billing.errors import JournalUnavailable
from billing.journal import Journal, frame, next_frame, read_segment, runs, segments
from billing.usage import Intent, UsageRecord
from tests.billing.make import intent, record


def entries(directory: Path) -> list[Intent | UsageRecord]:
    return [
        entry for run in runs(directory) for segment in segments(run) for _, entry in read_segment(segment)
    ]  # fmt: skip


def ids(directory: Path, kind: type) -> list[str]:
    return [entry.id for entry in entries(directory) if isinstance(entry, kind)]


async def test_what_is_written_reads_back(tmp_path: Path) -> None:
    book = Journal.open(tmp_path, "gateway")
    written = [intent("r1"), record("r1", tags=("a", "ü"), end_user="someone", first_token_ms=12)]
    book.intent(intent("r1"))
    assert book.open_intents == 1
    await book.settle(record("r1", tags=("a", "ü"), end_user="someone", first_token_ms=12))
    assert (book.open_intents, book.unsynced_records) == (0, 0)
    assert entries(tmp_path) == written
    await book.close()
    assert book.unavailable == "closed"
    with pytest.raises(JournalUnavailable, match="closed"):
        book.intent(intent("r2"))
    with pytest.raises(JournalUnavailable, match="closed"):
        await book.settle(record("r2"))
    await book.close()


async def test_an_intent_is_readable_at_once_and_needs_no_loop(tmp_path: Path) -> None:
    book = Journal.open(tmp_path, "gateway")
    book.intent(intent("r1"))
    assert ids(tmp_path, Intent) == ["r1"]
    await book.close()


async def test_the_owner_lives_until_it_closes(tmp_path: Path) -> None:
    book = Journal.open(tmp_path, "gateway")
    (run,) = runs(tmp_path)
    assert journal.owner_alive(run)
    await book.close()
    assert not journal.owner_alive(run)


async def test_two_owners_of_one_name_do_not_meet(tmp_path: Path) -> None:
    first, second = Journal.open(tmp_path, "gateway"), Journal.open(tmp_path, "gateway")
    assert first.run != second.run
    await first.close()
    await second.close()


async def test_many_waiters_share_few_syncs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs = []
    real = journal._sync

    def sync(*arguments: Any) -> None:
        syncs.append(1)
        real(*arguments)

    monkeypatch.setattr(journal, "_sync", sync)
    book = Journal.open(tmp_path, "gateway")
    await asyncio.gather(*(book.settle(record(f"r{i}")) for i in range(500)))
    assert len(ids(tmp_path, UsageRecord)) == 500
    assert len(syncs) <= 5
    await book.close()


async def test_a_record_is_not_acknowledged_before_its_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = Journal.open(tmp_path, "gateway")
    synced: list[int] = []
    real = journal._to_stable_storage

    def sync(file: int) -> None:
        written = book._size  # What is written while the sync runs may not be in it.
        real(file)
        synced.append(written)

    monkeypatch.setattr(journal, "_to_stable_storage", sync)

    async def settle(i: int) -> None:
        await asyncio.sleep(0)
        await book.settle(record(f"r{i}"))
        (segment,) = segments(book.run)
        end = next(end for end, entry in read_segment(segment) if entry.id == f"r{i}")
        assert max(synced) >= end

    await asyncio.gather(*(settle(i) for i in range(50)))
    await book.close()


async def test_a_cancelled_caller_does_not_take_its_record_along(tmp_path: Path) -> None:
    book = Journal.open(tmp_path, "gateway")
    waiting = book.settle(record("r1"))
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await book.settle(record("r2"))
    assert ids(tmp_path, UsageRecord) == ["r1", "r2"]
    await book.close()


async def test_who_gives_up_closing_takes_no_record_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, may_end = threading.Event(), threading.Event()
    real = journal._to_stable_storage

    def sync(file: int) -> None:
        begun.set()
        assert may_end.wait(60)
        real(file)

    faults: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, fault: faults.append(fault))
    book = Journal.open(tmp_path, "gateway")
    monkeypatch.setattr(journal, "_to_stable_storage", sync)
    waiting = book.settle(record("r1"))
    assert await asyncio.to_thread(begun.wait, 60)
    closing = asyncio.create_task(book.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert not waiting.done()
    may_end.set()
    await asyncio.wait_for(waiting, 60)
    assert not faults


@pytest.mark.parametrize("error", [OSError(errno.EIO, "bad disk"), RuntimeError("nobody thought of it")])
async def test_who_waits_hears_of_any_fault_and_its_record_is_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(data: bytes) -> None:
        raise error

    book = Journal.open(tmp_path, "gateway")
    with monkeypatch.context() as broken:
        broken.setattr(book, "_append", fail)
        with pytest.raises(JournalUnavailable):
            await asyncio.wait_for(book.settle(record("r1")), 60)
    await book.settle(record("r2"))
    assert set(ids(tmp_path, UsageRecord)) == {"r1", "r2"}
    await book.close()


async def test_a_segment_whose_closing_fails_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = Journal.open(tmp_path, "gateway", segment_bytes=1)
    real, failed = os.close, list[int]()

    def close(file: int) -> None:
        real(file)
        if file in retired:
            failed.append(file)
            raise OSError(errno.EIO, "bad disk")

    await book.settle(record("r1"))
    retired = {book._file}
    monkeypatch.setattr(os, "close", close)
    await asyncio.wait_for(book.settle(record("r2")), 60)
    monkeypatch.undo()
    assert failed
    assert set(ids(tmp_path, UsageRecord)) == {"r1", "r2"}
    await book.close()


async def test_a_new_segment_begins_with_what_is_open(tmp_path: Path) -> None:
    book = Journal.open(tmp_path, "gateway", segment_bytes=2000)
    book.intent(intent("long"))
    for i in range(40):
        book.intent(intent(f"r{i}"))
        await book.settle(record(f"r{i}"))
    found = segments(book.run)
    assert len(found) > 3
    for segment in found[1:]:
        _, first = next(read_segment(segment))
        assert first == intent("long")
    assert sorted(ids(tmp_path, UsageRecord)) == sorted(f"r{i}" for i in range(40))
    await book.close()


async def test_a_sync_finds_room_and_a_close_gives_back_what_is_left_of_it(tmp_path: Path) -> None:
    book = Journal.open(tmp_path, "gateway")
    (segment,) = segments(book.run)
    room = segment.stat().st_size
    assert room >= journal.AHEAD_BYTES
    for i in range(20):
        book.intent(intent(f"r{i}"))
        await book.settle(record(f"r{i}"))
    assert segment.stat().st_size == room, "the file has grown: each sync waits for its new size"
    written = [end for end, _ in read_segment(segment)][-1]
    while written < room:
        await book.settle(record("long", end_user="x" * 50_000))
        written = [end for end, _ in read_segment(segment)][-1]
    assert segment.stat().st_size > room
    await book.close()
    assert segment.stat().st_size == written
    assert [end for end, _ in read_segment(segment)][-1] == written


def test_room_that_nobody_came_to_use_is_passed_over(tmp_path: Path) -> None:
    """As a machine leaves it that lost power: what was written last is there, something before it is not. The frame
    behind has a length whose first byte is a zero, too."""
    path = tmp_path / "1.seg"
    first = journal.MAGIC + frame(record("r1"))
    last = next(data for n in range(600) if (data := frame(record("r2", end_user="x" * n)))[0] == 0)
    for zeros in (1, 7, 8, 9, 1_000_000):
        path.write_bytes(first + bytes(zeros) + last + bytes(zeros))
        assert [end for end, _ in read_segment(path)] == [len(first)]
        assert next_frame(path, len(first)) == len(first) + zeros
        assert next_frame(path, len(first) + zeros + len(last)) is None


# A segment cut anywhere, or with rubbish at its end, gives exactly the entries that are whole.


@pytest.fixture(scope="module")
def whole() -> tuple[bytes, list[int]]:
    frames = [frame(intent("r1")), frame(record("r1")), frame(record("r2", end_user="x" * 300)), frame(intent("r3"))]
    ends, data = [], journal.MAGIC
    for part in frames:
        data += part
        ends.append(len(data))
    return data, ends


def test_a_torn_tail_at_every_byte(whole: tuple[bytes, list[int]], tmp_path: Path) -> None:
    data, ends = whole
    path = tmp_path / "1.seg"
    for cut in range(len(data) + 1):
        path.write_bytes(data[:cut])
        assert [end for end, _ in read_segment(path)] == [end for end in ends if end <= cut]
        for start in (0, *ends):
            if start <= cut:
                assert [end for end, _ in read_segment(path, start)] == [end for end in ends if start < end <= cut]


@settings(max_examples=200)
@given(cut=st.integers(0), tail=st.binary(max_size=100))
def test_rubbish_behind_a_cut(
    whole: tuple[bytes, list[int]], tmp_path_factory: pytest.TempPathFactory, cut: int, tail: bytes
) -> None:
    data, ends = whole
    cut %= len(data) + 1
    path = tmp_path_factory.getbasetemp() / "rubbish.seg"
    path.write_bytes(data[: max(cut, len(journal.MAGIC))] + tail)
    read = [end for end, _ in read_segment(path)]
    whole_before = [end for end in ends if end <= cut]
    assert read[: len(whole_before)] == whole_before
    # Rubbish that completes the very frame that was cut is no rubbish.
    assert read == whole_before or data.startswith(path.read_bytes()[: read[-1]])


@settings(max_examples=200)
@given(position=st.integers(0), value=st.integers(1, 255))
def test_one_wrong_byte_spoils_one_frame(
    whole: tuple[bytes, list[int]], tmp_path_factory: pytest.TempPathFactory, position: int, value: int
) -> None:
    data, ends = whole
    position = len(journal.MAGIC) + position % (len(data) - len(journal.MAGIC))
    path = tmp_path_factory.getbasetemp() / "wrong.seg"
    path.write_bytes(data[:position] + bytes([data[position] ^ value]) + data[position + 1 :])
    spoilt = next(end for end in ends if position < end)
    assert [end for end, _ in read_segment(path)] == [end for end in ends if end < spoilt]
    start = max([len(journal.MAGIC), *(end for end in ends if end < spoilt)])
    found = next_frame(path, start)
    assert found == (spoilt if spoilt != ends[-1] else None)


def test_a_stranger_among_the_segments_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "1.seg"
    path.write_bytes(b"not ours at all")
    with pytest.raises(ValueError, match="not a journal segment"):
        list(read_segment(path))


# Disks that fail.


class Disk:
    """os.write and the sync, as the journal uses them, failing on demand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.write_error: int | None = None
        self.room: int | None = None
        self.sync_error: int | None = None
        real_write, real_sync = os.write, journal._to_stable_storage

        def write(file: int, data: bytes) -> int:
            if self.write_error is not None:
                raise OSError(self.write_error, os.strerror(self.write_error))
            if self.room is not None:
                data, self.room = data[: self.room], max(0, self.room - len(data))
                if not data:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real_write(file, data)

        def sync(file: int) -> None:
            if self.sync_error is not None:
                raise OSError(self.sync_error, os.strerror(self.sync_error))
            real_sync(file)

        monkeypatch.setattr(os, "write", write)
        monkeypatch.setattr(journal, "_to_stable_storage", sync)

    def heal(self) -> None:
        self.write_error = self.room = self.sync_error = None


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


async def until_available(book: Journal) -> None:
    """Each refused request is a try to repair; the next but one at the latest goes through."""
    for i in range(100):
        try:
            book.intent(intent(f"probe{i}"))
        except JournalUnavailable:
            await asyncio.sleep(0.001)
        else:
            await book.settle(record(f"probe{i}"))
            return
    pytest.fail("not repaired")


FAULTS: list[Callable[[Disk], None]] = [
    lambda disk: setattr(disk, "write_error", errno.ENOSPC),
    lambda disk: setattr(disk, "write_error", errno.EIO),
    lambda disk: setattr(disk, "room", 0),
    lambda disk: setattr(disk, "room", 50),
    lambda disk: setattr(disk, "sync_error", errno.EIO),
]


@pytest.mark.parametrize("break_it", FAULTS, ids=["full", "io", "no room", "half a frame", "sync"])
async def test_a_failing_disk_refuses_requests_and_keeps_records(
    tmp_path: Path, disk: Disk, break_it: Callable[[Disk], None]
) -> None:
    book = Journal.open(tmp_path, "gateway")
    for i in range(3):
        book.intent(intent(f"r{i}"))
    await book.settle(record("r0"))
    break_it(disk)
    with pytest.raises(JournalUnavailable):
        await book.settle(record("r1"))
    assert book.unavailable
    assert book.unsynced_records == 1
    with pytest.raises(JournalUnavailable):
        book.intent(intent("refused"))
    disk.heal()
    await until_available(book)
    assert book.unavailable is None
    assert book.unsynced_records == 0
    await book.settle(record("r2"))
    found = ids(tmp_path, UsageRecord)
    assert {"r0", "r1", "r2"} <= set(found)
    assert "refused" not in ids(tmp_path, Intent)
    assert book.open_intents == 0
    await book.close()


async def test_records_settled_while_it_is_repaired_are_not_forgotten(tmp_path: Path, disk: Disk) -> None:
    book = Journal.open(tmp_path, "gateway")
    disk.sync_error = errno.EIO
    with pytest.raises(JournalUnavailable):
        await book.settle(record("r0"))
    # Both are offered before the repair that they set off has begun.
    disk.heal()
    await asyncio.gather(book.settle(record("r1")), book.settle(record("r2")))
    newest = segments(book.run)[-1]
    assert {entry.id for _, entry in read_segment(newest)} >= {"r0", "r1", "r2"}
    assert book.unsynced_records == 0
    await book.close()


async def test_an_intent_that_the_disk_does_not_take_is_not_open(tmp_path: Path, disk: Disk) -> None:
    book = Journal.open(tmp_path, "gateway")
    disk.room = 20
    with pytest.raises(JournalUnavailable):
        book.intent(intent("r1"))
    assert book.open_intents == 0
    disk.heal()
    await until_available(book)
    await book.close()
    assert "r1" not in ids(tmp_path, Intent)


async def test_closing_with_records_that_no_disk_took_says_so(tmp_path: Path, disk: Disk) -> None:
    book = Journal.open(tmp_path, "gateway")
    book.intent(intent("r1"))
    disk.write_error = errno.ENOSPC
    with pytest.raises(JournalUnavailable):
        await book.settle(record("r1"))
    with pytest.raises(JournalUnavailable, match="1 records not written"):
        await book.close()


def test_a_folder_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(JournalUnavailable):
        Journal.open(tmp_path / "file" / "journal", "gateway")


# kill -9: the process acknowledges on a pipe, the files are read after it is gone.

CHILD = """
import asyncio, sys
from pathlib import Path
from billing.journal import Journal
from tests.billing.make import intent, record

async def request(book, i):
    name = f"{sys.argv[2]}{i}"
    book.intent(intent(name))
    print("intent", name, flush=True)
    await asyncio.sleep(i % 7 / 1000)
    await book.settle(record(name))
    print("settled", name, flush=True)

async def main():
    book = Journal.open(Path(sys.argv[1]), "child", segment_bytes=20_000)
    running, i = set(), 0
    while True:
        while len(running) < 20:
            running.add(asyncio.create_task(request(book, i)))
            i += 1
        _, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)

asyncio.run(main())
"""


@pytest.fixture
def child(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path), "r"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    yield process
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


@pytest.mark.parametrize("lines", [1, 50, 777, 2500])
def test_kill_9_loses_nothing_that_was_acknowledged(child: subprocess.Popen[str], tmp_path: Path, lines: int) -> None:
    assert child.stdout is not None
    said = [child.stdout.readline().split() for _ in range(lines)]
    child.send_signal(signal.SIGKILL)
    said += [line.split() for line in child.stdout.readlines() if line.endswith("\n")]
    child.wait()
    intents, settled = set(ids(tmp_path, Intent)), ids(tmp_path, UsageRecord)
    assert {name for kind, name in said if kind == "intent"} <= intents
    assert {name for kind, name in said if kind == "settled"} <= set(settled)
    assert set(settled) <= intents
    (run,) = runs(tmp_path)
    assert not journal.owner_alive(run)
