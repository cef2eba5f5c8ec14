"""What a client asks, neutral to generateContent. The way in is `request.py`.

Model and streaming go in the path, which is the adapter's affair. Source: see `wire.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec.structs import replace

from providers.dialects.base import Encoded
from providers.dialects.gemini import wire
from providers.dialects.gemini.parts import (
    NO_SIGNATURE,
    call_out,
    media_out,
    response_out,
    server_call_out,
    server_result_out,
    text_out,
    thought_out,
)
from providers.dialects.gemini.request import CALLING_MODE, CONFIG, DECLARATIONS, PARTS, TOOL_CONFIG, PartField
from providers.dialects.losses import Losses
from providers.dialects.names import narrow_name
from providers.neutral import (
    ChatRequest,
    ImagePart,
    Message,
    Part,
    ReasoningPart,
    ResponseFormat,
    TextPart,
    Tool,
    ToolCallPart,
    ToolChoice,
    ToolResultPart,
)
from providers.neutral.request import Reasoning
from providers.profiles import budget_tokens_for

_GENERATION: Final = re.compile(r"gemini-(\d+)")
# Sampling knobs that the API does not have, and hints that change no answer.
_KNOBS: Final = ("min_p", "repetition_penalty", "logit_bias")
_HINTS: Final = ("user", "metadata")
_TIERS: Final[Mapping[str, str]] = {
    "default": "standard",
    "standard": "standard",
    "flex": "flex",
    "priority": "priority",
}


def encode_request(request: ChatRequest, *, model: str, strict: bool = True) -> Encoded:
    """Raises: Unsupported."""
    losses = Losses("Gemini", strict)
    for name in _KNOBS:
        if getattr(request, name) is not None:
            losses.drop(name)
    for name in _HINTS:
        if getattr(request, name):
            losses.tell(name)
    if request.parallel_tool_calls is False:
        losses.drop("parallel_tool_calls")
    for dialect, fields in request.extensions.items():
        if dialect != wire.NAME:
            for name in fields:
                losses.drop(name)
    ours = dict(request.extensions.get(wire.NAME, {}))
    generation = generation_of(model)
    body: dict[str, Any] = {}
    system, messages, count = _split_system(request.messages, losses)
    body["contents"] = _ContentWriter(generation, count, _part_fields(ours), losses).contents(messages)
    if system:
        body["systemInstruction"] = {"parts": system}
    if tools := _tools(request.tools, ours, losses):
        body["tools"] = tools
    if tool_config := _tool_config(request.tool_choice, ours, losses):
        body["toolConfig"] = tool_config
    config = _config(request, model, losses)
    config |= {key.removeprefix(CONFIG): ours.pop(key) for key in list(ours) if key.startswith(CONFIG)}
    if config:
        body["generationConfig"] = config
    if request.service_tier is not None and request.service_tier != "auto":
        tier = _TIERS.get(request.service_tier)
        if tier is None:
            losses.drop("service_tier")
        else:
            body["serviceTier"] = tier
    return Encoded(body | ours, losses.settle())


def generation_of(model: str) -> int | None:
    """2 for gemini-2.5-flash, 3 for gemini-3-pro; None for a name that does not tell."""
    found = _GENERATION.search(model)
    return int(found[1]) if found else None


# --- contents ---------------------------------------------------------------------------------------------------------


def _split_system(messages: Sequence[Message], losses: Losses) -> tuple[list[dict[str, Any]], Sequence[Message], int]:
    """The leading system and developer texts, the other messages, and how many parts were taken."""
    leading = 0
    while leading < len(messages) and messages[leading].role in ("system", "developer"):
        leading += 1
    texts: list[dict[str, Any]] = []
    count = 0
    for message in messages[:leading]:
        count += len(message.content)
        for part in message.content:
            _tell_cache(part, losses)
            if isinstance(part, TextPart):
                texts.append({"text": part.text})
            else:
                losses.refuse(f"system {_kind(part)}")
    return texts, messages[leading:], count


def _part_fields(ours: dict[str, Any]) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for key in [key for key in ours if key.startswith(PARTS)]:
        entries: Sequence[PartField] = ours.pop(key)
        for entry in entries:
            found.setdefault(entry.at, {})[key.removeprefix(PARTS)] = entry.value
    return found


class _ContentWriter:
    """Writes turn after turn, so that a tool result can name the function it answers."""

    def __init__(
        self, generation: int | None, count: int, fields: Mapping[int, Mapping[str, Any]], losses: Losses
    ) -> None:
        self._generation = generation or 0
        self._count = count
        self._fields = fields
        self._losses = losses
        self._names: dict[str, str] = {}

    def contents(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        only_results = False
        for message in messages:
            if message.role in ("system", "developer"):
                self._losses.tell("system message in the middle")  # said in the user's name, in its place
            if message.name is not None:
                self._losses.tell("message.name")
            parts = self._parts(message)
            if not parts and message.content:
                continue  # nothing of the turn could be said
            results = bool(message.content) and all(isinstance(part, ToolResultPart) for part in message.content)
            if results and only_results:
                found[-1]["parts"] += parts  # the answers to one turn's calls belong together
            else:
                found.append({"role": "model" if message.role == "assistant" else "user", "parts": parts})
            only_results = results
        return found

    def _parts(self, message: Message) -> list[dict[str, Any]]:
        out: list[dict[str, Any]] = []
        unsigned = message.role == "assistant" and self._generation >= 3
        for part in message.content:
            _tell_cache(part, self._losses)
            written = self._part(part, message.role == "assistant")
            if written is not None and "functionCall" in written:
                if unsigned and "thoughtSignature" not in written:
                    written["thoughtSignature"] = NO_SIGNATURE
                unsigned = False  # only the first call of a turn is signed
            if written is not None:
                out.append({**written, **self._fields.get(self._count, {})})
            self._count += 1
            if isinstance(part, ToolResultPart) and self._generation < 3:
                out += self._media_of(part)
        return out

    def _part(self, part: Part, by_model: bool) -> dict[str, Any] | None:
        match part:
            case TextPart():
                return text_out(part)
            case ReasoningPart(dialect=wire.NAME):
                return thought_out(part)
            case ReasoningPart():
                self._losses.tell("reasoning")
                return None
            case ToolCallPart(kind="server"):
                written = server_call_out(part)
                if written is None:
                    self._losses.tell("server_tool_call")
                return written
            case ToolCallPart():
                name = _sent_name(part.name, self._losses)
                self._names[part.id] = name
                return call_out(replace(part, name=name))
            case ToolResultPart() if by_model:
                written = server_result_out(part)
                if written is None:
                    self._losses.tell("server_tool_result")
                return written
            case ToolResultPart():
                return self._response(part)
        if isinstance(part, ImagePart) and part.detail in ("low", "high", "original"):
            self._losses.tell("image detail")
        written = media_out(part)
        if written is None:
            self._losses.refuse(f"{_kind(part)} in this place")
        return written

    def _response(self, part: ToolResultPart) -> dict[str, Any]:
        name = self._names.get(part.tool_call_id)
        if name is None:
            name = _sent_name(part.name or "unknown", self._losses)
        call = ToolCallPart(part.tool_call_id, name, "")
        response: dict[str, Any] = {"name": call.name, "response": response_out(part)}
        if (ident := call_out(call)["functionCall"].get("id")) is not None:
            response["id"] = ident
        if self._generation >= 3 and (media := self._media_of(part)):
            response["parts"] = media
        return {"functionResponse": response}

    def _media_of(self, part: ToolResultPart) -> list[dict[str, Any]]:
        """What a tool answered beside text: inside the response for Gemini 3, behind it for models before."""
        found = []
        for inner in part.content:
            _tell_cache(inner, self._losses)
            if not isinstance(inner, TextPart):
                written = media_out(inner)
                if written is None:
                    self._losses.refuse(f"{_kind(inner)} in a tool result")
                else:
                    found.append(written)
        return found


def _tell_cache(part: Part, losses: Losses) -> None:
    if getattr(part, "cache", None) is not None:
        losses.tell("cache_control")  # caching is implicit here, or a resource of its own


def _kind(part: Part) -> str:
    return type(part).__name__.removesuffix("Part").lower()


# --- tools ------------------------------------------------------------------------------------------------------------


def _tools(tools: Sequence[Tool], ours: dict[str, Any], losses: Losses) -> list[dict[str, Any]]:
    extras = {key.removeprefix(DECLARATIONS): ours.pop(key) for key in list(ours) if key.startswith(DECLARATIONS)}
    declared: list[dict[str, Any]] = []
    out: list[dict[str, Any]] = []
    for tool in tools:
        if tool.cache is not None:
            losses.tell("cache_control")
        if tool.dialect == wire.NAME:
            out.append(dict(tool.raw))
            continue
        if tool.dialect is not None:
            losses.drop(f"tool {tool.name}")  # the model lacks an ability; what it says is no worse
            continue
        if tool.strict:
            losses.tell("tools.strict")
        if not declared:
            out.append({"functionDeclarations": declared})
        function: dict[str, Any] = {"name": _sent_name(tool.name, losses)}
        if tool.description is not None:
            function["description"] = tool.description
        if tool.parameters is not None:
            function["parametersJsonSchema"] = tool.parameters
        function |= {key: values[tool.name] for key, values in extras.items() if tool.name in values}
        declared.append(function)
    return out


def _sent_name(name: str, losses: Losses) -> str:
    """Letters, digits, underscores and dashes, 64 of them. Source: FunctionDeclaration.name, read 2026-11."""
    narrow = narrow_name(name, 64)
    if narrow is None:
        losses.refuse(f"tool name {name}")
        return name
    return narrow


def _tool_config(choice: ToolChoice | None, ours: dict[str, Any], losses: Losses) -> dict[str, Any]:
    def names(wanted: Sequence[str]) -> list[str]:
        return [_sent_name(name, losses) for name in wanted]

    calling: dict[str, Any] = {}
    match choice:
        case None:
            pass
        case ToolChoice("named", name):
            calling = {"mode": "ANY", "allowedFunctionNames": names([name or ""])}
        case ToolChoice("required", allowed=allowed):
            calling = {"mode": "ANY"}
            if allowed:
                calling["allowedFunctionNames"] = names(allowed)
        case ToolChoice("auto", allowed=allowed) if allowed:
            # AUTO takes no list; VALIDATED is AUTO with one.
            calling = {"mode": "VALIDATED", "allowedFunctionNames": names(allowed)}
        case ToolChoice(mode):
            calling = {"mode": mode.upper()}
    if (mode := ours.pop(CALLING_MODE, None)) is not None:
        calling["mode"] = mode
    streamed = "toolConfig.functionCallingConfig.streamFunctionCallArguments"
    if streamed in ours:
        calling["streamFunctionCallArguments"] = ours.pop(streamed)
    out = {key.removeprefix(TOOL_CONFIG): ours.pop(key) for key in list(ours) if key.startswith(TOOL_CONFIG)}
    return {"functionCallingConfig": calling, **out} if calling else out


# --- generation config ------------------------------------------------------------------------------------------------


def _config(request: ChatRequest, model: str, losses: Losses) -> dict[str, Any]:
    known: dict[str, Any] = {
        "temperature": request.temperature,
        "topP": request.top_p,
        "topK": request.top_k,
        "candidateCount": request.candidates if request.candidates != 1 else None,
        "maxOutputTokens": request.max_output_tokens,
        "stopSequences": list(request.stop) or None,
        "responseLogprobs": request.logprobs,
        "logprobs": request.top_logprobs,
        "presencePenalty": request.presence_penalty,
        "frequencyPenalty": request.frequency_penalty,
        "seed": request.seed,
        "thinkingConfig": _thinking(request.reasoning, model) or None,
    }
    if request.top_logprobs is not None and not request.logprobs:
        # Without responseLogprobs it is an error there, and with it the client would get what it has not asked for.
        del known["logprobs"]
        if request.top_logprobs:
            losses.drop("top_logprobs")
    config = {key: value for key, value in known.items() if value is not None}
    if request.response_format is not None:
        config |= _format(request.response_format)
        if request.response_format.strict:
            losses.tell("response_format.strict")
    return config


def _format(form: ResponseFormat) -> dict[str, Any]:
    match form.kind:
        case "text":
            return {"responseMimeType": "text/plain"}
        case "json_object":
            return {"responseMimeType": "application/json"}
    return {"responseMimeType": "application/json", "responseJsonSchema": form.schema}


def _thinking(reasoning: Reasoning | None, model: str) -> dict[str, Any]:
    """Gemini 3 takes words and cannot be told not to think; models before take a number of tokens, 0 for none.

    A name that does not tell its generation gets the number, which all of them accept."""
    if reasoning is None:
        return {}
    if reasoning.enabled is False or reasoning.effort == "none":
        return _least(model)
    out: dict[str, Any] = {}
    if reasoning.budget_tokens is not None:
        out["thinkingBudget"] = reasoning.budget_tokens
    elif reasoning.effort is not None:
        if (generation_of(model) or 0) >= 3:
            out["thinkingLevel"] = {"minimal": "MINIMAL", "low": "LOW", "medium": "MEDIUM"}.get(
                reasoning.effort, "HIGH"
            )
        else:
            out["thinkingBudget"] = budget_tokens_for(reasoning.effort)
    elif reasoning.enabled:
        out["thinkingBudget"] = -1
    if reasoning.summary != "omitted":
        out["includeThoughts"] = True
    return out


def _least(model: str) -> dict[str, Any]:
    if (generation_of(model) or 0) < 3:
        return {"thinkingBudget": 128 if "2.5-pro" in model else 0}  # Pro refuses less
    return {"thinkingLevel": "LOW" if "pro" in model else "MINIMAL"}


__all__ = ["encode_request", "generation_of"]
