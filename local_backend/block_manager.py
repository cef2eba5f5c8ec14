"""Paged KV blocks: who holds which, and which are free. Integers only; the tensors are the runner's.

A block is free when nobody refers to it. A free block keeps its content, and its place in the prefix cache, until it is
handed out again: least recently used first.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable

from local_backend.messages import BlockRemoved, BlockStored, KVEvent
from local_backend.prefix_cache import HostTier, Move, PrefixCache, block_hash, root_hash
from local_backend.sequence import Sequence


class BlockManager:
    """Hands out blocks of `block_size` tokens. Invariant: every block is either free or referred to, never both."""

    def __init__(self, total_blocks: int, block_size: int, *, prefix_caching: bool = True, host_slots: int = 0) -> None:
        """host_slots: blocks of host memory for what is evicted; prefixes found there come back by a copy."""
        self.total_blocks = total_blocks
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        self.cache = PrefixCache()
        self.host = HostTier(host_slots) if host_slots and prefix_caching else None
        self._moves: list[Move] = []
        self.events: list[KVEvent] | None = None  # what changed in the cache, if somebody wants to know
        self.query_tokens = 0
        self.hit_tokens = 0
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(total_blocks))  # front: next to go
        self._references = [0] * total_blocks

    @property
    def free_blocks(self) -> int:
        """Blocks that nobody refers to, with or without content worth keeping."""
        return len(self._free)

    @property
    def used_blocks(self) -> int:
        """Blocks that some sequence refers to."""
        return self.total_blocks - len(self._free)

    def blocks_for(self, tokens: int) -> int:
        """Blocks that so many tokens take."""
        return -(-tokens // self.block_size)

    def match(self, seq: Sequence) -> None:
        """Give a sequence without blocks those that already hold its prefix, and count them as computed.

        The last token is never matched: its logits are wanted, so it must be computed."""
        assert not seq.block_table
        assert not seq.computed
        if not self.prefix_caching:
            return
        for index in range((len(seq.tokens) - 1) // self.block_size):
            block = self.cache.find(self._hash(seq, index))
            if block is None:
                block = self._fetch(seq, index)
            if block is None:
                break
            self._take(block)
            seq.block_table.append(block)
        seq.computed = len(seq.block_table) * self.block_size

    def can_hold(self, seq: Sequence) -> bool:
        """True if all known tokens of the sequence would fit now."""
        return self.blocks_for(len(seq.tokens)) - len(seq.block_table) <= len(self._free)

    def grow(self, seq: Sequence, count: int) -> bool:
        """Make room for `count` more computed tokens. Returns: False, with nothing changed, if blocks run short."""
        missing = -(-(seq.computed + count) // self.block_size) - len(seq.block_table)
        if missing > len(self._free):
            return False
        for _ in range(missing):
            block = self._evict()
            self._take(block)
            seq.block_table.append(block)
        return True

    def commit(self, seq: Sequence, computed: int) -> None:
        """Tokens up to `computed` now stand in the cache; blocks that became full may be shared from here on."""
        before, full = seq.computed // self.block_size, computed // self.block_size
        seq.computed = computed
        if full > before and self.prefix_caching:
            for index in range(before, full):
                self._put(seq, index, seq.block_table[index])

    def take_moves(self) -> list[Move]:
        """What is to be copied before the next pass, in this order."""
        moves, self._moves = self._moves, []
        return moves

    def release(self, seq: Sequence) -> None:
        """Take all blocks back. The tail goes first to be reused, so shared beginnings live longest."""
        for block in reversed(seq.block_table):
            self._references[block] -= 1
            if self._references[block] == 0:
                self._free[block] = None
                if not self.cache.holds(block):
                    self._free.move_to_end(block, last=False)  # worth nothing: hand it out first
        seq.block_table.clear()
        seq.computed = 0

    def forget(self, seq: Sequence) -> None:
        """Nobody shall find what the sequence's blocks hold: it led to numbers that are none, and would again."""
        for block in seq.block_table:
            if (dropped := self._drop(block)) is not None and self.host is not None:
                self.host.drop(dropped)

    def check(self, live: Iterable[Sequence]) -> None:
        """Assert the invariants against the sequences that should hold blocks."""
        held = Counter(block for seq in live for block in seq.block_table)
        assert all(self._references[block] == held[block] for block in range(self.total_blocks)), "references drifted"
        assert self._free.keys().isdisjoint(held), "a block is free and held"
        assert len(self._free) + len(held) == self.total_blocks, "a block leaked"

    def _evict(self) -> int:
        """The free block that is worth least; what it holds goes to host memory if there is any. It stays free."""
        block = next(iter(self._free))
        dropped = self._drop(block)
        if dropped is not None and self.host is not None and (slot := self.host.put(dropped)) is not None:
            self._moves.append(Move(block, slot, out=True))
        return block

    def _drop(self, block: int) -> bytes | None:
        """Forget under which hash a block is known, and tell whoever wants to know."""
        dropped = self.cache.drop(block)
        if dropped is not None and self.events is not None:
            self.events.append(BlockRemoved([dropped]))
        return dropped

    def _fetch(self, seq: Sequence, index: int) -> int | None:
        """A free block for what host memory holds of the sequence at `index`; None if it holds nothing."""
        if self.host is None or not self._free or self.host.find(self._hash(seq, index)) is None:
            return None
        block = self._evict()
        slot = self.host.find(self._hash(seq, index))
        if slot is None:  # in a tier this small the evicted block took its place
            return None
        self._moves.append(Move(block, slot, out=False))
        self._put(seq, index, block)
        return block

    def _put(self, seq: Sequence, index: int, block: int) -> None:
        """The sequence's block at `index` may be shared from here on."""
        hash_ = self._hash(seq, index)
        if self.cache.put(hash_, block) and self.events is not None:
            parent = seq.block_hashes[index - 1] if index else None
            tokens = seq.tokens[index * self.block_size : (index + 1) * self.block_size]
            self.events.append(BlockStored([hash_], parent, tokens, self.block_size, None))

    def _take(self, block: int) -> None:
        self._references[block] += 1
        self._free.pop(block, None)

    def _hash(self, seq: Sequence, index: int) -> bytes:
        """Hash of the sequence's block at `index`; remembered, since tokens are only ever appended."""
        size = self.block_size
        while len(seq.block_hashes) <= index:
            at = len(seq.block_hashes)
            parent = seq.block_hashes[-1] if at else root_hash(seq.salt)
            seen = b"" if seq.pictures is None else seq.pictures.digest(at * size, (at + 1) * size)
            seq.block_hashes.append(block_hash(parent, seq.tokens[at * size : (at + 1) * size], seen))
        return seq.block_hashes[index]
