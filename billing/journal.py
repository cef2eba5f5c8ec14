"""The append-only usage journal of one gateway process: the first place where a request's money is written down.

Layout: `<journal dir>/<owner>-<run>/` holds `owner.lock` (flock held while the process lives), and `00000001.seg`, ...
A segment is MAGIC and then frames: length and CRC-32 of the payload, both little-endian 32 bits, then the payload, a
msgpack Intent or UsageRecord. A run belongs to one process start and is never appended to again.

An intent reaches the page cache before the request is sent (it survives kill -9 of the process, not a power cut); a
record reaches stable storage before the request's last byte leaves. Each new segment begins with the intents that are
still open, so a segment that has been shipped can be deleted as soon as a newer one exists.

A segment that is being written ends in zeros: room is made AHEAD_BYTES at a time, so that a sync writes data and not
the file's new size as well, which would wait for whoever else has changed something on that file system. No frame
begins with zeros. What is left of them is cut off when the segment is full or its owner closes it.
"""

import asyncio
import errno
import fcntl
import os
import re
import secrets
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Final

import msgspec

from billing.errors import JournalUnavailable
from billing.usage import Intent, UsageRecord

MAGIC: Final = b"fbxjrn1\n"
OWNER_LOCK: Final = "owner.lock"
SHIP_LOCK: Final = "ship.lock"
SEGMENT_SUFFIX: Final = ".seg"
_UNNAMED_SUFFIX: Final = ".new"
DEFAULT_SEGMENT_BYTES: Final = 16 * 1024 * 1024
# Room for some 400 requests. A sync into it took 0.10 to 0.13 ms where one that made the file longer took 0.2 to 1.5
# (medians, ext4 that others wrote to as well, 2026-11).
AHEAD_BYTES: Final = 256 * 1024

# A frame longer than this is not one: the length itself is damaged. The longest real one is a few kilobytes.
MAX_PAYLOAD_BYTES: Final = 1024 * 1024

_HEADER: Final = struct.Struct("<II")
# Read at a time: the longest frame fits. A worker that is far behind must not hold a whole segment in memory.
_PART_BYTES: Final = _HEADER.size + MAX_PAYLOAD_BYTES
_ZEROS: Final = bytes(AHEAD_BYTES)
_NO_ZERO: Final = re.compile(rb"[^\0]")
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Intent | UsageRecord)

Entry = Intent | UsageRecord


