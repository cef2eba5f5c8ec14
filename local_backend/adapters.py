"""LoRA adapters: small corrections to a model's products, chosen by each request; one batch may hold several.

    y = W x + scale * B (A x)

Read from PEFT's files. Source: peft's LoraConfig and its checkpoint format, read 2026-11.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file

from local_backend.errors import ModelUnavailable
from local_backend.model_config import read_json
from local_backend.quantization.run import Linear

PREFIX = "base_model.model."
PLAIN = {"use_dora": False, "bias": "none", "modules_to_save": None, "fan_in_fan_out": False, "layers_pattern": None}
"""Fields of adapter_config.json that change what an adapter is; any other value is refused."""

Pair = tuple[torch.Tensor, torch.Tensor]
"""A (rank, ins) and B (outs, rank), the scale multiplied into B."""


class Adapters:
    """All adapters of an engine, and which rows of the step at hand each is to correct."""

    def __init__(self, folders: dict[str, Path], dtype: torch.dtype, device: torch.device) -> None:
        """Raises ModelUnavailable naming the adapter that cannot be used."""
        self._pairs = {name: read_adapter(name, folder, dtype, device) for name, folder in folders.items()}
        self._used: set[tuple[str, str]] = set()
        self._rows: list[tuple[str, slice]] = []

    def begin(self, owners: list[tuple[str, int]]) -> None:
        """Tell the step: for each run of rows the adapter that corrects it, "" for none, and how many rows."""
        self._rows, at = [], 0
        for name, count in owners:
            if name:
                last = self._rows[-1] if self._rows else None
                if last is not None and last[0] == name and last[1].stop == at:
                    self._rows[-1] = (name, slice(last[1].start, at + count))
                else:
                    self._rows.append((name, slice(at, at + count)))
            at += count

    def wrap(self, product: Linear, modules: list[tuple[str, int]]) -> Linear:
        """The product with its corrections. modules: what it joins, by name and outputs."""
        parts: dict[str, list[tuple[slice, Pair]]] = {}
        at = 0
        for module, outs in modules:
            for name, pairs in self._pairs.items():
                if (pair := pairs.get(module)) is not None:
                    if len(pair[1]) != outs:
                        raise ModelUnavailable(f"adapter {name!r}: {module} has {outs} outputs, not {len(pair[1])}")
                    parts.setdefault(name, []).append((slice(at, at + outs), pair))
                    self._used.add((name, module))
            at += outs
        if not parts:
            return product

        def corrected(x: torch.Tensor) -> torch.Tensor:
            y = product(x)
            for name, rows in self._rows:
                for outs, (a, b) in parts.get(name, ()):
                    y[rows, outs] += F.linear(F.linear(x[rows], a), b)
            return y

        return corrected

    def check(self) -> None:
        """Raises ModelUnavailable if an adapter corrects what this model does not have, or what is not corrected."""
        for name, pairs in self._pairs.items():
            if unknown := sorted(module for module in pairs if (name, module) not in self._used):
                raise ModelUnavailable(
                    f"adapter {name!r} corrects {unknown[0]}, which cannot be corrected in this model; attention and "
                    "gated MLPs can"
                )


def read_adapter(name: str, folder: Path, dtype: torch.dtype, device: torch.device) -> dict[str, Pair]:
    """Corrections by module name. Raises ModelUnavailable."""
    config = read_json(folder / "adapter_config.json")
    if config.get("peft_type") != "LORA":
        raise ModelUnavailable(f"adapter {name!r} is of type {config.get('peft_type')!r}; LORA is served")
    for field, plain in PLAIN.items():
        if (value := config.get(field)) and value != plain:
            raise ModelUnavailable(f"adapter {name!r} has {field} = {value!r}, which is not served")
    path = folder / "adapter_model.safetensors"
    try:
        tensors = load_file(str(path), device=str(device))
    except (OSError, SafetensorError) as error:
        raise ModelUnavailable(f"cannot read {path}: {error}") from error
    pairs: dict[str, Pair] = {}
    for key in tensors:
        module, _, kind = key.removeprefix(PREFIX).rpartition(".lora_")
        if not module or kind not in ("A.weight", "B.weight"):
            raise ModelUnavailable(f"adapter {name!r} holds {key!r}, which is no part of a LoRA")
        a, b = (tensors.get(f"{PREFIX}{module}.lora_{side}.weight") for side in "AB")
        if a is None or b is None or a.shape[0] != b.shape[1]:
            raise ModelUnavailable(f"adapter {name!r}: the two halves of {module} do not fit each other")
        pairs[module] = (a.to(dtype), (b.float() * _scale(config, module, len(a))).to(dtype))
    return pairs


def _scale(config: dict[str, Any], module: str, rank: int) -> float:
    """PEFT's: alpha / rank, or by the root of the rank; some modules may have an alpha of their own."""
    patterns: dict[str, float] = config.get("alpha_pattern") or {}
    alpha = next((value for end, value in patterns.items() if module.endswith(end)), config.get("lora_alpha", 8))
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)
