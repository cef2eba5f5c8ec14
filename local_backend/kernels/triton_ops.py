"""The fused operations on CUDA; in Triton's interpreter on any CPU, which is how they are tested without a GPU."""

from __future__ import annotations

from typing import Any

import torch
import triton

from local_backend.kernels import triton_kernels as kernels
from local_backend.kernels.cache import E4M3_MAX, AttentionBatch, KVCache
from local_backend.kernels.reference import ReferenceOps

SPLIT = 256  # tokens of context to one program of a decode step
STEP = 32  # tokens of context loaded at a time
TILE = 64  # tokens of a prompt to one program
LEAST_DOT = 16  # tl.dot takes no smaller side


def power_of_two(n: int) -> int:
    """The least power of two that holds n: what a block of a kernel must be."""
    return max(LEAST_DOT, 1 << (n - 1).bit_length())


class TritonOps(ReferenceOps):
    """Our own Triton kernels behind the names of ReferenceOps."""

    name = "triton"

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """See ReferenceOps."""
        x = x.contiguous()
        out = torch.empty_like(x)
        n = x.shape[-1]
        _run(kernels.rms_norm_kernel, (x.numel() // n,), out, x, x, weight, eps, n, ADD=False, BLOCK=power_of_two(n))
        return out

    def add_rms_norm(
        self, x: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See ReferenceOps."""
        x, delta = x.contiguous(), delta.contiguous()
        out = torch.empty_like(x)
        n = x.shape[-1]
        grid = (x.numel() // n,)
        _run(kernels.rms_norm_kernel, grid, out, x, delta, weight, eps, n, ADD=True, BLOCK=power_of_two(n))
        return x, out

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """See ReferenceOps."""
        gate_up = gate_up.contiguous()
        rows, both = gate_up.shape
        n = both // 2
        out = gate_up.new_empty(rows, n)
        block = min(1024, power_of_two(n))
        _run(kernels.silu_mul_kernel, (rows, triton.cdiv(n, block)), out, gate_up, n, BLOCK=block)
        return out

    def rope_store(
        self,
        qkv: torch.Tensor,
        kv_heads: int,
        cos: torch.Tensor,
        sin: torch.Tensor,
        cache: KVCache,
        layer: int,
        batch: AttentionBatch,
    ) -> torch.Tensor:
        """See ReferenceOps."""
        qkv, cos, sin = qkv.contiguous(), cos.contiguous(), sin.contiguous()
        tokens, all_heads, dim = qkv.shape
        _run(
            kernels.rope_store_kernel,
            (tokens, all_heads),
            qkv,
            cos,
            sin,
            batch.slots,
            *_pages(cache, layer),
            all_heads - 2 * kv_heads,
            kv_heads,
            dim,
            cos.shape[-1],
            SCALED=cache.key_scale is not None,
            BOUND=E4M3_MAX if cache.dtype == torch.float8_e4m3fn else 0,
            BLOCK=power_of_two(dim),
        )
        return qkv

    def attend_decode(
        self,
        out: torch.Tensor,
        qkv: torch.Tensor,
        kv_heads: int,
        cache: KVCache,
        layer: int,
        batch: AttentionBatch,
        scale: float,
        softcap: float,
        window: int,
    ) -> None:
        """See ReferenceOps."""
        rows = batch.decode_rows
        if not rows:
            return
        heads, dim = out.shape[1:]
        splits = triton.cdiv(batch.spans[rows - 1].end, SPLIT)
        sums = torch.empty(rows, heads, splits, dim, dtype=torch.float32, device=qkv.device)
        peaks = torch.empty(rows, heads, splits, dtype=torch.float32, device=qkv.device)
        totals = torch.empty_like(peaks)
        block_d = power_of_two(dim)
        _run(
            kernels.decode_kernel,
            (rows, kv_heads, splits),
            sums,
            peaks,
            totals,
            qkv,
            *_pages(cache, layer),
            batch.tables,
            batch.owners,
            batch.contexts,
            batch.tables.shape[1],
            heads,
            kv_heads,
            splits,
            window,
            scale,
            softcap,
            DIM=dim,
            GROUP=heads // kv_heads,
            BLOCK_SIZE=cache.block_size,
            SPLIT=SPLIT,
            STEP=STEP,
            BLOCK_D=block_d,
            BLOCK_G=power_of_two(heads // kv_heads),
            SCALED=cache.key_scale is not None,
            CAPPED=softcap > 0,
        )
        _run(kernels.combine_kernel, (rows * heads,), out, sums, peaks, totals, splits, DIM=dim, BLOCK_D=block_d)

    def attend_prefill(
        self,
        out: torch.Tensor,
        qkv: torch.Tensor,
        kv_heads: int,
        cache: KVCache,
        layer: int,
        batch: AttentionBatch,
        scale: float,
        softcap: float,
        window: int,
    ) -> None:
        """See ReferenceOps; reads the chunk's own keys from the cache, too."""
        tiles = batch.tiles(TILE)
        if tiles is None:
            return
        heads, dim = out.shape[1:]
        _run(
            kernels.extend_kernel,
            (len(tiles), heads),
            out,
            qkv,
            *_pages(cache, layer),
            batch.tables,
            tiles,
            batch.tables.shape[1],
            heads,
            kv_heads,
            window,
            scale,
            softcap,
            DIM=dim,
            GROUP=heads // kv_heads,
            BLOCK_SIZE=cache.block_size,
            ROWS=TILE,
            STEP=STEP,
            BLOCK_D=power_of_two(dim),
            SCALED=cache.key_scale is not None,
            CAPPED=softcap > 0,
        )


def weight_only(
    x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, group: int
) -> torch.Tensor:
    """x (rows, ins) times weights in the neutral form of 4 or 8 bits; groups must be multiples of 16."""
    x = x.contiguous()
    rows, ins = x.shape
    outs = len(codes)
    out = x.new_empty(rows, outs)
    block_m, block_n = (16 if rows <= 16 else 64), 64
    _run(
        kernels.weight_only_kernel,
        (triton.cdiv(rows, block_m), triton.cdiv(outs, block_n)),
        out,
        x,
        codes,
        scale,
        scale if zero is None else zero,
        rows,
        outs,
        ins,
        ins // group,
        GROUP=group,
        FOUR=codes.dtype == torch.uint8,
        ZERO=zero is not None,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
    )
    return out


def _pages(cache: KVCache, layer: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys, values and their scales of one layer; without scales any tensor stands in, for none is read."""
    keys, values = cache.keys[layer], cache.values[layer]
    if cache.key_scale is None or cache.value_scale is None:
        return keys, values, keys, values
    return keys, values, cache.key_scale[layer], cache.value_scale[layer]


def _run(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
    kernel[grid](*args, **constants)
