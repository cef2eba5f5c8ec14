"""What a client asks, Chat Completions to neutral. The way back is `encode.py`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, get_args

import msgspec

from providers.dialects.openai_chat import wire
from providers.dialects.openai_common.validation import decoded, invalid
from providers.errors import BadRequest
from providers.neutral import (
    AudioPart,
    CachePoint,
    ChatRequest,
    FilePart,
    ImagePart,
    Message,
    Part,
    ReasoningPart,
    RefusalPart,
    ResponseFormat,
    TextPart,
    Tool,
    ToolCallPart,
    ToolChoice,
    ToolResultPart,
)
from providers.neutral.request import Reasoning
from providers.profiles import Effort
from providers.wire import jsonio

NAME = "openai_chat"

_request = msgspec.json.Decoder(wire.Request)
_KNOWN = frozenset(wire.Request.__struct_fields__)
_EFFORTS: frozenset[str] = frozenset(get_args(Effort))


def decode_request(body: bytes, *, model: str | None = None, stream: bool | None = None) -> ChatRequest:
    """Raises: BadRequest with `param` naming the field."""
    request = decoded(_request, body)
    name = model or request.model
    if not name:
        raise BadRequest("model is required", param="model")
    if not request.messages:
        raise BadRequest("messages must not be empty", param="messages")
    members = jsonio.split_object(body)
    extra = {key: jsonio.plain(value) for key, value in members.items() if key not in _KNOWN}
    tools, raw_tools_needed = _tools(request) if request.tools or request.functions else ((), False)
    if raw_tools_needed:
        tools = _with_raw(tools, jsonio.plain(members["tools"]))
    response_format = _response_format(request.response_format)
    if request.response_format is not None and response_format is None:
        extra["response_format"] = jsonio.plain(members["response_format"])
    reasoning = _reasoning(request.reasoning_effort, extra)
    options = request.stream_options
    if options is not None:
        others = jsonio.plain(members["stream_options"])
        others.pop("include_usage", None)
        if others:
            extra["stream_options"] = others
    return ChatRequest(
        model=name,
        messages=tuple(_messages(request.messages)),
        stream=bool(request.stream) if stream is None else stream,
        tools=tools,
        tool_choice=_tool_choice(request),
        parallel_tool_calls=request.parallel_tool_calls,
        response_format=response_format,
        reasoning=reasoning,
        max_output_tokens=(
            request.max_completion_tokens if request.max_completion_tokens is not None else request.max_tokens
        ),
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        min_p=request.min_p,
        frequency_penalty=request.frequency_penalty,
        presence_penalty=request.presence_penalty,
        repetition_penalty=request.repetition_penalty,
        logit_bias=request.logit_bias,
        seed=request.seed,
        stop=(request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ()),
        candidates=request.n or 1,
        logprobs=request.logprobs,
        top_logprobs=request.top_logprobs,
        include_usage=bool(options and options.include_usage),
        user=request.user,
        metadata=request.metadata,
        service_tier=request.service_tier,
        extensions={NAME: extra} if extra else {},
    )


def _reasoning(effort: str | None, extra: dict[str, Any]) -> Reasoning | None:
    """`reasoning_effort`, and the object `reasoning` of OpenRouter's clients and those of the Responses API, which may
    say the same. Source: OpenRouter guide "Reasoning tokens", read 2026-11."""
    if effort is None and "reasoning" not in extra:
        return None
    if effort is not None and effort not in _EFFORTS:
        extra["reasoning_effort"] = effort  # a host's own word (Groq "default")
        effort = None
    found = wire.ReasoningObject(effort=effort)  # type: ignore[arg-type]
    given = extra.get("reasoning")
    if isinstance(given, dict) and given.keys() <= set(wire.ReasoningObject.__struct_fields__):
        with suppress(msgspec.ValidationError):  # else a host's own words: it gets them as they are
            found = msgspec.convert({"effort": effort, **given}, wire.ReasoningObject)
            del extra["reasoning"]
    if found == wire.ReasoningObject():
        return None
    summary = "omitted" if found.exclude else found.summary
    return Reasoning(found.enabled, found.effort, found.max_tokens, summary)


def reasoning_parts(
    details: Iterable[wire.ReasoningDetail] | None, reasoning: Any, reasoning_content: str | None
) -> list[Part]:
    """Thinking under any of its three names. Details win: they alone carry the seal that must go back."""
    parts: list[Part] = []
    for detail in details or ():
        text = detail.text or detail.summary or ""
        if text or detail.data or detail.signature:
            parts.append(
                ReasoningPart(
                    text=text,
                    signature=detail.signature,
                    redacted=detail.data,
                    id=detail.id,
                    dialect=detail.format or NAME,
                )
            )
    if not parts:
        plain = reasoning if isinstance(reasoning, str) and reasoning else reasoning_content
        if plain:
            parts.append(ReasoningPart(text=plain, dialect=NAME))
    return parts


def thought_signature(extra_content: Any) -> str | None:
    """Gemini's seal on a tool call, where Google's OpenAI-compatible endpoint puts it."""
    google = extra_content.get("google") if isinstance(extra_content, dict) else None
    found = google.get("thought_signature") if isinstance(google, dict) else None
    return found if isinstance(found, str) else None


def image_of(url: str, detail: Any = None, cache: CachePoint | None = None, where: str = "") -> ImagePart:
    """Raises: BadRequest for a data URL that is not base64."""
    if url.startswith("data:"):
        media_type, data = data_url(url, where)
        return ImagePart(media_type=media_type, data=data, detail=detail, cache=cache)
    return ImagePart(url=url, detail=detail, cache=cache)


def data_url(url: str, where: str) -> tuple[str | None, str]:
    """Media type and base64 text of a data URL (RFC 2397)."""
    head, comma, data = url.partition(",")
    media_type, *parameters = head.removeprefix("data:").split(";")
    if not comma or "base64" not in parameters:
        raise BadRequest("a data URL must be base64", param=where or None)
    return media_type or None, data


def _messages(messages: list[wire.Message]) -> Iterable[Message]:
    """Tool messages in a row become one user message: they answer one turn together."""
    results: list[Part] = []
    legacy_ids: dict[str, str] = {}
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if isinstance(message, wire.ToolMessage):
            content = _parts(message.content, where)
            results.append(ToolResultPart(message.tool_call_id, content, name=message.name))
            continue
        if isinstance(message, wire.FunctionMessage):
            ident = legacy_ids.get(message.name, f"call_{message.name}")
            text = (TextPart(message.content),) if message.content else ()
            results.append(ToolResultPart(ident, text, name=message.name))
            continue
        if results:
            yield Message("user", tuple(results))
            results = []
        match message:
            case wire.AssistantMessage():
                yield Message("assistant", tuple(_assistant(message, number, legacy_ids)), message.name)
            case wire.SystemMessage():
                yield Message("system", _parts(message.content, where), message.name)
            case wire.DeveloperMessage():
                yield Message("developer", _parts(message.content, where), message.name)
            case wire.UserMessage():
                yield Message("user", _parts(message.content, where), message.name)
    if results:
        yield Message("user", tuple(results))


def _assistant(message: wire.AssistantMessage, number: int, legacy_ids: dict[str, str]) -> list[Part]:
    where = f"messages[{number}]"
    parts = reasoning_parts(message.reasoning_details, message.reasoning, message.reasoning_content)
    if message.content is not None:
        parts += _parts(message.content, where)
    if message.refusal:
        parts.append(RefusalPart(message.refusal))
    if message.audio is not None:
        parts.append(AudioPart(id=message.audio.id))
    for position, call in enumerate(message.tool_calls or ()):
        signature = thought_signature(call.extra_content)
        if call.function is not None:
            parts.append(ToolCallPart(call.id, call.function.name, call.function.arguments, signature=signature))
        elif call.custom is not None:
            parts.append(ToolCallPart(call.id, call.custom.name, call.custom.input, "custom", signature))
        else:
            at = f"{where}.tool_calls[{position}]"
            raise BadRequest(f"neither function nor custom in {at}", param=at)
    if message.function_call is not None:
        # The legacy form has no ids; the result names the function, so the last call of that name is meant.
        ident = f"call_{message.function_call.name}_{number}"
        legacy_ids[message.function_call.name] = ident
        parts.append(ToolCallPart(ident, message.function_call.name, message.function_call.arguments))
    return parts


_AnyContent = (
    wire.TextContent
    | wire.ImageContent
    | wire.AudioContent
    | wire.FileContent
    | wire.VideoContent
    | wire.RefusalContent
)


def _parts(content: str | Iterable[_AnyContent], where: str) -> tuple[Part, ...]:
    if isinstance(content, str):
        return (TextPart(content),) if content else ()
    return tuple(_part(part, f"{where}.content[{position}]") for position, part in enumerate(content))


def _part(part: _AnyContent, where: str) -> Part:
    match part:
        case wire.TextContent(text, cache):
            return TextPart(text, _cache(cache))
        case wire.ImageContent(image, cache):
            return image_of(image.url, image.detail, _cache(cache), f"{where}.image_url.url")
        case wire.AudioContent(audio):
            return AudioPart(format=audio.format, data=audio.data)
        case wire.FileContent(file, cache):
            return _file(file, _cache(cache), where)
        case wire.VideoContent(video):
            if video.url.startswith("data:"):
                media_type, data = data_url(video.url, f"{where}.video_url.url")
                return FilePart(media_type=media_type or "video/mp4", data=data)
            return FilePart(media_type="video/mp4", url=video.url)
        case wire.RefusalContent(refusal):
            return RefusalPart(refusal)


def _file(file: wire.FileObject, cache: CachePoint | None, where: str) -> FilePart:
    if file.file_id is not None:
        return FilePart(name=file.filename, file_id=file.file_id, cache=cache)
    if file.file_data is None:
        raise BadRequest(f"neither file_data nor file_id in {where}.file", param=f"{where}.file")
    if file.file_data.startswith("data:"):
        media_type, data = data_url(file.file_data, f"{where}.file.file_data")
        return FilePart(media_type=media_type, name=file.filename, data=data, cache=cache)
    return FilePart(media_type="application/pdf", name=file.filename, data=file.file_data, cache=cache)


def _cache(control: wire.CacheControl | None) -> CachePoint | None:
    return CachePoint(control.ttl) if control is not None else None


def _tools(request: wire.Request) -> tuple[tuple[Tool, ...], bool]:
    """Returns: the tools, and whether some are of a kind that must be kept as the client wrote them."""
    tools: list[Tool] = []
    raw_needed = False
    for position, tool in enumerate(request.tools or ()):
        if tool.type != "function":
            raw_needed = True
            tools.append(Tool(tool.type, dialect=NAME))
        elif tool.function is None:
            raise BadRequest("a function tool without function", param=f"tools[{position}].function")
        else:
            tools.append(_function(tool.function, _cache(tool.cache_control)))
    tools += [_function(function, None) for function in request.functions or ()]
    return tuple(tools), raw_needed


def _function(function: wire.FunctionDefinition, cache: CachePoint | None) -> Tool:
    return Tool(function.name, function.description, function.parameters, function.strict, cache)


def _with_raw(tools: tuple[Tool, ...], raw: list[dict[str, Any]]) -> tuple[Tool, ...]:
    return tuple(
        msgspec.structs.replace(tool, raw=raw[position], name=_raw_name(raw[position], tool.name))
        if tool.dialect is not None
        else tool
        for position, tool in enumerate(tools)
    )


def _raw_name(raw: Mapping[str, Any], kind: str) -> str:
    inner = raw.get(kind)
    name = inner.get("name") if isinstance(inner, dict) else None
    return name if isinstance(name, str) else kind


def _tool_choice(request: wire.Request) -> ToolChoice | None:
    choice = request.tool_choice if request.tool_choice is not None else request.function_call
    match choice:
        case None:
            return None
        case "auto" | "none" | "required":
            return ToolChoice(choice)
        case "any":  # Mistral's word for required
            return ToolChoice("required")
        case {"type": "allowed_tools", "allowed_tools": {"mode": "auto" | "required" as mode, "tools": list(tools)}}:
            names = tuple(_name_of_choice(tool) for tool in tools if isinstance(tool, dict))
            if len(names) == len(tools) and all(names):
                return ToolChoice(mode, allowed=tuple(name for name in names if name))
        case {"type": "function" | "custom"} if name := _name_of_choice(choice):
            return ToolChoice("named", name)
        case {"name": str(name)}:  # the legacy function_call
            return ToolChoice("named", name)
    raise invalid("Invalid value - at `$.tool_choice`")


def _name_of_choice(choice: Mapping[str, Any]) -> str | None:
    inner = choice.get(str(choice.get("type")))
    name = inner.get("name") if isinstance(inner, dict) else None
    return name if isinstance(name, str) else None


def _response_format(given: wire.ResponseFormat | None) -> ResponseFormat | None:
    match given:
        case wire.ResponseFormat("text"):
            return ResponseFormat("text")
        case wire.ResponseFormat("json_object"):
            return ResponseFormat("json_object")
        case wire.ResponseFormat("json_schema", wire.JsonSchema(name, description, schema, strict)):
            if schema is None:
                raise BadRequest("json_schema without schema", param="response_format.json_schema.schema")
            return ResponseFormat("json_schema", schema, name, description, strict)
        case wire.ResponseFormat("json_schema"):
            raise BadRequest("json_schema is missing", param="response_format.json_schema")
    return None  # absent, or an engine's own kind, which stays an extension
