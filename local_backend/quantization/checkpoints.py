"""Other people's quantized checkpoints -> the neutral form. One function a format.

Sources, read 2026-11: AutoGPTQ/GPTQModel qlinear_torch.py (packing, zeros minus one in v1), AutoAWQ packing_utils.py
(order of nibbles), compressed-tensors compressors (pack_to_int32, naive_quantized), DeepSeek-V3 and Qwen3-FP8 model
cards (weight_scale_inv by blocks of 128 x 128), vLLM fp8.py (weight_scale).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from local_backend.errors import ModelUnavailable
from local_backend.quantization.neutral import RUN, QuantizedWeight, pack4

Get = Callable[[str], torch.Tensor | None]
"""A stored tensor by what follows the matrix' name, None if the checkpoint has none."""

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # nibble i of a word belongs to column AWQ_ORDER[i]


def reader(config: dict[str, Any]) -> Callable[[Get, int, int], QuantizedWeight | None]:
    """What turns one matrix (outs, ins) of a checkpoint into the neutral form; None from it: this matrix is plain.

    `config` is `quantization_config` of config.json. Raises ModelUnavailable for a form that is not served."""
    method = config.get("quant_method")
    if method == "gptq":
        return _gptq(config)
    if method == "awq":
        return _awq(config)
    if method == "fp8":
        return _fp8
    if method == "compressed-tensors":
        return _compressed(config)
    if method == "farebox":
        return _neutral
    raise ModelUnavailable(f"checkpoints quantized by {method!r} are not served")


