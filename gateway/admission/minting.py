"""What a virtual key looks like: made, told from a typo, hashed. No I/O.

    fbx-  9 characters  _  44 characters  6 characters      64 in all, from Bitcoin's base58 alphabet
          public id        secret         CRC-32 of everything before it, big end first

The public id finds the row and may be shown. The secret has 257 bits, so a fast keyed hash is enough; what is stored
is HMAC-SHA-256 of the whole key under the pepper. The checksum refuses a mistyped key without asking anybody. Base58
has none of 0 O I l; the underscore ends the public id for whoever cuts keys out of logs.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import re
import secrets
import zlib
from typing import TYPE_CHECKING, Final

from msgspec import Struct

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

PREFIX: Final = "fbx-"
PUBLIC_CHARS: Final = 9
SECRET_CHARS: Final = 44
CHECK_CHARS: Final = 6
KEY_CHARS: Final = len(PREFIX) + PUBLIC_CHARS + 1 + SECRET_CHARS + CHECK_CHARS
ALPHABET: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"

# A key that the operator brings along (infrastructure as code) is taken as it is, if nobody could guess it: so long,
# or, where only this machine can ask, so short.
GIVEN_CHARS_MIN: Final = 24
LOOPBACK_CHARS_MIN: Final = 8
GIVEN_CHARS_MAX: Final = 512
_BLOCK_BYTES: Final = 64

_KEY: Final = re.compile(rf"{PREFIX}[{ALPHABET}]{{{PUBLIC_CHARS}}}_[{ALPHABET}]{{{SECRET_CHARS + CHECK_CHARS}}}")
# What begins like this is one of ours, whole or mistyped; it is never looked up as somebody else's.
_OURS: Final = re.compile(rf"{PREFIX}[!-~]{{{PUBLIC_CHARS}}}_")
_GIVEN: Final = re.compile(rf"[!-~]{{{LOOPBACK_CHARS_MIN},{GIVEN_CHARS_MAX}}}")


class MintedKey(Struct, frozen=True):
    """A new key. `plain` is shown once and stored nowhere."""

    plain: str
    public_id: str
    hash: bytes

    def __repr__(self) -> str:
        return f"MintedKey(public_id={self.public_id!r})"


def mint(pepper: bytes) -> MintedKey:
    """A key of our own making."""
    public_id = _random(PUBLIC_CHARS)
    body = f"{PREFIX}{public_id}_{_random(SECRET_CHARS)}"
    plain = body + _checksum(body)
    return MintedKey(plain, public_id, hash_of(plain, pepper))


def accept(plain: str, pepper: bytes, chars_min: int = GIVEN_CHARS_MIN) -> MintedKey:
    """A key that somebody else made: of our format, or `chars_min` to 512 printable characters without spaces.

    Raises: ValueError, without the key in its message."""
    public_id = public_id_of(plain, pepper)
    if public_id is None or len(plain) < chars_min:
        raise ValueError(
            f"not usable as a key: either {KEY_CHARS} characters of the form {PREFIX}..., checksum included, or any "
            f"other {chars_min} to {GIVEN_CHARS_MAX} printable characters without spaces"
        )
    return MintedKey(plain, public_id, hash_of(plain, pepper))


def public_id_of(presented: str, pepper: bytes) -> str | None:
    """Under which public id a presented key would be found; None if it can be no key at all."""
    if _OURS.match(presented) or (presented.startswith(PREFIX) and len(presented) == KEY_CHARS):
        well_formed = _KEY.fullmatch(presented) and _checksum(presented[:-CHECK_CHARS]) == presented[-CHECK_CHARS:]
        return presented[len(PREFIX) : len(PREFIX) + PUBLIC_CHARS] if well_formed else None
    if _GIVEN.fullmatch(presented) is None:
        return None
    # A given key has no public part; this one tells nothing about it to whoever lacks the pepper.
    derived = hmac.digest(pepper, b"public id of " + presented.encode(), hashlib.sha256)
    return _base58(int.from_bytes(derived[:8], "big"), PUBLIC_CHARS + 2)


def hash_of(presented: str, pepper: bytes) -> bytes:
    """What is stored and compared, and under what a verified key is remembered."""
    inner, outer = _keyed(pepper)
    inside, outside = inner.copy(), outer.copy()
    inside.update(presented.encode("utf-8", "surrogatepass"))
    outside.update(inside.digest())
    return outside.digest()


@functools.cache
def _keyed(pepper: bytes) -> tuple[Hash, Hash]:
    """Both halves of HMAC-SHA-256 with the pepper already in them. Every request asks for one, and what the module
    `hmac` does around the hashes costs as much as they do (4.9 and 2.6 us, 2026-11). Source: RFC 2104, section 2."""
    key = (pepper if len(pepper) <= _BLOCK_BYTES else hashlib.sha256(pepper).digest()).ljust(_BLOCK_BYTES, b"\0")
    inner, outer = bytes(byte ^ 0x36 for byte in key), bytes(byte ^ 0x5C for byte in key)
    return hashlib.sha256(inner), hashlib.sha256(outer)


def _random(count: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(count))


def _checksum(body: str) -> str:
    return _base58(zlib.crc32(body.encode()), CHECK_CHARS)


def _base58(number: int, width: int) -> str:
    digits = ""
    for _ in range(width):
        number, digit = divmod(number, len(ALPHABET))
        digits = ALPHABET[digit] + digits
    return digits
