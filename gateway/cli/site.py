"""Where a command does its work: on this machine, or in a gateway that was sent it (`hosted`).

Commands never ask which. They take settings, database and keys from `gateway.cli.common`, read and write files through
here, and print through `emit`; so each of them works on a remote installation as it does on a local one.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Generator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

if TYPE_CHECKING:
    from billing.db import AsyncEngine
    from gateway.admission.key_admin import KeyAdmin
    from gateway.config import Settings

READ: Final = "farebox reads it"
Read = Annotated[Path, READ]
"""A parameter that names a file to read: it goes along when the command is sent."""
WRITTEN: Final = "farebox writes it"
Written = Annotated[Path, WRITTEN]
"""A parameter that names a file or folder to write: it comes back."""


@dataclass
class Site:
    """One command's stay in a gateway. Engine and keys are the gateway's; folder: for what it writes, gone afterwards.

    tell: takes what the caller is to hear, one value of JSON after another."""

    settings: Settings
    engine: AsyncEngine
    keys: KeyAdmin
    actor: str
    files: Mapping[str, bytes]
    folder: Path
    tell: Callable[[dict[str, Any]], None]
    width: int = 80
    color: bool = False
    written: dict[str, Path] = field(default_factory=dict)
    left: bool = False
    """The caller has gone. The command is told at its next sign of progress: a cancellation in the middle of a
    transaction could leave SQLite's write lock with a connection that nobody has any more."""


class CallerLeft(Exception):
    """Nobody is waiting for this command."""


HERE: ContextVar[Site | None] = ContextVar("farebox_site", default=None)


def acting(otherwise: str) -> str:
    """Who is to stand in the audit log: the caller, or the command where it works on this machine."""
    site = HERE.get()
    return otherwise if site is None else site.actor


def read_file(path: Path) -> bytes:
    """Raises: OSError."""
    site = HERE.get()
    if site is None:
        return path.read_bytes()
    try:
        return site.files[str(path)]
    except KeyError:
        raise FileNotFoundError(2, "no such file came along", str(path)) from None


@contextlib.contextmanager
def readable(path: Path) -> Generator[Path, None, None]:
    """The file under a name that can be opened, for whoever wants a path. Raises: OSError."""
    if HERE.get() is None:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="fbx-read-") as folder:
        there = Path(folder) / path.name
        there.write_bytes(read_file(path))
        yield there


def place(path: Path) -> Path:
    """Where to write what the caller wants at `path`."""
    site = HERE.get()
    if site is None:
        return path
    # Its name may decide what is written into it (.csv.gz).
    folder = site.folder / str(len(site.written))
    folder.mkdir()
    site.written[str(path)] = folder / (path.name or "out")
    return site.written[str(path)]
