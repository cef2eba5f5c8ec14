"""The structs of legacy completions. Source: openai-python 3.54 `types/completion*.py`, vLLM, read 2026-11."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

from providers.dialects.openai_common.usage import UsageObject

DEFAULT_MAX_TOKENS = 16
"""The reference's own default, which engines follow: without it a chat model would write to the end of its window."""


class StreamOptions(Struct):
    include_usage: bool | None = None


class Request(Struct):
    """Fields with a neutral meaning; `prompt` is a text, a list of texts, token ids, or lists of token ids."""

    prompt: str | list[str | int | list[int]] | None = None
    model: str | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: Annotated[int, Meta(ge=0)] | None = None
    user: str | None = None


class Logprobs(Struct):
    """Parallel lists, one entry a token."""

    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None
    text_offset: list[int] | None = None


class Choice(Struct):
    index: int = 0
    text: str | None = None
    finish_reason: str | None = None
    logprobs: Logprobs | None = None


class Answer(Struct):
    id: str | None = None
    model: str | None = None
    created: float | None = None
    choices: list[Choice] | None = None
    usage: UsageObject | None = None
    error: Any = None
    object: str | None = None
