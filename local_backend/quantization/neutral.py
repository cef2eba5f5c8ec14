"""The one form in which quantized weights are held, whoever made them: codes, scale, zero, group.

    weight[o, i] = scale[o, i // group] * (code[o, i] - zero[o, i // group])

Codes are int8 (8 bits), float8_e4m3fn (8 bits, no zero), or uint8 with two unsigned 4-bit codes each: in every run of
32 inputs, byte j has input j in its low half and input j + 16 in its high one, so that a vector of bytes unpacks into
two vectors of neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import msgspec
import torch

RUN = 32  # inputs whose 4-bit codes are packed together
E4M3_MAX = 448.0

SchemeName = Literal["int8", "int8wo", "int4wo", "fp8"]


class Scheme(msgspec.Struct, frozen=True):
    """How float weights become codes, and whether activations are quantized too."""

    name: SchemeName
    bits: int
    group: int | None  # inputs under one scale; None: a whole row
    symmetric: bool
    activations: bool  # True: each token's activations are quantized as well, by a scale of their own


SCHEMES: dict[SchemeName, Scheme] = {
    "int8": Scheme("int8", 8, None, symmetric=True, activations=True),
    "int8wo": Scheme("int8wo", 8, 32, symmetric=True, activations=False),
    "int4wo": Scheme("int4wo", 4, 32, symmetric=False, activations=False),
    "fp8": Scheme("fp8", 8, None, symmetric=True, activations=True),
}


@dataclass(slots=True, frozen=True)
class QuantizedWeight:
    """A matrix (outs, ins). scale and zero: (outs, groups), any float dtype; zero None means 0."""

    codes: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor | None
    group: int
    order: torch.Tensor | None = None  # column i belongs to input order[i]: GPTQ sorts inputs by their weight
    activations: bool = False  # the checkpoint was made to be run with quantized activations

    @property
    def bits(self) -> int:
        """4 or 8."""
        return 4 if self.codes.dtype == torch.uint8 else 8

    @property
    def is_float(self) -> bool:
        """True if the codes are float8."""
        return self.codes.dtype == torch.float8_e4m3fn

    @property
    def shape(self) -> tuple[int, int]:
        """(outs, ins)."""
        outs, stored = self.codes.shape
        return outs, stored * 2 if self.bits == 4 else stored

    @property
    def per_row(self) -> bool:
        """True if one scale serves a whole row and nothing is to be subtracted."""
        return self.group == self.shape[1] and self.zero is None

    def dequantize(self) -> torch.Tensor:
        """The float32 matrix, inputs in their own order. The reference for every kernel."""
        codes = unpack4(self.codes) if self.bits == 4 else self.codes
        outs, ins = self.shape
        values = codes.float().view(outs, -1, self.group)
        if self.zero is not None:
            values = values - self.zero.float().unsqueeze(-1)
        values = (values * self.scale.float().unsqueeze(-1)).view(outs, ins)
        if self.order is None:
            return values
        restored = torch.empty_like(values)
        restored[:, self.order] = values
        return restored

    def rows(self, start: int, end: int) -> QuantizedWeight:
        """Outputs `start` to `end`."""
        zero = None if self.zero is None else self.zero[start:end]
        return replace(self, codes=self.codes[start:end], scale=self.scale[start:end], zero=zero)

    def columns(self, start: int, end: int) -> QuantizedWeight:
        """Inputs `start` to `end`, both at the border of a group. Raises ValueError if they are not, or were sorted."""
        _, ins = self.shape
        if (start, end) == (0, ins):
            return self
        whole_row = self.group == ins
        step = RUN if self.bits == 4 else 1
        if not whole_row:
            step = max(step, self.group)
        if self.order is not None or start % step or end % step:
            raise ValueError(f"inputs {start} to {end} cannot be cut out of groups of {self.group}")
        pack = 2 if self.bits == 4 else 1
        groups = slice(None) if whole_row else slice(start // self.group, end // self.group)
        return replace(
            self,
            codes=self.codes[:, start // pack : end // pack],
            scale=self.scale[:, groups],
            zero=None if self.zero is None else self.zero[:, groups],
            group=end - start if whole_row else self.group,
        )


def join(parts: list[QuantizedWeight]) -> QuantizedWeight | None:
    """Matrices over the same inputs as one, outputs side by side; None if their forms differ."""
    first = parts[0]
    if len(parts) == 1:
        return first
    for part in parts:
        same = part.codes.dtype == first.codes.dtype and part.group == first.group
        if not same or (part.zero is None) != (first.zero is None) or part.order is not None:
            return None
    return replace(
        first,
        codes=torch.cat([part.codes for part in parts]),
        scale=torch.cat([part.scale for part in parts]),
        zero=None if first.zero is None else torch.cat([part.zero for part in parts if part.zero is not None]),
    )


def quantize(weight: torch.Tensor, scheme: Scheme) -> QuantizedWeight:
    """Round float weights (outs, ins) to the nearest codes. Raises ValueError if groups do not divide the inputs."""
    outs, ins = weight.shape
    group = scheme.group or ins
    if ins % group or (scheme.bits == 4 and ins % RUN):
        raise ValueError(f"{ins} inputs do not divide into groups of {group}")
    values = weight.float().view(outs, -1, group)
    if scheme.name == "fp8":
        scale = _nonzero(values.abs().amax(-1) / E4M3_MAX)
        codes = (values / scale.unsqueeze(-1)).to(torch.float8_e4m3fn).view(outs, ins)
        return QuantizedWeight(codes, scale, None, group, activations=True)
    if scheme.symmetric:
        top = 2 ** (scheme.bits - 1) - 1
        scale = _nonzero(values.abs().amax(-1) / top)
        if scheme.group:
            scale = scale.half().float()  # the groups' scales are kept as float16: round with what will be used
        codes = (values / scale.unsqueeze(-1)).round().clamp(-top, top).to(torch.int8).view(outs, ins)
        stored = scale.half() if scheme.group else scale
        return QuantizedWeight(codes, stored, None, group, activations=scheme.activations)
    low, high = values.amin(-1), values.amax(-1)
    scale = _nonzero((high - low) / (2**scheme.bits - 1)).half()
    zero = (-low / scale.float()).half()
    codes = (values / scale.float().unsqueeze(-1) + zero.float().unsqueeze(-1)).round()
    packed = pack4(codes.clamp(0, 2**scheme.bits - 1).to(torch.uint8).view(outs, ins))
    return QuantizedWeight(packed, scale, zero, group)


def _nonzero(scale: torch.Tensor) -> torch.Tensor:
    """A group of zeros would divide by nothing, and one below float16's range would lose its scale."""
    return scale.clamp(min=torch.finfo(torch.float16).tiny)


def narrowest(values: torch.Tensor) -> torch.Tensor:
    """As float16 if that loses nothing, else as float32."""
    half = values.half()
    return half if torch.equal(half.float(), values.float()) else values.float()


def pack4(codes: torch.Tensor) -> torch.Tensor:
    """(outs, ins) unsigned codes below 16 -> (outs, ins / 2)."""
    outs, ins = codes.shape
    runs = codes.to(torch.uint8).view(outs, ins // RUN, 2, RUN // 2)
    return (runs[:, :, 0] | runs[:, :, 1] << 4).reshape(outs, ins // 2)


def unpack4(packed: torch.Tensor) -> torch.Tensor:
    """The inverse of pack4."""
    outs, half = packed.shape
    runs = packed.view(outs, half * 2 // RUN, 1, RUN // 2)
    return torch.cat((runs & 15, runs >> 4), dim=2).reshape(outs, half * 2)
