"""Matrix times weights: the seam between model families and every form that weights come in.

A family asks `Linears` for its products by name; what the checkpoint stores, how it is quantized, which kernel runs it
and how ranks share it is decided here and below.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from local_backend.adapters import Adapters
from local_backend.errors import ModelUnavailable
from local_backend.parallel import ALONE, Ranks
from local_backend.quantization.neutral import QuantizedWeight, Scheme, join, quantize
from local_backend.quantization.run import Forms, Linear
from local_backend.weights import Weights

Matrix = torch.Tensor | QuantizedWeight
Lookup = Callable[[torch.Tensor], torch.Tensor]
"""(tokens,) ids -> (tokens, hidden) activations."""


class Linears:
    """Makes a model's products from its checkpoint. Names are without `.weight`, for a checkpoint may store others."""

    def __init__(
        self,
        weights: Weights,
        forms: Forms,
        *,
        dtype: torch.dtype,
        scheme: Scheme | None = None,
        widened: bool = False,
        ranks: Ranks = ALONE,
        adapters: Adapters | None = None,
        dense: bool = False,
    ) -> None:
        """`scheme`: quantize to it while loading; None: as the checkpoint has it, or `widened` to plain weights.
        `dense`: plain ones, in the dtype of the activations."""
        self.dense = dense
        self.adapters = adapters
        self.weights, self.forms, self.dtype, self.ranks = weights, forms, dtype, ranks
        self.scheme, self.widened = scheme, widened

    def __contains__(self, name: str) -> bool:
        return name in self.weights

    @property
    def plain(self) -> Linears:
        """The same checkpoint for a part that no scheme and no adapter applies to."""
        return Linears(self.weights, self.forms, dtype=self.dtype, ranks=self.ranks, dense=True)

    def share(self, count: int, what: str = "heads") -> int:
        """How many of `count` heads or columns are this rank's. Raises ModelUnavailable if they do not divide."""
        return self.ranks.share(count, what)

    def tensor(self, name: str, *shape: int) -> torch.Tensor:
        """A norm or other small tensor, whole on each rank, in the dtype of the activations."""
        return self.weights.get(name, *shape).to(self.dtype, copy=True)  # a view would keep the whole file mapped

    def column(self, names: list[str], outs: list[int], ins: int, *, bias: bool = False) -> Linear:
        """Matrices over the same inputs as one product, each one's outputs shared out among ranks.

        One name with several outs: the checkpoint has them joined already."""
        if len(names) == 1:
            stored: list[tuple[Matrix, torch.Tensor | None]] = self._parted(names[0], outs, ins, bias)
        else:
            stored = [
                part for name, out in zip(names, outs, strict=True) for part in self._parted(name, [out], ins, bias)
            ]
        whole = _side_by_side([matrix for matrix, _ in stored])
        if whole is None:
            product: Linear = Beside([self._make(matrix, own) for matrix, own in stored])
        else:
            biases = [own for _, own in stored if own is not None]
            product = self._make(whole, torch.cat(biases) if biases else None)
        if self.adapters is None:
            return product
        return self.adapters.wrap(
            product, [(names[0], sum(outs))] if len(names) == 1 else list(zip(names, outs, strict=True))
        )

    def row(self, name: str, out: int, ins: int, *, bias: bool = False) -> Linear:
        """One matrix whose inputs are shared out among ranks, the results summed."""
        matrix = self.weights.matrix(name, out, ins)
        start, end = self._part(ins)
        if (start, end) != (0, ins):
            matrix = _columns(name, matrix, start, end)
        # The bias is added once: by the first rank, before the sum.
        first = bias and self.ranks.rank == 0
        product = self._make(matrix, self.weights.get(f"{name}.bias", out) if first else None)
        if self.adapters is not None:
            return self.adapters.wrap(product, [(name, out)])
        return product if self.ranks.size == 1 else Summed(product, self.ranks)

    def head(self, name: str, vocab: int, hidden: int, *, bias: bool = False) -> Linear:
        """The last product: hidden -> logits of the whole vocabulary on every rank."""
        split = self.ranks.size > 1 and vocab % self.ranks.size == 0
        start, end = self._part(vocab) if split else (0, vocab)
        matrix = _rows(self.weights.matrix(name, vocab, hidden), start, end)
        product = self._make(matrix, self.weights.get(f"{name}.bias", vocab)[start:end] if bias else None)
        return Gathered(product, self.ranks) if split else product

    def embedding(self, name: str, vocab: int, hidden: int) -> Lookup:
        """Rows by id, widened as they are looked up: the table stays as small as it is stored."""
        matrix = self.weights.matrix(name, vocab, hidden)
        if isinstance(matrix, QuantizedWeight):
            matrix = matrix.dequantize().half()
        return Embedding(matrix.to(self.forms.stored_dtype(matrix.dtype, self.dtype), copy=True), self.dtype)

    def _parted(self, name: str, outs: list[int], ins: int, bias: bool) -> list[tuple[Matrix, torch.Tensor | None]]:
        """This rank's share of each part of one stored matrix."""
        total = sum(outs)
        matrix = self.weights.matrix(name, total, ins)
        biases = self.weights.get(f"{name}.bias", total) if bias else None
        if self.ranks.size == 1:
            return [(matrix, biases)]
        shares: list[tuple[Matrix, torch.Tensor | None]] = []
        offset = 0
        for out in outs:
            start, end = (offset + at for at in self._part(out))
            shares.append((_rows(matrix, start, end), None if biases is None else biases[start:end]))
            offset += out
        return shares

    def _part(self, count: int) -> tuple[int, int]:
        share = self.ranks.share(count, "rows of a matrix")
        return self.ranks.rank * share, (self.ranks.rank + 1) * share

    def _make(self, matrix: Matrix, bias: torch.Tensor | None) -> Linear:
        if self.scheme is None and not self.widened and not self.dense:
            return self.forms.make(matrix, bias)
        plain = matrix.dequantize() if isinstance(matrix, QuantizedWeight) else matrix
        if self.dense:
            return self.forms.dense(plain, bias)
        if self.scheme is None:
            return self.forms.make(plain, bias)
        try:
            return self.forms.make(quantize(plain, self.scheme), bias)
        except ValueError as error:
            raise ModelUnavailable(f"the model cannot be quantized to {self.scheme.name}: {error}") from None


