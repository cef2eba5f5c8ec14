"""Fields of one dialect that ask for nothing in the answer: where to keep it, how to cache it, what to call it.

A request that goes to another dialect leaves them out, told by name in the response headers, whatever the project's
choice: refusing Codex for its `prompt_cache_key` would serve nobody. Everything else without an equal is refused or
dropped by that choice. Source: the references of the four vendors and what their CLIs send, read 2026-11.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from msgspec.structs import replace

from providers.neutral import ChatRequest

_OPENAI: Final = frozenset({"store", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "prediction"})

HINTS: Final[Mapping[str, frozenset[str]]] = {
    "openai_chat": _OPENAI,
    "openai_completions": _OPENAI,
    "openai_responses": _OPENAI
    | {
        "client_metadata",
        "include",
        "max_tool_calls",  # bounds the hosted tools alone, and those are judged by themselves
        "prompt_cache_options",
        "stream_options",
        "text.verbosity",
        "tools.allowed_callers",
        "tools.async",
        "tools.defer_loading",
        "tools.namespace",  # its description; the tools in it go along
        "tools.output_schema",
    },
    "anthropic_messages": frozenset({"context_management", "inference_geo", "speed"}),
    "gemini": frozenset({"labels", "store"}),
    "gemini_interactions": frozenset({"labels", "store"}),
    "bedrock_converse": frozenset({"requestMetadata", "performanceConfig", "additionalModelResponseFieldPaths"}),
}

# Hints only with these values; with another they ask for something.
_HARMLESS: Final[Mapping[str, Mapping[str, tuple[Any, ...]]]] = {
    "gemini_interactions": {"background": (False,)},
    "openai_responses": {
        "background": (False,),
        "truncation": ("disabled", "auto"),  # a leave to shorten; without it, a prompt too long is an error, not a lie
        "reasoning.context": ("auto", "current_turn"),
        "reasoning.mode": ("standard",),
    },
}

# Headers of a host's own that ask it for something, by prefix, and those among them that an answer does not hang on. A
# guardrail is no hint: a client that asked for one must not get an answer that nobody looked at.
ASKING_HEADERS: Final = ("x-amzn-bedrock-",)
HINT_HEADERS: Final = frozenset(
    {"x-amzn-bedrock-trace", "x-amzn-bedrock-performanceconfig-latency", "x-amzn-bedrock-request-metadata"}
)


def without_hints(request: ChatRequest, target: str) -> tuple[ChatRequest, tuple[str, ...]]:
    """The request as another dialect gets it, and the names of what was left out."""
    told: list[str] = []
    kept: dict[str, Mapping[str, Any]] = {}
    for dialect, fields in request.extensions.items():
        if dialect == target:
            kept[dialect] = fields
            continue
        hints, harmless = HINTS.get(dialect, frozenset()), _HARMLESS.get(dialect, {})
        # LangChain sends Google's `safetySettings` as an empty list: that asks for nothing, whatever it is of.
        said = {k: v for k, v in fields.items() if v not in ([], {})}
        rest = {k: v for k, v in said.items() if k not in hints and v not in harmless.get(k, ())}
        told += said.keys() - rest.keys()
        if rest:
            kept[dialect] = rest
    return (replace(request, extensions=kept) if kept != request.extensions else request), tuple(sorted(told))
