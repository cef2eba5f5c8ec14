"""Checkpoints as trainers leave them -> a folder that the engine serves: `python -m local_backend.training --help`.

Two layouts: PyTorch's distributed checkpoint (FSDP; a folder with `.metadata`) and DeepSpeed's ZeRO, stages 1 to 3 (a
folder with `*_optim_states.pt`). Both are pickles: tensors and plain containers are read, and any other class in them
becomes an empty shell, so that neither the trainer's packages are needed nor its code is run. DCP's own `.metadata` is
read by torch, which trusts it: convert what you have trained yourself.
Source: torch.distributed.checkpoint's FileSystemReader and DeepSpeed's utils/zero_to_fp32.py, read 2026-11.
"""

from __future__ import annotations

import argparse
import pickle
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from local_backend.errors import ModelUnavailable
from local_backend.model_config import read_model_config
from local_backend.storage import make_directory

FIRST = "model.embed_tokens.weight"  # every decoder has it: what stands before it is the trainer's prefix
BESIDE = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")

Tensors = dict[str, torch.Tensor]


def convert(checkpoint: Path, base: Path, target: Path) -> int:
    """Write `target`: weights of the checkpoint, config and tokenizer of `base`. Returns: tensors written.

    Raises ModelUnavailable; then nothing is written."""
    read_model_config(base)
    if target.exists():
        raise ModelUnavailable(f"{target} exists; name a folder that does not")
    if (checkpoint / ".metadata").exists():
        tensors = read_dcp(checkpoint)
    elif any(checkpoint.glob("*_optim_states.pt")):
        tensors = read_zero(checkpoint)
    else:
        raise ModelUnavailable(
            f"{checkpoint} holds neither .metadata (FSDP, DCP) nor *_optim_states.pt (DeepSpeed ZeRO: name the folder "
            "of one step, such as global_step100)"
        )
    kept = named_as_served(tensors)

    def fill(folder: Path) -> None:
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
        for name in BESIDE:
            if (base / name).exists():
                shutil.copyfile(base / name, folder / name)

    make_directory(target, fill)
    return len(kept)


def named_as_served(tensors: Tensors) -> Tensors:
    """The model's tensors without the trainer's prefix; optimizer states and others are left out."""
    prefixes = [name.removesuffix(FIRST) for name in tensors if name.endswith(FIRST)]
    if len(prefixes) != 1:
        raise ModelUnavailable(f"the checkpoint has {len(prefixes)} tensors named {FIRST!r}; one is needed")
    found = {name.removeprefix(prefixes[0]): tensor for name, tensor in tensors.items() if name.startswith(prefixes[0])}
    return {
        name: tensor.clone(memory_format=torch.contiguous_format)  # safetensors takes no shared storage
        for name, tensor in found.items()
        if name.startswith(("model.", "lm_head."))
    }


def read_dcp(checkpoint: Path) -> Tensors:
    """All tensors of a distributed checkpoint, put together from its shards."""
    reader = FileSystemReader(checkpoint)
    try:
        known = reader.read_metadata().state_dict_metadata
        tensors: dict[str, Any] = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in known.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        load(tensors, storage_reader=reader, no_dist=True)
    except (OSError, pickle.UnpicklingError, EOFError, CheckpointException) as error:
        raise ModelUnavailable(f"cannot read {checkpoint}: {error}") from error
    return tensors


def read_zero(checkpoint: Path) -> Tensors:
    """The float32 weights that ZeRO's ranks hold in pieces, with buffers and frozen weights."""
    ranks = sorted(checkpoint.glob("*zero_pp_rank_*_mp_rank_00_optim_states.pt"), key=_rank)
    models = sorted(checkpoint.glob("*mp_rank_00_model_states.pt"), key=_rank)
    if not ranks or not models:
        raise ModelUnavailable(f"{checkpoint} lacks the model states or optimizer states of its ranks")
    states = [load_plain(path)["optimizer_state_dict"] for path in ranks]
    stage, world = int(states[0]["zero_stage"]), _largest(states[0]["partition_count"])
    if world != len(ranks):
        raise ModelUnavailable(f"{checkpoint} was written by {world} ranks, and the files of {len(ranks)} are here")
    model = load_plain(models[0])
    tensors: Tensors = {name: model["module"][name].float() for name in model.get("buffer_names") or []}
    if stage == 3 and model.get("frozen_param_shapes"):
        raise ModelUnavailable("weights frozen under ZeRO-3 are not put together; unfreeze them, or save with DCP")
    tensors |= {name: part.float() for name, part in (model.get("frozen_param_fragments") or {}).items()}
    shapes: list[dict[str, torch.Size]] = model["param_shapes"]
    if stage == 3:
        tensors |= _stage3([torch.cat(state["fp32_flat_groups"]) for state in states], shapes)
    else:
        for at, group in enumerate(shapes):
            flat = torch.cat([state["single_partition_of_fp32_groups"][at] for state in states])
            tensors |= _cut(flat, group)
    for alias, source in dict(model.get("shared_params") or {}).items():
        if source in tensors:
            tensors[alias] = tensors[source]
    return tensors


