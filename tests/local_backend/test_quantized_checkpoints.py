"""Each checkpoint format, packed here by its own published recipe, read back into the neutral form and run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from local_backend.errors import ModelUnavailable
from local_backend.quantization.checkpoints import reader
from local_backend.quantization.neutral import SCHEMES, QuantizedWeight, join, quantize
from local_backend.weights import Weights
from tests.local_backend.support import make_engine, make_tiny_model
from tests.local_backend.test_parity import compute, reference, sequences

OUTS, INS, GROUP = 48, 128, 32
Tensors = dict[str, torch.Tensor]


def words(codes: torch.Tensor, bits: int, order: tuple[int, ...] | None = None) -> torch.Tensor:
    """Codes (rows, n) into int32 words (rows, n * bits / 32): nibble i takes column order[i] of its word."""
    each = 32 // bits
    order = order or tuple(range(each))
    grouped = codes.to(torch.int64).view(codes.shape[0], -1, each)
    word = sum(grouped[:, :, column] << (bits * i) for i, column in enumerate(order))
    assert isinstance(word, torch.Tensor)
    return torch.where(word >= 2**31, word - 2**32, word).to(torch.int32)


def grid(bits: int, groups: int = INS // GROUP) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random codes, zeros and scales, and the weights they mean."""
    torch.manual_seed(bits)
    codes = torch.randint(0, 2**bits, (OUTS, INS))
    zero = torch.randint(1, 2**bits - 1, (OUTS, groups))
    scale = (torch.rand(OUTS, groups) * 0.01 + 0.001).half()
    wide = INS // groups
    plain = (codes - zero.repeat_interleave(wide, 1)).float() * scale.float().repeat_interleave(wide, 1)
    return codes, zero, scale, plain


def gptq(bits: int, *, v2: bool = False, act_order: bool = False) -> tuple[dict[str, Any], Tensors, torch.Tensor]:
    codes, zero, scale, plain = grid(bits)
    g_idx = torch.arange(INS) // GROUP
    if act_order:
        g_idx = g_idx[torch.randperm(INS)]
        plain = (codes - zero[:, g_idx]).float() * scale.float()[:, g_idx]
    stored = zero if v2 else zero - 1
    config = {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "desc_act": act_order}
    tensors = {
        "qweight": words(codes, bits).t().contiguous(),
        "qzeros": words(stored.t().contiguous(), bits),
        "scales": scale.t().contiguous(),
        "g_idx": g_idx.int(),
    }
    return config | ({"checkpoint_format": "gptq_v2"} if v2 else {}), tensors, plain


def awq() -> tuple[dict[str, Any], Tensors, torch.Tensor]:
    codes, zero, scale, plain = grid(4)
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    tensors = {
        "qweight": words(codes.t().contiguous(), 4, order),
        "qzeros": words(zero.t().contiguous(), 4, order),
        "scales": scale.t().contiguous(),
    }
    return {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}, tensors, plain


def compressed(bits: int, kind: str, *, symmetric: bool = True) -> tuple[dict[str, Any], Tensors, torch.Tensor]:
    weights = {"num_bits": bits, "type": kind, "symmetric": symmetric, "group_size": GROUP}
    config = {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}}
    if bits == 4:
        codes, zero, scale, plain = grid(4)
        if symmetric:
            plain = (codes - 8).float() * scale.float().repeat_interleave(GROUP, 1)
        tensors = {
            "weight_packed": words(codes, 4),
            "weight_scale": scale,
            "weight_shape": torch.tensor([OUTS, INS]),
        }
        if not symmetric:
            tensors["weight_zero_point"] = words(zero.t().contiguous(), 4).t().contiguous()
        return config, tensors, plain
    scale = torch.rand(OUTS, 1) * 0.01 + 0.001
    if kind == "float":
        codes8 = (torch.randn(OUTS, INS) * 50).to(torch.float8_e4m3fn)
    else:
        codes8 = torch.randint(-127, 128, (OUTS, INS)).to(torch.int8)
    return config, {"weight": codes8, "weight_scale": scale}, codes8.float() * scale


