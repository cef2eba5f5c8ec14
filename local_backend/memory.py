"""How large the KV cache becomes: plain arithmetic, shown to the user when it does not come out."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

from local_backend.config import Settings
from local_backend.errors import ModelUnavailable
from local_backend.model_config import ModelConfig

DEFAULT_CPU_CACHE_BYTES = 2**30  # a laptop's share; --kv-cache-bytes says otherwise
FREE_SHARE = {"cpu": 0.5, "cuda": 0.85}  # the rest is for activations, logits and the neighbours


@dataclass(slots=True, frozen=True)
class CachePlan:
    """Blocks to allocate, and the context length that they can hold."""

    blocks: int
    max_model_len: int
    host_slots: int = 0  # blocks of host memory beside them


def plan_cache(
    config: ModelConfig,
    settings: Settings,
    *,
    kv_heads: int,
    itemsize: int,
    max_model_len: int,
    free_bytes: int,
    device: str,
) -> CachePlan:
    """Size the cache, of `kv_heads` on this rank, from what is free.

    Raises ModelUnavailable, with the arithmetic, if it cannot serve.

    No more than max_running sequences of full length is ever useful, so small models take less."""
    per_token = 2 * config.layers * kv_heads * config.head_dim * itemsize
    per_block = per_token * settings.block_size
    usable = int(free_bytes * FREE_SHARE[device])
    if settings.kv_cache_bytes is not None:
        budget = settings.kv_cache_bytes
    else:
        budget = min(usable, DEFAULT_CPU_CACHE_BYTES) if device == "cpu" else usable
    blocks_each = -(-max_model_len // settings.block_size)
    blocks = min(budget // per_block, blocks_each * settings.max_running)
    arithmetic = (
        f"one token takes {per_token} bytes, a context of {max_model_len} tokens {blocks_each * per_block / 2**20:.0f} "
        f"MiB; the cache may take {budget / 2**20:.0f} MiB, {free_bytes / 2**20:.0f} MiB are free"
    )
    if budget > free_bytes:
        raise ModelUnavailable(f"the KV cache does not fit: {arithmetic}")
    host_bytes = settings.kv_host_bytes or 0
    if host_bytes > (free_host := free_host_memory()):
        raise ModelUnavailable(
            f"kv_host_bytes asks for {host_bytes / 2**20:.0f} MiB of host memory, {free_host / 2**20:.0f} MiB are free"
        )
    host_slots = host_bytes // per_block
    if blocks >= blocks_each:
        return CachePlan(blocks, max_model_len, host_slots)
    shorter = blocks * settings.block_size
    if settings.max_model_len is not None or shorter < 2 * settings.block_size:
        raise ModelUnavailable(f"the KV cache cannot hold one context: {arithmetic}")
    return CachePlan(blocks, shorter, host_slots)


def return_freed_memory() -> None:
    """Give what loading has freed back to the system: glibc keeps it otherwise, 270 MB for SmolLM2 (2026-11)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def free_host_memory() -> int:
    """Bytes that this process may still take: what the kernel calls available, or less if a container is bounded.

    Source: proc(5) MemAvailable; cgroup v2 memory.max and memory.current; read 2026-11."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2  # macOS says no more than this
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    bound, current = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if bound.exists() and current.exists() and (text := bound.read_text().strip()) != "max":
        free = min(free, max(0, int(text) - int(current.read_text())))
    return free
