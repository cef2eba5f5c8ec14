"""What a client asks, generateContent to neutral. The way back is `encode.py`.

The path carries model and streaming. Every field without a neutral meaning keeps its own name in
`extensions["gemini"]`: top-level fields plainly, deeper ones by a dotted path. Source: see `wire.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, TypeVar

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from providers.dialects.gemini import wire
from providers.dialects.gemini.parts import made_id, paired, part_in, result_in
from providers.dialects.gemini.schema import json_schema
from providers.dialects.openai_common.validation import invalid
from providers.errors import BadRequest
from providers.neutral import (
    ChatRequest,
    Message,
    Part,
    ReasoningPart,
    ResponseFormat,
    TextPart,
    Tool,
    ToolCallPart,
    ToolChoice,
)
from providers.neutral.request import Reasoning

T = TypeVar("T")

# Dotted paths in the extension.
CONFIG: Final = "generationConfig."
TOOL_CONFIG: Final = "toolConfig."
CALLING_MODE: Final = "toolConfig.functionCallingConfig.mode"
DECLARATIONS: Final = "tools."
PARTS: Final = "contents."

_TOP: Final = frozenset({"model", "contents", "systemInstruction", "tools", "toolConfig", "generationConfig"})
_DECLARED: Final = frozenset({"name", "description", "parameters", "parametersJsonSchema"})
_PART_FIELDS: Final = ("videoMetadata", "mediaResolution", "partMetadata")
_CONFIG_FIELDS: Final = frozenset(wire.camel(name) for name in wire.GenerationConfig.__struct_fields__)


class PartField(Struct, frozen=True):
    """A field of one part that only this dialect knows. at: which neutral part of the conversation it belongs to."""

    at: int
    value: Any


def decode_request(body: bytes, *, model: str | None = None, stream: bool | None = None) -> ChatRequest:
    """Raises: BadRequest naming the field."""
    fields = read_object(body)
    alias = (model or _text(fields.get("model")) or "").removeprefix("models/")
    if not alias:
        raise BadRequest("model is missing", param="model")
    extension: dict[str, Any] = {key: value for key, value in fields.items() if key not in _TOP}
    contents = checked(fields.get("contents", []), list[wire.Content], "contents")
    if not contents:
        raise BadRequest("contents is missing", param="contents")
    system = fields.get("systemInstruction")
    if system is not None:
        system = checked(system, wire.Content, "systemInstruction")
    messages = _messages(system, contents, extension)
    config = checked(fields.get("generationConfig") or {}, wire.GenerationConfig, "generationConfig")
    for key, value in (fields.get("generationConfig") or {}).items():
        if key not in _CONFIG_FIELDS and value is not None:
            extension[CONFIG + key] = value
    tier = _text(extension.pop("serviceTier", None))
    return ChatRequest(
        model=alias,
        messages=messages,
        stream=bool(stream),
        tools=_tools(fields.get("tools"), extension),
        tool_choice=_tool_choice(fields.get("toolConfig"), extension),
        response_format=_response_format(config, extension),
        reasoning=_reasoning(config.thinking_config),
        max_output_tokens=config.max_output_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=round(config.top_k) if config.top_k is not None else None,
        frequency_penalty=config.frequency_penalty,
        presence_penalty=config.presence_penalty,
        seed=config.seed,
        stop=tuple(config.stop_sequences or ()),
        candidates=config.candidate_count or 1,
        logprobs=config.response_logprobs,
        top_logprobs=config.logprobs,
        include_usage=True,  # every answer and the end of every stream carry it
        service_tier={"standard": "default"}.get(tier, tier) if tier else None,
        extensions={wire.NAME: extension} if extension else {},
    )


def read_object(body: bytes) -> dict[str, Any]:
    """A request body with its field names in camelCase and nulls left out. Raises: BadRequest."""
    try:
        fields = msgspec.json.decode(body, type=dict[str, Any])
        if wire.has_snake_keys(body):
            fields = wire.camel_keys(fields)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"the body is not a JSON object: {error}", code="invalid_json") from None
    except RecursionError:
        raise BadRequest("the body is nested too deeply", code="invalid_json") from None
    return {key: value for key, value in fields.items() if value is not None}


def checked(value: Any, kind: type[T], where: str) -> T:
    """Raises: BadRequest with the path below `where`."""
    try:
        return wire.converted(value, kind)
    except msgspec.ValidationError as error:
        found = invalid(str(error))
        path = (
            f"{where}{found.param if (found.param or '').startswith('[') else f'.{found.param}' if found.param else ''}"
        )
        raise BadRequest(f"{where}: {found.message}", param=path) from None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


# --- contents ---------------------------------------------------------------------------------------------------------


def _messages(
    system: wire.Content | None, contents: Sequence[wire.Content], extension: dict[str, Any]
) -> tuple[Message, ...]:
    messages: list[Message] = []
    if system is not None and (texts := tuple(TextPart(p.text) for p in system.parts or () if p.text is not None)):
        messages.append(Message("system", texts))
    reader = _ContentReader(len(messages[0].content) if messages else 0, extension)
    for number, content in enumerate(contents):
        role = _role(content.role, f"contents[{number}]")
        if role == "assistant" and messages and messages[-1].role == "assistant":
            # A client that kept a stream returns the turn chunk by chunk.
            parts = reader.parts(content, role, messages.pop().content)
        else:
            parts = reader.parts(content, role)
        messages.append(Message(role, parts))
    return tuple(messages)


def _role(given: str | None, where: str) -> Literal["user", "assistant"]:
    match given:
        case "model":
            return "assistant"
        case "user" | "function" | "tool" | None:
            return "user"
    raise BadRequest(f"{where}.role must be user or model, not {given!r}", param=f"{where}.role")


class _ContentReader:
    """Reads turn after turn, so that a function response without an id finds the call it answers."""

    def __init__(self, parts_before: int, extension: dict[str, Any]) -> None:
        self._count = parts_before
        self._calls = 0
        self._waiting: list[tuple[str, str]] = []  # (name, id) of calls not answered yet
        self._extension = extension

    def parts(
        self, content: wire.Content, role: Literal["user", "assistant"], before: tuple[Part, ...] = ()
    ) -> tuple[Part, ...]:
        """before: the parts of the same turn that came in earlier contents."""
        parts = list(before)
        for part in content.parts or ():
            found = self._part(part)
            if found is None:
                continue
            if role == "assistant":
                found = paired(found, last_call(parts))
            fields = {name: value for name in _PART_FIELDS if (value := getattr(part, _SNAKE[name])) is not None}
            if role == "assistant" and not fields and self._joined(found, parts):
                continue
            for name, value in fields.items():
                self._extension.setdefault(PARTS + name, []).append(PartField(self._count, value))
            self._count += 1
            if isinstance(found, ReasoningPart) and found.dialect != wire.NAME and not found.text:
                found = self._with_its_texts(found, parts)
            parts.append(found)
        return tuple(parts)

    def _joined(self, found: Part, parts: list[Part]) -> bool:
        """Pieces of one text become one again; a lone signature seals it."""
        match found, parts[-1] if parts else None:
            case TextPart("", signature=None), _:
                return True  # a stream's last chunk
            case TextPart(text, signature=signature), TextPart(signature=None) as last if not (text and signature):
                parts[-1] = replace(last, text=last.text + text, signature=signature)
                return True
        return False

    def _with_its_texts(self, seal: ReasoningPart, parts: list[Part]) -> ReasoningPart:
        """A client that kept a stream's chunks returns thinking in pieces, and the seal of it all behind them."""
        texts: list[str] = []
        while (
            parts
            and isinstance(last := parts[-1], ReasoningPart)
            and last == ReasoningPart(last.text, dialect=wire.NAME)
        ):
            texts.append(last.text)
            parts.pop()
            self._count -= 1
        return replace(seal, text="".join(reversed(texts)))

    def _part(self, part: wire.Part) -> Part | None:
        if part.function_response is not None:
            response = part.function_response
            return result_in(response, response.id or self._answered(response.name or ""))
        found = part_in(part, made_id("", self._calls))
        if isinstance(found, ToolCallPart) and found.kind != "server":
            self._calls += 1
            self._waiting.append((found.name, found.id))
        return found

    def _answered(self, name: str) -> str:
        for at, (waiting, ident) in enumerate(self._waiting):
            if waiting == name:
                del self._waiting[at]
                return ident
        return made_id(name, 0)


