"""Which block holds which prefix: chained hashes of full blocks, and the map from hash to block.

A block's hash covers everything before it, so equal hashes mean equal prefixes. The salt starts the chain: prompts of
different tenants never share blocks, nor can one tenant learn by timing what another has asked.
Source: vLLM docs/design/prefix_caching.md, read 2026-11.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence as Seq
from hashlib import blake2b

from msgspec import Struct


def block_hash(parent: bytes, tokens: Seq[int], seen: bytes = b"") -> bytes:
    """Hash of one full block after `parent` (the salt for the first). 16 bytes: collisions are out of reach.

    seen: digests of the images that some of the tokens stand for; all images have the same tokens."""
    return blake2b(array("I", tokens).tobytes() + seen, digest_size=16, key=parent[:64]).digest()


def root_hash(salt: bytes) -> bytes:
    """Start of a chain; salts of any length are brought to key size."""
    return blake2b(salt, digest_size=16).digest()


class PrefixCache:
    """Hash -> block and back. Holds no reference counts; the block manager says when a block is given away."""

    def __init__(self) -> None:
        self._block_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self._block_of)

    def find(self, hash_: bytes) -> int | None:
        """The block with this content, if one is held."""
        return self._block_of.get(hash_)

    def holds(self, block: int) -> bool:
        """True if the block's content is known under a hash."""
        return block in self._hash_of

    def put(self, hash_: bytes, block: int) -> bool:
        """Remember a full block. A second block with the same content stays anonymous: tables are append-only.

        Returns: True if it was news."""
        if hash_ in self._block_of or block in self._hash_of:
            return False
        self._block_of[hash_] = block
        self._hash_of[block] = hash_
        return True

    def drop(self, block: int) -> bytes | None:
        """Forget a block that is about to be overwritten. Returns: the hash that it was known under."""
        hash_ = self._hash_of.pop(block, None)
        if hash_ is not None:
            del self._block_of[hash_]
        return hash_


class Move(Struct, frozen=True, array_like=True):
    """Copy a block's content between the device and a slot of host memory, before anything else in the step."""

    block: int
    slot: int
    out: bool  # from the device; else to it


class HostTier:
    """What the device's cache had to give up, kept in slots of host memory: least recently used goes first.

    Integers only, as the block manager: the runner carries out the moves, in their order."""

    def __init__(self, slots: int) -> None:
        self._slot_of: OrderedDict[bytes, int] = OrderedDict()
        self._free = list(range(slots))

    def find(self, hash_: bytes) -> int | None:
        """The slot that holds this prefix, if any."""
        if hash_ in self._slot_of:
            self._slot_of.move_to_end(hash_)
        return self._slot_of.get(hash_)

    def put(self, hash_: bytes) -> int | None:
        """Where to copy a block that is about to be overwritten; None if its content is here already."""
        if self.find(hash_) is not None:
            return None
        slot = self._free.pop() if self._free else self._slot_of.popitem(last=False)[1]
        self._slot_of[hash_] = slot
        return slot

    def drop(self, hash_: bytes) -> None:
        """Forget this prefix, if it is here."""
        if (slot := self._slot_of.pop(hash_, None)) is not None:
            self._free.append(slot)
