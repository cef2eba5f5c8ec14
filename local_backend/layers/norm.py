"""Norms that encoders have; a decoder's are among the kernels."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from local_backend.layers.linear import Linears


class LayerNorm:
    """Mean and variance over the last dimension."""

    def __init__(self, name: str, size: int, eps: float, linears: Linears) -> None:
        self.weight = linears.tensor(f"{name}.weight", size)
        self.bias = linears.tensor(f"{name}.bias", size)
        self.eps = eps

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
