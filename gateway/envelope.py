"""Secrets at rest: each under a data key of its own (AES-256-GCM), which a key-encryption key of the ring wraps.

No two rows share a key. What is sealed names whose it is (a row's id) as associated data, so that a sealed value moved
to another row opens nowhere. What belongs to a tenant is wrapped under a key of that tenant, which HKDF makes of the
ring's and the tenant's salt: what opens one tenant's rows opens no other's, and with the salt gone none of theirs. The
ring is not in the database: a dump of it alone tells nothing. Source: NIST SP 800-38D, RFC 5869, read 2026-11.
"""

from __future__ import annotations

import base64
import binascii
import re
import secrets
from collections.abc import Mapping

from msgspec import Struct

KEY_BYTES = 32
NONCE_BYTES = 12
_ID = re.compile(r"[A-Za-z0-9_-]{1,32}")


class CannotOpen(Exception):
    """Sealed under a key that is not in the ring, for another row, or damaged. The text says what to do."""


class Sealed(Struct, frozen=True):
    """key_id: which key of the ring wraps the data key. wrapped, ciphertext: nonce, then what AES-GCM made."""

    key_id: str
    wrapped: bytes
    ciphertext: bytes


class KeyRing:
    """Key-encryption keys by id. The first seals; the others only open what was sealed before."""

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        if not keys:
            raise ValueError("a key ring has at least one key")
        self._keys = dict(keys)
        self.current = next(iter(self._keys))

    def __repr__(self) -> str:
        return f"KeyRing({', '.join(self._keys)})"

    @classmethod
    def parse(cls, text: str) -> KeyRing:
        """text: `id:base64 of 32 bytes`, one a line (or between spaces or commas), the sealing one first. Lines that
        begin with # are left out. Raises: ValueError, which shows no key."""
        lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
        keys: dict[str, bytes] = {}
        for entry in re.split(r"[\s,]+", " ".join(lines).strip()):
            key_id, _, encoded = entry.partition(":")
            if not _ID.fullmatch(key_id):
                raise ValueError("an entry is not of the form id:base64, the id of letters, digits, - and _")
            if key_id in keys:
                raise ValueError(f"the id {key_id} is there twice")
            try:
                keys[key_id] = base64.b64decode(encoded, validate=True)
            except (binascii.Error, ValueError):
                raise ValueError(f"the key {key_id} is not base64") from None
            if len(keys[key_id]) != KEY_BYTES:
                raise ValueError(f"the key {key_id} has {len(keys[key_id])} bytes, not {KEY_BYTES}")
        return cls(keys)

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(self._keys)

    def seal(self, plain: bytes, of: str, salt: bytes = b"") -> Sealed:
        """of: whose it is, for instance `provider_credentials/cred_1`. salt: a tenant's; empty for what is the
        installation's own. Both are to be said again when it is opened."""
        data_key = secrets.token_bytes(KEY_BYTES)
        return Sealed(
            self.current,
            _encrypt(_salted(self._keys[self.current], salt), data_key, _of(self.current, of)),
            _encrypt(data_key, plain, of.encode()),
        )

    def open(self, sealed: Sealed, of: str, salt: bytes = b"") -> bytes:
        """Raises: CannotOpen."""
        return _decrypt(self._data_key(sealed, of, salt), sealed.ciphertext, of.encode(), of)

    def rewrapped(self, sealed: Sealed, of: str) -> Sealed:
        """The same under the ring's first key: the data key is wrapped anew, what it seals is not touched.

        Raises: CannotOpen."""
        data_key = self._data_key(sealed, of)
        wrapped = _encrypt(self._keys[self.current], data_key, _of(self.current, of))
        return Sealed(self.current, wrapped, sealed.ciphertext)

    def _data_key(self, sealed: Sealed, of: str, salt: bytes = b"") -> bytes:
        key = self._keys.get(sealed.key_id)
        if key is None:
            raise CannotOpen(
                f"{of} is sealed under the key {sealed.key_id!r}, which is not in this process's key ring "
                f"({', '.join(self._keys)}); every gateway needs the same ring: FAREBOX_KEY_RING, "
                "or secrets/key_ring of the data folder"
            )
        return _decrypt(_salted(key, salt), sealed.wrapped, _of(sealed.key_id, of), of)


_DAMAGED = (
    "{} does not open: it was altered, or moved from another row, or the ring's key of that id (or its tenant's salt) "
    "is another one"
)


def new_key_line() -> str:
    """A new key as a ring's text has it. Its id sorts by nothing and tells nothing."""
    return f"k{secrets.token_hex(4)}:{base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode()}"


def _of(key_id: str, of: str) -> bytes:
    return f"{key_id}\n{of}".encode()


# cryptography is loaded by whoever has something to seal: most gateways' secrets are in their environment.


def _salted(key: bytes, salt: bytes) -> bytes:
    if not salt:
        return key
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(SHA256(), KEY_BYTES, salt, b"farebox tenant key").derive(key)


def _encrypt(key: bytes, plain: bytes, associated: bytes) -> bytes:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    # A data key seals once; a key of the ring wraps by chance nonces, good for 2**32 of them.
    nonce = secrets.token_bytes(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plain, associated)


def _decrypt(key: bytes, sealed: bytes, associated: bytes, of: str) -> bytes:
    """Raises: CannotOpen."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    try:
        if len(sealed) < NONCE_BYTES:
            raise InvalidTag
        return AESGCM(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], associated)
    except InvalidTag:
        raise CannotOpen(_DAMAGED.format(of)) from None
