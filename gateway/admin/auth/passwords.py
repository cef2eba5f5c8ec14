"""Passwords as argon2id hashes. Hashing is slow on purpose, so it runs in a thread, two at a time."""

from __future__ import annotations

import asyncio
import secrets
from functools import cache
from typing import Final

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from gateway.admin.problems import invalid

# The library's defaults are RFC 9106's second recommendation: 64 MiB, 3 passes, 4 lanes. Source: argon2-cffi 25.1.
_HASHER: Final = PasswordHasher()
MIN_LENGTH: Final = 10
MAX_LENGTH: Final = 1024


class Passwords:
    """Bounded: a burst of sign-ins must not take the event loop's threads, nor 64 MiB each without end."""

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(2)

    async def hash(self, password: str) -> str:
        """Raises: Problem for one that is too short to stand against guessing."""
        if not MIN_LENGTH <= len(password) <= MAX_LENGTH:
            raise invalid(
                "password", f"a password has {MIN_LENGTH} to {MAX_LENGTH} characters", "Take a few words in a row."
            )
        async with self._slots:
            return await asyncio.to_thread(_HASHER.hash, password)

    async def matches(self, hashed: str | None, password: str) -> bool:
        """Takes as long for a name that does not exist, so that names cannot be found out by the clock."""
        async with self._slots:
            return await asyncio.to_thread(_verify, hashed, password[:MAX_LENGTH])


def _verify(hashed: str | None, password: str) -> bool:
    try:
        return _HASHER.verify(hashed or _decoy(), password) and hashed is not None
    except (VerificationError, InvalidHashError):
        return False


@cache
def _decoy() -> str:
    """Nobody's. Made when first needed: hashing takes longer than the rest of the start."""
    return _HASHER.hash(secrets.token_urlsafe())
