"""What a client asks, neutral to Chat Completions. The way in is `request.py`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from providers.dialects.base import Encoded
from providers.dialects.openai_chat.request import NAME
from providers.errors import Unsupported
from providers.neutral import (
    AudioPart,
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
from providers.profiles import effort_for

_SAME_NAME = (
    "parallel_tool_calls",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "logit_bias",
    "seed",
    "logprobs",
    "top_logprobs",
    "user",
    "metadata",
    "service_tier",
)


class _Losses:
    """What this dialect cannot say. `hint` is dropped whatever the mode: it never changes an answer."""

    def __init__(self) -> None:
        self.droppable: dict[str, None] = {}
        self.hints: dict[str, None] = {}
        self.fatal: dict[str, None] = {}

    def drop(self, feature: str) -> None:
        self.droppable[feature] = None

    def hint(self, feature: str) -> None:
        self.hints[feature] = None

    def refuse(self, feature: str) -> None:
        self.fatal[feature] = None


def encode_request(request: ChatRequest, *, model: str, strict: bool = True) -> Encoded:
    """Output limit goes by `max_completion_tokens`; adapters of older engines rename it.

    A stream always asks for usage: without it nobody could be billed.
    Raises: Unsupported."""
    losses = _Losses()
    body: dict[str, Any] = {"model": model, "messages": _messages(request.messages, losses)}
    if request.stream:
        options = dict(request.extensions.get(NAME, {}).get("stream_options") or {})
        body["stream"] = True
        body["stream_options"] = {**options, "include_usage": True}
    for name in _SAME_NAME:
        value = getattr(request, name)
        if value is not None:
            body[name] = value
    if request.max_output_tokens is not None:
        body["max_completion_tokens"] = request.max_output_tokens
    if request.stop:
        body["stop"] = list(request.stop)
    if request.candidates != 1:
        body["n"] = request.candidates
    if request.tools:
        body["tools"] = [encoded for tool in request.tools if (encoded := _tool(tool, losses)) is not None]
    if request.tool_choice is not None:
        body["tool_choice"] = _tool_choice(request.tool_choice, request.tools)
    if request.response_format is not None:
        body["response_format"] = _response_format(request.response_format)
    _reasoning(request, body, losses)
    for dialect, fields in request.extensions.items():
        for name, value in fields.items():
            if dialect != NAME:
                losses.drop(name)
            elif name != "stream_options":
                body[name] = value
    refused = (*losses.fatal, *losses.droppable) if strict else tuple(losses.fatal)
    if refused:
        raise Unsupported(refused, NAME)
    return Encoded(body, (*losses.hints, *losses.droppable))


def _reasoning(request: ChatRequest, body: dict[str, Any], losses: _Losses) -> None:
    reasoning = request.reasoning
    if reasoning is None:
        return
    if reasoning.effort is not None:
        body["reasoning_effort"] = reasoning.effort
    elif reasoning.budget_tokens is not None:
        body["reasoning_effort"] = effort_for(reasoning.budget_tokens)
    elif reasoning.enabled is False:
        body["reasoning_effort"] = "none"
    if reasoning.summary is not None:
        losses.hint("reasoning.summary")


def _messages(messages: Iterable[Message], losses: _Losses) -> list[dict[str, Any]]:
    encoded: list[dict[str, Any]] = []
    for message in messages:
        match message.role:
            case "assistant":
                encoded.append(_assistant(message, losses))
            case "user":
                encoded += _user(message, losses)
            case role:
                encoded.append(_named({"role": role, "content": _content(message.content, losses)}, message))
    return encoded


def _user(message: Message, losses: _Losses) -> Iterable[dict[str, Any]]:
    """Tool results come first, each a message of its own: the protocol wants them right behind the call.

    A `tool` message holds text alone, so pictures and files that a tool answered with follow in the user's name."""
    results = [part for part in message.content if isinstance(part, ToolResultPart)]
    rest: list[Part] = []
    for result in results:
        texts = [part.text for part in result.content if isinstance(part, TextPart)]
        rest += [part for part in result.content if not isinstance(part, TextPart)]
        if result.is_error:
            losses.hint("tool_result.is_error")
        if result.cache is not None or any(isinstance(p, TextPart) and p.cache is not None for p in result.content):
            losses.hint("cache_control")
        yield {"role": "tool", "tool_call_id": result.tool_call_id, "content": "\n".join(texts)}
    rest += [part for part in message.content if not isinstance(part, ToolResultPart)]
    if rest or not results:
        yield _named({"role": "user", "content": _content(rest, losses)}, message)