_SNAKE: Final = {
    "videoMetadata": "video_metadata",
    "mediaResolution": "media_resolution",
    "partMetadata": "part_metadata",
}


def last_call(parts: Sequence[Part]) -> str:
    return next((part.id for part in reversed(parts) if isinstance(part, ToolCallPart)), "")


# --- tools ------------------------------------------------------------------------------------------------------------


def _tools(given: Any, extension: dict[str, Any]) -> tuple[Tool, ...]:
    found: list[Tool] = []
    for number, entry in enumerate(checked(given or [], list[dict[str, Any]], "tools")):
        for kind, value in entry.items():
            if value is None:
                continue
            if kind != "functionDeclarations":
                found.append(Tool(kind, dialect=wire.NAME, raw={kind: value}))
                continue
            where = f"tools[{number}].functionDeclarations"
            for raw in checked(value, list[dict[str, Any]], where):
                found.append(_function(raw, where))
                for key in raw.keys() - _DECLARED:
                    if raw[key] is not None:
                        extension.setdefault(DECLARATIONS + key, {})[raw["name"]] = raw[key]
    return tuple(found)


def _function(raw: Mapping[str, Any], where: str) -> Tool:
    declared = checked(raw, wire.FunctionDeclaration, where)
    parameters = declared.parameters_json_schema
    if parameters is None and declared.parameters is not None:
        parameters = _schema(declared.parameters, f"{where}.parameters")
    return Tool(declared.name, declared.description, parameters)


