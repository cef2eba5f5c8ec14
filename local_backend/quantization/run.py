"""Every form in which a matrix runs on CPU, and the choice among them. CUDA's are in `run_cuda.py`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from local_backend.kernels.cpu import PANEL, CpuOps
from local_backend.kernels.reference import ReferenceOps
from local_backend.quantization.neutral import QuantizedWeight, narrowest

Linear = Callable[[torch.Tensor], torch.Tensor]
"""(tokens, in) -> (tokens, out)."""

PLANES_TOP = 127 * 256 + 127  # the largest number that two planes of int8 hold


class Forms(Protocol):
    """What a device makes of a matrix."""

    def make(self, matrix: torch.Tensor | QuantizedWeight, bias: torch.Tensor | None) -> Linear:
        """The fastest form here for weights as they are."""
        ...

    def dense(self, matrix: torch.Tensor, bias: torch.Tensor | None) -> Linear:
        """In the dtype of the activations, whatever was chosen for others: fastest where rows come by the thousand."""
        ...

    def stored_dtype(self, stored: torch.dtype, activations: torch.dtype) -> torch.dtype:
        """In which dtype a table of embeddings is kept."""
        ...


class DenseLinear:
    """The reference: weights in the dtype of the activations."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.bias)


class PanelLinear:
    """float16 weights under float32 activations, in panels (products.c): half the bytes, the same arithmetic.

    At one stream decode is bound by reading weights, so half the bytes is up to twice the speed; nothing is lost where
    the stored weights are float16 themselves. Many rows go through tiles where there are some (tiles.c);
    without, or in batch-invariant mode, no sum depends on the batch. `scale` (outs,) multiplies the result:
    float8 codes are float16 numbers exactly, their scales are not."""

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, ops: CpuOps, scale: torch.Tensor | None = None
    ) -> None:
        self._run, self._scale = ops.panel_product, scale
        self._panels = ops.in_panels(
            weight if weight.dtype == torch.float16 else to_half(weight), bits=16, group=weight.shape[1]
        )
        self._before = self._after = None  # the bias, which a scale must not multiply
        if scale is None:
            self._before = of_panels(bias)
        elif bias is not None:
            self._after = bias.float()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        out = self._run(x, self._panels, self._before)
        if self._scale is not None:
            out.mul_(self._scale)
        return out if self._after is None else out.add_(self._after)

    @staticmethod
    def available(ops: ReferenceOps) -> bool:
        """True where panels are the fastest form: with registers for 16 rows at a time."""
        return isinstance(ops, CpuOps) and torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def of_panels(bias: torch.Tensor | None) -> torch.Tensor | None:
    """A bias with a number for every output of whole panels."""
    return None if bias is None else F.pad(bias.float(), (0, -len(bias) % PANEL))


def to_half(weight: torch.Tensor) -> torch.Tensor:
    """Rounded to float16; what is beyond its range becomes its largest number."""
    top = torch.finfo(torch.float16).max
    return weight.clamp(-top, top).half()


class HalfWeightLinear:
    """The same through fbgemm, where there is no compiler or no AVX-512.

    The op is an old corner of torch (`torch.ops.quantized`), present through 2.13 on x86; `available` says whether it
    is here. It keeps pace with panels while the weights are in a cache; from memory it took 1.5 times as long for one
    row, 2.4 times for 16 (2026-11)."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, scale: torch.Tensor | None = None) -> None:
        ops: Any = torch.ops.quantized
        self._run = ops.linear_dynamic_fp16
        self._bias = None if scale is None or bias is None else bias.float()
        inside = None if bias is None or scale is not None else bias.float()
        self._packed = ops.linear_prepack_fp16(weight.float(), inside)
        self._scale = scale

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self._run(x, self._packed)
        if self._scale is not None:
            result.mul_(self._scale)
            if self._bias is not None:
                result.add_(self._bias)
        return result

    @staticmethod
    def available() -> bool:
        """True if this build of torch carries fbgemm."""
        return "fbgemm" in torch.backends.quantized.supported_engines


class Int8Linear:
    """int8 weights (a scale each output) times int8 activations (a scale each token): integers.c.

    Wants VNNI, and is faster with AMX: there 8-bit products are summed in 32 bits without saturating. The sum is exact,
    so neither batch size nor tiling can change a result, and one user's outliers touch no other row."""

    def __init__(self, weight: QuantizedWeight, bias: torch.Tensor | None, ops: CpuOps) -> None:
        self._ops, self._weights = ops, ops.in_bytes(weight.codes, weight.scale)
        self._bias = None if bias is None else bias.float().contiguous()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        codes, scale = self._ops.quantize_rows(x)
        return self._ops.byte_product(codes, len(x), self._weights, scale, self._bias)

    @staticmethod
    def available(ops: ReferenceOps) -> bool:
        """True on a processor with VNNI, with our own kernels."""
        return isinstance(ops, CpuOps) and ops.multiplies_bytes


