"""The decoder that all families share: attention over the paged cache, then a gated MLP, with a residual stream.

A family subclasses `DecoderLayer` where it differs: which matrices are stored joined, what is normalised, what stands
in the MLP's place. The numbers come from `ModelConfig`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import torch
import torch.nn.functional as F

from local_backend.kernels.cache import AttentionBatch, KVCache
from local_backend.kernels.reference import ReferenceOps
from local_backend.layers.linear import Linears
from local_backend.layers.rotary import Rotary
from local_backend.model_config import ModelConfig
from local_backend.quantization.run import Linear

Mlp = Callable[[torch.Tensor], torch.Tensor]


class GatedMlp:
    """down(activation(gate(x)) * up(x)). Gate and up are one product: fewer calls, larger matrices."""

    def __init__(
        self,
        config: ModelConfig,
        linears: Linears,
        ops: ReferenceOps,
        at: str,
        *,
        size: int | None = None,
        names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
        joined: str | None = None,
    ) -> None:
        """size: of the inner layer, unless it is the config's. joined: one tensor that holds gate and up."""
        c, inner = config, size or config.intermediate_size
        gated = [f"{at}{joined}"] if joined else [f"{at}{names[0]}", f"{at}{names[1]}"]
        self.gate_up = linears.column(gated, [inner] * 2, c.hidden_size, bias=c.mlp_bias)
        self.down = linears.row(f"{at}{names[2]}", c.hidden_size, inner, bias=c.mlp_bias)
        self.activate = gelu_mul if c.activation == "gelu" else ops.silu_mul

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.activate(self.gate_up(x)))


class DecoderLayer:
    """One layer. Query, key and value are one product."""

    norm_2_name: ClassVar[str] = "post_attention_layernorm"

    def __init__(self, index: int, config: ModelConfig, linears: Linears, ops: ReferenceOps) -> None:
        c, at = config, f"model.layers.{index}."
        self.index, self.config, self.ops, self.eps = index, config, ops, c.norm_eps
        self.head_dim = c.head_dim
        self.heads, self.kv_heads = linears.share(c.heads), linears.share(c.kv_heads, "kv heads")
        self.scale = c.attention_scale or c.head_dim**-0.5
        self.window = c.windows[index] if c.windows else 0
        self.qkv = self.make_qkv(linears, at)
        self.out = linears.row(f"{at}self_attn.o_proj", c.hidden_size, c.heads * c.head_dim, bias=c.out_bias)
        self.mlp = self.make_mlp(linears, at)
        self.norm_1 = self.norm(linears, f"{at}input_layernorm", c.hidden_size)
        self.norm_2 = self.norm(linears, f"{at}{self.norm_2_name}", c.hidden_size)

    def make_qkv(self, linears: Linears, at: str) -> Linear:
        """The product that makes queries, keys and values."""
        c = self.config
        q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
        names = [f"{at}self_attn.{name}_proj" for name in "qkv"]
        return linears.column(names, [q, kv, kv], c.hidden_size, bias=c.attention_bias)

    def make_mlp(self, linears: Linears, at: str) -> Mlp:
        """What follows attention."""
        return GatedMlp(self.config, linears, self.ops, f"{at}mlp.")

    def norm(self, linears: Linears, name: str, size: int) -> torch.Tensor:
        """The factors of a norm."""
        return linears.tensor(f"{name}.weight", size)

    def before_rotary(self, qkv: torch.Tensor) -> None:
        """Change queries and keys (tokens, heads + 2 kv_heads, head_dim) in place."""

    def after_attention(self, x: torch.Tensor) -> torch.Tensor:
        """What attention adds to the stream."""
        return x

    def after_mlp(self, x: torch.Tensor) -> torch.Tensor:
        """What the MLP adds to the stream."""
        return x

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
        ops, c = self.ops, self.config
        if delta is None:
            normed = ops.rms_norm(x, self.norm_1, self.eps)
        else:
            x, normed = ops.add_rms_norm(x, delta, self.norm_1, self.eps)
        qkv = self.qkv(normed).view(len(x), self.heads + 2 * self.kv_heads, self.head_dim)
        self.before_rotary(qkv)
        qkv = ops.rope_store(qkv, self.kv_heads, cos, sin, cache, self.index, batch)
        attended = ops.attend(
            qkv,
            self.kv_heads,
            cache,
            self.index,
            batch,
            scale=self.scale,
            softcap=c.attention_softcap,
            window=self.window,
        )
        x, normed = ops.add_rms_norm(x, self.after_attention(self.out(attended)), self.norm_2, self.eps)
        return x, self.after_mlp(self.mlp(normed))


