"""The structs of Chat Completions as they stand on the wire, for reading; what we write is built in place as dicts.

A field that may be absent may be null too: SDKs of several languages write unset fields as null.
Source: openai-python 3.54 `types/chat/*`, Groq and Cerebras SDK models, OpenRouter and vLLM pages, read 2026-11.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from providers.dialects.openai_common.usage import UsageObject
from providers.profiles import Effort

Positive = Annotated[int, Meta(ge=1)]


class CacheControl(Struct):
    """Anthropic's cache marker as OpenRouter and LiteLLM users write it into this dialect."""

    type: str = "ephemeral"
    ttl: Literal["5m", "1h"] | None = None


# Parts of a request's messages.


class TextContent(Struct, tag_field="type", tag="text"):
    text: str
    cache_control: CacheControl | None = None


class ImageUrl(Struct):
    url: str
    detail: Literal["low", "high", "auto", "original"] | None = None


class ImageContent(Struct, tag_field="type", tag="image_url"):
    image_url: ImageUrl
    cache_control: CacheControl | None = None


class InputAudio(Struct):
    data: str
    format: str


class AudioContent(Struct, tag_field="type", tag="input_audio"):
    input_audio: InputAudio


class FileObject(Struct):
    file_data: str | None = None
    file_id: str | None = None
    filename: str | None = None


class FileContent(Struct, tag_field="type", tag="file"):
    file: FileObject
    cache_control: CacheControl | None = None


class VideoUrl(Struct):
    url: str


class VideoContent(Struct, tag_field="type", tag="video_url"):
    """vLLM, SGLang and OpenRouter; OpenAI has none."""

    video_url: VideoUrl


class RefusalContent(Struct, tag_field="type", tag="refusal"):
    refusal: str


UserContent = TextContent | ImageContent | AudioContent | FileContent | VideoContent
AssistantContent = TextContent | RefusalContent
ToolContent = TextContent | ImageContent | FileContent


# Messages of a request.


class FunctionCall(Struct):
    name: str
    arguments: str = ""


class CustomCall(Struct):
    name: str
    input: str = ""


class ToolCall(Struct):
    id: str
    type: str = "function"
    function: FunctionCall | None = None
    custom: CustomCall | None = None
    extra_content: Any = None  # Google's place for a thought signature


class AudioId(Struct):
    id: str


class ReasoningDetail(Struct):
    """OpenRouter's shape for thinking that carries a seal. format: whose seal."""

    type: str = "reasoning.text"
    text: str | None = None
    summary: str | None = None
    data: str | None = None
    signature: str | None = None
    id: str | None = None
    format: str | None = None


class SystemMessage(Struct, tag_field="role", tag="system"):
    content: str | list[TextContent]
    name: str | None = None


class DeveloperMessage(Struct, tag_field="role", tag="developer"):
    content: str | list[TextContent]
    name: str | None = None


class UserMessage(Struct, tag_field="role", tag="user"):
    content: str | list[UserContent]
    name: str | None = None


class AssistantMessage(Struct, tag_field="role", tag="assistant"):
    content: str | list[AssistantContent] | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None
    function_call: FunctionCall | None = None
    audio: AudioId | None = None
    name: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    reasoning_details: list[ReasoningDetail] | None = None


class ToolMessage(Struct, tag_field="role", tag="tool"):
    content: str | list[ToolContent]
    tool_call_id: str
    name: str | None = None


class FunctionMessage(Struct, tag_field="role", tag="function"):
    name: str
    content: str | None = None


Message = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage | FunctionMessage


# The rest of a request.


class FunctionDefinition(Struct):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolDefinition(Struct):
    type: str = "function"
    function: FunctionDefinition | None = None
    cache_control: CacheControl | None = None


class JsonSchema(Struct):
    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseFormat(Struct):
    type: str
    json_schema: JsonSchema | None = None


class StreamOptions(Struct):
    include_usage: bool | None = None


class ReasoningObject(Struct, frozen=True):
    """exclude: think, and do not show it."""

    effort: Effort | None = None
    max_tokens: Positive | None = None
    enabled: bool | None = None
    exclude: bool | None = None
    summary: str | None = None


class Request(Struct):
    """Top-level fields with a neutral meaning. All others stay in `extensions["openai_chat"]`."""

    messages: list[Message]
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: list[ToolDefinition] | None = None
    tool_choice: Any = None
    functions: list[FunctionDefinition] | None = None
    function_call: Any = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: str | None = None
    max_completion_tokens: Positive | None = None
    max_tokens: Positive | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0)] | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    service_tier: str | None = None


# Answers, whole and streamed. Lenient where engines differ: a missing id or a float timestamp costs nobody anything.


class TopLogprob(Struct):
    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenLogprob(Struct):
    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list[TopLogprob] | None = None


class ChoiceLogprobs(Struct):
    content: list[TokenLogprob] | None = None
    refusal: list[TokenLogprob] | None = None


class AnsweredFunction(Struct):
    name: str | None = None
    arguments: str | None = None


class AnsweredCustom(Struct):
    name: str | None = None
    input: str | None = None


class AnsweredCall(Struct):
    """A tool call, or a fragment of one: `id`, `type` and name come with the first fragment only."""

    index: int | None = None
    id: str | None = None
    type: str | None = None
    function: AnsweredFunction | None = None
    custom: AnsweredCustom | None = None
    extra_content: Any = None


class AnsweredAudio(Struct):
    id: str | None = None
    data: str | None = None
    transcript: str | None = None


class AnsweredImage(Struct):
    """A generated picture (OpenRouter, LiteLLM)."""

    image_url: ImageUrl


class AnsweredMessage(Struct):
    """`message` of a whole answer and `delta` of a stream."""

    content: Any = None
    refusal: str | None = None
    reasoning: Any = None
    reasoning_content: str | None = None
    reasoning_details: list[ReasoningDetail] | None = None
    tool_calls: list[AnsweredCall] | None = None
    function_call: AnsweredFunction | None = None
    audio: AnsweredAudio | None = None
    annotations: list[dict[str, Any]] | None = None
    images: list[AnsweredImage] | None = None


class Choice(Struct):
    index: int = 0
    message: AnsweredMessage | None = None
    delta: AnsweredMessage | None = None
    finish_reason: str | None = None
    logprobs: ChoiceLogprobs | None = None


class GroqExtra(Struct):
    usage: UsageObject | None = None
    error: Any = None


class Answer(Struct):
    """A whole answer and a chunk of one."""

    id: str | None = None
    model: str | None = None
    created: float | None = None
    choices: list[Choice] | None = None
    usage: UsageObject | None = None
    service_tier: str | None = None
    error: Any = None
    object: str | None = None
    x_groq: GroqExtra | None = None
