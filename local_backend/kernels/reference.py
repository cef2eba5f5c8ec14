"""The plain forms, in torch alone: what every fused kernel is held against, and what runs where none can."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from local_backend.kernels.cache import AttentionBatch, KVCache, PrefillChunk


class ReferenceOps:
    """Each operation in torch's own words. Forms for a device override what they do faster."""

    name = "torch"

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """x / rms(x) * weight over the last dimension, computed in float32 whatever comes in."""
        if x.dtype == torch.float32:
            return F.rms_norm(x, weight.shape, weight, eps)
        # The product with the weight stays in the narrow dtype, as transformers has it: logits are compared with it.
        return F.rms_norm(x.float(), weight.shape, None, eps).to(x.dtype) * weight

    def add_rms_norm(
        self, x: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The residual stream after `delta`, and its norm. `x` may be overwritten: use what is returned."""
        x = x + delta
        return x, self.rms_norm(x, weight, eps)

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """(tokens, 2 n) -> (tokens, n): silu of the first half times the second."""
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

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
        """Turn queries and keys of qkv (tokens, heads + 2 kv_heads, dim) by position; store keys and values.

        cos, sin (tokens, 1, half): where half is less than dim / 2 the rest of a head is not turned. `qkv` may be
        overwritten. Returns: qkv, turned."""
        turning = qkv[:, :-kv_heads]
        half = cos.shape[-1]
        first, second = turning[..., :half].float(), turning[..., half : 2 * half].float()
        turned = (first * cos - second * sin, second * cos + first * sin)  # float32: bfloat16 loses far positions
        qkv = torch.cat(
            (
                torch.cat((*(t.to(qkv.dtype) for t in turned), turning[..., 2 * half :]), dim=-1),
                qkv[:, -kv_heads:],
            ),
            dim=1,
        )
        cache.store(layer, batch.slots, qkv[:, -2 * kv_heads : -kv_heads], qkv[:, -kv_heads:])
        return qkv

    def attend(
        self,
        qkv: torch.Tensor,
        kv_heads: int,
        cache: KVCache,
        layer: int,
        batch: AttentionBatch,
        *,
        scale: float,
        softcap: float = 0.0,
        window: int = 0,
    ) -> torch.Tensor:
        """Each query over its context; qkv as `rope_store` returned it. Returns: (tokens, heads * dim).

        softcap: scores become softcap * tanh(score / softcap); window: how many tokens back one may look, 0 all."""
        out = torch.empty_like(qkv[:, : -2 * kv_heads])
        self.attend_decode(out, qkv, kv_heads, cache, layer, batch, scale, softcap, window)
        self.attend_prefill(out, qkv, kv_heads, cache, layer, batch, scale, softcap, window)
        return out.flatten(1)

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
        """Rows of one token, those with contexts of like length together."""
        heads, dim = out.shape[1:]
        for group in batch.decode_groups(window):
            keys, values = cache.gather(layer, group.blocks, qkv.dtype)
            # The query heads that share a kv head become its query positions: no copy of keys, and a third of the time
            # of enable_gqa on CPU (16 rows, 300 tokens: 139 against 307 us, 2026-11).
            folded = qkv[group.start : group.end, :heads].reshape(-1, kv_heads, heads // kv_heads, dim)
            attended = scaled_dot_product(folded, keys, values, group.mask, scale, softcap)
            out[group.start : group.end] = attended.reshape(-1, heads, dim)

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
        """Chunks of several tokens, one by one."""
        for chunk in batch.prefill_chunks(window):
            self.attend_chunk(out, qkv, kv_heads, cache, layer, chunk, scale, softcap)

    def attend_chunk(
        self,
        out: torch.Tensor,
        qkv: torch.Tensor,
        kv_heads: int,
        cache: KVCache,
        layer: int,
        chunk: PrefillChunk,
        scale: float,
        softcap: float,
    ) -> None:
        """One of them; its window is in its mask."""
        heads = out.shape[1]
        rows = qkv[chunk.start : chunk.end]
        if chunk.blocks is None:
            keys = rows[:, heads : heads + kv_heads].transpose(0, 1).unsqueeze(0)
            values = rows[:, heads + kv_heads :].transpose(0, 1).unsqueeze(0)
        else:
            keys, values = cache.gather(layer, chunk.blocks, qkv.dtype)
        query = rows[:, :heads].transpose(0, 1).unsqueeze(0)
        mask = chunk.mask
        if softcap:
            keys, values = (t.repeat_interleave(heads // kv_heads, dim=1) for t in (keys, values))
            if mask is None:
                mask = causal_mask(len(rows), qkv.dtype, qkv.device)
            attended = scaled_dot_product(query, keys, values, mask, scale, softcap)
        else:
            attended = F.scaled_dot_product_attention(
                query,
                keys,
                values,
                attn_mask=mask,
                is_causal=mask is None,
                scale=scale,
                enable_gqa=heads != kv_heads,
            )
        out[chunk.start : chunk.end] = attended[0].transpose(0, 1)


def scaled_dot_product(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, scale: float, softcap: float
) -> torch.Tensor:
    """Attention with an added mask and, if asked for, capped scores, which torch's own does not know."""
    if not softcap:
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scale)
    scores = (query @ keys.transpose(-1, -2)).float() * scale
    scores = softcap * torch.tanh(scores / softcap) + mask
    return torch.softmax(scores, dim=-1).to(values.dtype) @ values


def causal_mask(tokens: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """(tokens, tokens) to add to scores: nobody looks ahead."""
    return torch.full((tokens, tokens), float("-inf"), dtype=dtype, device=device).triu_(1)
