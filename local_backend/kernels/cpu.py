"""The fused operations on CPU: cpu.c and products.c, compiled once for this machine and called through ctypes.

A step of a small model is some 700 torch calls of 5 to 30 us each, more than its matrix products at one stream; this
makes it a few hundred. A compiler is asked for, not required: without one the plain forms run, and the log says so.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache as once
from pathlib import Path
from typing import Any

import torch

from local_backend.kernels.cache import AttentionBatch, KVCache
from local_backend.kernels.reference import ReferenceOps

SOURCES = [Path(__file__).with_name(name) for name in ("cpu.c", "products.c", "lanes.h")]
# Sums are vectorised by hand in one fixed order, so nothing here may let the compiler reorder them: no -ffast-math,
# which with gcc before 13 would also make the whole process flush denormals.
FLAGS = (
    "-std=gnu11",
    "-O3",
    "-march=native",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fopenmp",
    "-fPIC",
    "-Wno-psabi",
)
FORMS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
PANEL = 16  # outputs that are computed side by side: `LANES` of lanes.h
POINTER, INT, LONG, FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float


class NoCompiler(Exception):
    """The C source cannot be compiled or loaded here; the message says why."""


class CacheLayer(ctypes.Structure):
    """`cache_t` of cpu.c."""

    _fields_ = (
        ("kind", INT),
        ("block_size", INT),
        ("kv_heads", INT),
        ("dim", INT),
        ("keys", POINTER),
        ("values", POINTER),
        ("key_scale", POINTER),
        ("value_scale", POINTER),
    )


SIGNATURES: dict[str, tuple[Any, ...]] = {
    "rms_norm": (POINTER, POINTER, POINTER, FLOAT, INT, INT),
    "add_rms_norm": (POINTER, POINTER, POINTER, POINTER, FLOAT, INT, INT),
    "silu_mul": (POINTER, POINTER, INT, INT),
    "rope_store": (POINTER, POINTER, POINTER, POINTER, POINTER, INT, INT, INT),
    "attend": (POINTER, POINTER, LONG, POINTER, POINTER, INT, POINTER, POINTER, INT, INT, FLOAT, FLOAT, INT),
    "quantize_rows": (POINTER, POINTER, POINTER, INT, INT),
    "split_rows": (POINTER, POINTER, POINTER, INT, INT),
    "join_planes": (POINTER, POINTER, POINTER, POINTER, INT, INT),
    "widen": (POINTER, POINTER, POINTER, POINTER, INT, INT, INT, INT),
    "weight_only": (POINTER, POINTER, POINTER, POINTER, POINTER, POINTER, INT, INT, INT, INT, INT),
    "pack_halves": (POINTER, POINTER, INT, INT),
    "half_product": (POINTER, POINTER, POINTER, POINTER, INT, INT, INT),
}


def library(cache_dir: Path | None) -> ctypes.CDLL:
    """The compiled kernels, from `cache_dir` if they are there already. Raises NoCompiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise NoCompiler("there is no C compiler (cc, gcc or clang) on the path")
    return _library(compiler, cache_dir)


@once
def _library(compiler: str, cache_dir: Path | None) -> ctypes.CDLL:
    if cache_dir is None:
        with tempfile.TemporaryDirectory() as folder:
            return _load(_compile(compiler, Path(folder) / "cpu.so"))
    # What is compiled for one processor may be an illegal instruction on the next: the name says all that went in.
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
    made_of = (*(source.read_bytes() for source in SOURCES), repr(FLAGS).encode(), version, _processor())
    target = cache_dir / f"cpu-{hashlib.sha256(b'|'.join(made_of)).hexdigest()[:24]}.so"
    if not target.exists():
        cache_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        _compile(compiler, target)
    return _load(target)


def _compile(compiler: str, target: Path) -> Path:
    """Compile into `target`, which appears whole or not at all."""
    with tempfile.TemporaryDirectory() as folder:
        linked = Path(folder) / "cpu.so"
        code = [str(source) for source in SOURCES if source.suffix == ".c"]
        objects = [f"{Path(name).stem}.o" for name in code]
        # Linked without -fopenmp: the calls then resolve to the OpenMP that torch brought along, and its threads are
        # shared. A runtime of our own would put a second pool of threads on the same cores.
        for command in (
            [compiler, *FLAGS, "-c", *code],
            [compiler, "-shared", *objects, "-o", str(linked), "-lm"],
        ):
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            if done.returncode:
                raise NoCompiler(f"{compiler} failed: {done.stderr.strip()[-400:]}")
        beside = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.copyfile(linked, beside)
        beside.replace(target)
    return target


