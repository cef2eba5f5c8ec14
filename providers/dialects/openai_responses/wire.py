"""The Responses API as it stands on the wire: what we read as structs, and the words that both directions share.

Unknown fields are ignored by these structs on purpose: the API grows every month, and a field we never read cannot
break us. Source: OpenAI API reference "Responses" and "Streaming events", types of openai-python 3.54, read 2026-11.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from msgspec import Struct

NAME: Final = "openai_responses"


class Content(Struct):
    """One entry of a message's or a tool output's `content`; `type` says which of the rest are there."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: str | None = None
    detail: Literal["low", "high", "auto", "original"] | None = None
    file_id: str | None = None
    file_url: str | None = None
    file_data: str | None = None
    filename: str | None = None
    input_audio: InputAudio | None = None
    annotations: list[dict[str, Any]] | None = None
    logprobs: list[Logprob] | None = None
    prompt_cache_breakpoint: dict[str, Any] | None = None


class InputAudio(Struct):
    data: str
    format: str


class TopLogprob(Struct):
    token: str = ""
    logprob: float = 0.0
    bytes: list[int] | None = None


class Logprob(Struct):
    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list[TopLogprob] | None = None


class Item(Struct):
    """An input or output item of one of the kinds that have a neutral form."""

    type: str = "message"
    id: str | None = None
    role: str | None = None
    content: str | list[Content] | None = None
    status: str | None = None
    call_id: str | None = None
    name: str | None = None
    namespace: str | None = None
    arguments: str | None = None
    input: str | None = None
    output: str | list[Content] | None = None
    summary: list[Content] | None = None
    encrypted_content: str | None = None


class InputDetails(Struct):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None


class OutputDetails(Struct):
    reasoning_tokens: int | None = None


class Usage(Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: InputDetails | None = None
    output_tokens_details: OutputDetails | None = None


class ResponseError(Struct):
    code: str | None = None
    message: str = ""
    param: str | None = None
    type: str | None = None


class IncompleteDetails(Struct):
    reason: str | None = None


class WebSearches(Struct):
    num_requests: int | None = None


class ToolUsage(Struct):
    web_search: WebSearches | None = None


class Response(Struct):
    id: str = ""
    model: str = ""
    created_at: float | None = None
    status: str | None = None
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    output: list[dict[str, Any]] | None = None
    usage: Usage | None = None
    service_tier: str | None = None
    tool_usage: ToolUsage | None = None


class StreamEvent(Struct):
    """Every stream event read as one struct: `type` says which of the rest are there."""

    type: str
    output_index: int = 0
    content_index: int = 0
    summary_index: int = 0
    delta: str = ""
    logprobs: list[Logprob] | None = None
    item: dict[str, Any] | None = None
    part: Content | None = None
    annotation: dict[str, Any] | None = None
    response: Response | None = None
    error: ResponseError | None = None
    code: str | None = None
    message: str = ""
    param: str | None = None
    text: str | None = None
    arguments: str | None = None
    input: str | None = None


# Events that carry generated text, by what kind of part they add to.
TEXT_DELTAS: Final = frozenset(
    {
        "response.output_text.delta",
        "response.refusal.delta",
        "response.function_call_arguments.delta",
        "response.custom_tool_call_input.delta",
        "response.reasoning_summary_text.delta",
        "response.reasoning_text.delta",
    }
)
TERMINAL: Final = frozenset({"response.completed", "response.incomplete", "response.failed", "response.cancelled"})
