"""The paged KV cache as tensors, and what attention must know about a step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import torch

from local_backend.forward import Span
from local_backend.prefix_cache import Move

E4M3_MAX = 448.0  # largest finite float8_e4m3fn; beyond it the cast gives NaN


class KVCache:
    """Keys and values of all layers: (layers, blocks, block_size, kv_heads, head_dim) each.

    int8 keeps one scale for each token and head beside its numbers; float8 and bfloat16 are plain casts."""

    def __init__(
        self,
        layers: int,
        blocks: int,
        block_size: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (layers, blocks, block_size, kv_heads, head_dim)
        self.block_size = block_size
        self.dtype = dtype
        self.keys = zeroed_lazily(shape, dtype, device)
        self.values = zeroed_lazily(shape, dtype, device)
        self.key_scale: torch.Tensor | None = None
        self.value_scale: torch.Tensor | None = None
        self.native: list[Any] | None = None  # what a kernel keeps of the addresses
        self._host: list[torch.Tensor] = []
        if dtype == torch.int8:
            self.key_scale = zeroed_lazily(shape[:-1], torch.float32, device)
            self.value_scale = zeroed_lazily(shape[:-1], torch.float32, device)

    def add_host(self, slots: int) -> None:
        """Host memory for so many blocks; pinned where there is a GPU to copy to it without waiting."""
        pinned = self.keys.device.type == "cuda"
        self._host = [
            torch.zeros((len(own), slots, *own.shape[2:]), dtype=own.dtype, pin_memory=pinned)
            for own in self._tensors()
        ]

    def move(self, moves: list[Move]) -> None:
        """Copy blocks out to host memory and back. All copies go through one stream, so their order is kept."""
        for own, host in zip(self._tensors(), self._host, strict=True) if moves else ():
            for move in moves:
                there, here = host[:, move.slot], own[:, move.block]
                if move.out:
                    there.copy_(here, non_blocking=True)
                else:
                    here.copy_(there, non_blocking=True)

    def _tensors(self) -> list[torch.Tensor]:
        return [t for t in (self.keys, self.values, self.key_scale, self.value_scale) if t is not None]

    def store(self, layer: int, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write (tokens, kv_heads, head_dim) at `slots`, each block * block_size + offset."""
        for rows, cache, scales in ((keys, self.keys, self.key_scale), (values, self.values, self.value_scale)):
            flat = cache[layer].flatten(0, 1)
            if scales is not None:
                unit = rows.float().abs().amax(-1) / 127.0
                unit = torch.where(unit == 0, 1.0, unit)  # a NaN stays one: codes cannot hold it
                scales[layer].flatten(0, 1).index_copy_(0, slots, unit)
                rows = (rows.float() / unit.unsqueeze(-1)).round()
            elif self.dtype == torch.float8_e4m3fn:
                # index_copy_ knows no float8: the bytes are moved.
                flat, rows = flat.view(torch.uint8), rows.clamp(-E4M3_MAX, E4M3_MAX).to(self.dtype).view(torch.uint8)
            flat.index_copy_(0, slots, rows.to(flat.dtype))

    def gather(self, layer: int, blocks: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Pages of (rows, blocks) tables as two tensors (rows, kv_heads, blocks * block_size, head_dim) of `dtype`."""
        rows, count = blocks.shape
        _, _, size, heads, dim = self.keys.shape
        flat = blocks.flatten()

        def pages(cache: torch.Tensor, scales: torch.Tensor | None) -> torch.Tensor:
            if self.dtype == torch.float8_e4m3fn:
                picked = cache[layer].view(torch.uint8).index_select(0, flat).view(self.dtype).to(dtype)
            else:
                picked = cache[layer].index_select(0, flat).to(dtype)
            if scales is not None:
                picked = picked * scales[layer].index_select(0, flat).unsqueeze(-1).to(dtype)
            return picked.view(rows, count * size, heads, dim).transpose(1, 2)

        return pages(self.keys, self.key_scale), pages(self.values, self.value_scale)


def zeroed_lazily(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros, since padding reads blocks never written, and a stray NaN times a zero weight is a NaN.

    On CPU through numpy's calloc: pages cost memory when they are first used, where torch.zeros writes them all."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)).view(dtype).view(shape)


@dataclass(slots=True)
class DecodeGroup:
    """Rows `start:end` of the step, one token each, with contexts of like length."""

    start: int
    end: int
    blocks: torch.Tensor  # (rows, blocks), padded with block 0
    mask: torch.Tensor  # (rows, 1, 1, context) to add: 0 where a token may look, -inf elsewhere


@dataclass(slots=True)
class PrefillChunk:
    """Rows `start:end` of the step: consecutive tokens of one sequence."""

    start: int
    end: int
    blocks: torch.Tensor | None  # (1, blocks); None if the chunk is the whole context and need not be read back
    mask: torch.Tensor | None  # (tokens, context) to add; None: plain causal


class AttentionBatch:
    """What attention must know about a step; the same for every layer, and made from integers once.

    Spans of one token come first, shortest context first: they are attended together. Then come the other short ones.
    The views that one kernel or another wants are made when it first asks."""

    def __init__(self, spans: list[Span], block_size: int, device: torch.device, dtype: torch.dtype) -> None:
        self.spans = spans
        self.block_size, self.device, self.dtype = block_size, device, dtype
        self.counts = [len(span.tokens) for span in spans]
        # Blocks that each span's context takes.
        self.pages = [-(-(span.start + count) // block_size) for span, count in zip(spans, self.counts, strict=True)]
        self.tokens = sum(self.counts)
        self.decode_rows = self.counts.count(1)
        self.short_rows = self.decode_rows + sum(s.count for s in spans[self.decode_rows :] if s.is_short)
        self._tiles: dict[int, torch.Tensor | None] = {}
        self._decode: dict[int, list[DecodeGroup]] = {}
        self._prefill: dict[tuple[int, int], list[PrefillChunk]] = {}

    @cached_property
    def inputs(self) -> torch.Tensor:
        """(tokens,) ids of the tokens themselves."""
        return self.ints(list(chain.from_iterable(span.tokens for span in self.spans)))

    @cached_property
    def slots(self) -> torch.Tensor:
        """(tokens,) where each token's keys and values go: block * block_size + offset."""
        at, size = self.positions, self.block_size
        return self.tables[self.owners, at // size] * size + at % size

    @cached_property
    def tables(self) -> torch.Tensor:
        """(spans, pages) block tables, padded with block 0."""
        widest = max(self.pages)
        padding, flat = [0] * widest, list[int]()
        for span, pages in zip(self.spans, self.pages, strict=True):
            flat += span.table[:pages]
            flat += padding[pages:]
        return self.ints(flat).view(-1, widest)

    @cached_property
    def owners(self) -> torch.Tensor:
        """(tokens,) the span each token belongs to."""
        return self.ints(np.repeat(np.arange(len(self.counts)), self.counts))

    @cached_property
    def positions(self) -> torch.Tensor:
        """(tokens,) where in its sequence each token stands."""
        counts = np.array(self.counts)
        # From a token's place among all to its place in its sequence: the same step for all of a span.
        shift = np.array([span.start for span in self.spans]) - (counts.cumsum() - counts)
        return self.ints(np.arange(self.tokens) + np.repeat(shift, counts))

    @cached_property
    def contexts(self) -> torch.Tensor:
        """(tokens,) how many tokens of its sequence each token sees, itself included."""
        return self.positions + 1

    @cached_property
    def longest(self) -> int:
        """The longest context in the step."""
        return max(span.end for span in self.spans)

    def decode_groups(self, window: int = 0) -> list[DecodeGroup]:
        """Single tokens, shortest context first, cut so that padding at most doubles the pages read."""
        if window not in self._decode:
            self._decode[window] = self._make_decode_groups(window)
        return self._decode[window]

    def prefill_chunks(self, window: int = 0, from_row: int = 0) -> list[PrefillChunk]:
        """Spans of several tokens, `from_row` on; the first of a prompt needs no pages, for it is its own context."""
        key = (window, from_row)
        if key not in self._prefill:
            self._prefill[key] = self._make_prefill_chunks(window, from_row)
        return self._prefill[key]

    def tiles(self, rows: int) -> torch.Tensor | None:
        """(n, 4) spans of several tokens in pieces of at most `rows`: span, first row, rows, position; None: none."""
        if rows not in self._tiles:
            made: list[list[int]] = []
            at = 0
            for index, span in enumerate(self.spans):
                if span.count > 1:
                    made += [
                        [index, at + offset, min(rows, span.count - offset), span.start + offset]
                        for offset in range(0, span.count, rows)
                    ]
                at += span.count
            self._tiles[rows] = self.ints(made) if made else None
        return self._tiles[rows]

    def ints(self, values: list[int] | list[list[int]] | np.ndarray[Any, Any]) -> torch.Tensor:
        """Integers on the device of the step; by way of numpy, which reads a list in a third of torch's time."""
        return torch.from_numpy(np.asarray(values, dtype=np.int64)).to(self.device)

    def _make_decode_groups(self, window: int) -> list[DecodeGroup]:
        groups: list[DecodeGroup] = []
        start = 0
        while start < self.decode_rows:
            shortest = self.pages[start]
            end = start
            while end < self.decode_rows and self.pages[end] <= max(2 * shortest, 8):
                end += 1
            pages = max(self.pages[start:end])
            at = self.contexts[start:end].unsqueeze(1) - 1
            mask = self._mask(at, pages, window)
            groups.append(DecodeGroup(start, end, self.tables[start:end, :pages], mask[:, None, None]))
            start = end
        return groups

    def _make_prefill_chunks(self, window: int, from_row: int) -> list[PrefillChunk]:
        out: list[PrefillChunk] = []
        row = 0
        for index, span in enumerate(self.spans):
            if span.count > 1 and row >= from_row:
                blocks = mask = None
                at = torch.arange(span.start, span.end, device=self.device).unsqueeze(1)
                if span.start:
                    pages = self.pages[index]
                    blocks = self.tables[index : index + 1, :pages]
                    mask = self._mask(at, pages, window)
                elif 0 < window < span.count:
                    mask = self._mask(at, self.pages[index], window)[:, : span.count]
                out.append(PrefillChunk(row, row + span.count, blocks, mask))
            row += span.count
        return out

    def _mask(self, at: torch.Tensor, pages: int, window: int) -> torch.Tensor:
        """(tokens, context) to add to scores of tokens at positions `at` (tokens, 1)."""
        seen = torch.arange(pages * self.block_size, device=self.device)
        hidden = seen > at
        if window:
            hidden |= seen <= at - window
        mask = torch.zeros(hidden.shape, dtype=self.dtype, device=self.device)
        return mask.masked_fill_(hidden, float("-inf"))
