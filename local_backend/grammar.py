"""Constrained answers, the core's side: which tokens may come next under a grammar.

The grammar is compiled and its masks are computed in threads that let go of the interpreter, so neither holds up the
step: compiling happens before a sequence is queued, a mask while the model computes the logits it will be applied to.
The matcher is llguidance's. Source: llguidance 1.9, its stub file, read 2026-11.
"""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer

from local_backend.structured import token_table

MINUS_INFINITY = float("-inf")


class Constraint:
    """Where one sequence stands in its grammar. After an error `error` says why, and every token is allowed."""

    def __init__(self, matcher: LLMatcher, pool: ThreadPoolExecutor) -> None:
        self._matcher = matcher
        self._pool = pool
        self._mask: Future[bytes] | None = None

    @property
    def error(self) -> str | None:
        """Why the grammar cannot be followed any further."""
        return self._matcher.get_error() if self._matcher.is_error() else None

    @property
    def ended(self) -> bool:
        """True once nothing may follow: the answer is whole, whether or not an end token was sampled."""
        return self._matcher.is_stopped()

    def begin(self) -> None:
        """Start to compute the mask for the next token; called before the forward pass."""
        if self._mask is None:
            self._mask = self._pool.submit(self._matcher.compute_bitmask)

    def restrict(self, row: torch.Tensor) -> None:
        """Set the logits (vocab,) of tokens that may not follow to minus infinity. Waits for the mask."""
        self.begin()
        assert self._mask is not None
        bits = np.unpackbits(np.frombuffer(self._mask.result(), dtype=np.uint8), bitorder="little")
        if self._matcher.is_error():
            return  # the engine looks at `error` and ends the sequence
        allowed = torch.from_numpy(bits[: len(row)].view(np.bool_)).to(row.device)
        row[: len(allowed)].masked_fill_(~allowed, MINUS_INFINITY)
        row[len(allowed) :] = MINUS_INFINITY  # rows of a padded vocabulary that are no token

    def accept(self, token: int) -> None:
        """The sequence goes on with this token."""
        self._mask = None
        self._matcher.consume_token(token)


class Grammars:
    """Compiles grammars over one model's tokens. Nothing is read before the first of them comes."""

    def __init__(self, model_dir: Path, eos_token_ids: tuple[int, ...]) -> None:
        self._model_dir = model_dir
        self._eos = eos_token_ids

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="grammar")

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        return token_table(self._model_dir, self._eos)

    def compile(self, grammar: str) -> Future[Constraint]:
        """Starts to compile; the front has found the grammar to be sound."""
        return self._pool.submit(lambda: Constraint(LLMatcher(self._tokenizer, grammar, log_level=0), self._pool))
