"""Step -> tensors -> sampled tokens. The scheduler's integers become tensors here, once a step."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch

from local_backend.config import Settings
from local_backend.errors import ModelUnavailable
from local_backend.layers.attention import AttentionBatch, DecodeGroup, KVCache, PrefillChunk
from local_backend.layers.linear import HalfWeightLinear
from local_backend.memory import CachePlan, free_host_memory, plan_cache, return_freed_memory
from local_backend.model_config import ModelConfig, read_model_config
from local_backend.models.llama import Llama
from local_backend.sampler import Sampled, sample
from local_backend.scheduler import Chunk, Step
from local_backend.weights import Weights

MINUS_INFINITY = float("-inf")


class Runner(Protocol):
    """What the engine asks of a runner; tests put a fake one here."""

    def run(self, step: Step) -> list[Sampled | None]:
        """Compute a step. Returns: one entry for each chunk in order, None where the chunk ends inside known tokens."""
        ...


class ModelRunner:
    """One model on one device, with its KV cache."""

    def __init__(self, model_dir: Path, settings: Settings) -> None:
        self.config: ModelConfig = read_model_config(model_dir)
        self.device = pick_device(settings.device)
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        half_weights = self.device.type == "cpu" and wants_half_weights(settings.dtype)
        self.dtype = pick_dtype(settings.dtype, self.device)
        self.dtype_name = "float16 weights" if half_weights else str(self.dtype).removeprefix("torch.")
        max_model_len = min(settings.max_model_len or self.config.max_position, self.config.max_position)
        weights = Weights(model_dir, self.device)
        with torch.inference_mode():
            self.model = Llama(
                self.config,
                weights,
                dtype=self.dtype,
                half_weights=half_weights,
                max_model_len=max_model_len,
                device=self.device,
            )
            weights.close()
            return_freed_memory()
            self.plan: CachePlan = plan_cache(
                self.config,
                settings,
                itemsize=self.dtype.itemsize,
                max_model_len=max_model_len,
                free_bytes=free_memory(self.device),
                device=self.device.type,
            )
            self.cache = KVCache(
                self.config.layers,
                self.plan.blocks,
                settings.block_size,
                self.config.kv_heads,
                self.config.head_dim,
                self.dtype,
                self.device,
            )

    def run(self, step: Step) -> list[Sampled | None]:
        """See Runner. One forward pass over all chunks, then sampling for those that reach their last token."""
        with torch.inference_mode():
            logits, sampling = self._forward(step)
            results: list[Sampled | None] = [None] * len(step.chunks)
            sequences = [step.chunks[i].seq for i in sampling]
            for index, sampled in zip(sampling, sample(logits, sequences), strict=True):
                results[index] = sampled
            return results

    def logits(self, step: Step) -> torch.Tensor:
        """Logits (chunks, vocab) of a step whose chunks all reach their last token; for parity checks."""
        with torch.inference_mode():
            logits, sampling = self._forward(step)
            return logits[sorted(range(len(sampling)), key=sampling.__getitem__)]

    def _forward(self, step: Step) -> tuple[torch.Tensor, list[int]]:
        """Returns: logits, and for each of their rows the index of its chunk in the step."""
        # Single tokens first: attention takes them as one batch, those with contexts of like length together.
        order = sorted(range(len(step.chunks)), key=lambda i: (step.chunks[i].count > 1, step.chunks[i].end))
        chunks = [step.chunks[i] for i in order]
        size = self.cache.block_size
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        wanted: list[int] = []
        sampling: list[int] = []
        for index, chunk in zip(order, chunks, strict=True):
            table = chunk.seq.block_table
            ids += chunk.seq.tokens[chunk.start : chunk.end]
            positions += range(chunk.start, chunk.end)
            slots += [table[p // size] * size + p % size for p in range(chunk.start, chunk.end)]
            if chunk.samples:
                wanted.append(len(ids) - 1)
                sampling.append(index)
        batch = AttentionBatch(self._ints(slots), self._decode_groups(chunks), self._prefill_chunks(chunks))
        logits = self.model(self._ints(ids), self._ints(positions), self.cache, batch, self._ints(wanted))
        return logits, sampling

    def _decode_groups(self, chunks: list[Chunk]) -> list[DecodeGroup]:
        """Single-token chunks, shortest context first, cut so that padding at most doubles the pages read."""
        groups: list[DecodeGroup] = []
        start = 0
        count = sum(chunk.count == 1 for chunk in chunks)
        while start < count:
            shortest = self._pages(chunks[start])
            end = start
            while end < count and self._pages(chunks[end]) <= max(2 * shortest, 8):
                end += 1
            rows = chunks[start:end]
            pages = max(map(self._pages, rows))
            tables = [row.seq.block_table[:pages] + [0] * (pages - self._pages(row)) for row in rows]
            tables = [table[:pages] for table in tables]
            context = self._ints([row.end for row in rows])
            beyond = torch.arange(pages * self.cache.block_size, device=self.device) >= context.unsqueeze(1)
            mask = torch.zeros(beyond.shape, dtype=self.dtype, device=self.device).masked_fill_(beyond, MINUS_INFINITY)
            groups.append(DecodeGroup(start, end, self._ints(tables), mask[:, None, None]))
            start = end
        return groups

    def _prefill_chunks(self, chunks: list[Chunk]) -> list[PrefillChunk]:
        """Chunks of several tokens; the first chunk of a prompt needs no pages, for it is its own context."""
        out: list[PrefillChunk] = []
        row = 0
        for chunk in chunks:
            if chunk.count > 1:
                blocks = mask = None
                if chunk.start:
                    pages = self._pages(chunk)
                    blocks = self._ints([chunk.seq.block_table[:pages]])
                    seen = torch.arange(pages * self.cache.block_size, device=self.device)
                    at = torch.arange(chunk.start, chunk.end, device=self.device).unsqueeze(1)
                    mask = torch.zeros(len(at), len(seen), dtype=self.dtype, device=self.device)
                    mask.masked_fill_(seen > at, MINUS_INFINITY)
                out.append(PrefillChunk(row, row + chunk.count, blocks, mask))
            row += chunk.count
        return out

    def _pages(self, chunk: Chunk) -> int:
        return -(-chunk.end // self.cache.block_size)

    def _ints(self, values: list[int] | list[list[int]]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.device)


def pick_device(wanted: str) -> torch.device:
    """Raises ModelUnavailable if CUDA is asked for and absent."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise ModelUnavailable(f"device {wanted!r} was asked for, but torch sees no CUDA device")
    return torch.device(wanted)


def wants_half_weights(dtype: str) -> bool:
    """True if a CPU model keeps float16 weights. Raises ModelUnavailable if they are asked for and cannot be had."""
    if dtype == "float16" and not HalfWeightLinear.available():
        raise ModelUnavailable("float16 weights on CPU need fbgemm, which this build of torch lacks; use float32")
    return dtype == "float16" or (dtype == "auto" and HalfWeightLinear.available())


def pick_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """Dtype of activations and cache. On CPU float16 means float16 weights under float32 arithmetic."""
    if device.type == "cpu":
        return torch.bfloat16 if wanted == "bfloat16" else torch.float32
    return {"float32": torch.float32, "float16": torch.float16}.get(wanted, torch.bfloat16)


def free_memory(device: torch.device) -> int:
    """Bytes that may still be allocated on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_host_memory()
