"""Every form in which a matrix runs on CUDA, and the choice among them."""

from __future__ import annotations

from importlib.util import find_spec

import torch
import torch.nn.functional as F

from local_backend.quantization.neutral import E4M3_MAX, QuantizedWeight, narrowest
from local_backend.quantization.run import DenseLinear, Linear

INT_MM_ROWS = 32  # cuBLASLt's int8 product wants more than 16 rows; fewer are padded


class CudaInt8Linear:
    """int8 weights times int8 activations, a scale each output and each token; sums exact in int32."""

    def __init__(self, weight: QuantizedWeight, bias: torch.Tensor | None, dtype: torch.dtype) -> None:
        self._codes = weight.codes.contiguous().t()
        self._scale = weight.scale.float().flatten()
        self._bias = None if bias is None else bias.to(dtype)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        peak = x.abs().amax(dim=-1, keepdim=True).float()
        scale = torch.where(peak == 0, 1.0, peak / 127.0)
        codes = (x.float() / scale).round().to(torch.int8)
        if len(x) < INT_MM_ROWS:
            codes = F.pad(codes, (0, 0, 0, INT_MM_ROWS - len(x)))
        sums = torch._int_mm(codes, self._codes)[: len(x)]
        out = (sums.float() * scale * self._scale).to(x.dtype)
        return out if self._bias is None else out.add_(self._bias)


class CudaFp8Linear:
    """float8 weights times float8 activations through cuBLASLt, a scale each output and each token. From Ada on."""

    def __init__(self, weight: QuantizedWeight, bias: torch.Tensor | None, dtype: torch.dtype) -> None:
        self._codes = weight.codes.contiguous().t()
        self._scale = weight.scale.float().reshape(1, -1)
        self._bias = None if bias is None else bias.to(dtype)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        peak = x.abs().amax(dim=-1, keepdim=True).float()
        scale = torch.where(peak == 0, 1.0, peak / E4M3_MAX)
        codes = (x.float() / scale).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
        out: torch.Tensor = torch._scaled_mm(codes, self._codes, scale_a=scale, scale_b=self._scale, out_dtype=x.dtype)
        return out if self._bias is None else out.add_(self._bias)


class CudaWeightOnlyLinear:
    """Codes of 4 or 8 bits under bfloat16 activations, widened in the Triton kernel that multiplies them."""

    def __init__(self, weight: QuantizedWeight, bias: torch.Tensor | None, dtype: torch.dtype) -> None:
        from local_backend.kernels.triton_ops import weight_only  # only CUDA's torch brings triton

        self._run, self._group = weight_only, weight.group
        self._codes, self._scale = weight.codes.contiguous(), narrowest(weight.scale).contiguous()
        self._zero = None if weight.zero is None else narrowest(weight.zero).contiguous()
        self._order = weight.order
        self._bias = None if bias is None else bias.to(dtype)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self._order is not None:
            x = x[:, self._order]
        out = self._run(x, self._codes, self._scale, self._zero, self._group)
        return out if self._bias is None else out.add_(self._bias)

    @staticmethod
    def available(weight: QuantizedWeight) -> bool:
        """True if triton is here and the kernel takes groups of this size."""
        return (
            bool(find_spec("triton")) and not weight.is_float and weight.group % 16 == 0 and weight.shape[1] % 32 == 0
        )


class CudaForms:
    """The choice on CUDA."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def stored_dtype(self, stored: torch.dtype, activations: torch.dtype) -> torch.dtype:
        """See Forms."""
        return activations

    def dense(self, matrix: torch.Tensor, bias: torch.Tensor | None) -> Linear:
        """See Forms."""
        return DenseLinear(matrix.to(self.dtype), None if bias is None else bias.to(self.dtype))

    def make(self, matrix: torch.Tensor | QuantizedWeight, bias: torch.Tensor | None) -> Linear:
        """See Forms."""
        if isinstance(matrix, torch.Tensor):
            return self.dense(matrix, bias)
        aligned = all(n % 16 == 0 for n in matrix.shape)
        if matrix.per_row and aligned and matrix.activations and matrix.order is None:
            if matrix.is_float and torch.cuda.get_device_capability(matrix.codes.device) >= (8, 9):
                return CudaFp8Linear(matrix, bias, self.dtype)
            if not matrix.is_float and matrix.bits == 8:
                return CudaInt8Linear(matrix, bias, self.dtype)
        if CudaWeightOnlyLinear.available(matrix):
            return CudaWeightOnlyLinear(matrix, bias, self.dtype)
        return self.dense(matrix.dequantize(), bias)
