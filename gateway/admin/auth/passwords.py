"""Passwords as argon2id hashes. Hashing is slow on purpose, so it runs in a thread, two at a time."""

from __future__ import annotations

import asyncio
import secrets
from typing import Final

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from gateway.admin.problems import invalid

MIN_LENGTH: Final = 10
MAX_LENGTH: Final = 1024


class Passwords:
    """Bounded: a burst of sign-ins must not take the event loop's threads, nor 64 MiB each without end."""

    def __init__(self, hasher: PasswordHasher | None = None) -> None:
        """hasher: the library's defaults are RFC 9106's second recommendation: 64 MiB, 3 passes, 4 lanes."""
        self._hasher = hasher or PasswordHasher()
        self._slots = asyncio.Semaphore(2)
        self._decoy: str | None = None

    async def hash(self, password: str) -> str:
        """Raises: Problem for one that is too short to stand against guessing."""
        if not MIN_LENGTH <= len(password) <= MAX_LENGTH:
            raise invalid(
                "password", f"a password has {MIN_LENGTH} to {MAX_LENGTH} characters", "Take a few words in a row."
            )
        async with self._slots:
            return await asyncio.to_thread(self._hasher.hash, password)

    async def matches(self, hashed: str | None, password: str) -> bool:
        """Takes as long for a name that does not exist, so that names cannot be found out by the clock."""
        async with self._slots:
            return await asyncio.to_thread(self._verify, hashed, password[:MAX_LENGTH])

    def _verify(self, hashed: str | None, password: str) -> bool:
        if self._decoy is None:
            # Nobody's. Made when first needed: hashing takes longer than the rest of the start.
            self._decoy = self._hasher.hash(secrets.token_urlsafe())
        try:
            self._hasher.verify(hashed or self._decoy, password)
        except (VerificationError, InvalidHashError):
            return False
        return hashed is not None
