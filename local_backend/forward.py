"""One forward pass in integers: all that a model must be told, on whichever rank it runs. No torch here."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from local_backend.prefix_cache import Move
from local_backend.scheduler import Step

SEVERAL = 2**40  # sorts spans of several tokens behind all single ones; no context is so long
FEW_PAIRS = 2048
"""Of a token and one that it sees: up to so many a span is attended row by row on CPUs, as single tokens are. 16
prompts of 6 tokens beside 8 answers took 259 ms of CPU time and take 230; with 40 it is the same (SmolLM2, 2026-11)."""


class Span(Struct, frozen=True, array_like=True, gc=False):
    """Consecutive tokens of one sequence, from position `start`; `table` are the blocks that hold its context."""

    tokens: list[int]
    start: int
    table: list[int]
    adapter: str = ""
    pictures: int = 0
    """The id of the images in its sequence's prompt; 0: none, or tokens are all that is wanted of them."""

    @property
    def count(self) -> int:
        """Tokens to compute."""
        return len(self.tokens)

    @property
    def end(self) -> int:
        """The position after the last token; also the context that it sees."""
        return self.start + len(self.tokens)

    @property
    def is_short(self) -> bool:
        """True if it costs less to attend its tokens one by one than to make matrices of them."""
        return len(self.tokens) == 1 or len(self.tokens) * self.end <= FEW_PAIRS


class Pass(Struct, frozen=True, array_like=True, tag=True):
    """Spans side by side, and after which of their tokens logits are wanted.

    Single tokens come first, those with contexts of like length together: attention takes them as one batch. Then come
    the other short spans."""

    spans: list[Span]
    wanted: list[int]
    moves: list[Move] = []


def pass_of(step: Step, *, every: bool = False) -> tuple[Pass, list[int]]:
    """A step as one pass; guesses are to the model what known tokens are. `every`: logits after all tokens.

    Returns: the pass, and for each row of logits the index of its chunk in the step."""
    made: list[tuple[Span, int]] = []
    for chunk in step.chunks:
        seq = chunk.seq
        tokens = seq.tokens[chunk.start : chunk.start + chunk.count]
        tokens += chunk.draft
        shown = 0 if seq.pictures is None else seq.pictures.id
        rows = len(tokens) if every else 1 + len(chunk.draft) if chunk.samples else 0
        made.append((Span(tokens, chunk.start, seq.block_table, seq.adapter, shown), rows))
    return arranged(made, step.moves)


def arranged(made: list[tuple[Span, int]], moves: Sequence[Move] = ()) -> tuple[Pass, list[int]]:
    """Spans, each with the number of its last tokens after which logits are wanted, in the order of a pass.

    Returns: the pass, and for each row of logits the index of its span in what was given."""
    spans: list[Span] = []
    wanted: list[int] = []
    owners: list[int] = []
    tokens = 0
    keys = [span.start + 1 if len(span.tokens) == 1 else (2 - span.is_short) * SEVERAL + span.end for span, _ in made]
    for index in sorted(range(len(made)), key=keys.__getitem__):
        span, rows = made[index]
        spans.append(span)
        tokens += len(span.tokens)
        if rows == 1:
            wanted.append(tokens - 1)
            owners.append(index)
        else:
            wanted += range(tokens - rows, tokens)
            owners += [index] * rows
    return Pass(spans, wanted, list(moves)), owners
