"""What each generation of Claude accepts, by its name alone, whoever hosts it and in whichever dialect.

Source: "Models overview", "Extended thinking" and "Adaptive thinking" pages, read 2026-11. A name without a version (an
alias, a future family) is taken for the newest: that is what new names are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from msgspec import Struct

from providers.dialects.losses import Losses
from providers.neutral.request import Reasoning
from providers.profiles import Effort, budget_tokens_for, effort_for

ThinkingKind = Literal["none", "budget", "adaptive"]
EffortWord = Literal["low", "medium", "high", "xhigh", "max"]

# claude-3-7-sonnet-20250219, claude-opus-4-5-20251101, us.anthropic.claude-sonnet-4-20250514-v1:0, claude-opus-5
_VERSION = re.compile(r"claude-(?:[a-z]+-)?(?P<major>\d)(?:[-.](?P<minor>\d{1,2}))?(?!\d)")
_NEWEST = (99, 0)

MIN_BUDGET_TOKENS = 1024

EFFORT_WORDS: Mapping[Effort, EffortWord] = {
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "xhigh",
    "max": "max",
}


class Thinking(Struct, frozen=True):
    """How to word a wish to think: the `thinking` member and the effort, each None when not to be sent."""

    member: dict[str, Any] | None = None
    effort: EffortWord | None = None


def version_of(model: str) -> tuple[int, int]:
    found = _VERSION.search(model)
    return (int(found["major"]), int(found["minor"] or 0)) if found else _NEWEST


# The signature of Claude's thinking is the same on every platform that serves it; Converse seals no other model's.
SEALED_FOR_CLAUDE = ("anthropic_messages", "bedrock_converse")


def is_claude(model: str) -> bool:
    return "claude" in model


def thinking_of(model: str) -> ThinkingKind:
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


def takes_temperature_with_top_p(model: str) -> bool:
    """Since 4.1 a request may set one of the two, not both."""
    version = version_of(model)
    return version < (4, 1) or version == _NEWEST


def thinking_for(
    wanted: Reasoning | None,
    model: str,
    losses: Losses,
    *,
    max_tokens: int,
    forced_tool: bool,
    continues_without_thinking: bool,
) -> Thinking:
    """The wish in Claude's words; what this model cannot do, or not together with the rest, is lost by name.

    continues_without_thinking: a tool loop is under way whose call came without its thinking (its client had no place
    for it): a model with a budget refuses to think on from there."""
    if wanted is None:
        return Thinking()
    if wanted.enabled is False or wanted.effort == "none" or wanted.budget_tokens == 0:
        return Thinking({"type": "disabled"}, EFFORT_WORDS.get(wanted.effort or "none"))
    if wanted.enabled is None and wanted.effort is None and wanted.budget_tokens is None:
        return Thinking()  # only says how to show thinking that it does not ask for
    kind = thinking_of(model)
    if kind == "none":
        losses.drop("reasoning")
        return Thinking()
    if forced_tool:
        losses.drop("reasoning with a forced tool_choice")
        return Thinking()
    display = {}
    if wanted.summary is not None:
        display = {"display": "omitted" if wanted.summary == "omitted" else "summarized"}
    by_budget = takes_budget(model) if wanted.budget_tokens is not None else kind == "budget"
    if not by_budget:
        effort = wanted.effort or (effort_for(wanted.budget_tokens) if wanted.budget_tokens else None)
        return Thinking({"type": "adaptive"} | display, EFFORT_WORDS.get(effort) if effort else None)
    # No amount at all means the model's own measure, which a model with a budget does not have.
    budget = wanted.budget_tokens or budget_tokens_for(wanted.effort or "medium")
    # An amount of ours leaves a quarter of the limit for the answer; the client's own is only made to fit.
    most = max_tokens - 1 if wanted.budget_tokens else max_tokens * 3 // 4
    budget = min(max(budget, MIN_BUDGET_TOKENS), max(most, min(MIN_BUDGET_TOKENS, max_tokens - 1)))
    if budget < MIN_BUDGET_TOKENS:
        losses.drop(f"reasoning with max_tokens below {MIN_BUDGET_TOKENS + 1}")
        return Thinking()
    if continues_without_thinking:
        losses.tell("reasoning: the tool call to continue came without its thinking")
        return Thinking()
    # With a budget of its own an effort is a second wish; alone it has just become the budget.
    effort = wanted.effort if wanted.budget_tokens is not None else None
    return Thinking(
        {"type": "enabled", "budget_tokens": budget} | display, EFFORT_WORDS.get(effort) if effort else None
    )
