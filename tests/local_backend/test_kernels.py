"""Fused kernels against the plain forms over many shapes; quantized products against float64."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from local_backend.errors import ModelUnavailable
from local_backend.forward import Span
from local_backend.kernels import ops_for
from local_backend.kernels.cache import AttentionBatch, KVCache
from local_backend.kernels.cpu import CpuOps, NoCompiler, library
from local_backend.kernels.reference import ReferenceOps
from local_backend.model_runner import wants_planes
from local_backend.quantization.neutral import SCHEMES, QuantizedWeight, Scheme, pack4, quantize, unpack4
from local_backend.quantization.run import (
    CpuForms,
    HalfWeightLinear,
    Int8Linear,
    PanelLinear,
    PlanesLinear,
    SevenBitLinear,
    WeightOnlyLinear,
)
from tests.local_backend.support import cache_dir

CPU = torch.device("cpu")
PLAIN = ReferenceOps()
SHAPES = [  # heads, kv heads, head dim, turned half
    (4, 2, 16, 8),
    (6, 6, 8, 4),
    (8, 1, 64, 32),
    (3, 3, 40, 20),
    (4, 2, 32, 8),
]


@pytest.fixture(scope="module")
def fused() -> CpuOps:
    return CpuOps(cache_dir() / "kernels")


@pytest.fixture(scope="module")
def invariant() -> CpuOps:
    return CpuOps(cache_dir() / "kernels", invariant=True)


@pytest.fixture
def without_tiles(fused: CpuOps, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor that has none."""
    if fused.tiles is not None:
        monkeypatch.setattr(fused.tiles, "value", 0)