def _cut(flat: torch.Tensor, group: dict[str, torch.Size]) -> Tensors:
    """Stages 1 and 2: a group's weights one after the other, filled up at the end."""
    found: Tensors = {}
    at = 0
    for name, shape in group.items():
        if at + shape.numel() > len(flat):
            raise ModelUnavailable(f"the ranks' parts end before {name!r}: a file is short")
        found[name] = flat[at : at + shape.numel()].view(shape)
        at += shape.numel()
    return found


def _stage3(parts: list[torch.Tensor], groups: list[dict[str, torch.Size]]) -> Tensors:
    """Stage 3: each weight is cut into as many pieces as there are ranks, the last one filled up."""
    found: Tensors = {}
    at = 0
    for name, shape in (item for group in groups for item in group.items()):
        each = -(-shape.numel() // len(parts))
        if any(at + each > len(part) for part in parts):
            raise ModelUnavailable(f"the ranks' parts end before {name!r}: a file is short")
        found[name] = torch.cat([part[at : at + each] for part in parts])[: shape.numel()].view(shape)
        at += each
    return found


def _rank(path: Path) -> int:
    digits = path.name.partition("zero_pp_rank_")[2].partition("_")[0]
    return int(digits) if digits.isdigit() else -1


def _largest(count: int | list[int]) -> int:
    return max(count) if isinstance(count, list) else int(count)


BUILT = {("collections", "OrderedDict"), ("torch", "Size"), ("torch", "device")} | {
    ("torch._utils", name) for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")
}


class Plain(pickle.Unpickler):
    """Builds tensors and plain containers; everything else becomes a shell without behaviour."""

    def find_class(self, module: str, name: str) -> Any:
        """See pickle.Unpickler."""
        if (module, name) in BUILT:
            return super().find_class(module, name)
        found = getattr(torch, name, None) if module == "torch" else None
        if isinstance(found, torch.dtype) or (isinstance(found, type) and name.endswith("Storage")):
            return found
        return Shell


class Shell:
    """What a class of the trainer's own becomes: takes whatever it is given, and forgets it."""

    def __init__(self, *args: Any, **fields: Any) -> None: ...

    def __call__(self, *args: Any, **fields: Any) -> Shell:
        return Shell()

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, value: Any) -> None:
        """See Shell."""

    def extend(self, values: Any) -> None:
        """See Shell."""


def load_plain(path: Path) -> dict[str, Any]:
    """A file of torch.save. Raises ModelUnavailable if it is cut short or none."""
    reader = SimpleNamespace(__name__="plain", Unpickler=Plain, load=lambda file, **given: Plain(file, **given).load())
    try:
        value: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=False, pickle_module=reader)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError, AttributeError) as error:
        raise ModelUnavailable(f"cannot read {path}: {error}") from error
    return value


def main(argv: list[str]) -> int:
    """Returns: exit status; 1 if the checkpoint cannot be used, said on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m local_backend.training", description="FSDP (DCP) and DeepSpeed ZeRO checkpoints -> safetensors."
    )
    parser.add_argument("checkpoint", type=Path, help="folder of one step")
    parser.add_argument("target", type=Path, help="folder to write")
    parser.add_argument("--base", type=Path, required=True, help="folder with config.json and tokenizer")
    given = parser.parse_args(argv)
    try:
        count = convert(given.checkpoint, given.base, given.target)
    except ModelUnavailable as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    sys.stdout.write(f"{count} tensors in {given.target}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
