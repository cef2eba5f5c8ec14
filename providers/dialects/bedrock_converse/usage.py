"""Converse's token counts and the neutral ones. `inputTokens` leaves cached input out; the neutral count includes it.
Reasoning is not counted apart.

Source: botocore 1.44 shape TokenUsage; recorded bodies, where 2 + 5 out + 1322 read = 1329 total, read 2026-11.
"""

from __future__ import annotations

from typing import Any

from providers.dialects.bedrock_converse import wire
from providers.neutral import Usage


def usage_in(u: wire.Usage, tier: wire.ServiceTier | None = None) -> Usage:
    fresh = _count(u.inputTokens)
    read, written = _count(u.cacheReadInputTokens), _count(u.cacheWriteInputTokens)
    details = u.cacheDetails
    return Usage(
        input_tokens=None if fresh is None else fresh + (read or 0) + (written or 0),
        output_tokens=_count(u.outputTokens),
        cache_read_tokens=read,
        cache_write_tokens=written,
        cache_write_1h_tokens=sum(max(0, d.inputTokens) for d in details if d.ttl == "1h") if details else None,
        service_tier=tier.type if tier is not None else None,
    )


def usage_out(u: Usage) -> dict[str, Any]:
    read, written = u.cache_read_tokens or 0, u.cache_write_tokens or 0
    fresh = max(0, (u.input_tokens or 0) - read - written)
    body: dict[str, Any] = {
        "inputTokens": fresh,
        "outputTokens": u.output_tokens or 0,
        "totalTokens": fresh + read + written + (u.output_tokens or 0),
    }
    if u.cache_read_tokens is not None or u.cache_write_tokens is not None:
        body |= {"cacheReadInputTokens": read, "cacheWriteInputTokens": written}
    if written and u.cache_write_1h_tokens is not None:
        split = {"5m": max(0, written - u.cache_write_1h_tokens), "1h": u.cache_write_1h_tokens}
        body["cacheDetails"] = [{"ttl": ttl, "inputTokens": count} for ttl, count in split.items() if count]
    return body


def _count(value: int | None) -> int | None:
    """A negative count is a fault of the peer's; not reported is what can honestly be made of it."""
    return value if value is not None and value >= 0 else None
