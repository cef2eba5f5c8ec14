"""Whose is a reservation? The gateway process that made it, told by the journal it writes to."""

from __future__ import annotations

import os
import re
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Final

from msgspec import Struct

from billing import journal
from billing.journal import Journal

_FOLDER_NAME: Final = "folder.id"
_ID: Final = re.compile("[0-9a-f]{8}")


class Owner(Struct, frozen=True):
    """folder: names the journal folder, run: the process' journal in it. Both random, so no two hosts share one."""

    folder: str
    run: str
    directory: Path | None = None

    @property
    def name(self) -> str:
        return f"{self.folder}.{self.run}"

    @classmethod
    def of(cls, own: Journal | None) -> Owner:
        """None: of nobody who writes one, as in tests. Raises: OSError."""
        if own is None:
            return cls(secrets.token_hex(4), secrets.token_hex(6))
        directory = own.run.parent
        return cls(_folder_id(directory), own.run.name.rpartition("-")[2], directory)

    def is_dead(self, name: str) -> bool | None:
        """Whether the process of that name has ended; None if it is of another folder, where we cannot look."""
        run = self._run_of(name)
        if run is None or name == self.name:
            return None if run is None else False
        return not (run.is_dir() and journal.owner_alive(run))

    def is_read_out(self, name: str) -> bool:
        """Whether everything that the process of that name ever wrote down is in SQL: its journal is gone."""
        run = self._run_of(name)
        return run is not None and not run.is_dir()

    def _run_of(self, name: str) -> Path | None:
        folder, _, run = name.partition(".")
        if self.directory is None or folder != self.folder:
            return None
        found = next((path for path in journal.runs(self.directory) if path.name.endswith(f"-{run}")), None)
        return found or self.directory / f"gone-{run}"


def _folder_id(directory: Path) -> str:
    """Drawn once for each folder; of two who begin at once, one's is linked into place and both read it."""
    path = directory / _FOLDER_NAME
    drawn = directory / f".{secrets.token_hex(6)}.id"
    drawn.write_text(secrets.token_hex(4))
    try:
        with suppress(FileExistsError):
            os.link(drawn, path)
    finally:
        drawn.unlink()
    found = path.read_text()
    if _ID.fullmatch(found) is None:
        raise OSError(f"{path} does not hold eight hexadecimal digits; remove it while no gateway uses this folder")
    return found
