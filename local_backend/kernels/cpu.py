"""The fused operations on CPU: C compiled once for this machine, called through ctypes.

A step of a small model is some 700 torch calls of 5 to 30 us each, more than its matrix products at one stream; this
makes it a few hundred. A compiler is asked for, not required: without one the plain forms run, and the log says so.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache as once
from pathlib import Path
from typing import Any

import torch

from local_backend.kernels.cache import AttentionBatch, KVCache
from local_backend.kernels.reference import ReferenceOps

log = logging.getLogger(__name__)

CODE = ("cpu.c", "products.c", "tiles.c", "integers.c")
SOURCES = [Path(__file__).with_name(name) for name in (*CODE, "lanes.h", "panels.h", "tiles.h")]
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
TILE = 64  # inputs that rows of codes are filled up to a multiple of: `TILE` of integers.c
MOST_INPUTS = 65_536  # of 8-bit products whose sums surely fit into 32 bits
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


@dataclass(frozen=True, slots=True)
class Panels:
    """Weights in the order in which `panel_product` reads them; see products.c."""

    data: torch.Tensor
    outs: int
    form: tuple[int, int, int, int]  # bits, group, bytes of a scale, bytes of a shift

    @property
    def wide(self) -> int:
        """Outputs of whole panels."""
        return -(-self.outs // PANEL) * PANEL


@dataclass(frozen=True, slots=True)
class Bytes:
    """8-bit weights in the order in which `byte_product` reads them, and what it takes to undo the rows' offset."""

    data: torch.Tensor
    sums: torch.Tensor
    scale: torch.Tensor  # (outs,) float32

    @property
    def step(self) -> int:
        """Bytes of a row of codes."""
        return len(self.data) // len(self.sums)


SIGNATURES: dict[str, tuple[Any, ...]] = {
    "rms_norm": (POINTER, POINTER, POINTER, FLOAT, INT, INT),
    "add_rms_norm": (POINTER, POINTER, POINTER, POINTER, FLOAT, INT, INT),
    "silu_mul": (POINTER, POINTER, INT, INT),
    "rope_store": (POINTER, POINTER, POINTER, POINTER, POINTER, INT, INT, INT),
    "attend": (POINTER, POINTER, LONG, POINTER, POINTER, INT, POINTER, POINTER, INT, INT, FLOAT, FLOAT, INT),
    "packed_bytes": (INT, INT, INT, INT, INT, INT),
    "pack_panels": (POINTER, POINTER, POINTER, POINTER, INT, INT, INT, INT, INT, INT),
    "panel_product": (POINTER, POINTER, POINTER, POINTER, INT, INT, INT, INT, INT, INT, INT, INT),
    "quantize_rows": (POINTER, POINTER, POINTER, INT, INT, INT),
    "split_rows": (POINTER, POINTER, POINTER, INT, INT, INT),
    "join_planes": (POINTER, POINTER, POINTER, POINTER, INT, INT),
    "pack_bytes": (POINTER, POINTER, POINTER, INT, INT, INT),
    "byte_product": (POINTER, POINTER, POINTER, POINTER, POINTER, POINTER, POINTER, INT, INT, INT),
}
RETURNS = {"packed_bytes": LONG}
WANT_VNNI = ("pack_bytes", "byte_product")  # not there on other processors


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
    try:
        if not target.exists():
            cache_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            _compile(compiler, target)
    except OSError as error:  # read-only, or full
        log.warning("compiled CPU kernels cannot be kept in %s, each start compiles them: %s", cache_dir, error)
        return _library(compiler, None)
    return _load(target)


def _compile(compiler: str, target: Path) -> Path:
    """Compile into `target`, which appears whole or not at all."""
    with tempfile.TemporaryDirectory() as folder:
        linked = Path(folder) / "cpu.so"
        code = [str(Path(__file__).with_name(name)) for name in CODE]
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
        # Named by chance: processes of two containers that share the folder may have the same number.
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as beside:
            beside.write(linked.read_bytes())
        Path(beside.name).replace(target)
    return target


