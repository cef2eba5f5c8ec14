"""Anthropic's own structs: what the Messages API reads and writes, as far as we look inside.

Source: anthropic-python 2.12 `types/`, read 2026-11. Objects that we only pass on stay plain dicts.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

Block = dict[str, Any]


class CacheControl(Struct):
    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class Message(Struct):
    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class Metadata(Struct):
    user_id: str | None = None


class Thinking(Struct):
    type: str
    budget_tokens: int | None = None
    display: str | None = None


class Format(Struct):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(Struct):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: Format | None = None


class ToolChoice(Struct):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Tool(Struct):
    name: str
    input_schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None
    cache_control: CacheControl | None = None
    type: Literal["custom"] | None = None


class Request(Struct):
    messages: list[Message]
    model: str | None = None
    max_tokens: int | None = None
    system: str | list[Block] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] | None = None
    tools: list[Block] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    metadata: Metadata | None = None
    service_tier: str | None = None
    cache_control: CacheControl | None = None


# Content blocks. `citations` on a text block are the model's own, on a document a switch.


class TextBlock(Struct):
    text: str
    type: str = "text"
    cache_control: CacheControl | None = None
    citations: list[dict[str, Any]] | None = None


class Source(Struct):
    """Of an image or a document; which fields are set depends on `type`."""

    type: str
    media_type: str | None = None
    data: str | None = None
    url: str | None = None
    file_id: str | None = None


class ImageBlock(Struct):
    source: Source
    type: str = "image"
    cache_control: CacheControl | None = None


class DocumentBlock(Struct):
    source: Source
    type: str = "document"
    title: str | None = None
    cache_control: CacheControl | None = None


class ToolUseBlock(Struct):
    id: str
    name: str
    input: dict[str, Any]
    type: str = "tool_use"
    cache_control: CacheControl | None = None


class ToolResultBlock(Struct):
    tool_use_id: str
    type: str = "tool_result"
    content: str | list[Block] | None = None
    is_error: bool | None = None
    cache_control: CacheControl | None = None


class ThinkingBlock(Struct):
    thinking: str
    signature: str | None = None
    type: str = "thinking"


class RedactedThinkingBlock(Struct):
    data: str
    type: str = "redacted_thinking"


# Answers.


class CacheCreation(Struct):
    ephemeral_5m_input_tokens: int | None = None
    ephemeral_1h_input_tokens: int | None = None


class OutputTokensDetails(Struct):
    thinking_tokens: int | None = None


class ServerToolUse(Struct):
    web_search_requests: int | None = None


class Usage(Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation: CacheCreation | None = None
    output_tokens_details: OutputTokensDetails | None = None
    server_tool_use: ServerToolUse | None = None
    service_tier: str | None = None


class Response(Struct):
    content: list[Block]
    id: str = ""
    model: str = ""
    stop_reason: str | None = None
    stop_sequence: str | None = None
    usage: Usage | None = None
    type: str | None = None
    error: Any = None


# Streams.


class Delta(Struct):
    """Of a content block, or (without `type`) of the message."""

    type: str | None = None
    text: str | None = None
    partial_json: str | None = None
    thinking: str | None = None
    signature: str | None = None
    citation: dict[str, Any] | None = None
    stop_reason: str | None = None
    stop_sequence: str | None = None


class StartedMessage(Struct):
    id: str = ""
    model: str = ""
    usage: Usage | None = None


class StreamEvent(Struct):
    """Any event of the stream; a type that we do not know has whatever fields it has."""

    type: str
    index: int | UnsetType = UNSET
    message: StartedMessage | None = None
    content_block: Block | None = None
    delta: Delta | None = None
    usage: Usage | None = None
    error: Any = None


class EventType(Struct):
    type: str
