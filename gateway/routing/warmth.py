"""Which deployment still holds which prompt prefix, so that a prompt goes where most of it need not be read again.

A prompt is cut into blocks of bytes and each block's hash includes all before it, so one number names a whole prefix
(as vLLM's and llm-d's block hashes do; read 2026-11). Per deployment the newest numbers are kept, as many as its cache
holds tokens: what it evicts, this forgets. The tenant is in the first hash: a guess never crosses tenants, as caches
with a salt do not. Approximate by nature: an answer that tells of fewer cached tokens than were promised is believed.

Traps of others that the tests hold open: no eviction; an index that is never seeded; one system prompt that all share
and that ties everybody to one replica (the router's cost, not this index, breaks the tie)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from math import inf, nextafter
from typing import Final

from msgspec import Struct

from providers.neutral import ChatRequest, Message, TextPart, ToolCallPart, ToolResultPart
from providers.neutral.content import CachePoint

# Bytes. About four of vLLM's blocks of 16 tokens; smaller ones cost more time than the last few tokens are worth.
BLOCK_BYTES: Final = 256
TOKENS_PER_BLOCK: Final = BLOCK_BYTES // 4
# Half a megabyte of prompt; what lies behind is as warm as the prefix before it.
BLOCKS_MAX: Final = 2048
# All deployments together, about 150 bytes each: 75 MB.
ENTRIES_MAX: Final = 500_000

# Source: docs.anthropic.com "Prompt caching", `ttl` of `cache_control`, read 2026-11.
TTL_S: Final = {"5m": 300.0, "1h": 3600.0}

# So long a prompt may take to be read and told of by an engine that tells.
UNTOLD_S: Final = 2.0

Chain = tuple[int, ...]
"""Of a prompt: the n-th number names its first n + 1 blocks."""


class Cache(Struct, frozen=True):
    """What a deployment keeps of prompts. tokens: how many fit. seconds: until an unused prefix is gone (hosted caches
    say 5 minutes to an hour); None: until others need the room. least: shorter prefixes are read anew each time."""

    tokens: int = 400_000
    seconds: float | None = None
    least: int = 0


def chain_of(request: ChatRequest, tenant: str) -> Chain:
    """The last, unfilled block is left out: it cannot be shared."""
    return chain_of_bytes(b"".join(_written(request)), tenant)


def chain_of_bytes(text: bytes, tenant: str) -> Chain:
    last = blake2b(tenant.encode(), digest_size=8).digest()
    chain = []
    view = memoryview(text)
    for at in range(0, min(len(text) - BLOCK_BYTES, (BLOCKS_MAX - 1) * BLOCK_BYTES) + 1, BLOCK_BYTES):
        block = blake2b(last, digest_size=8)
        block.update(view[at : at + BLOCK_BYTES])
        last = block.digest()
        chain.append(int.from_bytes(last, "big"))
    return tuple(chain)


def kept_s(request: ChatRequest) -> float | None:
    """How long the client asks for its prompt to be kept: the last marker's time, since longer ones stand before
    shorter. None: it leaves that to the provider."""
    last: CachePoint | None = None
    for tool in request.tools:  # no comprehensions: this is asked of every request
        last = tool.cache or last
    for message in request.messages:
        for part in message.content:
            last = getattr(part, "cache", None) or last
    return None if last is None else TTL_S.get(last.ttl or "")


def _written(request: ChatRequest) -> Iterator[bytes]:
    """In the order of every family's template: tools and system first, then turn by turn."""
    yield request.model.encode()
    for tool in request.tools:
        yield f"\x1d{tool.name}\x1f{tool.description}\x1f{tool.parameters or tool.raw}".encode()
    for message in request.messages:
        yield from _turn(message)


def _turn(message: Message) -> Iterator[bytes]:
    yield f"\x1e{message.role}\x1f".encode()
    for part in message.content:
        match part:
            case TextPart():
                yield part.text.encode()
            case ToolCallPart():
                yield f"{part.name}\x1f{part.arguments}".encode()
            case ToolResultPart():
                for inner in part.content:
                    yield inner.text.encode() if isinstance(inner, TextPart) else repr(inner).encode()
            case _:
                yield repr(part).encode()


