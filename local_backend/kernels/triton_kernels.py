"""The Triton kernels themselves; triton_ops.py calls them. Sizes in elements, `tl.constexpr` in capitals.

Attention sums run over splits of a fixed length, not a fixed number: a row's result then depends on its own context
alone. Idea of split-KV decoding: FlashDecoding (Dao et al., 2023).
"""

# ruff: noqa: N803 - constants of a kernel are in capitals in everyone's Triton
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rms_norm_kernel(out, x, delta, weight, eps, n, ADD: tl.constexpr, BLOCK: tl.constexpr):
    """One row a program: x += delta if ADD, then out = x / rms(x) * weight. Sums in float32, products as torch's."""
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    inside = at < n
    values = tl.load(x + row * n + at, mask=inside, other=0.0)
    if ADD:
        values = values + tl.load(delta + row * n + at, mask=inside, other=0.0)
        tl.store(x + row * n + at, values, mask=inside)
    wide = values.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(wide * wide, axis=0) / n + eps)
    normed = (wide * scale).to(values.dtype) * tl.load(weight + at, mask=inside, other=0.0)
    tl.store(out + row * n + at, normed, mask=inside)


@triton.jit
def silu_mul_kernel(out, gate_up, n, BLOCK: tl.constexpr):
    """A piece of one row a program: silu(gate) * up."""
    row = tl.program_id(0)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    gate = tl.load(gate_up + row * 2 * n + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * n + n + at, mask=inside, other=0.0)
    gated = (gate / (1.0 + tl.exp(-gate))).to(up.dtype)
    tl.store(out + row * n + at, gated * up, mask=inside)