class Journal:
    """Written by one event loop, from that loop alone; only fsync runs in a thread, one for all who wait."""

    def __init__(self, run: Path, lock: int, segment_bytes: int) -> None:
        """Use `Journal.open`."""
        self.run = run
        self._lock = lock
        self._segment_bytes = segment_bytes
        self._number = 0
        self._file = -1
        self._size = 0  # Of what has been written.
        self._room = 0  # Where the zeros behind it end.
        self._retired: list[int] = []  # Full segments whose last frames are not on stable storage yet.
        self._named = False  # A segment has been created since the directory was last synced.
        self._open: dict[str, bytes] = {}
        # Held until synced: after a failed write or fsync the file counts for nothing, and these are written anew.
        self._unsynced: dict[str, bytes] = {}
        self._unwritten: list[bytes] = []  # Of these, the frames that leave with the next flush, in one write.
        self._waiting: list[asyncio.Future[None]] = []
        self._flushing: asyncio.Future[None] | None = None  # Done when nobody waits any more.
        self._disk = _Disk()
        self._broken: str | None = None
        self._closed = False

    @classmethod
    def open(cls, directory: Path, owner: str, *, segment_bytes: int = DEFAULT_SEGMENT_BYTES) -> "Journal":
        """Begin a run. `owner` names the process for humans; two runs of one name do not meet.

        Raises: JournalUnavailable if the directory can not be written."""
        name = f"{owner}-{secrets.token_hex(6)}"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            # Hidden until the lock is held: a worker that saw it before would take the owner for dead.
            hidden = directory / f".{name}"
            hidden.mkdir()
            lock = os.open(hidden / OWNER_LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
            run = hidden.rename(directory / name)
            journal = cls(run, lock, segment_bytes)
            journal._next_segment()
            _sync([journal._file], [run, directory])
        except OSError as error:
            raise JournalUnavailable(str(error)) from error
        return journal

    @property
    def open_intents(self) -> int:
        """Requests admitted and not settled."""
        return len(self._open)

    @property
    def unsynced_records(self) -> int:
        """Settlements not on stable storage yet. If it stays above zero, the disk takes none."""
        return len(self._unsynced)

    @property
    def unavailable(self) -> str | None:
        """Why new requests are refused, if they are."""
        return "closed" if self._closed else self._broken

    def intent(self, intent: Intent) -> None:
        """Write down that a request is about to be sent. It is in the page cache on return.

        Raises: JournalUnavailable; then nothing was written and the request must not be sent."""
        if self._closed:
            raise JournalUnavailable("closed")
        if self._broken is not None:
            self._wake()  # Each refused request is a try to repair; one runs at a time.
            raise JournalUnavailable(self._broken)
        data = frame(intent)
        try:
            self._append(data)
        except OSError as error:
            self._broken = str(error)
            raise JournalUnavailable(self._broken) from error
        self._open[intent.id] = data

    def settle(self, record: UsageRecord) -> asyncio.Future[None]:
        """Write down what a request used. Awaiting the future waits until that is on stable storage.

        Called is done, whether anybody waits or not: it leaves with all others of this turn of the loop, in one write
        and one fsync. The future raises JournalUnavailable; the record is then kept and
        written when the disk takes it. If the process ends before, its intent becomes an estimated record."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._closed:
            _fail(done, JournalUnavailable("closed"))
            return done
        data = frame(record)
        self._open.pop(record.id, None)
        self._unsynced[record.id] = data
        self._unwritten.append(data)
        self._waiting.append(done)
        self._wake()
        return done

    async def close(self) -> None:
        """Sync and let go of the run; a worker then takes what is left in it. Open intents become estimated records.

        Raises: JournalUnavailable if a record could not be written."""
        if self._closed:
            return
        self._closed = True
        self._wake()
        if self._flushing is not None:
            await asyncio.shield(self._flushing)  # Who gives up waiting leaves it to end.
        self._disk.close()
        with suppress(OSError):
            os.ftruncate(self._file, self._size)
        for file in (*self._retired, self._file):
            os.close(file)
        os.close(self._lock)
        if self._unsynced:
            raise JournalUnavailable(f"{len(self._unsynced)} records not written: {self._broken}")

    def _append(self, data: bytes) -> None:
        """Raises: OSError; then the segment ends where it ended before, or is given up by the next flush."""
        written = os.write(self._file, data)
        if written != len(data):
            # The disk filled up in the middle. Half a frame would hide everything behind it.
            os.ftruncate(self._file, self._size)
            os.lseek(self._file, self._size, os.SEEK_SET)
            self._room = self._size
            raise OSError(errno.ENOSPC, f"short write: {written} of {len(data)} bytes")
        self._size += written
        if self._size > self._room:
            self._make_room()

    def _make_room(self) -> None:
        """Zeros behind what stands there. A disk that has no room for them will say so when it has none for a frame."""
        ahead = min(AHEAD_BYTES, self._segment_bytes - self._size)
        self._room = self._size
        if ahead > 0:
            with suppress(OSError):
                self._room += os.pwrite(self._file, _ZEROS[:ahead] if ahead < AHEAD_BYTES else _ZEROS, self._size)

    def _wake(self) -> None:
        """Group commit: one sync for everything that is queued when it begins, again until nobody waits."""
        if self._flushing is None:
            loop = asyncio.get_running_loop()
            self._flushing = loop.create_future()
            loop.call_soon(self._flush, loop)

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        """Write what waits, and have it synced: the rest of this turn of the loop is that of others."""
        waiting, self._waiting = self._waiting, []
        try:
            records, files, directories = self._write()
        except Exception as error:  # Whatever it is: who waits has to hear of it.
            self._flushed(loop, waiting, [], [], error)
        else:
            self._disk.sync((loop, files, directories, partial(self._flushed, loop, waiting, records, files[:-1])))

    def _flushed(
        self,
        loop: asyncio.AbstractEventLoop,
        waiting: list[asyncio.Future[None]],
        records: list[str],
        retired: list[int],
        error: Exception | None,
    ) -> None:
        """error: then nothing counts as synced."""
        for file in retired:
            with suppress(OSError):  # Synced, or given up.
                os.close(file)
        if error is None:
            for record_id in records:
                self._unsynced.pop(record_id, None)
        else:
            self._broken = str(error)
        for future in waiting:
            if future.done():
                continue  # Its caller was cancelled.
            if error is None:
                future.set_result(None)
            else:
                _fail(future, JournalUnavailable(str(error)))
        if self._waiting:
            self._flush(loop)
        elif self._flushing is not None:
            self._flushing.set_result(None)
            self._flushing = None

    def _write(self) -> tuple[list[str], list[int], list[Path]]:
        """Returns: the records that a sync of these files and directories makes safe. The last file stays open.

        Raises: OSError."""
        if self._broken is not None:
            given_up = self._file
            self._next_segment(self._unsynced.values())
            self._unwritten.clear()
            os.close(given_up)  # Not synced again: after an error fsync may claim a success it did not have.
            self._broken = None
        elif self._size >= self._segment_bytes:
            self._rotate()
        if self._unwritten:
            frames, self._unwritten = self._unwritten, []
            self._append(b"".join(frames))
        files, self._retired = [*self._retired, self._file], []
        directories = [self.run] if self._named else []
        self._named = False
        return list(self._unsynced), files, directories

    def _rotate(self) -> None:
        full, size = self._file, self._size
        try:
            self._next_segment()
        except OSError:
            return  # The full one still takes frames, or says itself that the disk does not.
        with suppress(OSError):  # Only for the reader's ease.
            os.ftruncate(full, size)
        self._retired.append(full)

    def _next_segment(self, again: Iterable[bytes] = ()) -> None:
        """Go on in a new file, which begins with the open intents and the frames that are to be written again.

        It gets its name when that is written: a worker deletes a segment only when it sees the next one.
        Raises: OSError; then everything is as before."""
        path = _segment(self.run, self._number + 1)
        hidden = path.with_suffix(_UNNAMED_SUFFIX)
        head = b"".join((MAGIC, *self._open.values(), *again))
        file = os.open(hidden, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            if (written := os.write(file, head)) != len(head):
                raise OSError(errno.ENOSPC, f"short write: {written} of {len(head)} bytes")
            hidden.rename(path)
        except OSError:
            os.close(file)
            raise
        self._number += 1
        self._file, self._size, self._named = file, len(head), True
        self._make_room()


class _Disk:
    """A thread that syncs, one group at a time. To hand over to an executor takes as long as a sync that finds room."""

    def __init__(self) -> None:
        self._asked: SimpleQueue[_Asked | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name="journal-fsync", daemon=True)
        self._thread.start()

    def sync(self, asked: "_Asked") -> None:
        self._asked.put(asked)

    def close(self) -> None:
        """What has been asked for is done before."""
        self._asked.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (asked := self._asked.get()) is not None:
            loop, files, directories, done = asked
            error: Exception | None = None
            try:
                _sync(files, directories)
            except Exception as raised:
                error = raised
            with suppress(RuntimeError):  # The loop has been closed: nobody waits.
                loop.call_soon_threadsafe(done, error)


_Asked = tuple[asyncio.AbstractEventLoop, list[int], list[Path], Callable[[Exception | None], None]]


def _fail(future: asyncio.Future[None], error: JournalUnavailable) -> None:
    future.set_exception(error)
    future.exception()  # Who is to know waits for it; where that one has left, it is nothing to warn of.


def frame(entry: Entry) -> bytes:
    """One entry as it stands in a segment."""
    payload = _encoder.encode(entry)
    return _HEADER.pack(len(payload), zlib.crc32(payload)) + payload


def read_segment(path: Path, offset: int = 0) -> Iterator[tuple[int, Entry]]:
    """Entries from `offset` on, each with the offset after it; 0 is the beginning.

    Stops at the first frame that is not whole: in a living owner's segment it is being written, in a dead one's it is
    what a crash left. Raises: ValueError if the file is not a segment, or holds an entry this version can not read."""
    if offset == 0:
        magic = _part(path, 0, len(MAGIC))
        if len(magic) < len(MAGIC):
            return
        if magic != MAGIC:
            raise ValueError(f"not a journal segment: {path}")
        offset = len(MAGIC)
    whole = False
    while not whole:
        data = _part(path, offset, _PART_BYTES)
        whole = len(data) < _PART_BYTES
        end = offset
        for end, entry in _entries(path, data, offset):
            yield end, entry
        whole = whole or end == offset
        offset = end


def _part(path: Path, offset: int, most: int) -> bytes:
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        return file.read(most)


def _entries(path: Path, data: bytes, offset: int) -> Iterator[tuple[int, Entry]]:
    """Of the whole frames that `data`, which begins at `offset`, begins with."""
    position = 0
    while position + _HEADER.size <= len(data):
        length, checksum = _HEADER.unpack_from(data, position)
        end = position + _HEADER.size + length
        payload = data[position + _HEADER.size : end]
        if not 0 < length <= MAX_PAYLOAD_BYTES or len(payload) < length or zlib.crc32(payload) != checksum:
            return
        try:
            entry = _decoder.decode(payload)
        except msgspec.DecodeError as error:
            raise ValueError(f"unreadable entry at byte {offset + position} of {path}: {error}") from error
        position = end
        yield offset + position, entry


def next_frame(path: Path, offset: int) -> int | None:
    """Where the next whole frame begins at or behind `offset`, None if there is none.

    For segments that nobody writes any more: what follows a torn frame there has been damaged, or was written to the
    disk out of order by a machine that lost power. Either way it is somebody's money."""
    data = path.read_bytes()
    start = max(offset, len(MAGIC)) - 1
    while (start := start + 1) < len(data) - _HEADER.size:
        if data[start] == 0:
            # Room that nobody came to use: a length is below 2**24, so its first three bytes are not all zeros.
            found = _NO_ZERO.search(data, start)
            start = len(data) if found is None else max(start, found.start() - 2)
            if start >= len(data) - _HEADER.size:
                break
        length, checksum = _HEADER.unpack_from(data, start)
        payload = data[start + _HEADER.size : start + _HEADER.size + length] if length <= MAX_PAYLOAD_BYTES else b""
        if 0 < length == len(payload) and zlib.crc32(payload) == checksum:
            return start
    return None


def runs(directory: Path) -> list[Path]:
    """Every run in a journal directory, dead or alive."""
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if path.is_dir() and not path.name.startswith("."))


