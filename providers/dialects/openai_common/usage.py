"""The `usage` object of the OpenAI family, both ways.

`prompt_tokens` is a total that includes cached and written tokens, `completion_tokens` one that includes reasoning.
Source: openai-python 3.54 `types/completion_usage.py` and the groq and cerebras SDKs, read 2026-11.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from providers.neutral import Usage


class PromptDetails(Struct):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    audio_tokens: int | None = None
    image_tokens: int | None = None


class CompletionDetails(Struct):
    reasoning_tokens: int | None = None
    audio_tokens: int | None = None


class UsageObject(Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None
    prompt_cache_hit_tokens: int | None = None  # DeepSeek's own word for cached_tokens


_NO_PROMPT_DETAILS = PromptDetails()
_NO_COMPLETION_DETAILS = CompletionDetails()


def usage_in(u: UsageObject, service_tier: str | None = None) -> Usage:
    """To the neutral form, which nests the same way."""
    prompt = u.prompt_tokens_details or _NO_PROMPT_DETAILS
    completion = u.completion_tokens_details or _NO_COMPLETION_DETAILS
    output = u.completion_tokens
    reasoning = completion.reasoning_tokens
    if (
        reasoning
        and output is not None
        and u.prompt_tokens is not None
        and u.total_tokens == u.prompt_tokens + output + reasoning
    ):
        output += reasoning  # xAI counts reasoning beside completion_tokens; its total gives it away.
    told = (
        u.prompt_tokens,
        output,
        prompt.cached_tokens if prompt.cached_tokens is not None else u.prompt_cache_hit_tokens,
        prompt.cache_write_tokens,
        reasoning,
        prompt.audio_tokens,
        completion.audio_tokens,
        prompt.image_tokens,
    )
    # A negative count is a fault of the peer's; not reported is what can honestly be made of it.
    counts = [count if count is not None and count >= 0 else None for count in told]
    return Usage(
        input_tokens=counts[0],
        output_tokens=counts[1],
        cache_read_tokens=counts[2],
        cache_write_tokens=counts[3],
        reasoning_tokens=counts[4],
        input_audio_tokens=counts[5],
        output_audio_tokens=counts[6],
        input_image_tokens=counts[7],
        service_tier=service_tier,
    )


def usage_out(u: Usage) -> dict[str, Any]:
    """To the wire: the three totals always, details where they are known."""
    body: dict[str, Any] = {
        "prompt_tokens": u.input_tokens or 0,
        "completion_tokens": u.output_tokens or 0,
        "total_tokens": u.total_tokens,
    }
    prompt = {
        "cached_tokens": u.cache_read_tokens,
        "cache_write_tokens": u.cache_write_tokens,
        "audio_tokens": u.input_audio_tokens,
        "image_tokens": u.input_image_tokens,
    }
    completion = {"reasoning_tokens": u.reasoning_tokens, "audio_tokens": u.output_audio_tokens}
    for name, details in (("prompt_tokens_details", prompt), ("completion_tokens_details", completion)):
        if known := {key: value for key, value in details.items() if value is not None}:
            body[name] = known
    return body