def _schema(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    try:
        return json_schema(given)
    except RecursionError:
        raise BadRequest(f"{where} is nested too deeply", param=where) from None


def _tool_choice(given: Any, extension: dict[str, Any]) -> ToolChoice | None:
    fields = checked(given or {}, dict[str, Any], "toolConfig")
    for key, value in fields.items():
        if key != "functionCallingConfig" and value is not None:
            extension[TOOL_CONFIG + key] = value
    raw = fields.get("functionCallingConfig")
    if raw is None:
        return None
    config = checked(raw, wire.FunctionCallingConfig, "toolConfig.functionCallingConfig")
    if raw.get("streamFunctionCallArguments"):
        extension["toolConfig.functionCallingConfig.streamFunctionCallArguments"] = True
    allowed = tuple(config.allowed_function_names or ())
    match (config.mode or "AUTO").upper():
        case "ANY":
            return ToolChoice("named", name=allowed[0]) if len(allowed) == 1 else ToolChoice("required", None, allowed)
        case "NONE":
            return ToolChoice("none")
        case "VALIDATED":
            extension[CALLING_MODE] = "VALIDATED"
            return ToolChoice("auto", None, allowed)
        case "AUTO" | "MODE_UNSPECIFIED":
            return ToolChoice("auto", None, allowed)
        case mode:
            where = "toolConfig.functionCallingConfig.mode"
            raise BadRequest(f"{where} {mode!r} is not known", param=where)


# --- generation config ------------------------------------------------------------------------------------------------


def _response_format(config: wire.GenerationConfig, extension: dict[str, Any]) -> ResponseFormat | None:
    mime_type, schema = config.response_mime_type, config.response_json_schema
    if schema is None and config.response_schema is not None:
        if mime_type not in (None, "application/json"):
            # text/x.enum: one word of a list, which no other dialect can promise.
            extension[CONFIG + "responseSchema"] = config.response_schema
        else:
            schema = _schema(config.response_schema, "generationConfig.responseSchema")
    match mime_type:
        case None if schema is None:
            return None
        case None | "application/json":
            return ResponseFormat("json_schema", schema) if schema is not None else ResponseFormat("json_object")
        case "text/plain":
            return ResponseFormat("text")
    extension[CONFIG + "responseMimeType"] = mime_type
    return None


_EFFORTS: Final[Mapping[str, Literal["minimal", "low", "medium", "high"]]] = {
    "MINIMAL": "minimal",
    "LOW": "low",
    "MEDIUM": "medium",
    "HIGH": "high",
}


def _reasoning(config: wire.ThinkingConfig | None) -> Reasoning | None:
    """Thoughts are shown only when asked for, so an absent `includeThoughts` says "omitted"."""
    if config is None:
        return None
    summary = "auto" if config.include_thoughts else "omitted"
    effort = _EFFORTS.get((config.thinking_level or "").upper())
    match config.thinking_budget:
        case 0:
            return Reasoning(enabled=False)
        case -1:
            return Reasoning(enabled=True, effort=effort, summary=summary)
        case budget:
            return Reasoning(effort=effort, budget_tokens=budget, summary=summary)
