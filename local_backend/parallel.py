"""Tensor parallelism: which share of each matrix a rank holds, and the one sum that puts their results together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

from local_backend.errors import ModelUnavailable
from local_backend.forward import Pass
from local_backend.memory import CachePlan


@dataclass(slots=True, frozen=True)
class Ranks:
    """This process among those that share a model; alone by default."""

    rank: int = 0
    size: int = 1

    def share(self, count: int, what: str) -> int:
        """How many of `count` things a rank has. Raises ModelUnavailable if they cannot be shared out evenly."""
        if count % self.size:
            raise ModelUnavailable(f"{count} {what} cannot be shared out among {self.size} ranks")
        return count // self.size

    def sum(self, partial: torch.Tensor) -> torch.Tensor:
        """Add up what all ranks computed; in place."""
        if self.size > 1:
            dist.all_reduce(partial)
        return partial

    def gather(self, part: torch.Tensor) -> torch.Tensor:
        """(rows, n) of each rank side by side: (rows, n * size)."""
        if self.size == 1:
            return part
        parts = [torch.empty_like(part) for _ in range(self.size)]
        dist.all_gather(parts, part.contiguous())
        return torch.cat(parts, dim=-1)


ALONE = Ranks()


class Company:
    """What a runner must settle with the other ranks. This one has none; `rank.py` knows how to talk to some."""

    ranks = ALONE

    def agree(self, plan: CachePlan) -> CachePlan:
        """The cache that all ranks can hold; called once, when the weights are loaded."""
        return plan

    def tell(self, whole: Pass) -> None:
        """Every rank is to make this pass."""
