"""Folders that appear whole or not at all, and locks between processes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path


def make_directory(target: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write a sibling folder, and show it as `target` only when it is whole. On error nothing is left."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        fill(folder)
        for file in folder.iterdir():
            file.chmod(0o644)
            with file.open("rb+") as handle:
                os.fsync(handle.fileno())
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(target)  # a leftover without a record, or nothing
        folder.chmod(0o755)
        folder.replace(target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Only one process at a time inside; the kernel frees the lock of one that dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
