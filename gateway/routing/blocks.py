"""What stands in an engine's prefix cache, block by block, as the engine itself tells it. Pure.

vLLM, SGLang and our own engine publish each block that they begin or cease to keep, with the tokens in it. A block is
known here by a name that covers all tokens before it, so a prompt's names are looked up without asking anybody. Ours
salts its hashes by tenant and its way of hashing is known: there the name is the engine's own hash. Of others the name
is made from the tokens that they tell; two tenants' same prompts are the same blocks there, as in those engines.
Sources: vllm/distributed/kv_events.py and docs/design/prefix_caching.md, read 2026-11; vLLM 0.32 on the wire;
local_backend/prefix_cache.py.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final

# Of one engine, about 250 bytes each. A block more is not known, and costs a prompt read twice at worst.
BLOCKS_MAX: Final = 200_000
GONE_SHARE: Final = 8

Name = bytes
Event = Sequence[Any] | Mapping[str, Any]
"""As decoded from msgpack: its kind, then its fields in vLLM's order; or, as vLLM 0.32 writes them, by name."""


def root(salt: str) -> Name:
    """What stands before a prompt's first block."""
    return blake2b(salt.encode(), digest_size=16).digest()


def name_of(parent: Name, tokens: Sequence[int]) -> Name:
    return blake2b(array("I", tokens).tobytes(), digest_size=16, key=parent).digest()


class Prompt:
    """A prompt's tokens, and the names of its blocks as each kind of engine goes by them, made on demand.

    tenant: whose it is, to engines that keep tenants apart."""

    def __init__(self, tokens: Sequence[int], tenant: str) -> None:
        self.tokens = tokens
        self._tenant = tenant
        self._names: dict[tuple[bool, int], list[Name]] = {}

    def names(self, salted: bool, size: int) -> list[Name]:
        """Of its full blocks, the first one first. The last token is always computed, so a block that ends with it is
        no help."""
        found = self._names.get((salted, size))
        if found is None:
            found, name = [], root(self._tenant if salted else "")
            for at in range(0, len(self.tokens) - size, size):
                name = name_of(name, self.tokens[at : at + size])
                found.append(name)
            self._names[salted, size] = found
        return found


class Blocks:
    """One engine's blocks. salted: it is one of ours."""

    def __init__(self, salted: bool, most: int = BLOCKS_MAX) -> None:
        self._salted = salted
        self._most = most
        self._names: dict[Any, Name] = {}  # by the engine's own hash
        self._held: dict[Name, int] = {}  # how many of the engine's blocks go by it
        # Of blocks that are gone: a sequence may still be growing behind a copy of one, which was never told of.
        self._gone: OrderedDict[Any, Name] = OrderedDict()
        self.size: int | None = None
        """Tokens of a block; None until the engine has told of one."""

    def __len__(self) -> int:
        return len(self._names)

    def apply(self, events: Sequence[Event]) -> None:
        """One batch, in order. What is unknown here (a newer engine's event, a block behind one that was missed) is
        passed over: less is known then, nothing false."""
        for event in events:
            match event:
                case ["BlockStored", hashes, parent, tokens, int(size), *_] if size > 0:
                    self._stored(hashes, parent, tokens, size)
                case {
                    "type": "BlockStored",
                    "block_hashes": hashes,
                    "token_ids": tokens,
                    "block_size": int(size),
                    **more,
                } if size > 0:
                    self._stored(hashes, more.get("parent_block_hash"), tokens, size)
                case ["BlockRemoved", hashes, *_] | {"type": "BlockRemoved", "block_hashes": hashes}:
                    for hash_ in hashes:
                        self._removed(hash_)
                case ["AllBlocksCleared", *_] | {"type": "AllBlocksCleared"}:
                    self.clear()

    def clear(self) -> None:
        self._names.clear()
        self._held.clear()
        self._gone.clear()

    def held_tokens(self, prompt: Prompt) -> int:
        """How many tokens of the prompt's beginning need not be read."""
        if self.size is None:
            return 0
        names = prompt.names(self._salted, self.size)
        for count, name in enumerate(names):
            if name not in self._held:
                return count * self.size
        return len(names) * self.size

    def _stored(self, hashes: Sequence[Any], parent: Any, tokens: Sequence[int], size: int) -> None:
        self.size = size
        name = root("") if parent is None else self._names.get(parent) or self._gone.get(parent)
        for at, hash_ in enumerate(hashes):
            if self._salted:
                name = hash_
            elif name is None:
                return
            else:
                name = name_of(name, tokens[at * size : (at + 1) * size])
            if hash_ in self._names or len(self._names) >= self._most:
                continue
            self._names[hash_] = name
            self._gone.pop(hash_, None)
            self._held[name] = self._held.get(name, 0) + 1

    def _removed(self, hash_: Any) -> None:
        name = self._names.pop(hash_, None)
        if name is None:
            return
        self._gone[hash_] = name
        if len(self._gone) > self._most // GONE_SHARE:
            self._gone.popitem(last=False)
        if self._held[name] > 1:
            self._held[name] -= 1
        else:
            del self._held[name]
