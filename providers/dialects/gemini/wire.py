"""generateContent as it stands on the wire: requests, answers and what both are made of.

Unknown fields are ignored by these structs: the API grows every month. Numbers that proto JSON may write as strings
are read with `strict=False`. Source: Gemini API v1beta discovery rev. 20260529, Vertex AI v1 discovery rev. 20260509,
types of google-genai 3.4, read 2026-11.
"""

from __future__ import annotations

import re
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct

NAME: Final = "gemini"


class Blob(Struct, rename="camel"):
    mime_type: str | None = None
    data: str = ""


class FileData(Struct, rename="camel"):
    file_uri: str
    mime_type: str | None = None


class FunctionCall(Struct):
    name: str | None = None
    args: dict[str, Any] | None = None
    id: str | None = None


class FunctionResponse(Struct):
    name: str | None = None
    response: Any = None
    id: str | None = None
    parts: list[Part] | None = None


class Part(Struct, rename="camel"):
    """One of the data fields is set; `thought` and `thought_signature` go with any of them."""

    text: str | None = None
    inline_data: Blob | None = None
    file_data: FileData | None = None
    function_call: FunctionCall | None = None
    function_response: FunctionResponse | None = None
    executable_code: dict[str, Any] | None = None
    code_execution_result: dict[str, Any] | None = None
    tool_call: dict[str, Any] | None = None
    tool_response: dict[str, Any] | None = None
    thought: bool | None = None
    thought_signature: str | None = None
    video_metadata: Any = None
    media_resolution: Any = None
    part_metadata: Any = None


class Content(Struct):
    parts: list[Part] | None = None
    role: str | None = None


class FunctionDeclaration(Struct, rename="camel"):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    parameters_json_schema: dict[str, Any] | None = None


class FunctionCallingConfig(Struct, rename="camel"):
    mode: str | None = None
    allowed_function_names: list[str] | None = None


class ThinkingConfig(Struct, rename="camel"):
    include_thoughts: bool | None = None
    thinking_budget: int | None = None
    thinking_level: str | None = None


class GenerationConfig(Struct, rename="camel"):
    temperature: float | None = None
    top_p: float | None = None
    top_k: float | None = None
    candidate_count: int | None = None
    max_output_tokens: int | None = None
    stop_sequences: list[str] | None = None
    response_logprobs: bool | None = None
    logprobs: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    response_mime_type: str | None = None
    response_schema: dict[str, Any] | None = None
    response_json_schema: dict[str, Any] | None = None
    thinking_config: ThinkingConfig | None = None


class ModalityCount(Struct, rename="camel"):
    modality: str | None = None
    token_count: int | None = None


class UsageMetadata(Struct, rename="camel"):
    prompt_token_count: int | None = None
    candidates_token_count: int | None = None
    thoughts_token_count: int | None = None
    tool_use_prompt_token_count: int | None = None
    cached_content_token_count: int | None = None
    total_token_count: int | None = None
    prompt_tokens_details: list[ModalityCount] | None = None
    candidates_tokens_details: list[ModalityCount] | None = None
    traffic_type: str | None = None
    service_tier: str | None = None


class Web(Struct):
    uri: str | None = None
    title: str | None = None


class GroundingChunk(Struct, rename="camel"):
    web: Web | None = None
    retrieved_context: Web | None = None
    maps: Web | None = None


class Segment(Struct, rename="camel"):
    start_index: int | None = None
    end_index: int | None = None
    text: str | None = None


class GroundingSupport(Struct, rename="camel"):
    segment: Segment | None = None
    grounding_chunk_indices: list[int] | None = None


class GroundingMetadata(Struct, rename="camel"):
    grounding_chunks: list[GroundingChunk] | None = None
    grounding_supports: list[GroundingSupport] | None = None
    web_search_queries: list[str] | None = None


class CitationSource(Struct, rename="camel"):
    uri: str | None = None
    title: str | None = None
    start_index: int | None = None
    end_index: int | None = None


class CitationMetadata(Struct, rename="camel"):
    """The Gemini API says citationSources, Vertex citations."""

    citation_sources: list[CitationSource] | None = None
    citations: list[CitationSource] | None = None


class LogprobsCandidate(Struct, rename="camel"):
    token: str = ""
    log_probability: float = 0.0


class TopCandidates(Struct):
    candidates: list[LogprobsCandidate] | None = None


class LogprobsResult(Struct, rename="camel"):
    chosen_candidates: list[LogprobsCandidate] | None = None
    top_candidates: list[TopCandidates] | None = None


class Candidate(Struct, rename="camel"):
    content: Content | None = None
    finish_reason: str | None = None
    finish_message: str | None = None
    index: int = 0
    logprobs_result: LogprobsResult | None = None
    citation_metadata: CitationMetadata | None = None
    grounding_metadata: GroundingMetadata | None = None


class PromptFeedback(Struct, rename="camel"):
    block_reason: str | None = None
    block_reason_message: str | None = None


class Answer(Struct, rename="camel"):
    """A whole response, and equally one chunk of a stream."""

    candidates: list[Candidate] | None = None
    prompt_feedback: PromptFeedback | None = None
    usage_metadata: UsageMetadata | None = None
    model_version: str | None = None
    response_id: str | None = None
    create_time: str | None = None
    error: Any = None


# --- names ------------------------------------------------------------------------------------------------------------

# proto JSON takes field names in camelCase and in snake_case; what a client may name freely is left alone.
_FREE: Final = frozenset(
    {
        "args",
        "labels",
        "metadata",
        "part_metadata",
        "partMetadata",
        "parameters",
        "parameters_json_schema",
        "parametersJsonSchema",
        "response",
        "response_json_schema",
        "responseJsonSchema",
        "response_schema",
        "responseSchema",
    }
)
_SNAKE_KEY: Final = re.compile(rb'"[a-z]+_[a-z_]*"\s*:')
_UNDERSCORE: Final = re.compile(r"_([a-z])")

T = TypeVar("T")


def has_snake_keys(body: bytes) -> bool:
    return _SNAKE_KEY.search(body) is not None


def camel(name: str) -> str:
    return _UNDERSCORE.sub(lambda m: m[1].upper(), name)


def camel_keys(value: Any) -> Any:
    """The value with every field name in camelCase, but for the insides of free-form fields."""
    if isinstance(value, dict):
        return {camel(key): inner if key in _FREE else camel_keys(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [camel_keys(inner) for inner in value]
    return value


def converted(value: Any, kind: type[T]) -> T:
    """Raises: msgspec.ValidationError."""
    return msgspec.convert(value, kind, strict=False)
