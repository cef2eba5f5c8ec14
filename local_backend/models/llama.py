"""The Llama family: pre-norm decoder with rotary positions, grouped queries and a gated MLP.

Names of tensors and arithmetic follow transformers' modeling_llama.py, read 2026-11.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F

from local_backend.layers.attention import AttentionBatch, KVCache, paged_attention
from local_backend.layers.linear import Linear, make_linear
from local_backend.layers.norm import RMSNorm
from local_backend.layers.rotary import Rotary, rotate
from local_backend.model_config import ModelConfig
from local_backend.weights import Weights


class Layer:
    """One decoder layer. Query, key and value are one product, gate and up another: fewer calls, larger matrices."""

    def __init__(
        self, index: int, config: ModelConfig, weights: Weights, linear: Callable[..., Linear], dtype: torch.dtype
    ) -> None:
        c, at = config, f"model.layers.{index}."
        q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
        self.index, self.config = index, config

        def joined(names: list[str], outs: list[int], ins: int, bias: bool) -> Linear:
            rows = [weights.get(f"{at}{name}.weight", out, ins) for name, out in zip(names, outs, strict=True)]
            biases = [weights.get(f"{at}{name}.bias", out) for name, out in zip(names, outs, strict=True) if bias]
            return linear(torch.cat(rows), torch.cat(biases) if biases else None)

        attention = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
        self.qkv = joined(attention, [q, kv, kv], c.hidden_size, c.attention_bias)
        self.out = joined(["self_attn.o_proj"], [c.hidden_size], q, c.attention_bias)
        self.gate_up = joined(["mlp.gate_proj", "mlp.up_proj"], [c.intermediate_size] * 2, c.hidden_size, c.mlp_bias)
        self.down = joined(["mlp.down_proj"], [c.hidden_size], c.intermediate_size, c.mlp_bias)
        self.norm_1 = RMSNorm(weights.get(at + "input_layernorm.weight", c.hidden_size), c.norm_eps, dtype)
        self.norm_2 = RMSNorm(weights.get(at + "post_attention_layernorm.weight", c.hidden_size), c.norm_eps, dtype)

    def __call__(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, cache: KVCache, batch: AttentionBatch
    ) -> torch.Tensor:
        """(tokens, hidden) -> (tokens, hidden)."""
        c = self.config
        qkv = self.qkv(self.norm_1(x)).view(len(x), c.heads + 2 * c.kv_heads, c.head_dim)
        turned = rotate(qkv[:, : c.heads + c.kv_heads], cos, sin)
        query, key, value = turned[:, : c.heads], turned[:, c.heads :], qkv[:, c.heads + c.kv_heads :]
        x = x + self.out(paged_attention(cache, self.index, query, key, value, batch))
        gate, up = self.gate_up(self.norm_2(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class Llama:
    """The whole model; holds weights, no state of any request."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        *,
        dtype: torch.dtype,
        half_weights: bool,
        max_model_len: int,
        device: torch.device,
    ) -> None:
        c = config

        def linear(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
            return make_linear(weight, bias, dtype, half_weights=half_weights)

        embedding = weights.get("model.embed_tokens.weight", c.vocab_size, c.hidden_size)
        self.dtype = dtype
        # Rows are widened as they are looked up: the table itself stays as small as it is stored.
        self.embedding = embedding.to(embedding.dtype if half_weights else dtype, copy=True)
        self.norm = RMSNorm(weights.get("model.norm.weight", c.hidden_size), c.norm_eps, dtype)
        untied = None if c.tied_embeddings else weights.get("lm_head.weight", c.vocab_size, c.hidden_size)
        # Packing runs on one core each and lets go of the interpreter: side by side it halves the start on two cores.
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            head = pool.submit(linear, self.embedding if untied is None else untied, None)
            layers = [pool.submit(Layer, i, c, weights, linear, dtype) for i in range(c.layers)]
            self.layers = [layer.result() for layer in layers]
            self.head = head.result()
        factors = weights.get("rope_freqs.weight", c.head_dim // 2) if "rope_freqs.weight" in weights else None
        self.rotary = Rotary(config, max_model_len, device, factors)

    def __call__(
        self, ids: torch.Tensor, positions: torch.Tensor, cache: KVCache, batch: AttentionBatch, wanted: torch.Tensor
    ) -> torch.Tensor:
        """ids, positions: (tokens,); wanted: (rows,), the tokens to predict from. Returns: float32 (rows, vocab)."""
        x = self.embedding[ids].to(self.dtype)
        cos, sin = self.rotary.at(positions)
        for layer in self.layers:
            x = layer(x, cos, sin, cache, batch)
        return self.head(self.norm(x[wanted])).float()
