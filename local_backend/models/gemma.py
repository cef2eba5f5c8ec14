"""Gemma 2 and 3: norms on both sides of attention and MLP, scaled embeddings, windows in most layers; Gemma 2 caps
scores and logits, Gemma 3 normalises heads and turns windowed layers by a base of their own.

Names of tensors and arithmetic follow transformers' modeling_gemma2.py and modeling_gemma3.py, read 2026-11.
"""

from __future__ import annotations

import torch

from local_backend.kernels.reference import ReferenceOps
from local_backend.layers.decoder import Decoder, DecoderLayer, HeadNorms
from local_backend.layers.linear import Linears
from local_backend.model_config import ModelConfig


class Gemma2Layer(DecoderLayer):
    """What attention and MLP add is normalised once more."""

    norm_2_name = "pre_feedforward_layernorm"

    def __init__(self, index: int, config: ModelConfig, linears: Linears, ops: ReferenceOps) -> None:
        super().__init__(index, config, linears, ops)
        at = f"model.layers.{index}."
        self.norm_attention = self.norm(linears, f"{at}post_attention_layernorm", config.hidden_size)
        self.norm_mlp = self.norm(linears, f"{at}post_feedforward_layernorm", config.hidden_size)

    def norm(self, linears: Linears, name: str, size: int) -> torch.Tensor:
        """Gemma stores what is to be added to one."""
        return super().norm(linears, name, size) + 1.0

    def after_attention(self, x: torch.Tensor) -> torch.Tensor:
        return self.ops.rms_norm(x, self.norm_attention, self.eps)

    def after_mlp(self, x: torch.Tensor) -> torch.Tensor:
        return self.ops.rms_norm(x, self.norm_mlp, self.eps)


class Gemma2(Decoder):
    """Embeddings are as large as the stream, which grows with the root of its width."""

    layer = Gemma2Layer

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        x = super().embed(ids)
        # Rounded to the dtype of the stream, as the models were trained.
        return x * torch.tensor(self.config.hidden_size**0.5, dtype=x.dtype)


class Gemma3Layer(Gemma2Layer):
    """Each query and key is normalised before it is turned."""

    def __init__(self, index: int, config: ModelConfig, linears: Linears, ops: ReferenceOps) -> None:
        super().__init__(index, config, linears, ops)
        self.head_norms = HeadNorms(self, linears)

    def before_rotary(self, qkv: torch.Tensor) -> None:
        self.head_norms(qkv)


class Gemma3(Gemma2):
    """Gemma 3, text."""

    layer = Gemma3Layer