def _gptq(config: dict[str, Any]) -> Callable[[Get, int, int], QuantizedWeight | None]:
    bits = config.get("bits", 4)
    if bits not in (4, 8):
        raise ModelUnavailable(f"GPTQ in {bits} bits is not served; 4 and 8 are")
    # The first format stored each zero less one; symmetric weights thus have 7 where 8 is meant.
    plus = 0 if config.get("checkpoint_format") == "gptq_v2" else 1

    def read(get: Get, outs: int, ins: int) -> QuantizedWeight | None:
        packed = get("qweight")
        if packed is None:
            return None
        codes = unpack_words(packed.t(), bits, outs, ins)  # stored (ins / 8, outs), packed along inputs
        scale = _present(get, "scales").t()
        groups = scale.shape[1]
        zero = unpack_words(_present(get, "qzeros"), bits, groups, outs).t() + plus
        order = get("g_idx")
        if order is not None:
            sorted_ = torch.argsort(order.long(), stable=True)
            if torch.equal(sorted_, torch.arange(ins)):
                order = None
            else:
                codes, order = codes[:, sorted_], sorted_
        return _from_unsigned(codes, scale, zero, bits, ins // groups, order)

    return read


def _awq(config: dict[str, Any]) -> Callable[[Get, int, int], QuantizedWeight | None]:
    bits = config.get("bits", config.get("w_bit", 4))
    if bits != 4 or config.get("version", "gemm").lower() != "gemm":
        raise ModelUnavailable(f"AWQ {config.get('version')} in {bits} bits is not served; GEMM in 4 bits is")
    place = torch.tensor([AWQ_ORDER.index(i) for i in range(8)])  # the nibble that holds column i

    def columns(words: torch.Tensor, rows: int, count: int) -> torch.Tensor:
        return unpack_words(words, 4, rows, count).view(rows, -1, 8)[:, :, place].reshape(rows, count)

    def read(get: Get, outs: int, ins: int) -> QuantizedWeight | None:
        packed = get("qweight")
        if packed is None:
            return None
        scale = _present(get, "scales").t()
        groups = scale.shape[1]
        zero = columns(_present(get, "qzeros"), groups, outs).t()
        return _from_unsigned(columns(packed, ins, outs).t(), scale, zero, 4, ins // groups, None)

    return read


def _compressed(config: dict[str, Any]) -> Callable[[Get, int, int], QuantizedWeight | None]:
    groups = config.get("config_groups") or {}
    schemes = [g.get("weights") or {} for g in groups.values()]
    if not schemes or any(s != schemes[0] for s in schemes):
        raise ModelUnavailable("compressed-tensors with several schemes in one model is not served")
    bits, kind = schemes[0].get("num_bits", 8), schemes[0].get("type", "int")
    activations = any((g.get("input_activations") or {}).get("num_bits") == 8 for g in groups.values())
    if (bits, kind) not in ((4, "int"), (8, "int"), (8, "float")):
        raise ModelUnavailable(f"compressed-tensors of {bits}-bit {kind} weights is not served")

    def read(get: Get, outs: int, ins: int) -> QuantizedWeight | None:
        packed, weight = get("weight_packed"), get("weight")
        if packed is not None:
            scale = _present(get, "weight_scale")
            groups = scale.shape[1]
            half = 2 ** (bits - 1)
            codes = unpack_words(packed, bits, outs, ins)
            stored = get("weight_zero_point")
            # Packed along outputs, and offset like the weights.
            zero = torch.full((outs, groups), half)
            if stored is not None:
                zero = unpack_words(stored.t(), bits, groups, outs).t()
            order = get("weight_g_idx")
            if order is not None and not torch.equal(order.sort().values, order):
                sorted_ = torch.argsort(order.long(), stable=True)
                return _from_unsigned(codes[:, sorted_], scale, zero, bits, ins // groups, sorted_)
            return _from_unsigned(codes, scale, zero, bits, ins // groups, None)
        if weight is not None and weight.dtype in (torch.int8, torch.float8_e4m3fn):
            scale = _spread(_present(get, "weight_scale"), outs)
            offset = get("weight_zero_point")
            zeros = None if offset is None or not offset.any() else _spread(offset, outs)
            return QuantizedWeight(weight, scale, zeros, ins // scale.shape[1], activations=activations)
        return None

    return read


def _fp8(get: Get, outs: int, ins: int) -> QuantizedWeight | None:
    weight = get("weight")
    if weight is None or weight.dtype != torch.float8_e4m3fn:
        return None
    if (blocks := get("weight_scale_inv")) is not None:
        # One scale for each block of 128 x 128 (the name says inverse; it multiplies). The last block may be cut short.
        high, wide = -(-outs // blocks.shape[0]), -(-ins // blocks.shape[1])
        high, wide = _power_of_two(high), _power_of_two(wide)
        scale = blocks.float().repeat_interleave(high, dim=0)[:outs]
        if ins % wide == 0:
            return QuantizedWeight(weight, scale, None, wide, activations=True)
        # A ragged end has no place in equal groups: so the groups become smaller.
        fine = math.gcd(wide, ins)
        return QuantizedWeight(weight, scale.repeat_interleave(wide // fine, dim=1)[:, : ins // fine], None, fine)
    return QuantizedWeight(weight, _spread(_present(get, "weight_scale"), outs), None, ins, activations=True)


def _neutral(get: Get, outs: int, ins: int) -> QuantizedWeight | None:
    codes = get("codes")
    if codes is None:
        return None
    scale = _present(get, "scale")
    return QuantizedWeight(codes, scale, get("zero"), ins // scale.shape[1])


def unpack_words(words: torch.Tensor, bits: int, rows: int, count: int) -> torch.Tensor:
    """int32 words (rows, words) -> unsigned codes (rows, count), lowest bits first."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    codes: torch.Tensor = (words.to(torch.int32).unsqueeze(-1) >> shifts) & (2**bits - 1)
    return codes.reshape(words.shape[0], -1)[:rows, :count]


def _from_unsigned(
    codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int, group: int, order: torch.Tensor | None
) -> QuantizedWeight:
    scale = scale.contiguous()
    if bits == 4 and codes.shape[1] % RUN == 0:
        return QuantizedWeight(pack4(codes), scale, zero.to(torch.float16).contiguous(), group, order)
    half = 2 ** (bits - 1)
    signed = (codes - half).to(torch.int8).contiguous()
    shifted = zero - half
    return QuantizedWeight(signed, scale, shifted.half().contiguous() if shifted.any() else None, group, order)


def _spread(scale: torch.Tensor, outs: int) -> torch.Tensor:
    """One scale for the matrix, or one a row, or (outs, groups): as (outs, groups)."""
    if scale.numel() == 1:
        return scale.reshape(1, 1).expand(outs, 1).contiguous()
    if scale.dim() == 1:
        return scale.unsqueeze(1)
    if scale.shape[0] != outs:
        return scale.repeat_interleave(_power_of_two(-(-outs // scale.shape[0])), dim=0)[:outs]
    return scale


def _power_of_two(size: int) -> int:
    """The block whose last, shorter one made the division round up: blocks are powers of two."""
    return 1 << (size - 1).bit_length()


def _present(get: Get, name: str) -> torch.Tensor:
    tensor = get(name)
    if tensor is None:
        raise ModelUnavailable(f"a quantized matrix of the checkpoint lacks its {name!r}")
    return tensor
