"""Matrix times weights, in the forms that pay on one device or another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

Linear = Callable[[torch.Tensor], torch.Tensor]
"""(tokens, in) -> (tokens, out)."""


class DenseLinear:
    """The reference: weights in the dtype of the activations."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.bias)


class HalfWeightLinear:
    """float16 weights under float32 activations, packed for fbgemm: half the bytes, the same arithmetic.

    At one stream decode is bound by reading weights, so half the bytes is up to twice the speed; nothing is lost where
    the stored weights are float16 themselves. The op is an old corner of torch (`torch.ops.quantized`), present through
    2.13 on x86; `available` says whether it is here. Measured 2026-11: ENGINE notes, CPU table."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        ops: Any = torch.ops.quantized
        self._run = ops.linear_dynamic_fp16
        self._packed = ops.linear_prepack_fp16(weight.float(), None if bias is None else bias.float())

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self._run(x, self._packed)
        return result

    @staticmethod
    def available() -> bool:
        """True if this build of torch carries fbgemm."""
        return "fbgemm" in torch.backends.quantized.supported_engines


def make_linear(weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype, *, half_weights: bool) -> Linear:
    """The form for this device and dtype."""
    if half_weights:
        return HalfWeightLinear(weight, bias)
    return DenseLinear(weight.to(dtype), None if bias is None else bias.to(dtype))
