"""One running Farebox per data folder, and where the others find it."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from types import TracebackType

import msgspec
from msgspec import Struct


class AlreadyRunning(Exception):
    """Another process holds the data folder."""

    def __init__(self, data_dir: Path, pid: int | None, base_url: str | None) -> None:
        who = f" (pid {pid}{', ' + base_url if base_url else ''})" if pid else ""
        super().__init__(f"Farebox already runs on {data_dir}{who}; stop it, or give another folder with --data")
        self.pid = pid
        self.base_url = base_url


class Running(Struct, frozen=True):
    """What `up` tells the other commands: how to reach the servers that it embeds."""

    pid: int
    base_url: str
    redis_url: str | None = None
    engine_url: str | None = None


class Instance:
    """The lock. A lock of the kernel, so that a kill -9 leaves nothing to clean up."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._handle: int | None = None

    def __enter__(self) -> Instance:
        """Raises: AlreadyRunning."""
        folder = self._data_dir / "run"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(folder / "up.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _lock(handle)
        except BlockingIOError as error:
            os.close(handle)
            told = _read(folder / "up.json")
            raise AlreadyRunning(self._data_dir, told.pid if told else None, told.base_url if told else None) from error
        self._handle = handle
        (folder / "up.json").unlink(missing_ok=True)  # A killed predecessor's.
        return self

    @property
    def pid(self) -> int:
        return os.getpid()

    def tell(self, running: Running) -> None:
        path = self._data_dir / "run" / "up.json"
        draft = path.with_suffix(".new")
        draft.write_bytes(msgspec.json.encode(running))
        draft.replace(path)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        (self._data_dir / "run" / "up.json").unlink(missing_ok=True)
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def find_running(data_dir: Path) -> Running | None:
    """The Farebox that runs on the folder now; None if none does."""
    lock = data_dir / "run" / "up.lock"
    try:
        handle = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        # Shared: two readers at once must not take each other for a running instance.
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(lock.with_name("up.json"))
    else:
        return None
    finally:
        os.close(handle)


def _lock(handle: int) -> None:
    """Raises: BlockingIOError, after a moment: `find_running` holds the lock for some microseconds when it looks."""
    for _ in range(20):
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.01)
    return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _read(path: Path) -> Running | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Running)
    except (OSError, msgspec.DecodeError):
        return None
