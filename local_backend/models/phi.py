"""Phi 3, 3.5 and 4: Llama with joined matrices; Phi 4 mini turns part of each head; `longrope` for long contexts.

Names of tensors and arithmetic follow transformers' modeling_phi3.py, read 2026-11.
"""

from __future__ import annotations

from local_backend.layers.decoder import Decoder, DecoderLayer, GatedMlp, Mlp
from local_backend.layers.linear import Linears
from local_backend.quantization.run import Linear


class Phi3Layer(DecoderLayer):
    """The checkpoint stores what other families store apart in one tensor."""

    def make_qkv(self, linears: Linears, at: str) -> Linear:
        c = self.config
        q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
        return linears.column([f"{at}self_attn.qkv_proj"], [q, kv, kv], c.hidden_size)

    def make_mlp(self, linears: Linears, at: str) -> Mlp:
        return GatedMlp(self.config, linears, self.ops, f"{at}mlp.", joined="gate_up_proj")


class Phi3(Decoder):
    """Phi 3 and its successors."""

    layer = Phi3Layer