def step(block_size: int, chunks: list[tuple[int, int]]) -> AttentionBatch:
    """Chunks (start, count) of sequences whose blocks lie scattered; single tokens must come first, then short ones."""
    made = []
    next_block = 40
    for start, count in chunks:
        blocks = -(-(start + count) // block_size)
        made.append(Span([5] * count, start, list(range(next_block - blocks, next_block))))
        next_block -= blocks
    return AttentionBatch(made, block_size, CPU, torch.float32)


def filled_cache(dtype: torch.dtype, block_size: int, kv_heads: int, dim: int, seed: int) -> KVCache:
    cache = KVCache(2, 41, block_size, kv_heads, dim, dtype, CPU)
    torch.manual_seed(seed)
    everywhere = torch.arange(41 * block_size)
    for layer in range(2):
        cache.store(layer, everywhere, *torch.randn(2, len(everywhere), kv_heads, dim))
    return cache


@pytest.mark.parametrize(("rows", "width"), [(1, 16), (3, 48), (7, 576), (200, 1000)])
def test_norms_and_gate_equal_the_plain_forms(fused: CpuOps, rows: int, width: int) -> None:
    torch.manual_seed(rows)
    x, delta, weight = torch.randn(rows, width) * 3, torch.randn(rows, width), torch.rand(width) + 0.5
    torch.testing.assert_close(fused.rms_norm(x, weight, 1e-5), PLAIN.rms_norm(x, weight, 1e-5))
    wanted = PLAIN.add_rms_norm(x.clone(), delta, weight, 1e-5)
    for got, want in zip(fused.add_rms_norm(x.clone(), delta, weight, 1e-5), wanted, strict=True):
        torch.testing.assert_close(got, want)
    gates = torch.cat((torch.randn(rows, width) * 20, torch.randn(rows, width)), dim=1)
    torch.testing.assert_close(fused.silu_mul(gates), PLAIN.silu_mul(gates), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"window": 5}, {"softcap": 3.0}, {"window": 7, "softcap": 2.0}], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    "chunks",
    [[(0, 1)], [(3, 1), (16, 1), (40, 1)], [(9, 1), (0, 12), (20, 9)], [(9, 1), (4, 3), (0, 50), (13, 43)]],
    ids=str,
)
def test_rope_store_and_attention_equal_the_plain_forms(
    fused: CpuOps,
    invariant: CpuOps,
    shape: tuple[int, int, int, int],
    chunks: list[tuple[int, int]],
    options: dict[str, Any],
) -> None:
    heads, kv_heads, dim, half = shape
    caches = [filled_cache(torch.float32, 4, kv_heads, dim, seed=1) for _ in range(3)]
    tokens = sum(count for _, count in chunks)
    torch.manual_seed(2)
    qkv = torch.randn(tokens, heads + 2 * kv_heads, dim)
    angle = torch.rand(tokens, 1, half) * 6
    outs = []
    for ops, cache in zip((PLAIN, fused, invariant), caches, strict=True):
        batch = step(4, chunks)
        turned = ops.rope_store(qkv.clone(), kv_heads, angle.cos(), angle.sin(), cache, 1, batch)
        outs.append(ops.attend(turned, kv_heads, cache, 1, batch, scale=dim**-0.5, **options))
        torch.testing.assert_close(cache.keys, caches[0].keys)
        torch.testing.assert_close(cache.values, caches[0].values)
    torch.testing.assert_close(outs[1], outs[0], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(outs[2], outs[0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("dtype", "loss"), [(torch.bfloat16, 0.02), (torch.int8, 0.02), (torch.float8_e4m3fn, 0.12)])
def test_narrow_caches_lose_little_and_the_fused_form_reads_them_alike(
    fused: CpuOps, dtype: torch.dtype, loss: float
) -> None:
    heads, kv_heads, dim = 8, 2, 32
    chunks = [(3, 1), (30, 1), (8, 5)]
    torch.manual_seed(3)
    qkv = torch.randn(7, heads + 2 * kv_heads, dim)
    angle = torch.rand(7, 1, dim // 2)
    outs = []
    for ops, kind in ((PLAIN, torch.float32), (PLAIN, dtype), (fused, dtype)):
        cache = filled_cache(kind, 4, kv_heads, dim, seed=5)
        batch = step(4, chunks)
        turned = ops.rope_store(qkv.clone(), kv_heads, angle.cos(), angle.sin(), cache, 0, batch)
        outs.append(ops.attend(turned, kv_heads, cache, 0, batch, scale=dim**-0.5))
    torch.testing.assert_close(outs[2], outs[1], atol=2e-3, rtol=2e-3)
    assert 0 < (outs[1] - outs[0]).norm() / outs[0].norm() < loss


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_is_none_in_a_cache_of_codes_either(fused: CpuOps, bad: float) -> None:
    qkv = torch.randn(3, 4, 16)
    qkv[1, 2, 5] = qkv[1, 3, 5] = bad  # key and value of the second token
    for ops in (fused, PLAIN):
        cache = filled_cache(torch.int8, 4, 1, 16, seed=5)
        batch = step(4, [(3, 1), (6, 1), (9, 1)])
        ops.rope_store(qkv.clone(), 1, torch.ones(3, 8), torch.zeros(3, 8), cache, 0, batch)
        assert cache.key_scale is not None
        assert cache.value_scale is not None
        for scale in (cache.key_scale, cache.value_scale):
            assert scale[0].flatten()[batch.slots].isfinite().tolist() == [True, False, True]


def test_a_nan_stays_in_its_row(fused: CpuOps) -> None:
    x = torch.randn(43, 64)
    x[1, 7] = float("nan")
    form = CpuForms(torch.float32, fused, half_weights=True).make(quantize(torch.randn(32, 64), SCHEMES["int8"]), None)
    forms: list[Any] = [form, PanelLinear(torch.randn(32, 64), None, fused)]
    forms.append(WeightOnlyLinear(quantize(torch.randn(32, 64), SCHEMES["int4wo"]), None, fused))
    if Int8Linear.available(fused):
        forms.append(PlanesLinear(torch.randn(32, 64), None, fused))
    for out in (fused.rms_norm(x, torch.ones(64), 1e-5), fused.silu_mul(x), *(form(x) for form in forms)):
        assert not out[1].isfinite().all()
        assert out[[0, *range(2, 43)]].isfinite().all()


def test_without_a_compiler_the_plain_forms_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoCompiler, match="no C compiler"):
        library(tmp_path)
    assert type(ops_for(CPU, torch.float32, cache_dir=tmp_path)) is ReferenceOps


def test_kernels_that_cannot_be_kept_are_compiled_all_the_same(
    fused: CpuOps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "cc"  # one that is done at once
    copied = f'while [ $# -gt 0 ]; do [ "$1" = -o ] && cp {fused._c._name} "$2"; shift; done'
    compiler.write_text(f"#!/bin/sh\n{copied}\ntrue\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert hasattr(library(compiler / "kernels"), "rms_norm")  # a folder in a file
    assert hasattr(library(tmp_path / "kernels"), "rms_norm")
    [kept] = (tmp_path / "kernels").iterdir()  # nothing is left beside it
    assert kept.suffix == ".so"


SANITIZED = """#!/bin/sh
[ "$1" = --version ] && echo with sanitizers
exec {cc} -g -fsanitize=address,undefined -fno-sanitize-recover=undefined "$@" -O1
"""


def test_nothing_is_read_or_written_that_is_nobodys(tmp_path: Path) -> None:
    """The other tests of this file, with kernels that check every access."""
    if os.environ.get("FAREBOX_TEST_SLOW") != "1":
        pytest.skip("NOT RUN: some minutes; FAREBOX_TEST_SLOW=1 runs this file's tests under gcc's sanitizers")
    cc = shutil.which("gcc")
    assert cc is not None
    (tmp_path / "cc").write_text(SANITIZED.format(cc=cc))
    (tmp_path / "cc").chmod(0o755)
    found = [
        subprocess.run([cc, f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    env = os.environ | {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "LD_PRELOAD": " ".join(found),
        "ASAN_OPTIONS": f"detect_leaks=0:verify_asan_link_order=0:log_path={tmp_path / 'asan'}",
        "FAREBOX_TEST_SLOW": "0",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-s", "--timeout=0", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    told = "".join(path.read_text() for path in tmp_path.glob("asan.*"))
    assert done.returncode == 0, f"{done.stdout[-2000:]}{done.stderr[-2000:]}{told[:4000]}"


# ---- quantized products ----

MATRICES = [(48, 32), (96, 64), (257, 160), (64, 1024), (5, 320)]


def reference_product(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return (x.double() @ weight.double().t()).float()


@pytest.mark.parametrize("shape", MATRICES, ids=str)
@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=lambda s: s.name)
def test_rounding_stays_within_half_a_step(scheme: Scheme, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape)
    weight[0] = 0.0
    packed = quantize(weight, scheme)
    assert packed.shape == shape
    step_size = packed.scale.float().repeat_interleave(packed.group, dim=1)
    bound = 0.51 if scheme.name != "fp8" else 16.5  # e4m3 steps by 32 at its top, 448
    assert ((packed.dequantize() - weight).abs() <= bound * step_size + 1e-6).all()
    assert (packed.dequantize()[0] == 0).all()


def test_four_bit_codes_survive_packing() -> None:
    codes = torch.randint(0, 16, (7, 96), dtype=torch.uint8)
    assert torch.equal(unpack4(pack4(codes)), codes)


@pytest.mark.parametrize("rows", [1, 3, 8, 40])
@pytest.mark.parametrize("shape", MATRICES, ids=str)
@pytest.mark.parametrize("scheme", ["int8wo", "int4wo"])
def test_weight_only_products_are_those_of_the_dequantized_matrix(
    fused: CpuOps, invariant: CpuOps, scheme: Any, shape: tuple[int, int], rows: int
) -> None:
    torch.manual_seed(rows)
    weight, bias, x = torch.randn(shape), torch.randn(shape[0]), torch.randn(rows, shape[1])
    packed = quantize(weight, SCHEMES[scheme])
    wanted = reference_product(packed.dequantize(), x) + bias
    torch.testing.assert_close(WeightOnlyLinear(packed, bias, fused)(x), wanted, atol=2e-3, rtol=1e-3)
    linear = WeightOnlyLinear(packed, bias, invariant)
    out = linear(x)
    torch.testing.assert_close(out, wanted, atol=2e-3, rtol=1e-3)
    for row in range(rows):
        assert torch.equal(linear(x[row : row + 1])[0], out[row])


@pytest.mark.parametrize("wide", [False, True], ids=["float16 scales", "float32 scales"])
@pytest.mark.parametrize(
    ("bits", "group", "ins"), [(8, 16, 256), (8, 40, 600), (8, 300, 300), (4, 96, 576), (4, 512, 512)]
)
def test_scales_of_any_length_and_zeros_are_those_of_the_plain_form(
    invariant: CpuOps, bits: int, group: int, ins: int, wide: bool
) -> None:
    torch.manual_seed(ins)
    outs, groups = 50, ins // group
    codes = torch.randint(0, 16, (outs, ins), dtype=torch.uint8) if bits == 4 else torch.randint(-128, 128, (outs, ins))
    packed = pack4(codes) if bits == 4 else codes.to(torch.int8)
    scale, x = torch.rand(outs, groups) * 0.1, torch.randn(19, ins)
    scale = scale if wide else scale.half()
    for zero in (None, torch.full((outs, groups), 8.0), torch.randn(outs, groups) * 5):
        weight = QuantizedWeight(packed, scale, zero, group)
        wanted = reference_product(weight.dequantize(), x)
        torch.testing.assert_close(
            WeightOnlyLinear(weight, None, invariant)(x), wanted, atol=1e-6 * float(wanted.abs().max()), rtol=1e-5
        )


@pytest.mark.parametrize("shape", [*MATRICES, (16, 1), (50, 300), (259, 513)], ids=str)
def test_float16_panels_lose_nothing_and_no_row_sees_its_neighbours(invariant: CpuOps, shape: tuple[int, int]) -> None:
    torch.manual_seed(shape[0])
    weight, bias, x = torch.randn(shape).half(), torch.randn(shape[0]), torch.randn(37, shape[1])
    linear, bare = PanelLinear(weight, bias, invariant), PanelLinear(weight.float(), None, invariant)
    alone = torch.cat([linear(row[None]) for row in x])
    torch.testing.assert_close(alone, reference_product(weight.float(), x) + bias, atol=2e-4, rtol=1e-5)
    for rows in range(1, 38):  # whole groups, and every width of the last one
        assert torch.equal(linear(x[:rows]), alone[:rows])
        torch.testing.assert_close(bare(x[:rows]), alone[:rows] - bias, atol=2e-4, rtol=1e-5)


@pytest.mark.parametrize("tiles", [True, False], ids=["tiles", "no tiles"])
@pytest.mark.parametrize("shape", [*MATRICES, (16, 1), (50, 300), (259, 513), (1200, 40)], ids=str)
def test_many_rows_are_multiplied_in_fifteen_bits_at_least(
    fused: CpuOps, shape: tuple[int, int], tiles: bool, request: pytest.FixtureRequest
) -> None:
    if tiles and (fused.tiles is None or not fused.tiles.value):
        pytest.skip("NO AMX HERE: many rows are multiplied in float32, tested beside this")
    if not tiles:
        request.getfixturevalue("without_tiles")
    outs, ins = shape
    torch.manual_seed(outs)
    plain, bias, x = torch.randn(shape), torch.randn(outs), torch.randn(130, ins)
    x[0] *= 1000  # one user's outliers
    forms = {"float16": plain.half().float(), "bfloat16": plain.bfloat16().float()}
    made: dict[str, Any] = {name: PanelLinear(weight, bias, fused) for name, weight in forms.items()}
    if ins % 32 == 0:
        for scheme in ("int8wo", "int4wo"):
            packed = quantize(plain, SCHEMES[scheme])
            zero = torch.randn_like(packed.scale, dtype=torch.float32) * 5
            forms[scheme], made[scheme] = packed.dequantize(), WeightOnlyLinear(packed, bias, fused)
            packed = QuantizedWeight(packed.codes, packed.scale, zero, packed.group)
            forms[f"{scheme}, zeros"], made[f"{scheme}, zeros"] = (
                packed.dequantize(),
                WeightOnlyLinear(packed, bias, fused),
            )
    for name, weight in forms.items():
        wanted = x.double() @ weight.double().t() + bias
        size = x.double().abs() @ weight.double().abs().t() + bias.abs()  # what rounding is relative to
        for rows in (*range(15, 71), 130):
            error = (made[name](x[:rows]) - wanted[:rows]).abs() / size[:rows]
            assert error.max() < 2**-15, (name, rows)


def test_weights_beyond_float16_become_its_largest_number(fused: CpuOps) -> None:
    weight = torch.tensor([[1e6, 0.0], [-1e6, 0.0]]).repeat(8, 16)
    assert PanelLinear(weight, None, fused)(torch.ones(1, 32))[0, :2].tolist() == [16 * 65504.0, -16 * 65504.0]


@pytest.mark.parametrize("rows", [1, 2, 5, 33, 130])
@pytest.mark.parametrize("shape", MATRICES, ids=str)
@pytest.mark.parametrize("form", ["int8", "seven bits"])
def test_int8_products_err_by_rounding_alone(fused: CpuOps, form: str, shape: tuple[int, int], rows: int) -> None:
    torch.manual_seed(rows)
    weight, bias, x = torch.randn(shape), torch.randn(shape[0]), torch.randn(rows, shape[1])
    packed = quantize(weight, SCHEMES["int8"])
    if form == "int8" and not Int8Linear.available(fused):
        pytest.skip("NO VNNI HERE: int8 products run in their 7-bit form, tested beside this")
    linear = Int8Linear(packed, bias, fused) if form == "int8" else SevenBitLinear(packed, bias)
    x[0] *= 1000  # one user's outliers
    got, want = linear(x), reference_product(packed.dequantize(), x) + bias
    error = (got - want).norm(dim=1) / want.norm(dim=1)
    assert error.max() < (0.03 if form == "int8" else 0.06)
    for row in range(rows):  # alone, in any company: the same to the bit
        assert torch.equal(linear(x[row : row + 1])[0], got[row])


@pytest.mark.parametrize("rows", [1, 2, 5, 33, 130])
@pytest.mark.parametrize("shape", MATRICES, ids=str)
def test_two_planes_of_int8_are_sixteen_bits(fused: CpuOps, shape: tuple[int, int], rows: int) -> None:
    if not Int8Linear.available(fused):
        pytest.skip("NO VNNI HERE: plain weights run through fbgemm, tested beside this")
    torch.manual_seed(rows)
    weight, bias, x = torch.randn(shape), torch.randn(shape[0]), torch.randn(rows, shape[1])
    weight[0] = 0.0
    linear = PlanesLinear(weight, bias, fused)
    x[0] *= 1000
    got, want = linear(x), reference_product(weight, x) + bias
    assert ((got - want).norm(dim=1) / want.norm(dim=1)).max() < 1e-3
    extremes = torch.full((1, shape[1]), -3.0)  # the ends of the range: codes of -32639
    ends = PlanesLinear(-weight.sign(), None, fused)(extremes)
    torch.testing.assert_close(ends, 3.0 * weight.sign().sum(1)[None], atol=1e-3 * shape[1], rtol=1e-4)
    for row in range(rows):
        assert torch.equal(linear(x[row : row + 1])[0], got[row])


def test_int16_is_refused_where_it_does_not_run(fused: CpuOps) -> None:
    with pytest.raises(ModelUnavailable, match="VNNI or AMX"):
        wants_planes("int16", CPU, PLAIN)
    with pytest.raises(ModelUnavailable, match="a form for CPUs"):
        wants_planes("int16", torch.device("cuda"), fused)


def test_float8_rows_run_as_float16_numbers_times_their_scale(fused: CpuOps) -> None:
    weight, x = torch.randn(96, 64), torch.randn(5, 64)
    packed = quantize(weight, SCHEMES["fp8"])
    bias = torch.randn(96)
    forms = ((fused, PanelLinear if PanelLinear.available(fused) else HalfWeightLinear), (PLAIN, HalfWeightLinear))
    for ops, form in forms:
        linear = CpuForms(torch.float32, ops, half_weights=True).make(packed, bias)
        assert isinstance(linear, form)
        torch.testing.assert_close(linear(x), reference_product(packed.dequantize(), x) + bias, atol=1e-2, rtol=1e-3)


def test_inputs_that_were_sorted_are_put_in_order_first(fused: CpuOps) -> None:
    order = torch.randperm(64)
    packed = quantize(torch.randn(32, 64), SCHEMES["int4wo"])
    packed = QuantizedWeight(packed.codes, packed.scale, packed.zero, packed.group, order)
    x = torch.randn(3, 64)
    out = WeightOnlyLinear(packed, None, fused)(x)
    torch.testing.assert_close(out, reference_product(packed.dequantize(), x), atol=2e-3, rtol=1e-3)