class Held:
    """One deployment's prefixes, newest last. The deepest block of a prompt is written first and so goes first: what is
    here has all its ancestors here, and the longest match is found by halving."""

    __slots__ = ("_blocks", "cache")

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self._blocks: OrderedDict[int, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks)

    def match(self, chain: Sequence[int], now: float, since: float = 0.0) -> int:
        """Blocks of the longest prefix still held. since: and read then or later."""
        if self.cache.seconds is not None:
            since = max(since, nextafter(now - self.cache.seconds, inf))
        seen = self._blocks.get
        low, high = 0, len(chain)
        # Most hold nothing of a prompt, so its beginning is asked for first.
        middle = min(1, high)
        while low < high:
            if seen(chain[middle - 1], -inf) >= since:
                low = middle
            else:
                high = middle - 1
            middle = (low + high + 1) // 2
        return low

    def keep(self, chain: Sequence[int], now: float) -> None:
        blocks = self._blocks
        for block in reversed(chain):
            blocks[block] = now
            blocks.move_to_end(block)
        room = self.cache.tokens // TOKENS_PER_BLOCK
        while len(blocks) > room:
            blocks.popitem(last=False)

    def forget(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            self._blocks.pop(block, None)

    def shed(self, count: int) -> None:
        for _ in range(min(count, len(self._blocks))):
            self._blocks.popitem(last=False)

    def newest(self) -> Iterator[int]:
        return reversed(self._blocks)


class Warmth:
    """One a process: every deployment's. `now`: seconds of one monotonic clock."""

    def __init__(self, entries_max: int = ENTRIES_MAX) -> None:
        self._held: dict[str, Held] = {}
        self._entries_max = entries_max

    def __len__(self) -> int:
        return sum(map(len, self._held.values()))

    def tokens(self, caches: Mapping[str, Cache], chain: Sequence[int], now: float) -> dict[str, int]:
        """By deployment: about how many of the prompt's tokens it need not read. Who holds nothing is left out."""
        found = {}
        for name, cache in caches.items():
            if (held := self._held.get(name)) is not None and (blocks := held.match(chain, now)):
                tokens = blocks * TOKENS_PER_BLOCK
                if tokens >= cache.least:
                    found[name] = tokens
        return found

    def told(self, held: Mapping[str, int], chain: Sequence[int], now: float) -> dict[str, int]:
        """The same of deployments that tell themselves: what they hold, or what was sent there just now and is not
        told of yet."""
        found = {}
        for name, tokens in held.items():
            mine = self._held.get(name)
            sent = 0 if mine is None else mine.match(chain, now, now - UNTOLD_S) * TOKENS_PER_BLOCK
            found[name] = max(tokens, sent)
        return found

    def keep(self, name: str, cache: Cache, chain: Sequence[int], now: float, asked_s: float | None = None) -> None:
        """The deployment has read this prompt: its first token is here. asked_s: for how long it was asked to keep it,
        where it does as it is asked."""
        if asked_s is not None and cache.seconds is not None:
            now += asked_s - cache.seconds  # gone when that much later
        held = self._held.get(name)
        if held is None or held.cache != cache:
            held = self._held[name] = Held(cache)
        held.keep(chain, now)
        if (over := len(self) - self._entries_max) > 0:
            # The greatest gives: with equal caches all shrink alike.
            max(self._held.values(), key=len).shed(over)

    def corrected(self, name: str, chain: Sequence[int], cached_tokens: int) -> None:
        """It told how much it had found: what it was thought to hold beyond that is forgotten, deepest first."""
        if (held := self._held.get(name)) is not None:
            held.forget(chain[-(-cached_tokens // TOKENS_PER_BLOCK) :])

    def drop(self, name: str) -> None:
        """It was restarted, or has left."""
        self._held.pop(name, None)

    def names(self) -> list[str]:
        """Of whom anything is known."""
        return list(self._held)
