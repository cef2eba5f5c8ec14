"""Bedrock's own structs: what Converse and ConverseStream read and write, as far as we look inside.

Source: botocore 1.44 `data/bedrock-runtime/2023-09-30/service-2.json`, read 2026-11. A blob is base64 text in JSON. A
content block is a union: an object with one member, which says its kind.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

Block = dict[str, Any]


class CachePoint(Struct):
    type: str = "default"
    ttl: Literal["5m", "1h"] | None = None


class Message(Struct):
    role: Literal["user", "assistant", "system"]
    content: list[Block]


class InferenceConfig(Struct):
    maxTokens: int | None = None  # noqa: N815 - the wire's own name, as all below
    temperature: float | None = None
    topP: float | None = None  # noqa: N815
    stopSequences: list[str] | None = None  # noqa: N815


class ToolSpec(Struct):
    name: str
    inputSchema: dict[str, Any]  # noqa: N815
    description: str | None = None
    strict: bool | None = None


class NamedTool(Struct):
    name: str


class ToolChoice(Struct):
    auto: dict[str, Any] | None = None
    any: dict[str, Any] | None = None
    tool: NamedTool | None = None


class ToolConfig(Struct):
    tools: list[Block]
    toolChoice: ToolChoice | None = None  # noqa: N815


class JsonSchema(Struct):
    schema: str
    name: str | None = None
    description: str | None = None


class Structure(Struct):
    jsonSchema: JsonSchema | None = None  # noqa: N815


class TextFormat(Struct):
    type: str
    structure: Structure


class OutputConfig(Struct):
    textFormat: TextFormat | None = None  # noqa: N815
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None


class ServiceTier(Struct):
    type: str


class Request(Struct):
    messages: list[Message]
    system: list[Block] | None = None
    inferenceConfig: InferenceConfig | None = None  # noqa: N815
    toolConfig: ToolConfig | None = None  # noqa: N815
    outputConfig: OutputConfig | None = None  # noqa: N815
    additionalModelRequestFields: dict[str, Any] | None = None  # noqa: N815
    requestMetadata: dict[str, str] | None = None  # noqa: N815
    serviceTier: ServiceTier | None = None  # noqa: N815


# Content blocks.


class S3Location(Struct):
    uri: str


class Source(Struct):
    """Of an image, a document, a video or a sound: one of its members is set."""

    bytes: str | None = None
    s3Location: S3Location | None = None  # noqa: N815
    text: str | None = None


class Media(Struct):
    source: Source
    format: str | None = None
    name: str | None = None


class ToolUse(Struct):
    toolUseId: str  # noqa: N815
    name: str
    input: Any = None
    type: str | None = None


class ToolResult(Struct):
    toolUseId: str  # noqa: N815
    content: list[Block]
    status: Literal["success", "error"] | None = None
    type: str | None = None


class ReasoningText(Struct):
    text: str
    signature: str | None = None


class Reasoning(Struct):
    reasoningText: ReasoningText | None = None  # noqa: N815
    redactedContent: str | None = None  # noqa: N815


class CitedText(Struct):
    text: str | None = None


class CitationsContent(Struct):
    content: list[CitedText] | None = None
    citations: list[dict[str, Any]] | None = None


# Answers.


class CacheDetail(Struct):
    ttl: str
    inputTokens: int  # noqa: N815


class Usage(Struct):
    inputTokens: int | None = None  # noqa: N815
    outputTokens: int | None = None  # noqa: N815
    cacheReadInputTokens: int | None = None  # noqa: N815
    cacheWriteInputTokens: int | None = None  # noqa: N815
    cacheDetails: list[CacheDetail] | None = None  # noqa: N815


class AnsweredMessage(Struct):
    content: list[Block]


class Output(Struct):
    message: AnsweredMessage


class ExtraFields(Struct):
    stop_sequence: str | None = None


class Response(Struct):
    output: Output
    stopReason: str | None = None  # noqa: N815
    usage: Usage | None = None
    serviceTier: ServiceTier | None = None  # noqa: N815
    additionalModelResponseFields: Any = None  # noqa: N815


# Streams. One struct reads every event: their members do not collide.


class ToolUseStart(Struct):
    toolUseId: str  # noqa: N815
    name: str
    type: str | None = None


class Start(Struct):
    toolUse: ToolUseStart | None = None  # noqa: N815


class ToolUseDelta(Struct):
    input: str = ""


class ReasoningDelta(Struct):
    text: str | None = None
    signature: str | None = None
    redactedContent: str | None = None  # noqa: N815


class Delta(Struct):
    text: str | None = None
    toolUse: ToolUseDelta | None = None  # noqa: N815
    reasoningContent: ReasoningDelta | None = None  # noqa: N815
    citation: dict[str, Any] | None = None


class StreamEvent(Struct):
    contentBlockIndex: int | UnsetType = UNSET  # noqa: N815
    start: Start | None = None
    delta: Delta | None = None
    stopReason: str | None = None  # noqa: N815
    usage: Usage | None = None
    serviceTier: ServiceTier | None = None  # noqa: N815
    additionalModelResponseFields: Any = None  # noqa: N815
