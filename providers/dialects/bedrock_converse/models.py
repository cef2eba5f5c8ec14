"""What Converse leaves to each model family: `additionalModelRequestFields`, told apart by the model's id.

Source: Bedrock user guide, "Inference request parameters and response fields" by family, read 2026-11.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from msgspec import Struct

from providers.dialects.bedrock_converse import wire
from providers.dialects.claude import EFFORT_WORDS, MIN_BUDGET_TOKENS, default_max_tokens, is_claude, thinking_for
from providers.dialects.extras import Extras
from providers.dialects.losses import Losses
from providers.neutral import ChatRequest
from providers.neutral.request import Reasoning
from providers.profiles import effort_for

Family = Literal["claude", "nova", "open", "other"]

_EXTRA = "additionalModelRequestFields"
# Families whose own API is the OpenAI one: their extra fields are its names.
_OPEN = ("openai.", "deepseek.", "qwen.", "minimax.", "moonshot.", "zai.", "google.gemma", "nvidia.")
_DISPLAY_IN = {"summarized": "auto", "omitted": "omitted"}


class ExtraFields(Struct, frozen=True):
    reasoning: Reasoning | None = None
    top_k: int | None = None
    seed: int | None = None


def family_of(model: str) -> Family:
    if is_claude(model):
        return "claude"
    if "amazon.nova" in model:
        return "nova"
    return "open" if any(name in model for name in _OPEN) else "other"


def extra_fields_in(fields: Mapping[str, Any], config: wire.OutputConfig | None, extras: Extras) -> ExtraFields:
    """The members that have a neutral meaning; the rest is kept by path."""
    effort = config.effort if config is not None else None
    reasoning = Reasoning(effort=effort) if effort is not None else None
    top_k = seed = None
    for name, value in fields.items():
        match name, value:
            case "top_k", int() if not isinstance(value, bool):
                top_k = value
            case "seed", int() if not isinstance(value, bool):
                seed = value
            case "reasoning_effort", "minimal" | "low" | "medium" | "high" | "none":
                reasoning = Reasoning(effort=value)
            case "thinking", {"type": "enabled", "budget_tokens": int() as budget} if len(value) == 2:
                if budget >= MIN_BUDGET_TOKENS:
                    reasoning = Reasoning(True, effort, budget)
                else:
                    extras[f"{_EXTRA}.{name}"] = value
            case "thinking", {"type": "adaptive", "display": "summarized" | "omitted" as display} if len(value) == 2:
                reasoning = Reasoning(True, effort, None, _DISPLAY_IN[display])
            case "thinking", {"type": "adaptive"} if len(value) == 1:
                reasoning = Reasoning(True, effort)
            case "thinking", {"type": "disabled"}:
                reasoning = Reasoning(False, effort)
            case _:
                extras[f"{_EXTRA}.{name}"] = value
    return ExtraFields(reasoning, top_k, seed)


def extra_fields_out(request: ChatRequest, model: str, body: dict[str, Any], losses: Losses) -> None:
    """Adds to a body whose messages, tools and inference settings are there."""
    family = family_of(model)
    extra: dict[str, Any] = {}
    effort = _claude_thinking(request, model, body, extra, losses) if family == "claude" else None
    if family != "claude":
        effort = _open_reasoning(request, family, extra, losses)
    if effort is not None:
        body.setdefault("outputConfig", {})["effort"] = effort
    if request.top_k is not None:
        if extra.get("thinking", {}).get("type") in ("enabled", "adaptive"):
            losses.drop("top_k with reasoning")
        elif family == "nova":
            extra["inferenceConfig"] = {"topK": request.top_k}
        else:
            extra["top_k"] = request.top_k
    if request.seed is not None:
        if family in ("open", "other"):
            extra["seed"] = request.seed
        else:
            losses.drop("seed")
    if extra or any(key.startswith(_EXTRA + ".") for key in request.extensions.get("bedrock_converse", {})):
        body[_EXTRA] = extra


def _claude_thinking(
    request: ChatRequest, model: str, body: dict[str, Any], extra: dict[str, Any], losses: Losses
) -> str | None:
    config = body.get("inferenceConfig", {})
    choice = body.get("toolConfig", {}).get("toolChoice", {})
    thinking = thinking_for(
        request.reasoning,
        model,
        losses,
        max_tokens=config.get("maxTokens", default_max_tokens(model)),
        forced_tool="any" in choice or "tool" in choice,
        continues_without_thinking=_continues_without_thinking(body["messages"]),
    )
    if thinking.member is not None:
        extra["thinking"] = thinking.member
        if thinking.member["type"] != "disabled" and config.get("temperature") not in (None, 1):
            losses.drop("temperature with reasoning")
            del config["temperature"]
    return thinking.effort


def _open_reasoning(request: ChatRequest, family: Family, extra: dict[str, Any], losses: Losses) -> str | None:
    """Returns: the effort for Converse's own field, where the family has no field of its own."""
    wanted = request.reasoning
    if wanted is None or (wanted.enabled is None and wanted.effort is None and wanted.budget_tokens is None):
        return None
    effort = wanted.effort
    if wanted.enabled is False or wanted.budget_tokens == 0:
        effort = "none"
    elif effort is None and wanted.budget_tokens is not None:
        effort = effort_for(wanted.budget_tokens)
    if effort is None:
        return None  # to think as it sees fit is what such a model does anyway
    word = EFFORT_WORDS.get(effort)
    if family == "nova":
        if word is None:
            extra["reasoningConfig"] = {"type": "disabled"}
        else:
            nova = word if word in ("low", "medium") else "high"
            extra["reasoningConfig"] = {"type": "enabled", "maxReasoningEffort": nova}
        return None
    if family == "open":
        extra["reasoning_effort"] = effort if effort in ("none", "minimal", "low", "medium") else "high"
        return None
    if word is None:
        losses.drop("reasoning")
    return word


def _continues_without_thinking(messages: list[dict[str, Any]]) -> bool:
    for message in reversed(messages):
        if message["role"] != "assistant":
            if not any("toolResult" in block for block in message["content"]):
                return False
            continue
        kinds = {kind for block in message["content"] for kind in block}
        return "toolUse" in kinds and "reasoningContent" not in kinds
    return False
