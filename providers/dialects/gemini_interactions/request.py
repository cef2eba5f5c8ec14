"""What a client asks, interaction to neutral. `input` is a text, content, or the steps of a whole conversation.

A field without a neutral meaning keeps its name in `extensions["gemini_interactions"]`, deeper ones by a dotted path,
so that it is refused by name, or dropped and told.
"""

from __future__ import annotations

from typing import Any, Final, Literal, TypeVar

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from providers.dialects.sealed import unseal
from providers.errors import BadRequest
from providers.neutral import (
    AudioPart,
    ChatRequest,
    FilePart,
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

NAME: Final = "gemini_interactions"
SEALER: Final = "gemini"
"""Whose seal a thought carries that is under no mark of ours."""

T = TypeVar("T")

_OUTPUT_ONLY: Final = ("id", "created", "updated", "status", "object", "role", "usage", "steps")
_CONFIG: Final = "generation_config."
_FIELDS_OF_TOOLS: Final = ("type", "name", "description", "parameters")
_TIERS: Final = {"standard": "default"}


class _Content(Struct):
    type: str
    text: str | None = None
    data: str | None = None
    uri: str | None = None
    mime_type: str | None = None
    resolution: Any = None


class _Step(Struct):
    """One kind of step at a time; what others need is left out."""

    type: str
    content: list[_Content] | None = None
    summary: list[_Content] | None = None
    signature: str | None = None
    id: str | None = None
    name: str | None = None
    arguments: dict[str, Any] | None = None
    call_id: str | None = None
    result: Any = None
    is_error: bool | None = None


class _Allowed(Struct):
    mode: str = "auto"
    tools: list[str] = []


class _Choice(Struct):
    allowed_tools: _Allowed


class _Function(Struct):
    name: str
    type: str = "function"
    description: str | None = None
    parameters: dict[str, Any] | None = None


class _Format(Struct):
    type: str | None = None
    mime_type: str | None = None
    schema: dict[str, Any] | None = None


def decode_request(body: bytes, *, model: str | None = None, stream: bool | None = None) -> ChatRequest:
    """Raises: BadRequest naming the field."""
    fields = _object(body)
    alias = model or _taken(fields, "model", str)
    if not alias:
        if "agent" in fields:
            raise BadRequest("agents run at Google alone: name a model", param="agent")
        raise BadRequest("model is missing", param="model")
    extension: dict[str, Any] = {}
    messages = _messages(fields.pop("input", None), extension)
    if system := _taken(fields, "system_instruction", str):
        messages = (Message("system", (TextPart(system),)), *messages)
    config = _taken(fields, "generation_config", dict[str, Any]) or {}
    config = {name: value for name, value in config.items() if value is not None}
    tier = _taken(fields, "service_tier", str)
    streams = _taken(fields, "stream", bool)
    request = ChatRequest(
        model=alias.removeprefix("models/"),
        messages=messages,
        stream=bool(streams) if stream is None else stream,
        tools=_tools(_taken(fields, "tools", list[dict[str, Any]]) or []),
        tool_choice=_tool_choice(config.pop("tool_choice", None), extension),
        response_format=_format(fields, extension),
        reasoning=_reasoning(config),
        max_output_tokens=_taken(config, "max_output_tokens", int, _CONFIG),
        temperature=_taken(config, "temperature", float, _CONFIG),
        top_p=_taken(config, "top_p", float, _CONFIG),
        seed=_taken(config, "seed", int, _CONFIG),
        stop=tuple(_taken(config, "stop_sequences", list[str], _CONFIG) or ()),
        include_usage=True,  # every answer and the end of every stream carry it
        service_tier=_TIERS.get(tier, tier) if tier else None,
    )
    if fields.get("response_modalities") == ["text"]:
        del fields["response_modalities"]
    extension |= fields | {_CONFIG + name: value for name, value in config.items()}
    return replace(request, extensions={NAME: extension}) if extension else request


def steps_of(given: Any) -> list[Any]:
    """`input` in its longest form, as a conversation is kept. Raises: BadRequest."""
    if isinstance(given, str):
        return [_user_step([{"type": "text", "text": given}])]
    if isinstance(given, dict):
        given = [given]
    if not isinstance(given, list) or not given:
        raise BadRequest("input is missing: a text, content, or steps", param="input")
    steps: list[Any] = []
    for number, each in enumerate(given):
        if not isinstance(each, dict) or not isinstance(each.get("type"), str):
            raise BadRequest(f"input[{number}] must be an object with a type", param=f"input[{number}]")
        if each["type"] not in ("text", "image", "audio", "document", "video"):
            steps.append(each)
        elif steps and steps[-1]["type"] == "user_input" and steps[-1].get("content"):
            steps[-1] = _user_step([*steps[-1]["content"], each])
        else:
            steps.append(_user_step([each]))
    return steps


def _user_step(content: list[Any]) -> dict[str, Any]:
    return {"type": "user_input", "content": content}


def _object(body: bytes) -> dict[str, Any]:
    try:
        fields = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the body is not a JSON object: {error}", code="invalid_json") from None
    return {name: value for name, value in fields.items() if value is not None and name not in _OUTPUT_ONLY}


def _taken(fields: dict[str, Any], name: str, kind: type[T], where: str = "") -> T | None:
    value = fields.pop(name, None)
    return None if value is None else _checked(value, kind, where + name)


def _checked(value: Any, kind: type[T], where: str) -> T:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        text, _, below = str(error).partition(" - at `$")
        where += below.rstrip("`")
        raise BadRequest(f"{where}: {text}", param=where) from None


# --- steps ------------------------------------------------------------------------------------------------------------


def _messages(given: Any, extension: dict[str, Any]) -> tuple[Message, ...]:
    turns: list[tuple[Literal["user", "assistant"], list[Part]]] = []
    seals: dict[str, str] = {}
    names: dict[str, str] = {}
    for number, raw in enumerate(steps_of(given)):
        where = f"input[{number}]"
        step = _checked(raw, _Step, where)
        role: Literal["user", "assistant"] = "user" if step.type in ("user_input", "function_result") else "assistant"
        match step.type:
            case "user_input" | "model_output":
                contents = enumerate(step.content or ())
                parts = [_part(each, f"{where}.content[{place}]", extension) for place, each in contents]
            case "thought":
                parts = _thought(step, seals, turns[-1][1] if turns and turns[-1][0] == "assistant" else [])
            case "function_call":
                ident, name = _needed(step.id, f"{where}.id"), _needed(step.name, f"{where}.name")
                names[ident] = name
                said = msgspec.json.encode(step.arguments or {}).decode()
                parts = [ToolCallPart(ident, name, said, signature=seals.pop(ident, None))]
            case "function_result":
                ident = _needed(step.call_id, f"{where}.call_id")
                content = _result(step.result, f"{where}.result", extension)
                parts = [ToolResultPart(ident, content, step.name or names.get(ident), bool(step.is_error))]
            case _:
                extension[where] = raw  # what ran at Google
                continue
        if turns and turns[-1][0] == role:
            turns[-1][1].extend(parts)
        else:
            turns.append((role, parts))
    return tuple(Message(role, tuple(parts)) for role, parts in turns)


def _thought(step: _Step, seals: dict[str, str], before: list[Part]) -> list[Part]:
    """A thought; or the seal of a text before it, or of a call on either side: those have no place of their own."""
    text = "".join(each.text or "" for each in step.summary or ())
    sealed = unseal(step.signature)
    if sealed is None:
        return [ReasoningPart(text, step.signature, dialect=SEALER if step.signature else None)]
    if sealed.tool_call_id is not None and sealed.signature is not None:
        match before[-1] if before else None:
            case ToolCallPart(id=sealed.tool_call_id) as call:
                before[-1] = replace(call, signature=sealed.signature)
            case _:
                seals[sealed.tool_call_id] = sealed.signature
        return []
    if sealed.text and before and isinstance(before[-1], TextPart):
        before[-1] = replace(before[-1], signature=sealed.signature)
        return []
    return [ReasoningPart(text, sealed.signature, sealed.redacted, sealed.id, sealed.dialect)]


def _needed(value: str | None, where: str) -> str:
    if not value:
        raise BadRequest(f"{where} is missing", param=where)
    return value


def _part(given: _Content, where: str, extension: dict[str, Any]) -> Part:
    if given.resolution is not None:
        extension[f"{where}.resolution"] = given.resolution
    match given.type:
        case "text":
            return TextPart(given.text or "")
        case "image" | "audio" | "document" | "video" if not given.data and not given.uri:
            raise BadRequest(f"{where} needs data or uri", param=where)
        case "image":
            return ImagePart(given.mime_type, given.data, None if given.data else given.uri)
        case "audio" if given.data:
            return AudioPart((given.mime_type or "audio/wav").rpartition("/")[2], given.data)
        case "audio" | "document" | "video":
            kind = given.mime_type or ("application/pdf" if given.type == "document" else f"{given.type}/mp4")
            return FilePart(kind, data=given.data, url=None if given.data else given.uri)
    raise BadRequest(f"{where}.type {given.type!r} is not known", param=f"{where}.type")


def _result(given: Any, where: str, extension: dict[str, Any]) -> tuple[Part, ...]:
    """A text, an object of the function's own, or texts and images."""
    if isinstance(given, str):
        return (TextPart(given),)
    if isinstance(given, list):
        contents = _checked(given, list[_Content], where)
        return tuple(_part(each, f"{where}[{place}]", extension) for place, each in enumerate(contents))
    if given is None:
        raise BadRequest(f"{where} is missing", param=where)
    return (TextPart(msgspec.json.encode(given).decode()),)


# --- settings ---------------------------------------------------------------------------------------------------------


def _tools(given: list[dict[str, Any]]) -> tuple[Tool, ...]:
    tools = []
    for number, raw in enumerate(given):
        if raw.get("type") != "function":
            tools.append(Tool(str(raw.get("type")), dialect=NAME, raw=raw))  # runs at Google
            continue
        found = _checked(raw, _Function, f"tools[{number}]")
        tools.append(Tool(found.name, found.description, found.parameters))
    return tuple(tools)


def _tool_choice(given: Any, extension: dict[str, Any]) -> ToolChoice | None:
    if given is None:
        return None
    where = f"{_CONFIG}tool_choice"
    asked = _Allowed(given) if isinstance(given, str) else _checked(given, _Choice, where).allowed_tools
    allowed = tuple(asked.tools)
    match asked.mode:
        case "any":
            return ToolChoice("named", name=allowed[0]) if len(allowed) == 1 else ToolChoice("required", None, allowed)
        case "none":
            return ToolChoice("none")
        case "validated":
            extension[where] = given
            return ToolChoice("auto", None, allowed)
        case "auto":
            return ToolChoice("auto", None, allowed)
    raise BadRequest(f"{where} must be auto, any, none or validated", param=where)


def _format(fields: dict[str, Any], extension: dict[str, Any]) -> ResponseFormat | None:
    """One format, a list of one for each modality, or (as it was) a bare schema beside `response_mime_type`."""
    given = fields.pop("response_format", None)
    mime = _taken(fields, "response_mime_type", str)
    if isinstance(given, list):
        if len(given) > 1:
            extension["response_format"] = given
            return None
        given = given[0] if given else None
    if given is None:
        return ResponseFormat("json_object") if mime == "application/json" else None
    raw = _checked(given, dict[str, Any], "response_format")
    if raw.get("type") in ("audio", "image", "video"):
        extension["response_format"] = given
        return None
    if raw.get("type") != "text":
        return ResponseFormat("json_schema", schema=raw)
    asked = _checked(raw, _Format, "response_format")
    if asked.schema is not None:
        return ResponseFormat("json_schema", schema=asked.schema)
    return ResponseFormat("json_object" if asked.mime_type == "application/json" else "text")


def _reasoning(config: dict[str, Any]) -> Reasoning | None:
    level = config.pop("thinking_level", None)
    summaries = config.pop("thinking_summaries", None)
    if level is None and summaries is None:
        return None
    if level not in (None, "minimal", "low", "medium", "high"):
        where = f"{_CONFIG}thinking_level"
        raise BadRequest(f"{where} must be minimal, low, medium or high", param=where)
    return Reasoning(effort=level, summary="omitted" if summaries == "none" else "auto")