def _assistant(message: Message, losses: _Losses) -> dict[str, Any]:
    encoded = _named({"role": "assistant"}, message)
    texts: list[Part] = []
    calls: list[dict[str, Any]] = []
    thoughts: list[str] = []
    for part in message.content:
        match part:
            case ToolCallPart(id_, name, arguments, kind, signature, cache):
                if kind == "server":
                    losses.hint("server_tool_call")  # it ran elsewhere; its result is in the text that follows
                    continue
                if signature is not None:
                    losses.hint("thought_signature")
                if cache is not None:
                    losses.hint("cache_control")
                inner = {"name": name, "input" if kind == "custom" else "arguments": arguments}
                calls.append({"id": id_, "type": kind, kind: inner})
            case ReasoningPart(text, dialect=dialect):
                if dialect == NAME:
                    thoughts.append(text)  # the client wrote it in this dialect, for an engine that wants it back
                else:
                    losses.hint("reasoning")
            case AudioPart(id=str(id_)):
                encoded["audio"] = {"id": id_}
            case ToolResultPart():
                losses.hint("server_tool_result")
            case TextPart() | RefusalPart():
                texts.append(part)
            case _:
                losses.refuse(f"assistant {_kind(part)}")
    if texts or not (calls or "audio" in encoded):
        encoded["content"] = _content(texts, losses)
    else:
        encoded["content"] = None
    if thoughts:
        encoded["reasoning_content"] = "".join(thoughts)
    if calls:
        encoded["tool_calls"] = calls
    return encoded


def _content(parts: Iterable[Part], losses: _Losses) -> str | list[dict[str, Any]]:
    """One text stays a string: some engines' templates take nothing else."""
    encoded = [found for part in parts if (found := _part(part, losses)) is not None]
    if not encoded:
        return ""
    if len(encoded) == 1 and encoded[0]["type"] == "text":
        text: str = encoded[0]["text"]
        return text
    return encoded


def _part(part: Part, losses: _Losses) -> dict[str, Any] | None:
    if getattr(part, "cache", None) is not None:
        losses.hint("cache_control")  # caching is automatic here
    match part:
        case TextPart(text):
            return {"type": "text", "text": text}
        case RefusalPart(text):
            return {"type": "refusal", "refusal": text}
        case ImagePart(media_type, data, url, detail):
            image: dict[str, Any] = {"url": url if data is None else f"data:{media_type or 'image/png'};base64,{data}"}
            if detail is not None:
                image["detail"] = detail
            return {"type": "image_url", "image_url": image}
        case AudioPart(format_, data) if data is not None:
            return {"type": "input_audio", "input_audio": {"data": data, "format": format_ or "wav"}}
        case FilePart():
            return _file(part, losses)
        case ReasoningPart():
            losses.hint("reasoning")
            return None
    losses.refuse(f"{_kind(part)} in this place")
    return None


def _file(file: FilePart, losses: _Losses) -> dict[str, Any] | None:
    if file.media_type is not None and file.media_type.startswith("video/"):
        url = file.url if file.data is None else f"data:{file.media_type};base64,{file.data}"
        if url is None:
            losses.refuse("video by file id")
            return None
        return {"type": "video_url", "video_url": {"url": url}}
    if file.text is not None:
        return {"type": "text", "text": file.text}
    if file.file_id is not None:
        return {"type": "file", "file": {"file_id": file.file_id}}
    if file.data is None:
        losses.refuse("file by URL")
        return None
    data = f"data:{file.media_type or 'application/pdf'};base64,{file.data}"
    return {"type": "file", "file": {"file_data": data, "filename": file.name or "file"}}


def _tool(tool: Tool, losses: _Losses) -> Any:
    if tool.cache is not None:
        losses.hint("cache_control")
    if tool.dialect == NAME:
        return tool.raw
    if tool.dialect is not None:
        losses.refuse(f"tool {tool.name}")
        return None
    function: dict[str, Any] = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.parameters is not None:
        function["parameters"] = tool.parameters
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _tool_choice(choice: ToolChoice, tools: Iterable[Tool]) -> Any:
    if choice.mode == "named":
        assert choice.name is not None
        return _choice_of(choice.name, tools)
    if choice.allowed:
        allowed = [_choice_of(name, tools) for name in choice.allowed]
        return {"type": "allowed_tools", "allowed_tools": {"mode": choice.mode, "tools": allowed}}
    return choice.mode


def _choice_of(name: str, tools: Iterable[Tool]) -> dict[str, Any]:
    custom = any(
        tool.name == name and isinstance(tool.raw, Mapping) and tool.raw.get("type") == "custom" for tool in tools
    )
    kind = "custom" if custom else "function"
    return {"type": kind, kind: {"name": name}}


def _response_format(wanted: ResponseFormat) -> dict[str, Any]:
    if wanted.kind != "json_schema":
        return {"type": wanted.kind}
    schema: dict[str, Any] = {"name": wanted.name or "answer", "schema": wanted.schema}
    if wanted.description is not None:
        schema["description"] = wanted.description
    if wanted.strict is not None:
        schema["strict"] = wanted.strict
    return {"type": "json_schema", "json_schema": schema}


def _named(encoded: dict[str, Any], message: Message) -> dict[str, Any]:
    if message.name is not None:
        encoded["name"] = message.name
    return encoded


def _kind(part: Part) -> str:
    return type(part).__name__.removesuffix("Part").lower()
