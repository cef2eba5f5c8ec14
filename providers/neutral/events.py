"""What an answer is made of while it streams. The order, which decoders keep and encoders may rely on:

ResponseStart, then for each part PartStart, PartDelta*, PartEnd (parts of one candidate may interleave, told apart by
`index`), then one Finish per candidate; the last Finish carries the usage. `index` counts parts over the whole answer.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from providers.neutral.content import Part
from providers.neutral.usage import Usage

FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "error"]


class TokenLogprob(Struct, frozen=True):
    token: str
    logprob: float
    bytes: tuple[int, ...] | None = None


class Logprob(Struct, frozen=True):
    """One sampled token and its rivals."""

    sampled: TokenLogprob
    top: tuple[TokenLogprob, ...] = ()


class ResponseStart(Struct, frozen=True, tag="start", omit_defaults=True):
    """id and model as the provider wrote them. created: unix seconds, None where the dialect has none.

    usage: what is known before the first token (Anthropic reports input here).
    """

    id: str
    model: str
    created: int | None = None
    usage: Usage | None = None


class PartStart(Struct, frozen=True, tag="part_start", omit_defaults=True):
    """A new part. `part` is the part with what is known so far: empty text, a tool call's id and name, or the whole
    of a part that does not stream (image, redacted reasoning)."""

    index: int
    part: Part
    candidate: int = 0


class PartDelta(Struct, frozen=True, tag="delta", omit_defaults=True):
    """More of part `index`: text, reasoning text, refusal text, or tool-call argument JSON text, by the part's kind.

    signature: opaque bytes for reasoning or Gemini parts; replaces what was there.
    """

    index: int
    text: str = ""
    signature: str | None = None
    logprobs: tuple[Logprob, ...] = ()


class PartEnd(Struct, frozen=True, tag="part_end", omit_defaults=True):
    """Part `index` is whole. `part`, when set, replaces what was collected (citations arrive so)."""

    index: int
    part: Part | None = None


class Finish(Struct, frozen=True, tag="finish", omit_defaults=True):
    """One candidate is done.

    native_reason: the provider's own word, kept for the same dialect. stop_sequence: which one matched, if told.
    """

    reason: FinishReason
    usage: Usage | None = None
    candidate: int = 0
    native_reason: str | None = None
    stop_sequence: str | None = None


Event = ResponseStart | PartStart | PartDelta | PartEnd | Finish
