"""Mixtures of experts: Mixtral and Qwen 3 MoE. A router sends each token to a few of a layer's many MLPs.

Names of tensors and arithmetic follow transformers' modeling_mixtral.py and modeling_qwen3_moe.py, read 2026-11.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from local_backend.layers.decoder import Decoder, DecoderLayer, GatedMlp, Mlp
from local_backend.layers.linear import Linears
from local_backend.models.qwen import Qwen3Layer


class Experts:
    """The weighted sum of each token's experts. A token's sum is taken in the order of the experts, whatever stands
    beside it in the batch."""

    def __init__(self, router: torch.Tensor, experts: list[Mlp], each: int, *, normalized: bool) -> None:
        """router: (experts, hidden). each: experts for a token. normalized: their weights are brought to one."""
        self.router, self.experts, self.each, self.normalized = router, experts, each, normalized

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        odds = torch.softmax(F.linear(x, self.router).float(), dim=-1)
        weights, chosen = torch.topk(odds, self.each, dim=-1)
        if self.normalized:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        weights = weights.to(x.dtype)
        out = torch.zeros_like(x)
        for number in sorted(set(chosen.flatten().tolist())):
            rows, places = (chosen == number).nonzero(as_tuple=True)
            out.index_add_(0, rows, self.experts[number](x[rows]) * weights[rows, places].unsqueeze(1))
        return out


class MixtralLayer(DecoderLayer):
    """Eight large experts."""

    def make_mlp(self, linears: Linears, at: str) -> Mlp:
        c, at = self.config, f"{at}block_sparse_moe."
        experts: list[Mlp] = [
            GatedMlp(c, linears, self.ops, f"{at}experts.{n}.", names=("w1", "w3", "w2")) for n in range(c.experts)
        ]
        router = linears.tensor(f"{at}gate.weight", c.experts, c.hidden_size)
        return Experts(router, experts, c.experts_each, normalized=True)


class Mixtral(Decoder):
    """Mixtral 8x7B and 8x22B."""

    layer = MixtralLayer


class Qwen3MoeLayer(Qwen3Layer):
    """Many small experts; some layers may have none."""

    def make_mlp(self, linears: Linears, at: str) -> Mlp:
        c = self.config
        if self.index in c.dense_layers:
            return super().make_mlp(linears, at)
        at = f"{at}mlp."
        experts: list[Mlp] = [
            GatedMlp(c, linears, self.ops, f"{at}experts.{n}.", size=c.expert_size) for n in range(c.experts)
        ]
        router = linears.tensor(f"{at}gate.weight", c.experts, c.hidden_size)
        return Experts(router, experts, c.experts_each, normalized=c.normalized_experts)


class Qwen3Moe(Decoder):
    """Qwen 3 30B-A3B and 235B-A22B."""

    layer = Qwen3MoeLayer