def fp8(block: int | None, ins: int = INS) -> tuple[dict[str, Any], Tensors, torch.Tensor]:
    torch.manual_seed(4)
    codes = (torch.randn(OUTS, ins) * 50).to(torch.float8_e4m3fn)
    if block is None:
        scale = torch.tensor([0.003])
        return {"quant_method": "fp8"}, {"weight": codes, "weight_scale": scale}, codes.float() * scale
    blocks = torch.rand(-(-OUTS // block), -(-ins // block)) * 0.01
    spread = blocks.repeat_interleave(block, 0)[:OUTS].repeat_interleave(block, 1)[:, :ins]
    config = {"quant_method": "fp8", "weight_block_size": [block, block]}
    return config, {"weight": codes, "weight_scale_inv": blocks}, codes.float() * spread


FORMATS = {
    "gptq": gptq(4),
    "gptq in 8 bits": gptq(8),
    "gptq v2": gptq(4, v2=True),
    "gptq with sorted inputs": gptq(4, act_order=True),
    "awq": awq(),
    "compressed, 4 bits": compressed(4, "int"),
    "compressed, 4 bits with zeros": compressed(4, "int", symmetric=False),
    "compressed, int8": compressed(8, "int"),
    "compressed, float8": compressed(8, "float"),
    "float8, one scale": fp8(None),
    "float8 in blocks": fp8(32),
    "float8 in blocks, the last cut short": fp8(32, 112),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_read_as_the_weights_it_means(name: str) -> None:
    config, tensors, plain = FORMATS[name]
    found = reader(config)(tensors.get, *plain.shape)
    assert found is not None
    assert found.shape == plain.shape
    torch.testing.assert_close(found.dequantize(), plain, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("name", FORMATS)
def test_a_matrix_left_plain_is_read_as_it_is(name: str) -> None:
    config, _, _ = FORMATS[name]
    assert reader(config)({"weight": torch.zeros(4, 4)}.get, 4, 4) is None


@pytest.mark.parametrize(
    "config",
    [
        {"quant_method": "bitsandbytes"},
        {"quant_method": "gptq", "bits": 3},
        {"quant_method": "awq", "bits": 4, "version": "gemv"},
        {"quant_method": "compressed-tensors", "config_groups": {}},
        {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": {"num_bits": 2}}}},
    ],
    ids=str,
)
def test_forms_not_served_are_refused_by_name(config: dict[str, Any]) -> None:
    with pytest.raises(ModelUnavailable, match="not served"):
        reader(config)


def test_a_checkpoint_that_lost_its_scales_is_refused(tmp_path: Path) -> None:
    config, tensors, plain = FORMATS["gptq"]
    del (tensors := dict(tensors))["scales"]
    save_file({f"m.{name}": t for name, t in tensors.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": config}))
    with pytest.raises(ModelUnavailable, match="lacks its 'scales'"):
        Weights(tmp_path, torch.device("cpu")).matrix("m", *plain.shape)


def quantized_model(folder: Path, config: dict[str, Any], tensors: Tensors, plain: torch.Tensor) -> LlamaForCausalLM:
    """A tiny Llama all of whose matrices of that shape are the quantized one. Returns: it with plain weights."""
    model = make_tiny_model(
        folder, hidden_size=INS, intermediate_size=OUTS, num_attention_heads=4, num_key_value_heads=2
    )
    stored = load_file(folder / "model.safetensors")
    for name in [n for n, t in stored.items() if tuple(t.shape) == (OUTS, INS)]:
        del stored[name]
        stored |= {name.removesuffix("weight") + part: t.clone() for part, t in tensors.items()}
        model.get_parameter(name).data = plain
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    changed = json.loads((folder / "config.json").read_text()) | {"quantization_config": config}
    (folder / "config.json").write_text(json.dumps(changed))
    return model


@pytest.mark.parametrize("name", ["gptq with sorted inputs", "awq", "compressed, int8", "float8 in blocks"])
def test_a_quantized_model_gives_the_logits_of_its_dequantized_self(name: str, tmp_path: Path) -> None:
    model = quantized_model(tmp_path, *FORMATS[name])
    engine = make_engine(tmp_path, block_size=4, prefix_caching=False)
    seqs = sequences([1, 5, 40])
    logits = compute(engine, [(s, len(s.tokens)) for s in seqs])
    for row, seq in zip(logits, seqs, strict=True):
        torch.testing.assert_close(row, reference(model, seq.tokens)[-1], atol=5e-2, rtol=5e-2)


def test_joined_parts_of_one_form_stay_quantized_and_others_are_widened() -> None:
    a, b = (quantize(torch.randn(16, 64), SCHEMES["int4wo"]) for _ in range(2))
    joined = join([a, b])
    assert isinstance(joined, QuantizedWeight)
    assert torch.equal(joined.dequantize(), torch.cat((a.dequantize(), b.dequantize())))
    assert join([a, quantize(torch.randn(16, 64), SCHEMES["int8"])]) is None


@pytest.mark.parametrize("scheme", ["int8", "int8wo", "int4wo", "fp8"])
def test_a_row_or_column_share_is_that_part_of_the_matrix(scheme: Any) -> None:
    whole = quantize(torch.randn(32, 128), SCHEMES[scheme])
    assert torch.equal(whole.rows(8, 16).dequantize(), whole.dequantize()[8:16])
    assert torch.equal(whole.columns(64, 128).dequantize(), whole.dequantize()[:, 64:])
    if scheme in ("int8wo", "int4wo"):
        with pytest.raises(ValueError, match="cannot be cut"):
            whole.columns(16, 128)