class Decoder:
    """The whole model; holds weights, no state of any request."""

    layer: ClassVar[type[DecoderLayer]] = DecoderLayer

    def __init__(
        self, config: ModelConfig, linears: Linears, ops: ReferenceOps, *, max_model_len: int, device: torch.device
    ) -> None:
        c = config
        self.config, self.ops = config, ops
        self.embedding = linears.embedding("model.embed_tokens", c.vocab_size, c.hidden_size)
        head = "model.embed_tokens" if c.tied_embeddings else "lm_head"
        # Packing runs on one core each and lets go of the interpreter: side by side it halves the start on two cores.
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            last = pool.submit(linears.head, head, c.vocab_size, c.hidden_size, bias=c.head_bias)
            layers = [pool.submit(self.layer, i, c, linears, ops) for i in range(c.layers)]
            self.layers = [layer.result() for layer in layers]
            self.head = last.result()
        self.norm = self.layers[0].norm(linears, "model.norm", c.hidden_size)
        name = "rope_freqs.weight"
        factors = linears.weights.get(name, c.rotary_dim // 2) if name in linears else None
        self.rotary = Rotary(c, c.rope_theta, c.rope_scaling, max_model_len, device, factors)
        # Where windows are narrow, some families turn by another base, without scaling.
        local = c.local_rope_theta
        self.local_rotary = None if local is None else Rotary(c, local, None, max_model_len, device)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """(tokens,) -> (tokens, hidden)."""
        return self.embedding(ids)

    def __call__(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        cache: KVCache,
        batch: AttentionBatch,
        wanted: torch.Tensor,
        seen: Iterable[tuple[int, torch.Tensor]] = (),
    ) -> torch.Tensor:
        """ids, positions: (tokens,); wanted: (rows,), the tokens to predict from. Returns: float32 (rows, vocab).

        seen: what stands in place of the embeddings from a row on, (rows, hidden) each."""
        x, delta = self.embed(ids), None
        for row, features in seen:
            x[row : row + len(features)] = features
        turns = self.rotary.at(positions)
        local = turns if self.local_rotary is None else self.local_rotary.at(positions)
        for layer in self.layers:
            x, delta = layer(x, delta, *(local if layer.window else turns), cache, batch)
        if len(wanted) != len(x):
            x, delta = x[wanted], None if delta is None else delta[wanted]
        assert delta is not None
        _, normed = self.ops.add_rms_norm(x, delta, self.norm, self.config.norm_eps)
        logits = self.head(normed).float()
        if cap := self.config.final_softcap:
            logits = torch.tanh(logits / cap) * cap
        return logits


def gelu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """(tokens, 2 n) -> (tokens, n): gelu, in its tanh form, of the first half times the second."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.gelu(gate, approximate="tanh") * up


class HeadNorms:
    """Norms over each query and key before they are turned by position."""

    def __init__(self, layer: DecoderLayer, linears: Linears) -> None:
        at = f"model.layers.{layer.index}.self_attn."
        self.queries, self.keys = slice(0, layer.heads), slice(layer.heads, layer.heads + layer.kv_heads)
        self.q_norm = layer.norm(linears, f"{at}q_norm", layer.head_dim)
        self.k_norm = layer.norm(linears, f"{at}k_norm", layer.head_dim)
        self.ops, self.eps = layer.ops, layer.eps

    def __call__(self, qkv: torch.Tensor) -> None:
        """In place, over (tokens, heads + 2 kv_heads, head_dim)."""
        for part, weight in ((self.queries, self.q_norm), (self.keys, self.k_norm)):
            rows = qkv[:, part]
            qkv[:, part] = self.ops.rms_norm(rows.reshape(-1, rows.shape[-1]), weight, self.eps).view(rows.shape)
