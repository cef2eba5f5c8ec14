"""Quantized matrices of a GGUF file -> the neutral form of `neutral.py`, each weight exactly what it was. No torch.

Source: llama.cpp ggml-common.h (block_q4_0 to block_q6_K) and gguf-py quants.py, read 2026-11.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import Q4_K, dequantize

Array = np.ndarray[Any, Any]
Q = GGMLQuantizationType
RUN = 32  # inputs whose 4-bit codes are packed together: see neutral.py
ONE = np.frombuffer(np.float16(1).tobytes(), dtype=np.uint8)


def _half_at(blocks: Array, at: int) -> Array:
    return blocks[:, at : at + 2].copy().view(np.float16).astype(np.float32)


def _scale(blocks: Array) -> tuple[Array, Array | None]:
    scale = _half_at(blocks, 0)
    blocks[:, :2] = ONE
    return scale, None


def _scale_and_low(blocks: Array) -> tuple[Array, Array | None]:
    scale, low = _half_at(blocks, 0), _half_at(blocks, 2)
    blocks[:, :2], blocks[:, 2:4] = ONE, 0
    return scale, low


def _scales_and_lows(blocks: Array) -> tuple[Array, Array | None]:
    """Eight of each in 6 bits, under one float16 for all scales and one for all lows."""
    scales, lows = Q4_K.get_scale_min(blocks[:, 4:16].copy())
    whole, low = _scale_and_low(blocks)
    blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16] = 1, 0, 1  # as get_scale_min reads them: scales 1, lows 0
    assert low is not None
    return whole * scales.astype(np.float32), -low * lows.astype(np.float32)


def _sixteen_scales(blocks: Array) -> tuple[Array, Array | None]:
    scale = _half_at(blocks, 208) * blocks[:, 192:208].copy().view(np.int8).astype(np.float32)
    blocks[:, 192:208], blocks[:, 208:] = 1, ONE
    return scale, None


TAKE: dict[Q, Callable[[Array], tuple[Array, Array | None]]] = {
    Q.Q8_0: _scale,
    Q.Q4_0: _scale,
    Q.Q5_0: _scale,
    Q.Q4_1: _scale_and_low,
    Q.Q5_1: _scale_and_low,
    Q.Q4_K: _scales_and_lows,
    Q.Q5_K: _scales_and_lows,
    Q.Q6_K: _sixteen_scales,
}
"""Take from blocks (blocks, bytes) what codes are multiplied by and what is added, (blocks, groups) each; ones and
zeros are left in their place."""
FOUR_BITS = {Q.Q4_0, Q.Q4_1, Q.Q4_K}


def neutral(data: Array, kind: Q) -> dict[str, Array]:
    """Rows of blocks (outs, bytes) as `codes`, `scale` and, unless it is 0, `zero`: weight = scale * (code - zero)."""
    outs = len(data)
    blocks = data.reshape(-1, GGML_QUANT_SIZES[kind][1]).copy()
    scale, low = TAKE[kind](blocks)
    # What the library makes of blocks under scales of one are their codes: so bits are not taken apart twice.
    codes = dequantize(blocks, kind).astype(np.int8).reshape(*scale.shape, -1)
    zero = None
    if low is not None:
        # Where the scale is nothing the low is all that there is.
        flat = scale == 0
        codes[flat], scale = 0, np.where(flat, low, scale)
        zero = np.where(flat, np.float32(-1), -low / np.where(scale == 0, 1, scale))
    elif kind in FOUR_BITS:
        codes, zero = codes + np.int8(8), np.full_like(scale, 8)
    codes = codes.reshape(outs, -1)
    found = {"codes": _packed(codes) if kind in FOUR_BITS else codes, "scale": scale, "zero": zero}
    return {
        part: values if values.dtype.itemsize == 1 else _narrowest(values.reshape(outs, -1))
        for part, values in found.items()
        if values is not None
    }


def _packed(codes: Array) -> Array:
    """As `neutral.pack4`."""
    runs = codes.astype(np.uint8).reshape(len(codes), -1, 2, RUN // 2)
    packed: Array = (runs[:, :, 0] | runs[:, :, 1] << 4).reshape(len(codes), -1)
    return packed


def _narrowest(values: Array) -> Array:
    """As `neutral.narrowest`."""
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    return half if np.array_equal(half.astype(np.float32), values) else values
