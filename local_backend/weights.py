"""Reads Hugging Face safetensors directories, one file or sharded. GGUF comes here converted: see `convert.py`.

Files are mapped, not read: a tensor costs memory when it is touched.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from local_backend.errors import ModelUnavailable
from local_backend.model_config import read_json
from local_backend.quantization.checkpoints import reader
from local_backend.quantization.neutral import QuantizedWeight


class Weights:
    """Tensors by their Hugging Face name, on one device. Closed with `close()`, after which mapped pages go."""

    def __init__(self, model_dir: Path, device: torch.device, text_prefix: str = "") -> None:
        """text_prefix: what begins so is known by `model.` in its place, as it is where the text model stands alone."""
        self._device = device
        quantization = read_json(model_dir / "config.json").get("quantization_config")
        self.quantization: str | None = None
        if quantization:
            self.quantization = quantization.get("was") or quantization.get("quant_method")
        self._quantized = reader(quantization) if quantization else None
        self._files: dict[str, Any] = {}  # the binding has no types worth the name
        self._file_of: dict[str, Any] = {}
        self._text_prefix = text_prefix
        self._stored: dict[str, str] = {}  # names that are others in the file
        index = model_dir / "model.safetensors.index.json"
        if index.exists():
            wanted: dict[str, str] = read_json(index)["weight_map"]
            for name, file in wanted.items():
                self._file_of[self._known_as(name)] = self._open(model_dir / file)
            held = {name for file in self._files.values() for name in file.keys()}  # noqa: SIM118 - not a dict
            if missing := sorted(wanted.keys() - held):
                raise ModelUnavailable(f"{model_dir.name}: the index promises {missing[0]!r}, but no shard has it")
        else:
            file = self._open(model_dir / "model.safetensors")
            self._file_of = {self._known_as(name): file for name in file.keys()}  # noqa: SIM118 - not a dict

    def _known_as(self, stored: str) -> str:
        if not self._text_prefix or not stored.startswith(self._text_prefix):
            return stored
        name = "model." + stored.removeprefix(self._text_prefix)
        self._stored[name] = stored
        return name

    def _open(self, path: Path) -> Any:
        if str(path) not in self._files:
            try:
                self._files[str(path)] = safe_open(str(path), framework="pt", device=str(self._device))
            except (OSError, SafetensorError) as error:
                raise ModelUnavailable(f"cannot read {path}: {error}") from error
        return self._files[str(path)]

    def __contains__(self, name: str) -> bool:
        return name in self._file_of or f"{name}.weight" in self._file_of

    def get(self, name: str, *shape: int) -> torch.Tensor:
        """The tensor as stored. Raises ModelUnavailable if it is absent or of another shape."""
        if name not in self._file_of:
            raise ModelUnavailable(f"the checkpoint has no tensor {name!r}")
        tensor: torch.Tensor = self._file_of[name].get_tensor(self._stored.get(name, name))
        if tuple(tensor.shape) != shape:
            raise ModelUnavailable(f"{name!r} has shape {tuple(tensor.shape)}, the config asks for {shape}")
        return tensor

    def matrix(self, name: str, outs: int, ins: int) -> torch.Tensor | QuantizedWeight:
        """The matrix `name` (without `.weight`) as stored, plain or quantized. Raises as `get` does."""
        if self._quantized is not None:
            found = self._quantized(lambda part: self._find(f"{name}.{part}"), outs, ins)
            if found is not None:
                if found.shape != (outs, ins):
                    raise ModelUnavailable(f"{name!r} has shape {found.shape}, the config asks for {(outs, ins)}")
                return found
        return self.get(f"{name}.weight", outs, ins)

    def _find(self, name: str) -> torch.Tensor | None:
        file = self._file_of.get(name)
        return None if file is None else file.get_tensor(self._stored.get(name, name))

    def close(self) -> None:
        """Let go of the files. Tensors handed out stay valid."""
        self._files.clear()
        self._file_of.clear()
