"""How much to think: Anthropic's `thinking` and `output_config.effort` and the neutral `Reasoning`, both ways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from providers.dialects.anthropic_messages import wire
from providers.dialects.claude import MIN_BUDGET_TOKENS, thinking_for
from providers.dialects.extras import Extras, leftovers
from providers.dialects.losses import Losses
from providers.errors import BadRequest
from providers.neutral import ChatRequest
from providers.neutral.request import Reasoning

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
    """Adds `thinking` and `output_config.effort` to a body whose messages, tools and limit are there."""
    thinking = thinking_for(
        request.reasoning,
        model,
        losses,
        max_tokens=body["max_tokens"],
        forced_tool=body.get("tool_choice", {}).get("type") in ("any", "tool"),
        continues_without_thinking=_continues_without_thinking(body["messages"]),
    )
    if thinking.member is not None:
        body["thinking"] = thinking.member
    if thinking.effort is not None:
        body.setdefault("output_config", {})["effort"] = thinking.effort


def _continues_without_thinking(messages: list[dict[str, Any]]) -> bool:
    for message in reversed(messages):
        if message["role"] != "assistant":
            if not any(block["type"] == "tool_result" for block in message["content"]):
                return False
            continue
        types = [block["type"] for block in message["content"]]
        return "tool_use" in types and not {"thinking", "redacted_thinking"} & set(types)
    return False
