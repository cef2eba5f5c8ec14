"""The Llama family: pre-norm decoder with rotary positions, grouped queries and a gated MLP.

Names of tensors and arithmetic follow transformers' modeling_llama.py, read 2026-11.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

from local_backend.kernels.cache import AttentionBatch, KVCache
from local_backend.kernels.reference import ReferenceOps
from local_backend.layers.linear import Linears
from local_backend.layers.rotary import Rotary
from local_backend.model_config import ModelConfig


class Layer:
    """One decoder layer. Query, key and value are one product, gate and up another: fewer calls, larger matrices."""

    def __init__(self, index: int, config: ModelConfig, linears: Linears, ops: ReferenceOps) -> None:
        c, at = config, f"model.layers.{index}."
        q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
        self.index, self.eps, self.head_dim, self.ops = index, c.norm_eps, c.head_dim, ops
        self.heads, self.kv_heads = linears.share(c.heads), linears.share(c.kv_heads, "kv heads")
        attention = [f"{at}self_attn.{name}_proj" for name in "qkv"]
        self.qkv = linears.column(attention, [q, kv, kv], c.hidden_size, bias=c.attention_bias)
        self.out = linears.row(f"{at}self_attn.o_proj", c.hidden_size, q, bias=c.attention_bias)
        gated = [f"{at}mlp.gate_proj", f"{at}mlp.up_proj"]
        self.gate_up = linears.column(gated, [c.intermediate_size] * 2, c.hidden_size, bias=c.mlp_bias)
        self.down = linears.row(f"{at}mlp.down_proj", c.hidden_size, c.intermediate_size, bias=c.mlp_bias)
        self.norm_1 = linears.tensor(f"{at}input_layernorm.weight", c.hidden_size)
        self.norm_2 = linears.tensor(f"{at}post_attention_layernorm.weight", c.hidden_size)

    def __call__(
        self,
        x: torch.Tensor,
        delta: torch.Tensor | None,
        cos: torch.Tensor,
        sin: torch.Tensor,
        cache: KVCache,
        batch: AttentionBatch,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The stream (tokens, hidden) and what is still to be added to it; the next norm adds as it reads."""
        ops = self.ops
        if delta is None:
            normed = ops.rms_norm(x, self.norm_1, self.eps)
        else:
            x, normed = ops.add_rms_norm(x, delta, self.norm_1, self.eps)
        qkv = self.qkv(normed).view(len(x), self.heads + 2 * self.kv_heads, self.head_dim)
        qkv = ops.rope_store(qkv, self.kv_heads, cos, sin, cache, self.index, batch)
        attended = ops.attend(qkv, self.kv_heads, cache, self.index, batch, scale=self.head_dim**-0.5)
        x, normed = ops.add_rms_norm(x, self.out(attended), self.norm_2, self.eps)
        return x, self.down(ops.silu_mul(self.gate_up(normed)))


class Llama:
    """The whole model; holds weights, no state of any request."""

    def __init__(
        self, config: ModelConfig, linears: Linears, ops: ReferenceOps, *, max_model_len: int, device: torch.device
    ) -> None:
        c = config
        self.config, self.ops = config, ops
        self.embedding = linears.embedding("model.embed_tokens", c.vocab_size, c.hidden_size)
        self.norm = linears.tensor("model.norm.weight", c.hidden_size)
        head = "model.embed_tokens" if c.tied_embeddings else "lm_head"
        # Packing runs on one core each and lets go of the interpreter: side by side it halves the start on two cores.
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            last = pool.submit(linears.head, head, c.vocab_size, c.hidden_size)
            layers = [pool.submit(Layer, i, c, linears, ops) for i in range(c.layers)]
            self.layers = [layer.result() for layer in layers]
            self.head = last.result()
        name = "rope_freqs.weight"
        factors = linears.weights.get(name, c.head_dim // 2) if name in linears else None
        self.rotary = Rotary(config, max_model_len, device, factors)

    def __call__(
        self, ids: torch.Tensor, positions: torch.Tensor, cache: KVCache, batch: AttentionBatch, wanted: torch.Tensor
    ) -> torch.Tensor:
        """ids, positions: (tokens,); wanted: (rows,), the tokens to predict from. Returns: float32 (rows, vocab)."""
        x, delta = self.embedding(ids), None
        cos, sin = self.rotary.at(positions)
        for layer in self.layers:
            x, delta = layer(x, delta, cos, sin, cache, batch)
        if len(wanted) != len(x):
            x, delta = x[wanted], None if delta is None else delta[wanted]
        assert delta is not None
        _, normed = self.ops.add_rms_norm(x, delta, self.norm, self.config.norm_eps)
        return self.head(normed).float()
