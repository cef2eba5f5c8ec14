"""OpenAI's dialect, inwards: the bodies of requests, as clients write them.

Source: OpenAI API reference, chat completions and completions, and vLLM's additions to them (top_k, min_p,
repetition_penalty, stop_token_ids, ignore_eos, min_tokens, priority, cache_salt, structured_outputs); read 2026-11.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from local_backend.errors import InvalidRequest

MAX_ANSWERS = 32

Probability = Annotated[float, Meta(ge=0.0, le=1.0)]
Penalty = Annotated[float, Meta(ge=-2.0, le=2.0)]
Count = Annotated[int, Meta(ge=1)]


class StreamOptions(Struct):
    """What a stream carries besides its text."""

    include_usage: bool | None = None


class Common(Struct, kw_only=True):
    """Fields that both endpoints share. None is what clients send for 'not set'."""

    model: str
    max_tokens: Count | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Meta(ge=-1)] | None = None
    min_p: Probability | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0.0)] | None = None
    seed: int | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100.0, le=100.0)]] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Meta(ge=0)] | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_ANSWERS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    cache_salt: str | None = None
    priority: Annotated[int, Meta(ge=-(2**31), lt=2**31)] | None = None
    user: str | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: Any = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None

    @property
    def include_usage(self) -> bool:
        """True if the stream ends with a chunk of token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def guided(self) -> dict[str, Any]:
        """vLLM's older names for constraints, those that are set."""
        named = {kind: getattr(self, f"guided_{kind}") for kind in ("json", "regex", "choice", "grammar")}
        return {kind: value for kind, value in named.items() if value is not None}

    @property
    def is_slow(self) -> bool:
        """True if a grammar is compiled before the answer can begin."""
        return bool(self.structured_outputs or self.guided)


class Message(Struct):
    """One turn of the conversation."""

    role: str
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[Any] | None = None
    tool_call_id: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class ChatBody(Common, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    functions: list[Any] | None = None
    response_format: dict[str, Any] | None = None
    modalities: list[str] | None = None
    audio: dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None

    @property
    def is_slow(self) -> bool:
        """See Common."""
        return bool(self.response_format or self.tools or super().is_slow)


class CompletionBody(Common, kw_only=True):
    """POST /v1/completions."""

    prompt: str | list[str | int | list[int]]
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None


class TokenizeBody(Struct):
    """POST /tokenize, in vLLM's form: a prompt or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    tools: list[Any] | None = None
    add_special_tokens: bool = True


class DetokenizeBody(Struct):
    """POST /detokenize, in vLLM's form."""

    tokens: list[int]
    model: str | None = None


Body = TypeVar("Body", bound=Struct)


def decode_body(raw: bytes, kind: type[Body]) -> tuple[Body, list[str]]:
    """A request body, and the names of its fields that mean nothing here. Raises InvalidRequest naming the field."""
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise InvalidRequest("the body must be a JSON object", code="invalid_json")
    try:
        body = msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        message = str(error)
        found = re.search(r"at `\$\.?([^`]*)`", message) or re.search(r"required field `([^`]*)`", message)
        raise InvalidRequest(message, param=found[1] if found else None) from None
    return body, sorted(value.keys() - set(kind.__struct_fields__))
