"""Qwen 2, 2.5 and 3. Qwen 2 has biases on queries, keys and values, which is a number; Qwen 3 has norms over heads.

Names of tensors and arithmetic follow transformers' modeling_qwen2.py and modeling_qwen3.py, read 2026-11.
"""

from __future__ import annotations

import torch

from local_backend.kernels.reference import ReferenceOps
from local_backend.layers.decoder import Decoder, DecoderLayer, HeadNorms
from local_backend.layers.linear import Linears
from local_backend.model_config import ModelConfig


class Qwen2(Decoder):
    """Nothing to add."""


class Qwen3Layer(DecoderLayer):
    """Each query and key is normalised before it is turned."""

    def __init__(self, index: int, config: ModelConfig, linears: Linears, ops: ReferenceOps) -> None:
        super().__init__(index, config, linears, ops)
        self.head_norms = HeadNorms(self, linears)

    def before_rotary(self, qkv: torch.Tensor) -> None:
        self.head_norms(qkv)


class Qwen3(Decoder):
    """Qwen 3, dense."""

    layer = Qwen3Layer