class PlanesLinear:
    """Weights and activations in 16 bits, each as two planes of int8: three exact integer products.

    Two bytes a weight, like float16. Numbers are exact to 2**-16 of the largest in their row: a product errs by 1e-4,
    where bfloat16 would by 3e-3. With AMX's units for 8-bit products this is 2 to 3 times as fast as float16 widened
    to float32 for 16 and more rows, and takes 1.4 times as long for one (2026-11); and no sum depends on the batch.
    The product of both low planes is left out: it is below 2**-16 of the result."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, ops: CpuOps) -> None:
        scale = (weight.abs().amax(-1).float() / PLANES_TOP).clamp(min=torch.finfo(torch.float32).tiny)
        codes = (weight / scale.unsqueeze(-1)).round_().to(torch.int16)
        high = (codes + 128) >> 8  # 127 at most, as 32639 + 128 is the largest int16
        low = codes - 256 * high
        self._ops = ops
        self._high = ops.in_bytes(high.to(torch.int8), scale * 65536.0)
        self._low = ops.in_bytes(low.to(torch.int8), scale * 256.0)
        self._bias = None if bias is None else bias.float().contiguous()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        run, rows = self._ops.byte_product, len(x)
        codes, scale = self._ops.split_rows(x)
        both, low = run(codes, 2 * rows, self._high, None, None), run(codes, rows, self._low, None, None)
        return self._ops.join_planes(both, low, scale, self._bias)

    @staticmethod
    def available(ops: ReferenceOps) -> bool:
        """Where Int8Linear is."""
        return Int8Linear.available(ops)


class SevenBitLinear:
    """The same for x86 without VNNI, through fbgemm: activations in 7 bits, for AVX2 adds pairs of products in 16.

    `linear_dynamic` would take one scale for the whole batch: with one row 30 times larger, the others' error went from
    1.5 to 41 % (2026-11). Dividing each row by its own scale first makes that scale 2/127 for all."""

    def __init__(self, weight: QuantizedWeight, bias: torch.Tensor | None) -> None:
        ops: Any = torch.ops.quantized
        self._run = ops.linear_with_input_q_dq_qweight_dq_output_fp32
        scale = weight.scale.float().flatten()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # "quantized dtypes are deprecated": pinned, and tested
            codes = torch._make_per_channel_quantized_tensor(
                weight.codes.contiguous(), scale.double(), torch.zeros(len(scale), dtype=torch.long), 0
            )
            self._packed = ops.linear_prepack(codes, None)
        self._bias = None if bias is None else bias.float()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        peak = x.abs().amax(dim=-1, keepdim=True)
        peak = torch.where(peak == 0, 1.0, peak)  # a NaN stays one
        out: torch.Tensor = self._run(x / peak, 2 / 127, 64, self._packed)
        out = out * peak
        return out if self._bias is None else out.add_(self._bias)


class WeightOnlyLinear:
    """Codes of 4 or 8 bits under float32 activations, widened on the way (products.c, tiles.c). Nothing to
    speak of is lost but by the codes. In batch-invariant mode no sum depends on the batch."""

    def __init__(self, weight: QuantizedWeight, bias: torch.Tensor | None, ops: CpuOps) -> None:
        scale = weight.scale.float()
        zero = torch.zeros(1) if weight.zero is None else weight.zero.float()
        # Products take 4-bit codes as -8 to 7: most zeros are 8, and then nothing is to be added.
        shift = (8.0 - zero if weight.bits == 4 else -zero) * scale
        self._run, self._bias, self._order = ops.panel_product, of_panels(bias), weight.order
        self._panels = ops.in_panels(
            weight.codes,
            bits=weight.bits,
            group=weight.group,
            scale=narrowest(scale),
            shift=narrowest(shift) if bool(shift.any()) else None,
        )

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._run(x if self._order is None else x[:, self._order], self._panels, self._bias)


class CpuForms:
    """The choice on CPU."""

    def __init__(
        self,
        dtype: torch.dtype,
        ops: ReferenceOps,
        *,
        half_weights: bool,
        invariant: bool = False,
        planes: bool = False,
    ) -> None:
        """`invariant`: only batch-invariant forms. `planes`: 16-bit weights as two of int8."""
        self.dtype, self.ops = dtype, ops
        self.half_weights, self.invariant, self.planes = half_weights, invariant, planes

    def stored_dtype(self, stored: torch.dtype, activations: torch.dtype) -> torch.dtype:
        """See Forms."""
        return stored if self.half_weights else activations

    def make(self, matrix: torch.Tensor | QuantizedWeight, bias: torch.Tensor | None) -> Linear:
        """See Forms."""
        if self.planes:
            assert isinstance(self.ops, CpuOps)
            plain = matrix if isinstance(matrix, torch.Tensor) else matrix.dequantize()
            return PlanesLinear(plain, bias, self.ops)
        if isinstance(matrix, torch.Tensor):
            return self._plain(matrix, bias)
        if matrix.is_float:
            if matrix.per_row and self.half_weights and not self.invariant:
                return self._half(matrix.codes.half(), bias, matrix.scale.float().flatten())
            return self._plain(matrix.dequantize(), bias)
        if matrix.activations and matrix.per_row and matrix.bits == 8 and self.dtype == torch.float32:
            if Int8Linear.available(self.ops):
                assert isinstance(self.ops, CpuOps)
                return Int8Linear(matrix, bias, self.ops)
            if HalfWeightLinear.available():
                return SevenBitLinear(matrix, bias)
        if isinstance(self.ops, CpuOps) and (matrix.bits == 8 or matrix.group % 32 == 0):
            return WeightOnlyLinear(matrix, bias, self.ops)
        return self._plain(matrix.dequantize(), bias)

    def dense(self, matrix: torch.Tensor, bias: torch.Tensor | None) -> Linear:
        """See Forms."""
        if self.invariant:
            return self._plain(matrix, bias)
        return DenseLinear(matrix.to(self.dtype), None if bias is None else bias.to(self.dtype))

    def _plain(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
        if self.invariant and isinstance(self.ops, CpuOps):
            return PanelLinear(weight, bias, self.ops)
        if self.half_weights:
            return self._half(weight, bias)
        return DenseLinear(weight.to(self.dtype), None if bias is None else bias.to(self.dtype))

    def _half(self, weight: torch.Tensor, bias: torch.Tensor | None, scale: torch.Tensor | None = None) -> Linear:
        if isinstance(self.ops, CpuOps) and PanelLinear.available(self.ops):
            return PanelLinear(weight, bias, self.ops, scale)
        return HalfWeightLinear(weight, bias, scale)
