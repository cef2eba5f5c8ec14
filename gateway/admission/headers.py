"""What is left of the rate limits, in the headers that each dialect's clients read."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from math import ceil

from gateway.admission.limits import Window
from gateway.errors import RateLimited

_UNITS = ("requests", "tokens")


def limit_headers(windows: Sequence[Window], dialect: str, now_ns: int) -> list[tuple[str, str]]:
    """The tightest limit of requests and of tokens."""
    tightest: dict[str, Window] = {}
    for window in windows:
        known = tightest.get(window.limit.unit)
        if known is None or window.remaining < known.remaining:
            tightest[window.limit.unit] = window
    headers = []
    for unit in _UNITS:
        if (found := tightest.get(unit)) is not None:
            headers += _written(unit, found.limit.limit, found.remaining, found.reset_ms, dialect, now_ns)
    return headers


def refusal_headers(error: RateLimited, dialect: str, now_ns: int) -> list[tuple[str, str]]:
    """Of the limit that refused: nothing is left of it."""
    if error.unit not in _UNITS or error.limit is None:
        return []
    return _written(error.unit, error.limit, 0, ceil(error.retry_after_s * 1000), dialect, now_ns)


def _written(unit: str, limit: int, remaining: int, reset_ms: int, dialect: str, now_ns: int) -> list[tuple[str, str]]:
    """Source: OpenAI's rate limit guide (a duration); Anthropic's "Rate limits", response headers (a time in RFC 3339);
    both read 2026-11. Gemini and Bedrock have no headers for it: their clients find OpenAI's, and are told in the error
    (`RetryInfo`, `ThrottlingException`)."""
    if dialect == "anthropic_messages":
        at = datetime.fromtimestamp((now_ns + reset_ms * 1_000_000) // 10**9, UTC)
        name = f"anthropic-ratelimit-{unit}"
        reset = f"{at:%Y-%m-%dT%H:%M:%SZ}"
        return [(f"{name}-limit", str(limit)), (f"{name}-remaining", str(remaining)), (f"{name}-reset", reset)]
    return [
        (f"x-ratelimit-limit-{unit}", str(limit)),
        (f"x-ratelimit-remaining-{unit}", str(remaining)),
        (f"x-ratelimit-reset-{unit}", duration(reset_ms)),
    ]


def duration(ms: int) -> str:
    """As OpenAI writes it: 12ms, 1s, 1.5s, 6m0s, 1h0m0s."""
    if ms < 1000:
        return f"{ms}ms"
    seconds, milli = divmod(ms, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    text = f"{seconds}.{milli:03d}".rstrip("0").rstrip(".") if milli else str(seconds)
    if hours:
        return f"{hours}h{minutes}m{text}s"
    return f"{minutes}m{text}s" if minutes else f"{text}s"
