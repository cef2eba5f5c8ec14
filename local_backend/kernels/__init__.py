"""The small operations between the matrix products, each in a plain form (`reference.py`) and a fused one per device.

`ops_for` picks. All forms share `ReferenceOps`' signatures, and the tests hold each against it over many shapes.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from local_backend.kernels.cpu import CpuOps, NoCompiler
from local_backend.kernels.reference import ReferenceOps

log = logging.getLogger(__name__)


def ops_for(
    device: torch.device, dtype: torch.dtype, *, cache_dir: Path | None, fused: bool = True, invariant: bool = False
) -> ReferenceOps:
    """The fastest form that works here. `cache_dir` holds compiled kernels; None compiles into a temporary folder.

    `invariant`: only forms in which a row's numbers do not depend on its neighbours or on how its prompt was cut."""
    if not fused:
        return ReferenceOps()
    if device.type == "cpu" and dtype == torch.float32:
        try:
            return CpuOps(cache_dir, invariant=invariant)
        except NoCompiler as error:
            log.warning("no fused CPU kernels, steps take up to twice as long: %s", error)
    if device.type == "cuda":
        try:
            from local_backend.kernels.triton_ops import TritonOps  # only CUDA's torch brings triton
        except ImportError as error:
            log.warning("no fused CUDA kernels, torch's own operations are used: %s", error)
        else:
            return TritonOps()
    return ReferenceOps()