@triton.jit
def rope_store_kernel(
    qkv, cos, sin, slots, keys, values, key_scale, value_scale, heads, kv_heads, dim, half,
    SCALED: tl.constexpr, BOUND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One head of one token a program: query and key heads turn in place, key and value heads go to the cache.

    SCALED: the cache is int8 with a scale each token and head. BOUND: the largest number of a float8 cache, or 0."""
    token, head = tl.program_id(0), tl.program_id(1)
    at = tl.arange(0, BLOCK)
    inside = at < dim
    row = qkv + (token * (heads + 2 * kv_heads) + head) * dim
    x = tl.load(row + at, mask=inside, other=0.0)
    if head < heads + kv_heads:
        # Each number's partner lies half a turn away: first halves take minus sine, second halves plus.
        turning = at < 2 * half
        first = at < half
        partner = tl.load(row + tl.where(first, at + half, at - half), mask=turning, other=0.0).to(tl.float32)
        angle = tl.where(first, at, at - half)
        c = tl.load(cos + token * half + angle, mask=turning, other=1.0)
        s = tl.load(sin + token * half + angle, mask=turning, other=0.0)
        turned = x.to(tl.float32) * c + partner * tl.where(first, -s, s)
        x = tl.where(turning, turned, x.to(tl.float32)).to(x.dtype)
        tl.store(row + at, x, mask=inside)
    if head >= heads:
        is_value = head >= heads + kv_heads
        kv_head = head - heads - tl.where(is_value, kv_heads, 0)
        place = tl.load(slots + token) * kv_heads + kv_head
        wide = x.to(tl.float32)
        if SCALED:
            peak = tl.max(tl.abs(tl.where(inside, wide, 0.0)), axis=0)
            unit = tl.where(peak > 0, peak / 127.0, 1.0)
            wide = wide / unit
            wide = tl.floor(wide + 0.5)
            if is_value:
                tl.store(value_scale + place, unit)
            else:
                tl.store(key_scale + place, unit)
        if BOUND > 0:
            wide = tl.minimum(tl.maximum(wide, -BOUND), BOUND)
        if is_value:
            tl.store(values + place * dim + at, wide.to(values.dtype.element_ty), mask=inside)
        else:
            tl.store(keys + place * dim + at, wide.to(keys.dtype.element_ty), mask=inside)


@triton.jit
def decode_kernel(
    sums, peaks, totals, qkv, keys, values, key_scale, value_scale, tables, owners, contexts,
    pages, heads, kv_heads, splits, window, scale, softcap,
    DIM: tl.constexpr, GROUP: tl.constexpr, BLOCK_SIZE: tl.constexpr, SPLIT: tl.constexpr, STEP: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_G: tl.constexpr, SCALED: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    """One split of one token's context for the query heads that share a kv head; combine_kernel adds the splits."""
    token, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    context = tl.load(contexts + token).to(tl.int32)
    first = tl.where(window > 0, tl.maximum(context - window, 0), 0)
    begin, end = split * SPLIT, tl.minimum(split * SPLIT + SPLIT, context)
    g, d = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_D)
    mine = g < GROUP
    head = kv_head * GROUP + g
    all_heads = heads + 2 * kv_heads
    query = tl.load(
        qkv + (token * all_heads + head[:, None]) * DIM + d[None, :], mask=mine[:, None] & (d < DIM)[None, :], other=0.0
    )
    table = tables + tl.load(owners + token) * pages
    peak = tl.full([BLOCK_G], -1e30, tl.float32)
    total = tl.zeros([BLOCK_G], tl.float32)
    acc = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
    for start in range(begin, end, STEP):
        at = start + tl.arange(0, STEP)
        seen = (at < end) & (at >= first)
        block = tl.load(table + at // BLOCK_SIZE, mask=at < end, other=0)
        place = (block * BLOCK_SIZE + at % BLOCK_SIZE) * kv_heads + kv_head
        inside = seen[:, None] & (d < DIM)[None, :]
        key = tl.load(keys + place[:, None] * DIM + d[None, :], mask=inside, other=0.0).to(query.dtype)
        scores = tl.dot(query, tl.trans(key)).to(tl.float32) * scale
        if SCALED:
            scores = scores * tl.load(key_scale + place, mask=seen, other=0.0)[None, :]
        if CAPPED:
            scores = softcap * (2.0 / (1.0 + tl.exp(-2.0 * scores / softcap)) - 1.0)
        scores = tl.where(seen[None, :], scores, -1e30)
        higher = tl.maximum(peak, tl.max(scores, axis=1))
        weight = tl.where(seen[None, :], tl.exp(scores - higher[:, None]), 0.0)
        fade = tl.exp(peak - higher)
        total = total * fade + tl.sum(weight, axis=1)
        value = tl.load(values + place[:, None] * DIM + d[None, :], mask=inside, other=0.0).to(query.dtype)
        if SCALED:
            weight = weight * tl.load(value_scale + place, mask=seen, other=0.0)[None, :]
        acc = acc * fade[:, None] + tl.dot(weight.to(query.dtype), value).to(tl.float32)
        peak = higher
    part = (token * heads + head) * splits + split
    tl.store(peaks + part, peak, mask=mine)
    tl.store(totals + part, total, mask=mine)
    tl.store(sums + part[:, None] * DIM + d[None, :], acc, mask=mine[:, None] & (d < DIM)[None, :])


@triton.jit
def combine_kernel(out, sums, peaks, totals, splits, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """One head of one token a program: its splits in order, each weighted by how high its scores reached."""
    row = tl.program_id(0)
    d = tl.arange(0, BLOCK_D)
    inside = d < DIM
    peak = tl.full([1], -1e30, tl.float32)
    total = tl.zeros([1], tl.float32)
    acc = tl.zeros([BLOCK_D], tl.float32)
    for split in range(splits):
        part = row * splits + split
        here = tl.load(peaks + part)
        higher = tl.maximum(peak, here)
        fade, weight = tl.exp(peak - higher), tl.exp(here - higher)
        total = total * fade + tl.load(totals + part) * weight
        acc = acc * fade + tl.load(sums + part * DIM + d, mask=inside, other=0.0) * weight
        peak = higher
    tl.store(out + row * DIM + d, (acc / total).to(out.dtype.element_ty), mask=inside)


@triton.jit
def extend_kernel(
    out, qkv, keys, values, key_scale, value_scale, tables, tiles,
    pages, heads, kv_heads, window, scale, softcap,
    DIM: tl.constexpr, GROUP: tl.constexpr, BLOCK_SIZE: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr,
    BLOCK_D: tl.constexpr, SCALED: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    """ROWS consecutive tokens of one chunk and one head a program, over all that stands in the cache before them.

    tiles (n, 4): table, first row in the step, rows, position of the first row."""
    tile, head = tl.program_id(0), tl.program_id(1)
    owner, row = tl.load(tiles + tile * 4), tl.load(tiles + tile * 4 + 1)
    count, position = tl.load(tiles + tile * 4 + 2).to(tl.int32), tl.load(tiles + tile * 4 + 3).to(tl.int32)
    kv_head = head // GROUP
    m, d = tl.arange(0, ROWS), tl.arange(0, BLOCK_D)
    all_heads = heads + 2 * kv_heads
    mine = (m < count)[:, None] & (d < DIM)[None, :]
    query = tl.load(qkv + ((row + m[:, None]) * all_heads + head) * DIM + d[None, :], mask=mine, other=0.0)
    table = tables + owner * pages
    own = position + m
    end = position + count
    begin = tl.where(window > 0, tl.maximum(position + 1 - window, 0) // STEP * STEP, 0)
    peak = tl.full([ROWS], -1e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
    for start in range(begin, end, STEP):
        at = start + tl.arange(0, STEP)
        block = tl.load(table + at // BLOCK_SIZE, mask=at < end, other=0)
        place = (block * BLOCK_SIZE + at % BLOCK_SIZE) * kv_heads + kv_head
        inside = (at < end)[:, None] & (d < DIM)[None, :]
        key = tl.load(keys + place[:, None] * DIM + d[None, :], mask=inside, other=0.0).to(query.dtype)
        scores = tl.dot(query, tl.trans(key)).to(tl.float32) * scale
        if SCALED:
            scores = scores * tl.load(key_scale + place, mask=at < end, other=0.0)[None, :]
        if CAPPED:
            scores = softcap * (2.0 / (1.0 + tl.exp(-2.0 * scores / softcap)) - 1.0)
        seen = (at[None, :] <= own[:, None]) & (at < end)[None, :]
        if window > 0:
            seen = seen & (at[None, :] > own[:, None] - window)
        scores = tl.where(seen, scores, -1e30)
        higher = tl.maximum(peak, tl.max(scores, axis=1))
        weight = tl.where(seen, tl.exp(scores - higher[:, None]), 0.0)
        fade = tl.exp(peak - higher)
        total = total * fade + tl.sum(weight, axis=1)
        value = tl.load(values + place[:, None] * DIM + d[None, :], mask=inside, other=0.0).to(query.dtype)
        if SCALED:
            weight = weight * tl.load(value_scale + place, mask=at < end, other=0.0)[None, :]
        acc = acc * fade[:, None] + tl.dot(weight.to(query.dtype), value).to(tl.float32)
        peak = higher
    total = tl.where(total > 0, total, 1.0)
    result = (acc / total[:, None]).to(out.dtype.element_ty)
    tl.store(out + ((row + m[:, None]) * heads + head) * DIM + d[None, :], result, mask=mine)


@triton.jit
def weight_only_kernel(
    out, x, codes, scale, zero, rows, outs, ins, groups,
    GROUP: tl.constexpr, FOUR: tl.constexpr, ZERO: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A tile of x (rows, ins) times weights (outs, ins), 32 inputs at a time: widened, then multiplied.

    FOUR: a byte holds input j of a run of 32 in its low half and input j + 16 in its high one."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    sixteen = tl.arange(0, 16)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for run in range(0, ins, 32):
        for part in tl.static_range(2):
            column = run + part * 16 + sixteen
            group = (run + part * 16) // GROUP
            if FOUR:
                byte = tl.load(
                    codes + n[:, None] * (ins // 2) + (run // 2 + sixteen)[None, :], mask=(n < outs)[:, None], other=0
                )
                code = ((byte >> (4 * part)) & 15).to(tl.float32)
            else:
                code = tl.load(codes + n[:, None] * ins + column[None, :], mask=(n < outs)[:, None], other=0)
                code = code.to(tl.float32)
            if ZERO:
                code = code - tl.load(zero + n * groups + group, mask=n < outs, other=0.0).to(tl.float32)[:, None]
            code = code * tl.load(scale + n * groups + group, mask=n < outs, other=0.0).to(tl.float32)[:, None]
            some = tl.load(x + m[:, None] * ins + column[None, :], mask=(m < rows)[:, None], other=0.0)
            acc += tl.dot(some, tl.trans(code.to(some.dtype))).to(tl.float32)
    inside = (m < rows)[:, None] & (n < outs)[None, :]
    tl.store(out + m[:, None] * outs + n[None, :], acc.to(out.dtype.element_ty), mask=inside)