def segments(run: Path) -> list[Path]:
    """The segments of a run, oldest first."""
    return sorted(run.glob(f"*{SEGMENT_SUFFIX}"))


class Mark(msgspec.Struct, frozen=True):
    """How far a living owner's run has been read: its last segment, up to this byte."""

    segment: Path
    offset: int

    def passed(self) -> bool:
        """Whether something stands behind it: a frame that has begun, or another segment. Three calls of the kernel,
        for whoever asks all day long; neither sizes nor times would tell, since there are zeros to be written over and
        times are coarse."""
        try:
            file = os.open(self.segment, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return True  # Somebody else has shipped it to its end.
        try:
            begun = os.pread(file, _HEADER.size, max(self.offset, len(MAGIC)))
        finally:
            os.close(file)
        number = self.segment.stem
        if not number.isdecimal():
            return True  # Somebody has laid it there; what comes next to it has another name.
        return any(begun) or _segment(self.segment.parent, int(number) + 1).exists()


def _segment(run: Path, number: int) -> Path:
    return run / f"{number:08d}{SEGMENT_SUFFIX}"


def at_rest(directory: Path, marks: Mapping[Path, Mark]) -> bool:
    """Nothing has come behind these: no frame, no segment, no run that has none of them, and all owners live."""
    return all((mark := marks.get(run)) and not mark.passed() and owner_alive(run) for run in runs(directory))


def owner_alive(run: Path) -> bool:
    """Does the process that writes this run still live? Asked of the kernel, which lets go of a dead one's lock."""
    try:
        lock = os.open(run / OWNER_LOCK, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(lock)


def remove_run(run: Path) -> None:
    """Take away what is left of a dead owner's run once its segments are gone."""
    for path in (run / OWNER_LOCK, run / SHIP_LOCK, *run.glob(f"*{_UNNAMED_SUFFIX}")):
        path.unlink(missing_ok=True)
    try:
        run.rmdir()
    except OSError as error:
        # Another worker has just put its lock there; it will find nothing to ship, and come to this line itself.
        if error.errno not in (errno.ENOTEMPTY, errno.ENOENT):
            raise


def _sync(files: list[int], directories: list[Path]) -> None:
    for file in files:
        _to_stable_storage(file)
    for directory in directories:
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _to_stable_storage(file: int) -> None:
    if hasattr(fcntl, "F_FULLFSYNC"):
        # macOS: fsync leaves the data in the drive's cache. Source: fsync(2), Apple, read 2026-11.
        fcntl.fcntl(file, fcntl.F_FULLFSYNC)
    else:
        os.fdatasync(file)  # Also writes the new file size, which is all of the metadata that a reader needs.