def _load(path: Path) -> ctypes.CDLL:
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        raise NoCompiler(f"the compiled kernels do not load: {error}") from error
    for name, arguments in SIGNATURES.items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = arguments, None
    return loaded


def _processor() -> bytes:
    """What `-march=native` depends on."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        kept = [line for line in info.read_text().splitlines() if line.startswith(("model name", "flags", "Features"))]
        return "\n".join(sorted(set(kept))).encode()
    return platform.processor().encode() + platform.machine().encode()


class CpuOps(ReferenceOps):
    """float32 activations on CPU. Tensors handed in may be overwritten where ReferenceOps says so."""

    name = "fused C"

    def __init__(self, cache_dir: Path | None, *, invariant: bool = False) -> None:
        """`invariant`: prompts too are attended row by row, so that no number depends on how they were cut."""
        self.invariant = invariant
        self._c = library(cache_dir)

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """See ReferenceOps."""
        x = x.contiguous()
        out = torch.empty_like(x)
        n = x.shape[-1]
        self._c.rms_norm(out.data_ptr(), x.data_ptr(), weight.data_ptr(), eps, x.numel() // n, n)
        return out

    def add_rms_norm(
        self, x: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See ReferenceOps."""
        x, delta = x.contiguous(), delta.contiguous()
        out = torch.empty_like(x)
        n = x.shape[-1]
        self._c.add_rms_norm(out.data_ptr(), x.data_ptr(), delta.data_ptr(), weight.data_ptr(), eps, x.numel() // n, n)
        return x, out

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """See ReferenceOps."""
        gate_up = gate_up.contiguous()
        rows, both = gate_up.shape
        out = gate_up.new_empty(rows, both // 2)
        self._c.silu_mul(out.data_ptr(), gate_up.data_ptr(), rows, both // 2)
        return out

    def rope_store(
        self,
        qkv: torch.Tensor,
        kv_heads: int,
        cos: torch.Tensor,
        sin: torch.Tensor,
        cache: KVCache,
        layer: int,
        batch: AttentionBatch,
    ) -> torch.Tensor:
        """See ReferenceOps."""
        if cache.dtype not in FORMS:
            return super().rope_store(qkv, kv_heads, cos, sin, cache, layer, batch)
        qkv, cos, sin = qkv.contiguous(), cos.contiguous(), sin.contiguous()
        rows, all_heads, _ = qkv.shape
        self._c.rope_store(
            qkv.data_ptr(),
            cos.data_ptr(),
            sin.data_ptr(),
            batch.slots.data_ptr(),
            cache_layer(cache, layer),
            rows,
            all_heads - 2 * kv_heads,
            cos.shape[-1],
        )
        return qkv

    def attend(
        self,
        qkv: torch.Tensor,
        kv_heads: int,
        cache: KVCache,
        layer: int,
        batch: AttentionBatch,
        *,
        scale: float,
        softcap: float = 0.0,
        window: int = 0,
    ) -> torch.Tensor:
        """See ReferenceOps. Single tokens run in C; longer chunks are matrix products, which torch does better."""
        if cache.dtype not in FORMS:
            return super().attend(qkv, kv_heads, cache, layer, batch, scale=scale, softcap=softcap, window=window)
        qkv = qkv.contiguous()
        tokens, all_heads, dim = qkv.shape
        heads = all_heads - 2 * kv_heads
        out = qkv.new_empty(tokens, heads, dim)
        if rows := tokens if self.invariant else batch.decode_rows:
            self._c.attend(
                out.data_ptr(),
                qkv.data_ptr(),
                all_heads * dim,
                cache_layer(cache, layer),
                batch.tables.data_ptr(),
                batch.tables.shape[1],
                batch.owners.data_ptr(),
                batch.contexts.data_ptr(),
                rows,
                heads,
                scale,
                softcap,
                window,
            )
        if rows < tokens:
            self.attend_prefill(out, qkv, kv_heads, cache, layer, batch, scale, softcap, window)
        return out.flatten(1)

    def quantize_rows(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(tokens, n) float32 -> int8 codes and one scale a row (tokens, 1)."""
        x = x.contiguous()
        rows, n = x.shape
        codes = torch.empty(rows, n, dtype=torch.int8)
        scale = torch.empty(rows, 1)
        self._c.quantize_rows(codes.data_ptr(), scale.data_ptr(), x.data_ptr(), rows, n)
        return codes, scale

    def split_rows(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(tokens, n) float32 -> int8 codes (2 tokens, n), high bytes above low ones, and one scale a row."""
        x = x.contiguous()
        rows, n = x.shape
        codes = torch.empty(2 * rows, n, dtype=torch.int8)
        scale = torch.empty(rows, 1)
        self._c.split_rows(codes.data_ptr(), scale.data_ptr(), x.data_ptr(), rows, n)
        return codes, scale

    def join_planes(
        self, both: torch.Tensor, low: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """The products of the planes (2 tokens, outs) and (tokens, outs) as one (tokens, outs), in place."""
        rows, outs = low.shape
        self._c.join_planes(
            both.data_ptr(),
            low.data_ptr(),
            scale.data_ptr(),
            None if bias is None else bias.data_ptr(),
            rows,
            outs,
        )
        return both[:rows]

    def weight_only(
        self,
        x: torch.Tensor,
        codes: torch.Tensor,
        scale: torch.Tensor,
        zero: torch.Tensor | None,
        bias: torch.Tensor | None,
        *,
        bits: int,
        group: int,
    ) -> torch.Tensor:
        """x (tokens, ins) float32 times weights as stored: codes of 4 or 8 bits, float16 scale and zero."""
        x = x.contiguous()
        rows, ins = x.shape
        out = x.new_empty(rows, len(codes))
        self._c.weight_only(
            out.data_ptr(),
            x.data_ptr(),
            codes.data_ptr(),
            scale.data_ptr(),
            None if zero is None else zero.data_ptr(),
            None if bias is None else bias.data_ptr(),
            bits,
            group,
            rows,
            len(codes),
            ins,
        )
        return out

    def widen(
        self, codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, *, bits: int, group: int
    ) -> torch.Tensor:
        """Weights as float32 (outs, ins)."""
        outs = len(codes)
        ins = codes.shape[1] * 2 if bits == 4 else codes.shape[1]
        out = torch.empty(outs, ins)
        self._c.widen(
            out.data_ptr(),
            codes.data_ptr(),
            scale.data_ptr(),
            None if zero is None else zero.data_ptr(),
            bits,
            group,
            outs,
            ins,
        )
        return out

    def pack_halves(self, weight: torch.Tensor) -> torch.Tensor:
        """float16 weights (outs, ins) in the order in which `half_product` reads them, as one row of numbers."""
        weight = weight.contiguous()
        outs, ins = weight.shape
        packed = torch.empty(-(-outs // PANEL) * PANEL * ins, dtype=torch.float16)
        self._c.pack_halves(packed.data_ptr(), weight.data_ptr(), outs, ins)
        return packed

    def half_product(self, x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None, outs: int) -> torch.Tensor:
        """x (tokens, ins) float32 times packed weights; the bias has a number for each output of a last whole panel."""
        x = x.contiguous()
        rows, ins = x.shape
        wide = -(-outs // PANEL) * PANEL
        out = x.new_empty(rows, wide)
        self._c.half_product(
            out.data_ptr(),
            x.data_ptr(),
            packed.data_ptr(),
            None if bias is None else bias.data_ptr(),
            rows,
            wide,
            ins,
        )
        return out if wide == outs else out[:, :outs].contiguous()


def cache_layer(cache: KVCache, layer: int) -> Any:
    """The C view of one layer's pages; made once, since the cache never moves."""
    if cache.native is None:
        cache.native = [ctypes.byref(_layer(cache, i)) for i in range(len(cache.keys))]
    return cache.native[layer]


def _layer(cache: KVCache, layer: int) -> CacheLayer:
    _, _, block_size, kv_heads, dim = cache.keys.shape
    scales = (cache.key_scale, cache.value_scale)
    return CacheLayer(
        FORMS[cache.dtype],
        block_size,
        kv_heads,
        dim,
        cache.keys[layer].data_ptr(),
        cache.values[layer].data_ptr(),
        *(None if scale is None else scale[layer].data_ptr() for scale in scales),
    )
