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
    "openai_responses": _OPENAI | {"include", "client_metadata", "background", "truncation"},
    "anthropic_messages": frozenset({"context_management", "inference_geo", "speed"}),
    "gemini": frozenset({"labels", "store"}),
    "bedrock_converse": frozenset({"requestMetadata", "performanceConfig", "additionalModelResponseFieldPaths"}),
}

# Hints only with these values; with another they ask for something.
_HARMLESS: Final[Mapping[str, tuple[Any, ...]]] = {"background": (False, None), "truncation": ("disabled", None)}


def without_hints(request: ChatRequest, target: str) -> tuple[ChatRequest, tuple[str, ...]]:
    """The request as another dialect gets it, and the names of what was left out."""
    told: list[str] = []
    kept: dict[str, Mapping[str, Any]] = {}
    for dialect, fields in request.extensions.items():
        hints = frozenset() if dialect == target else HINTS.get(dialect, frozenset())
        gone = [name for name, value in fields.items() if name in hints and value in _HARMLESS.get(name, (value,))]
        told += gone
        if rest := {name: value for name, value in fields.items() if name not in gone}:
            kept[dialect] = rest
    return (replace(request, extensions=kept) if told else request), tuple(told)
