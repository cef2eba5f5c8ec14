"""Program: runs each Triton kernel beside its plain form over shapes, on CUDA or (TRITON_INTERPRET=1) on CPU.

python -m tests.local_backend.triton_parity
"""

from __future__ import annotations

import torch

from local_backend.forward import Span
from local_backend.kernels.cache import AttentionBatch, KVCache
from local_backend.kernels.reference import ReferenceOps
from local_backend.kernels.triton_ops import TritonOps, weight_only
from local_backend.quantization.neutral import SCHEMES, quantize

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PLAIN, FUSED = ReferenceOps(), TritonOps()


def batch(block_size: int, chunks: list[tuple[int, int]]) -> AttentionBatch:
    """Chunks (start, count), single tokens first, blocks scattered."""
    made, next_block = [], 100
    for start, count in chunks:
        blocks = -(-(start + count) // block_size)
        made.append(Span([5] * count, start, list(range(next_block - blocks, next_block))))
        next_block -= blocks
    return AttentionBatch(made, block_size, DEVICE, torch.float32)


def check_rows() -> int:
    """Norms and gate."""
    for rows, width in ((1, 16), (3, 48), (5, 576)):
        x, delta = torch.randn(2, rows, width, device=DEVICE)
        weight = torch.rand(width, device=DEVICE) + 0.5
        torch.testing.assert_close(FUSED.rms_norm(x, weight, 1e-5), PLAIN.rms_norm(x, weight, 1e-5))
        wanted = PLAIN.add_rms_norm(x.clone(), delta, weight, 1e-5)
        for got, want in zip(FUSED.add_rms_norm(x.clone(), delta, weight, 1e-5), wanted, strict=True):
            torch.testing.assert_close(got, want)
        gates = torch.randn(rows, 2 * width, device=DEVICE) * 4
        torch.testing.assert_close(FUSED.silu_mul(gates), PLAIN.silu_mul(gates), atol=1e-5, rtol=1e-5)
    return 9


def check_attention() -> int:
    """Rotation, cache and attention, over shapes, caches, windows and caps."""
    checks = 0
    for heads, kv_heads, dim, half, block_size in ((4, 2, 16, 8, 16), (6, 1, 64, 32, 4), (3, 3, 40, 16, 8)):
        for window, softcap, dtype in (
            (0, 0.0, torch.float32),
            (5, 0.0, torch.float32),
            (0, 3.0, torch.float32),
            (0, 0.0, torch.int8),
        ):
            chunks = [(0, 1), (3, 1), (30, 1), (0, 12), (20, 70)]
            _compare(heads, kv_heads, dim, half, block_size, chunks, window, softcap, dtype)
            checks += 1
    _compare(4, 2, 16, 8, 16, [(255, 1), (256, 1), (600, 1)], 0, 0.0, torch.float32)  # several splits
    _compare(4, 2, 16, 8, 16, [(600, 1)], 300, 0.0, torch.bfloat16)  # a first split that the window hides
    return checks + 2


def _compare(
    heads: int, kv_heads: int, dim: int, half: int, size: int, chunks: list[tuple[int, int]], window: int,
    softcap: float, dtype: torch.dtype,
) -> None:  # fmt: skip
    torch.manual_seed(0)
    tokens = sum(count for _, count in chunks)
    stored = torch.randn(2, 100 * size, kv_heads, dim, device=DEVICE)
    qkv = torch.randn(tokens, heads + 2 * kv_heads, dim, device=DEVICE)
    angle = torch.rand(tokens, 1, half, device=DEVICE) * 6
    outs = []
    for ops in (PLAIN, FUSED):
        cache = KVCache(2, 100, size, kv_heads, dim, dtype, DEVICE)
        cache.store(1, torch.arange(100 * size, device=DEVICE), *stored)
        step = batch(size, chunks)
        turned = ops.rope_store(qkv.clone(), kv_heads, angle.cos(), angle.sin(), cache, 1, step)
        scale = dim**-0.5
        outs.append(ops.attend(turned, kv_heads, cache, 1, step, scale=scale, window=window, softcap=softcap))
    # A narrow cache: the kernel reads a chunk's own keys back from it, the plain form has them at hand in full.
    loose = 0.0 if dtype == torch.float32 else 0.06
    torch.testing.assert_close(outs[1], outs[0], atol=1e-4 + loose, rtol=1e-3 + loose)


def check_weights() -> int:
    """Weight-only products."""
    checks = 0
    for scheme in ("int4wo", "int8wo"):
        for outs, ins, rows in ((48, 64, 1), (130, 96, 5), (64, 256, 33)):
            packed = quantize(torch.randn(outs, ins), SCHEMES[scheme])  # type: ignore[index]
            x = torch.randn(rows, ins, device=DEVICE)
            zero = None if packed.zero is None else packed.zero.to(DEVICE)
            out = weight_only(x, packed.codes.to(DEVICE), packed.scale.to(DEVICE), zero, packed.group)
            wanted = x.double() @ packed.dequantize().to(DEVICE).double().t()
            torch.testing.assert_close(out, wanted.float(), atol=1e-2, rtol=1e-2)
            checks += 1
    return checks


if __name__ == "__main__":
    print(f"{check_rows() + check_attention() + check_weights()} checks passed on {DEVICE}")
