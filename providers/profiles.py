"""What a model family accepts, apart from who hosts it: how much thinking an effort word stands for, and back.

Source: Google's OpenAI-compatibility page (low 1024, medium 8192, high 24576 thinking tokens), read 2026-11; the words
outside that table continue it. Dialects that know only one of the two ways to say it map by these tables.
"""

from __future__ import annotations

from typing import Literal

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]

BUDGET_TOKENS: dict[Effort, int] = {
    "none": 0,
    "minimal": 512,
    "low": 1024,
    "medium": 8192,
    "high": 24576,
    "xhigh": 32768,
    "max": 65536,
}


def budget_tokens_for(effort: Effort) -> int:
    return BUDGET_TOKENS[effort]


def effort_for(budget_tokens: int) -> Effort:
    """The smallest effort whose budget covers `budget_tokens`; "max" beyond the table."""
    for effort, tokens in BUDGET_TOKENS.items():
        if budget_tokens <= tokens:
            return effort
    return "max"
