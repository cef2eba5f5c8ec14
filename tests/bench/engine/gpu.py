"""One table for a CUDA device: its ceilings, and decode and prefill as a share of them, on random weights made on it.

Needs no network and no files; the shape is Llama-3.1-8B's. `--dry-run` is the same code on a toy shape on CPU, so that
it cannot rot where no GPU is at hand.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from local_backend.config import Settings
from local_backend.messages import Sampling
from local_backend.model_runner import ModelRunner
from local_backend.scheduler import Chunk, Step
from local_backend.sequence import Sequence
from tests.bench.engine import model

L8B = model.Shape("llama-3.1-8b", 32, 4096, 14336, 32, 8, 128, 128256, 8192)
CONTEXT = 1024
VARIANTS: dict[str, dict[str, str]] = {
    "bf16": {},
    "int8": {"quantization": "int8"},
    "int4wo": {"quantization": "int4wo"},
    "fp8, kv fp8": {"quantization": "fp8", "kv_dtype": "fp8"},
}


def run(*, dry: bool) -> int:
    """Print ceilings, then one JSON line a variant and batch. Exit status 0, also where there is no GPU."""
    if not dry and not torch.cuda.is_available():
        print("NO GPU HERE: nothing was measured; --dry-run runs the same code on CPU")
        return 0
    device = torch.device("cpu" if dry else "cuda")
    shape, context, batches = (model.TINY, 32, (1, 3)) if dry else (L8B, CONTEXT, (1, 8, 64, 256))
    limits = ceilings(device, 256 if dry else 8192)
    print(json.dumps({"device": "cpu, dry run" if dry else torch.cuda.get_device_name(), **limits}), flush=True)
    for name, changes in VARIANTS.items():
        if not dry and name.startswith("fp8") and torch.cuda.get_device_capability() < (8, 9):
            print(json.dumps({"variant": name, "skipped": "this GPU multiplies no float8"}))
            continue
        for line in variant(name, changes, device, shape, context, batches, limits):
            print(json.dumps(line), flush=True)
    return 0


def timed(device: torch.device, work: Callable[[], Any], times: int = 5) -> float:
    """Best of several, in seconds, with the device drained before and after; the first run warms up."""
    best = float("inf")
    for turn in range(times + 1):
        if device.type == "cuda":
            torch.cuda.synchronize()
        begun = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if turn:
            best = min(best, time.perf_counter() - begun)
    return best


def ceilings(device: torch.device, side: int) -> dict[str, float]:
    """Bytes a second that a copy moves (read and written), and bfloat16 operations a second of a large product."""
    many = torch.empty(side * side * 8, dtype=torch.uint8, device=device)
    a, b = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    return {
        "copy_bytes_s": 2 * many.numel() / timed(device, many.clone),
        "bf16_flops": 2 * side**3 / timed(device, lambda: a @ b),
    }


def variant(
    name: str,
    changes: dict[str, str],
    device: torch.device,
    shape: model.Shape,
    context: int,
    batches: tuple[int, ...],
    limits: dict[str, float],
) -> list[dict[str, Any]]:
    """Decode at each batch and one prefill, through the real runner and sampler."""
    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = random_checkpoint(Path(folder), shape, device)
        dtype = "float32" if device.type == "cpu" else "bfloat16"
        blocks = max(batches) * -(-(context + 16) // 16) + 8
        kv_width = {"fp8": 1, "int8": 1}.get(
            changes.get("kv_dtype", ""), torch.float32.itemsize if dtype == "float32" else 2
        )
        per_token = 2 * shape.layers * shape.kv_heads * shape.head_dim * kv_width
        settings = Settings(
            model=str(path),
            data=folder,
            device=str(device),
            dtype=dtype,
            max_model_len=context + 16,
            max_running=max(batches),
            kv_cache_bytes=blocks * 16 * per_token,
            **changes,  # type: ignore[arg-type]
        )
        runner = ModelRunner(path, settings)
    width = {"int8": 1.0, "fp8": 1.0, "int4wo": 0.625}.get(changes.get("quantization", ""), 2.0)
    for batch in batches:
        sequences = [sequence(i, context, runner) for i in range(batch)]
        step = Step(batch, [Chunk(seq, context - 1, 1) for seq in sequences])
        seconds = timed(device, lambda step=step: runner.run(step))
        traffic = shape.parameters * width + batch * context * per_token
        floor = traffic / limits["copy_bytes_s"]
        lines.append(
            {
                "variant": name,
                "decode": batch,
                "tokens_s": round(batch / seconds, 1),
                "share": round(floor / seconds, 3),
            }
        )
    seq = sequence(0, context, runner)
    seconds = timed(device, lambda: runner.run(Step(context, [Chunk(seq, 0, context)])))
    floor = 2 * shape.parameters * context / limits["bf16_flops"]
    lines.append(
        {
            "variant": name,
            "prefill": context,
            "tokens_s": round(context / seconds, 1),
            "share": round(floor / seconds, 3),
        }
    )
    return lines


def sequence(index: int, context: int, runner: ModelRunner) -> Sequence:
    """A sequence whose blocks are its own; what stands in them does not matter to time."""
    seq = Sequence(index, [5 + index % 100] * context, Sampling(max_tokens=8, temperature=0.0))
    each = -(-(context + 16) // runner.cache.block_size)
    seq.block_table = list(range(index * each, (index + 1) * each))
    return seq


def random_checkpoint(folder: Path, shape: model.Shape, device: torch.device) -> Path:
    """A checkpoint of random bfloat16 weights, written once: the loader is part of what is measured."""
    from safetensors.torch import save_file

    path = model.write_safetensors(folder / shape.name, shape, {})
    names = model.tensor_shapes(shape)
    torch.manual_seed(0)
    made = {
        name: torch.ones(size)
        if len(size) == 1
        else torch.empty(size, dtype=torch.bfloat16, device=device).normal_(0, 0.02).cpu()
        for name, size in names.items()
    }
    save_file(made, path / "model.safetensors", metadata={"format": "pt"})
    return path
