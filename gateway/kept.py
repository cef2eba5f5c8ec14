"""Secrets of this installation that lie in its data folder: made once, readable by their owner alone.

They belong in the backup of the data folder, or come from outside: what they hashed or sealed is lost without them.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.config import ConfigError, Settings

if TYPE_CHECKING:
    from gateway.envelope import KeyRing

BYTES = 32
RING = "key_ring"


def key_ring(settings: Settings) -> KeyRing:
    """What credentials in the database are sealed under; read anew, since it is rotated while gateways run.

    Raises: ConfigError."""
    from gateway.envelope import KeyRing, new_key_line

    if settings.key_ring is not None:
        text, source = settings.key_ring.reveal(), "FAREBOX_KEY_RING"
    else:
        text, source = kept(settings.data_dir, RING, new_key_line), str(settings.data_dir / "secrets" / RING)
    try:
        return KeyRing.parse(text)
    except ValueError as error:
        fix = "one `id:base64 of 32 bytes` a line; restore it from a backup: what it sealed opens with nothing else"
        raise ConfigError("key_ring", str(error), source=source, fix=fix) from error


def rotate_kept_ring(data_dir: Path) -> None:
    """A new key goes to the front of the ring in the data folder; those before it stay, to open what they sealed.

    Raises: ConfigError."""
    from gateway.envelope import new_key_line

    before = kept(data_dir, RING, new_key_line)
    path = data_dir / "secrets" / RING
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(f"{new_key_line()}\n{before}\n")
            file.flush()
            os.fsync(file.fileno())
        Path(draft).replace(path)
    finally:
        Path(draft).unlink(missing_ok=True)


def kept(data_dir: Path, name: str, make: Callable[[], str] = lambda: secrets.token_urlsafe(BYTES)) -> str:
    """The secret called `name`, made on first use. Two processes that make it at once agree on one."""
    folder = data_dir / "secrets"
    path = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            _make(path, make())
        value = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        fix = "give the user that runs Farebox read and write access to its data folder"
        raise ConfigError(str(path), f"cannot be read or made: {error}", fix=fix) from error
    if len(value) < BYTES:
        fix = "restore it from a backup; with a new one every key has to be made anew"
        raise ConfigError(str(path), "is damaged: too short", fix=fix)
    return value


def _make(path: Path, text: str) -> None:
    """Whole or not at all: written beside it, then linked, which fails for the second of two that try."""
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=".new-")  # Mode 0600 by mkstemp's contract.
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(path).hardlink_to(draft)
    except FileExistsError:
        return
    finally:
        Path(draft).unlink()