class Embedding:
    """A table of rows."""

    def __init__(self, table: torch.Tensor, dtype: torch.dtype) -> None:
        self.table, self.dtype = table, dtype

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        return F.embedding(ids, self.table).to(self.dtype)


class Beside:
    """Products over the same inputs whose weights differ in form: a GGUF file may have 4 bits here and 6 there."""

    def __init__(self, products: list[Linear]) -> None:
        self.products = products

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([product(x) for product in self.products], dim=-1)


class Summed:
    """A product whose inputs the ranks share: each has a part of every sum."""

    def __init__(self, product: Linear, ranks: Ranks) -> None:
        self.product, self.ranks = product, ranks

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.ranks.sum(self.product(x))


class Gathered:
    """A product whose outputs the ranks share, and all of which every rank wants."""

    def __init__(self, product: Linear, ranks: Ranks) -> None:
        self.product, self.ranks = product, ranks

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.ranks.gather(self.product(x))


def _side_by_side(matrices: list[Matrix]) -> Matrix | None:
    """As one matrix; None if their forms differ."""
    parts = [m for m in matrices if isinstance(m, QuantizedWeight)]
    if parts:
        return join(parts) if len(parts) == len(matrices) else None
    plain: list[Any] = matrices
    return torch.cat(plain) if len(plain) > 1 else plain[0]


def _rows(matrix: Matrix, start: int, end: int) -> Matrix:
    return matrix.rows(start, end) if isinstance(matrix, QuantizedWeight) else matrix[start:end]


def _columns(name: str, matrix: Matrix, start: int, end: int) -> Matrix:
    if not isinstance(matrix, QuantizedWeight):
        return matrix[:, start:end]
    try:
        return matrix.columns(start, end)
    except ValueError as error:
        raise ModelUnavailable(f"{name!r} cannot be shared out among ranks: {error}") from None
