"""What a provider's rate headers leave of its quota, as one share between 0 and 1.

Sources (read 2026-11): platform.openai.com rate limits (`x-ratelimit-{limit,remaining,reset}-{requests,tokens}`, resets
as `6m0s`; Groq and Azure the same, Cerebras with `-day` and `-minute` behind); docs.anthropic.com rate limits
(`anthropic-ratelimit-{requests,tokens,...}-{limit,remaining,reset}`, resets as RFC 3339)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Final

from msgspec import Struct

_OPENAI: Final = "x-ratelimit-limit-"
_ANTHROPIC: Final = "anthropic-ratelimit-"
_LIMIT: Final = "-limit"
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_SPAN: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
RESET_S: Final = 60.0


class Quota(Struct, frozen=True):
    """left: share at `at`, of whichever limit is nearest. It grows back evenly until `reset_s` later."""

    left: float
    reset_s: float
    at: float

    def read(self, now: float) -> float:
        return min(1.0, self.left + (1 - self.left) * max(0.0, now - self.at) / self.reset_s)


def quota_of(headers: Mapping[str, str], now: float, unix_s: float) -> Quota | None:
    """headers: lower-case names. None where they tell nothing that can be read."""
    nearest = min(_shares(headers, unix_s), default=None)
    return None if nearest is None else Quota(nearest[0], nearest[1], now)


def _shares(headers: Mapping[str, str], unix_s: float) -> Iterator[tuple[float, float]]:
    for name, limit in headers.items():
        if name.startswith(_OPENAI):
            unit = name[len(_OPENAI) :]
            remaining = headers.get(f"x-ratelimit-remaining-{unit}")
            reset = _span_s(headers.get(f"x-ratelimit-reset-{unit}"))
        elif name.startswith(_ANTHROPIC) and name.endswith(_LIMIT):
            unit = name[: -len(_LIMIT)]
            remaining = headers.get(f"{unit}-remaining")
            reset = _until_s(headers.get(f"{unit}-reset"), unix_s)
        else:
            continue
        if (most := _count(limit)) and (left := _count(remaining)) is not None:
            yield min(1.0, left / most), reset


def _count(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0 <= value < 1e18 else None


def _span_s(text: str | None) -> float:
    """`1s`, `6m0s`, `120ms`, or plain seconds."""
    if (plain := _count(text)) is not None:
        return max(0.001, plain)
    return sum(float(count) * _UNITS[unit] for count, unit in _SPAN.findall(text or "")) or RESET_S


def _until_s(text: str | None, unix_s: float) -> float:
    try:
        return max(0.001, datetime.fromisoformat(text or "").timestamp() - unix_s)
    except ValueError:
        return RESET_S
