"""What each generation of Claude accepts, by its name alone, whoever hosts it.

Source: "Models overview", "Extended thinking" and "Adaptive thinking" pages, read 2026-11. A name without a version (an
alias, a future family) is taken for the newest: that is what new names are.
"""

from __future__ import annotations

import re
from typing import Literal

Thinking = Literal["none", "budget", "adaptive"]

# claude-3-7-sonnet-20250219, claude-opus-4-5-20251101, us.anthropic.claude-sonnet-4-20250514-v1:0, claude-opus-5
_VERSION = re.compile(r"claude-(?:[a-z]+-)?(?P<major>\d)(?:[-.](?P<minor>\d{1,2}))?(?!\d)")
_NEWEST = (99, 0)

MIN_BUDGET_TOKENS = 1024


def version_of(model: str) -> tuple[int, int]:
    found = _VERSION.search(model)
    return (int(found["major"]), int(found["minor"] or 0)) if found else _NEWEST


def thinking_of(model: str) -> Thinking:
    """How the model is told to think: not at all, by a token budget, or by an effort that it spends as it sees fit."""
    version = version_of(model)
    if version < (3, 7):
        return "none"
    return "budget" if version < (4, 6) else "adaptive"


def takes_budget(model: str) -> bool:
    """4.6 takes both, so a client's explicit budget is kept there; later ones refuse it."""
    version = version_of(model)
    return (3, 7) <= version <= (4, 6) or version == _NEWEST


def default_max_tokens(model: str) -> int:
    """`max_tokens` where nobody set one, for it is required: the most that every model of the generation writes."""
    version = version_of(model)
    if version < (3, 5):
        return 4096
    if version < (3, 7):
        return 8192
    return 32_000 if version != _NEWEST else 8192
