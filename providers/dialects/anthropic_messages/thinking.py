"""How much to think: Anthropic's `thinking` and `output_config.effort` and the neutral `Reasoning`, both ways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from providers.dialects.anthropic_messages import wire
from providers.dialects.anthropic_messages.content import Extras, leftovers
from providers.dialects.anthropic_messages.models import MIN_BUDGET_TOKENS, takes_budget, thinking_of
from providers.dialects.losses import Losses
from providers.errors import BadRequest
from providers.neutral import ChatRequest
from providers.neutral.request import Reasoning
from providers.profiles import Effort, budget_tokens_for, effort_for

EffortWord = Literal["low", "medium", "high", "xhigh", "max"]
_WORDS: Mapping[Effort, EffortWord] = {
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "xhigh",
    "max": "max",
}
_DISPLAY_IN = {"summarized": "auto", "omitted": "omitted"}


def reasoning_in(request: wire.Request, members: Mapping[str, Any], extras: Extras) -> Reasoning | None:
    """Raises: BadRequest."""
    effort = request.output_config.effort if request.output_config else None
    thinking = request.thinking
    if thinking is None:
        return Reasoning(effort=effort) if effort is not None else None
    summary = _DISPLAY_IN.get(thinking.display or "")
    leftovers(members["thinking"], wire.Thinking, "thinking", extras)
    match thinking.type:
        case "enabled":
            if thinking.budget_tokens is None:
                raise BadRequest("thinking.budget_tokens: Field required", param="thinking.budget_tokens")
            if thinking.budget_tokens < MIN_BUDGET_TOKENS:
                message = f"thinking.budget_tokens: must be at least {MIN_BUDGET_TOKENS}"
                raise BadRequest(message, param="thinking.budget_tokens")
            return Reasoning(True, effort, thinking.budget_tokens, summary)
        case "adaptive":
            return Reasoning(True, effort, None, summary)
        case "disabled":
            return Reasoning(False, effort)
        case _:
            extras["thinking"] = members["thinking"]
            return Reasoning(effort=effort) if effort is not None else None


def thinking_out(request: ChatRequest, model: str, body: dict[str, Any], losses: Losses) -> None:
    """Raises: nothing; what the model cannot do is lost by name."""
    wanted = request.reasoning
    if wanted is None:
        return
    if wanted.enabled is False or wanted.effort == "none" or wanted.budget_tokens == 0:
        body["thinking"] = {"type": "disabled"}
        if wanted.effort is not None and wanted.effort in get_args(EffortWord):
            _set_effort(body, wanted.effort)
        return
    if wanted.enabled is None and wanted.effort is None and wanted.budget_tokens is None:
        return  # only asks how to show thinking that was not asked for
    kind = thinking_of(model)
    if kind == "none":
        losses.drop("reasoning")
        return
    if body.get("tool_choice", {}).get("type") in ("any", "tool"):
        losses.drop("reasoning with a forced tool_choice")
        return
    thinking = _by_budget(wanted) if _wants_budget(wanted, model, kind) else {"type": "adaptive"}
    if thinking["type"] == "enabled":
        limit = body["max_tokens"] - 1
        if min(thinking["budget_tokens"], limit) < MIN_BUDGET_TOKENS:
            losses.drop(f"reasoning with max_tokens below {MIN_BUDGET_TOKENS + 1}")
            return
        thinking["budget_tokens"] = min(thinking["budget_tokens"], limit)
        if _continues_without_thinking(body["messages"]):
            losses.tell("reasoning: the tool call to continue came without its thinking")
            return
    if (thinking["type"] == "adaptive" or wanted.budget_tokens is not None) and (
        word := _effort_word(wanted, thinking)
    ):
        _set_effort(body, word)
    if wanted.summary is not None:
        thinking["display"] = "omitted" if wanted.summary == "omitted" else "summarized"
    body["thinking"] = thinking


def _wants_budget(wanted: Reasoning, model: str, kind: str) -> bool:
    if wanted.budget_tokens is not None:
        return takes_budget(model)
    return kind == "budget"


def _by_budget(wanted: Reasoning) -> dict[str, Any]:
    if wanted.budget_tokens is not None:
        budget = max(wanted.budget_tokens, MIN_BUDGET_TOKENS)
    else:
        # No amount at all means the model's own measure, which a budget model does not have.
        budget = max(budget_tokens_for(wanted.effort or "medium"), MIN_BUDGET_TOKENS)
    return {"type": "enabled", "budget_tokens": budget}


def _effort_word(wanted: Reasoning, thinking: Mapping[str, Any]) -> EffortWord | None:
    if wanted.effort is not None:
        return _WORDS.get(wanted.effort)
    if wanted.budget_tokens is not None and thinking["type"] == "adaptive":
        return _WORDS.get(effort_for(wanted.budget_tokens))
    return None


def _set_effort(body: dict[str, Any], effort: str) -> None:
    body.setdefault("output_config", {})["effort"] = effort


def _continues_without_thinking(messages: list[dict[str, Any]]) -> bool:
    """A tool loop under way whose call has no thinking before it (its client had no place for it): budget models
    refuse to think on from there."""
    for message in reversed(messages):
        if message["role"] != "assistant":
            if not any(block["type"] == "tool_result" for block in message["content"]):
                return False
            continue
        types = [block["type"] for block in message["content"]]
        return "tool_use" in types and not {"thinking", "redacted_thinking"} & set(types)
    return False