def _load(path: Path) -> ctypes.CDLL:
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        raise NoCompiler(f"the compiled kernels do not load: {error}") from error
    for name, arguments in SIGNATURES.items():
        if name in WANT_VNNI and not hasattr(loaded, name):
            continue
        function = getattr(loaded, name)
        function.argtypes, function.restype = arguments, RETURNS.get(name)
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
        self.multiplies_bytes = hasattr(self._c, "byte_product")
        # 0: many rows are multiplied without AMX, as where the system refuses it; None: the processor has none.
        self.tiles = INT.in_dll(self._c, "may_use_tiles") if hasattr(self._c, "may_use_tiles") else None

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
        """See ReferenceOps. Single tokens and short spans run in C, row by row; longer ones are matrix products, which
        torch does better, but in some ten calls each."""
        if cache.dtype not in FORMS:
            return super().attend(qkv, kv_heads, cache, layer, batch, scale=scale, softcap=softcap, window=window)
        qkv = qkv.contiguous()
        tokens, all_heads, dim = qkv.shape
        heads = all_heads - 2 * kv_heads
        out = qkv.new_empty(tokens, heads, dim)
        if rows := tokens if self.invariant else batch.short_rows:
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
        for chunk in batch.prefill_chunks(window, rows) if rows < tokens else ():
            self.attend_chunk(out, qkv, kv_heads, cache, layer, chunk, scale, softcap)
        return out.flatten(1)

    def quantize_rows(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(tokens, n) float32 -> codes for `byte_product`, and one scale a row (tokens,)."""
        x = x.contiguous()
        rows, n = x.shape
        codes = _codes(rows, n)
        scale = torch.empty(rows)
        self._c.quantize_rows(codes.data_ptr(), scale.data_ptr(), x.data_ptr(), rows, n, codes.shape[1])
        return codes, scale

    def split_rows(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(tokens, n) float32 -> codes of two planes, all high bytes above all low ones, and one scale a row."""
        x = x.contiguous()
        rows, n = x.shape
        codes = _codes(2 * rows, n)
        scale = torch.empty(rows)
        self._c.split_rows(codes.data_ptr(), scale.data_ptr(), x.data_ptr(), rows, n, codes.shape[1])
        return codes, scale

    def join_planes(
        self, both: torch.Tensor, low: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """The products of the planes (2 tokens, outs) and (tokens, outs) as one (tokens, outs), in place."""
        rows, outs = low.shape
        self._c.join_planes(both.data_ptr(), low.data_ptr(), scale.data_ptr(), _address(bias), rows, outs)
        return both[:rows]

    def in_bytes(self, codes: torch.Tensor, scale: torch.Tensor) -> Bytes:
        """int8 weights (outs, ins) with a scale each output, as `byte_product` reads them."""
        codes = codes.contiguous()
        outs, ins = codes.shape
        assert ins <= MOST_INPUTS
        step, wide = -(-ins // TILE) * TILE, -(-outs // (2 * PANEL)) * 2 * PANEL
        made = Bytes(
            torch.empty(wide * step, dtype=torch.int8),
            torch.empty(wide, dtype=torch.int32),
            scale.float().flatten().contiguous(),
        )
        self._c.pack_bytes(made.data.data_ptr(), made.sums.data_ptr(), codes.data_ptr(), outs, ins, step)
        return made

    def byte_product(
        self, codes: torch.Tensor, rows: int, weights: Bytes, scale: torch.Tensor | None, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """The first rows of codes times weights, as float32; `scale` (rows,) and `bias` (outs,) if they are given."""
        outs = len(weights.scale)
        out = torch.empty(rows, outs)
        self._c.byte_product(
            out.data_ptr(),
            codes.data_ptr(),
            _address(scale),
            weights.data.data_ptr(),
            weights.sums.data_ptr(),
            weights.scale.data_ptr(),
            _address(bias),
            rows,
            outs,
            weights.step,
        )
        return out

    def in_panels(
        self,
        codes: torch.Tensor,
        *,
        bits: int,
        group: int,
        scale: torch.Tensor | None = None,
        shift: torch.Tensor | None = None,
    ) -> Panels:
        """Weights (outs, ins), float16 or codes of the neutral form, as `panel_product` reads them.

        scale, shift: (outs, groups), float16 or float32: weight = scale * code + shift, and of 4 bits scale * (code -
        8) + shift."""
        codes = codes.contiguous()
        outs, stored = codes.shape
        ins = stored * 2 if bits == 4 else stored
        assert bits != 4 or ins % 32 == group % 32 == 0
        scale, shift = (None if given is None else given.contiguous() for given in (scale, shift))
        form = (bits, group, 0 if scale is None else scale.itemsize, 0 if shift is None else shift.itemsize)
        data = torch.empty(self._c.packed_bytes(*form, outs, ins), dtype=torch.uint8)
        self._c.pack_panels(data.data_ptr(), codes.data_ptr(), _address(scale), _address(shift), *form, outs, ins)
        return Panels(data, outs, form)

    def panel_product(self, x: torch.Tensor, weights: Panels, bias: torch.Tensor | None) -> torch.Tensor:
        """x (tokens, ins) float32 times packed weights; the bias has a number for each output of a last whole panel."""
        x = x.contiguous()
        rows, ins = x.shape
        wide = weights.wide
        out = x.new_empty(rows, wide)
        self._c.panel_product(
            out.data_ptr(),
            x.data_ptr(),
            weights.data.data_ptr(),
            _address(bias),
            *weights.form,
            rows,
            wide,
            ins,
            self.invariant,
        )
        return out if wide == weights.outs else out[:, : weights.outs].contiguous()


def _address(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _codes(rows: int, n: int) -> torch.Tensor:
    """Room for rows of codes; AMX reads 16 rows at a time, whoever's they are."""
    return torch.empty(-(-rows // PANEL) * PANEL, -(-n // TILE) * TILE, dtype=torch.uint8)


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
