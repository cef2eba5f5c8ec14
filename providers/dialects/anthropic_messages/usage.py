"""Anthropic's token counts and the neutral ones. Anthropic counts cached input beside `input_tokens`; the neutral
count includes it. `output_tokens` includes thinking on both sides.

Source: anthropic-python 2.12 `types/usage.py`, `types/message_delta_usage.py`, read 2026-11.
"""

from __future__ import annotations

from typing import Any

from providers.dialects.anthropic_messages import wire
from providers.neutral import Usage

# Their word for a tier and ours; a tier that they do not know is left out, their clients parse a closed set.
_TIER_IN = {"standard": "default"}
_TIER_OUT = {"default": "standard", "standard": "standard", "priority": "priority", "batch": "batch"}


def usage_in(u: wire.Usage) -> Usage:
    read, written = _count(u.cache_read_input_tokens), _count(u.cache_creation_input_tokens)
    fresh = _count(u.input_tokens)
    split = u.cache_creation
    return Usage(
        # A delta may repeat the cache counts alone: without input_tokens the total is not known.
        input_tokens=None if fresh is None else fresh + (read or 0) + (written or 0),
        output_tokens=_count(u.output_tokens),
        cache_read_tokens=read,
        cache_write_tokens=written,
        cache_write_1h_tokens=_count(split.ephemeral_1h_input_tokens) if split else None,
        reasoning_tokens=_count(u.output_tokens_details.thinking_tokens) if u.output_tokens_details else None,
        searches=_count(u.server_tool_use.web_search_requests) if u.server_tool_use else None,
        service_tier=_TIER_IN.get(u.service_tier, u.service_tier) if u.service_tier else None,
    )


def usage_out(u: Usage) -> dict[str, Any]:
    """Of a whole message and of `message_start`. Required there, if only as null: source as above."""
    names = ("cache_creation", "inference_geo", "output_tokens_details", "server_tool_use", "service_tier")
    body = {**dict.fromkeys(names), **delta_usage_out(u)}
    if u.cache_write_tokens is not None:
        written_1h = u.cache_write_1h_tokens or 0
        body["cache_creation"] = {
            "ephemeral_5m_input_tokens": max(0, u.cache_write_tokens - written_1h),
            "ephemeral_1h_input_tokens": written_1h,
        }
    if (tier := _TIER_OUT.get(u.service_tier or "")) is not None:
        body["service_tier"] = tier
    return body


def delta_usage_out(u: Usage) -> dict[str, Any]:
    """Of `message_delta`: running totals, the input counts repeated."""
    read, written = u.cache_read_tokens or 0, u.cache_write_tokens or 0
    body: dict[str, Any] = {
        "input_tokens": max(0, (u.input_tokens or 0) - read - written),
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": read,
        "output_tokens": u.output_tokens or 0,
    }
    if u.reasoning_tokens is not None:
        body["output_tokens_details"] = {"thinking_tokens": u.reasoning_tokens}
    if u.searches is not None:
        body["server_tool_use"] = {"web_search_requests": u.searches, "web_fetch_requests": 0}
    return body


def _count(value: int | None) -> int | None:
    """A negative count is a fault of the peer's; not reported is what can honestly be made of it."""
    return value if value is not None and value >= 0 else None
