"""What a client asks for, in no provider's words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from msgspec import Struct, field

from providers.neutral.content import CachePoint, Part

Role = Literal["system", "developer", "user", "assistant"]


class Message(Struct, frozen=True, omit_defaults=True):
    """One turn. Tool results are parts of a user message: dialects with a `tool` role split and join them.

    `system` and `developer` messages keep their place; a dialect with one system field hoists the leading ones.
    """

    role: Role
    content: tuple[Part, ...]
    name: str | None = None


class Tool(Struct, frozen=True, omit_defaults=True):
    """A function the model may call. `parameters` is a JSON Schema object, passed through as given.

    A tool that only its own dialect knows (web search, code execution, computer use ...) has `dialect` and `raw` set.
    """

    name: str
    description: str | None = None
    parameters: Mapping[str, Any] | None = None
    strict: bool | None = None
    cache: CachePoint | None = None
    dialect: str | None = None
    raw: Any = None


class ToolChoice(Struct, frozen=True, omit_defaults=True):
    """mode: the model decides, must not, must (any), or must call `name`. `allowed` narrows "auto" and "required"."""

    mode: Literal["auto", "none", "required", "named"]
    name: str | None = None
    allowed: tuple[str, ...] = ()


class ResponseFormat(Struct, frozen=True, omit_defaults=True):
    """The shape of the text answer: any text, any JSON object, or JSON that meets `schema` (JSON Schema)."""

    kind: Literal["text", "json_object", "json_schema"]
    schema: Mapping[str, Any] | None = None
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class Reasoning(Struct, frozen=True, omit_defaults=True):
    """How much the model should think. `effort` and `budget_tokens` are two ways to say it; a dialect that has one
    only maps the other by the table in `providers/profiles.py`.

    enabled: False asks for none, True with neither amount asks for the model's own (adaptive) measure.
    """

    enabled: bool | None = None
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    budget_tokens: int | None = None
    summary: str | None = None  # "auto" | "concise" | "detailed" | "omitted"; whether to show it


class ChatRequest(Struct, frozen=True, omit_defaults=True):
    """One request for an answer.

    model: the alias as the client wrote it; the router's choice reaches the adapter apart from this value.
    extensions: fields without a neutral meaning, by dialect; the same dialect gets them back untouched, another one
      refuses them by name or lists them as dropped.
    """

    model: str
    messages: tuple[Message, ...]
    stream: bool = False
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning: Reasoning | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: Mapping[str, float] | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    candidates: int = 1  # OpenAI's n, Gemini's candidateCount
    logprobs: bool | None = None
    top_logprobs: int | None = None
    include_usage: bool = False  # the client asked to see usage in the stream
    user: str | None = None  # the caller's end user, for abuse reports and metering
    metadata: Mapping[str, str] | None = None
    service_tier: str | None = None
    extensions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


class EmbeddingRequest(Struct, frozen=True, omit_defaults=True):
    """Texts (or token ids) to turn into vectors.

    input: each entry is a text or a tuple of token ids. encoding: how the client wants vectors on the wire.
    """

    model: str
    input: tuple[str | tuple[int, ...], ...]
    dimensions: int | None = None
    encoding: Literal["float", "base64"] = "float"
    task: str | None = None  # Gemini task type / Cohere input_type
    user: str | None = None
    extensions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
