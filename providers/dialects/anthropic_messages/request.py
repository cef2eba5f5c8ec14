"""A Messages request and the neutral form, both ways.

Source: anthropic-python 2.12 `types/message_create_params.py`, "Messages" reference, read 2026-11. The SDK no longer
offers temperature, top_p and top_k; the API and older SDKs still do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from providers.dialects.anthropic_messages import wire
from providers.dialects.anthropic_messages.content import (
    MAX_NAME_CHARS,
    NAME,
    blocks_out,
    cache_in,
    cache_out,
    parts_in,
)
from providers.dialects.anthropic_messages.thinking import reasoning_in, thinking_out
from providers.dialects.base import Encoded
from providers.dialects.claude import SEALED_FOR_CLAUDE, default_max_tokens, takes_temperature_with_top_p
from providers.dialects.extras import Extras, leftovers, read, restore
from providers.dialects.losses import Losses
from providers.dialects.names import narrow_name
from providers.errors import BadRequest
from providers.neutral import (
    CachePoint,
    ChatRequest,
    FilePart,
    ImagePart,
    Message,
    ReasoningPart,
    ResponseFormat,
    TextPart,
    Tool,
    ToolCallPart,
    ToolChoice,
    ToolResultPart,
)

# Of the envelope, not of the question: Bedrock and Vertex bodies carry as members what the API has as headers.
_ENVELOPE = ("anthropic_version", "anthropic_beta")
_PATH_ROOTS = frozenset(("messages", "system", "tools", "tool_choice", "thinking", "output_config", "metadata"))
_TIER_IN = {"standard_only": "default"}
_TIER_OUT = {"auto": "auto", "priority": "auto", "default": "standard_only", "standard_only": "standard_only"}


def decode_request(body: bytes, *, model: str | None = None, stream: bool | None = None) -> ChatRequest:
    """Raises: BadRequest."""
    members, request = _read(body)
    if request.max_tokens is None:
        raise BadRequest("max_tokens: Field required", param="max_tokens")
    return _neutral(members, request, model, bool(request.stream) if stream is None else stream)


def decode_count_request(body: bytes, *, model: str | None = None) -> ChatRequest:
    """The body of `/v1/messages/count_tokens`, which is a request without a limit. Raises: BadRequest."""
    members, request = _read(body)
    return _neutral(members, request, model, stream=False)


def _read(body: bytes) -> tuple[dict[str, Any], wire.Request]:
    try:
        members = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"the body is not a JSON object: {error}") from error
    for name in _ENVELOPE:
        members.pop(name, None)
    return members, read(members, wire.Request, "")


def _neutral(members: dict[str, Any], request: wire.Request, model: str | None, stream: bool) -> ChatRequest:
    name = model if model is not None else request.model
    if not name:
        raise BadRequest("model: Field required", param="model")
    _check(request)
    extras: Extras = {}
    leftovers(members, wire.Request, "", extras)
    messages = []
    if request.system is not None:
        messages.append(Message("system", parts_in(request.system, "system", extras)))
    for number, message in enumerate(request.messages):
        path = f"messages[{number}]"
        leftovers(members["messages"][number], wire.Message, path, extras)
        messages.append(Message(message.role, parts_in(message.content, f"{path}.content", extras)))
    if request.cache_control is not None and not _mark_last(messages, cache_in(request.cache_control)):
        extras["cache_control"] = members["cache_control"]
    for field in ("tool_choice", "metadata", "output_config"):
        if isinstance(members.get(field), dict):
            leftovers(members[field], type(getattr(request, field)), field, extras)
    choice, config = request.tool_choice, request.output_config
    parallel = None
    if choice is not None and choice.disable_parallel_tool_use is not None:
        parallel = not choice.disable_parallel_tool_use
    tier = request.service_tier
    return ChatRequest(
        model=name,
        messages=tuple(messages),
        stream=stream,
        tools=tuple(_tool_in(tool, f"tools[{i}]", extras) for i, tool in enumerate(request.tools or ())),
        tool_choice=_choice_in(choice),
        parallel_tool_calls=parallel,
        response_format=ResponseFormat("json_schema", config.format.schema) if config and config.format else None,
        reasoning=reasoning_in(request, members, extras),
        max_output_tokens=request.max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        stop=tuple(request.stop_sequences or ()),
        include_usage=True,  # every Anthropic stream tells it
        user=request.metadata.user_id if request.metadata else None,
        service_tier=_TIER_IN.get(tier, tier) if tier is not None else None,
        extensions={NAME: extras} if extras else {},
    )


def _check(request: wire.Request) -> None:
    """Raises: BadRequest for values that no target could make sense of."""
    if not request.messages:
        raise BadRequest("messages: at least one message is required", param="messages")
    if request.max_tokens is not None and request.max_tokens < 0:
        raise BadRequest("max_tokens: must be at least 0", param="max_tokens")
    for name in ("temperature", "top_p"):
        value = getattr(request, name)
        if value is not None and not 0 <= value <= 1:
            raise BadRequest(f"{name}: must be between 0 and 1", param=name)


def _mark_last(messages: list[Message], cache: CachePoint | None) -> bool:
    """Top-level cache_control marks the last block that can be cached. Returns: whether there was one."""
    if not messages:
        return False
    last = messages[-1]
    for at in range(len(last.content) - 1, -1, -1):
        part = last.content[at]
        if isinstance(part, TextPart | ImagePart | FilePart | ToolCallPart | ToolResultPart):
            if part.cache is None:
                content = (*last.content[:at], replace(part, cache=cache), *last.content[at + 1 :])
                messages[-1] = replace(last, content=content)
            return True
    return False


def _tool_in(raw: wire.Block, path: str, extras: Extras) -> Tool:
    kind = raw.get("type")
    if kind not in (None, "custom"):
        if not isinstance(kind, str):
            raise BadRequest(f"{path}.type: not a string", param=f"{path}.type")
        name = raw.get("name")
        return Tool(name if isinstance(name, str) else kind, dialect=NAME, raw=raw)
    tool = read(raw, wire.Tool, path)
    leftovers(raw, wire.Tool, path, extras)
    return Tool(tool.name, tool.description, tool.input_schema, tool.strict, cache_in(tool.cache_control))


def _choice_in(choice: wire.ToolChoice | None) -> ToolChoice | None:
    match choice:
        case None:
            return None
        case wire.ToolChoice(type="any"):
            return ToolChoice("required")
        case wire.ToolChoice(type="tool", name=name):
            if not name:
                raise BadRequest("tool_choice.name: Field required", param="tool_choice.name")
            return ToolChoice("named", name)
        case wire.ToolChoice(type="none"):
            return ToolChoice("none")
        case _:
            return ToolChoice("auto")


def encode_request(request: ChatRequest, *, model: str, strict: bool = True) -> Encoded:
    """Raises: Unsupported, BadRequest."""
    losses = Losses(NAME, strict)
    leading = 0
    while leading < len(request.messages) and request.messages[leading].role in ("system", "developer"):
        leading += 1
    body: dict[str, Any] = {"model": model, "max_tokens": _max_tokens(request, model)}
    system = [part for message in request.messages[:leading] for part in message.content]
    if system:
        body["system"] = blocks_out(system, "system", losses)
    messages = _messages_out(request.messages[leading:], losses)
    body["messages"] = messages
    _tools_out(request, body, losses)
    _output_out(request, body, losses)
    thinking_out(request, model, body, losses)
    _sampling_out(request, model, body, losses)
    if request.stream:
        body["stream"] = True
    if request.user is not None:
        body["metadata"] = {"user_id": request.user}
    if request.service_tier is not None:
        if (tier := _TIER_OUT.get(request.service_tier)) is not None:
            body["service_tier"] = tier
        else:
            losses.drop("service_tier")
    for dialect, fields in request.extensions.items():
        if dialect == NAME:
            restore(body, fields, _PATH_ROOTS, losses)
        else:
            for name in fields:
                losses.drop(name)
    # Empty content is refused there; a message may have held nothing but what was left out.
    body["messages"] = [message for message in messages if message["content"]]
    if not body.get("system", True):
        del body["system"]
    return Encoded(body, losses.settle())


def encode_count_request(request: ChatRequest, *, model: str, strict: bool = True) -> Encoded:
    """The same question, put to `/v1/messages/count_tokens`."""
    encoded = encode_request(request, model=model, strict=strict)
    counted = ("model", "messages", "system", "tools", "tool_choice", "thinking", "output_config", "cache_control")
    return Encoded({name: encoded.body[name] for name in counted if name in encoded.body}, encoded.dropped)


def decode_token_count(body: bytes) -> int:
    """Raises: BadRequest."""
    try:
        return msgspec.json.decode(body, type=dict[str, int])["input_tokens"]
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError) as error:
        raise BadRequest("not a token count") from error


def encode_token_count(input_tokens: int) -> bytes:
    return msgspec.json.encode({"input_tokens": input_tokens})


def carries_foreign_seals(request: ChatRequest) -> bool:
    """A client kept another model's signatures for us (see `dialects.sealed`): bytes that Anthropic would refuse, so
    such a request is encoded anew in place of being forwarded."""
    for message in request.messages:
        if message.role != "assistant":
            continue
        for part in message.content:
            match part:
                case ReasoningPart():
                    if part.dialect not in SEALED_FOR_CLAUDE or (part.signature is None and part.redacted is None):
                        return True
                case ToolCallPart(signature=str()):
                    return True
    return False


def _max_tokens(request: ChatRequest, model: str) -> int:
    limit = request.max_output_tokens
    return limit if limit is not None else default_max_tokens(model)


def _messages_out(messages: Sequence[Message], losses: Losses) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for number, message in enumerate(messages):
        if message.name is not None:
            losses.drop(f"messages[{number}].name")
        role = "system" if message.role == "developer" else message.role
        content = blocks_out(message.content, f"messages[{number}].content", losses)
        if out and role == "user" and out[-1]["role"] == "user" and _answers_tools(out[-1]["content"]):
            # All results of parallel calls must stand in the one message that follows them.
            out[-1]["content"] += content
        else:
            out.append({"role": role, "content": content})
    return out


def _answers_tools(content: Sequence[wire.Block]) -> bool:
    return any(block["type"] == "tool_result" for block in content)


def _tools_out(request: ChatRequest, body: dict[str, Any], losses: Losses) -> None:
    choice = request.tool_choice
    tools = []
    for tool in request.tools:
        if choice is not None and choice.allowed and tool.name not in choice.allowed:
            continue  # Anthropic cannot narrow a list, so it is sent the narrow one
        if (encoded := _tool_out(tool, losses)) is not None:
            tools.append(encoded)
    if tools:
        body["tools"] = tools
    named = choice.name if choice is not None else None
    if choice is not None and (tools or choice.mode == "none"):
        match choice.mode:
            case "named":
                body["tool_choice"] = {"type": "tool", "name": narrow_name(named or "", MAX_NAME_CHARS) or named}
            case "required":
                body["tool_choice"] = {"type": "any"}
            case mode:
                body["tool_choice"] = {"type": mode}
    if request.parallel_tool_calls is not None and tools and (choice is None or choice.mode != "none"):
        if "tool_choice" in body:
            body["tool_choice"]["disable_parallel_tool_use"] = not request.parallel_tool_calls
        elif not request.parallel_tool_calls:
            body["tool_choice"] = {"type": "auto", "disable_parallel_tool_use": True}


def _tool_out(tool: Tool, losses: Losses) -> dict[str, Any] | None:
    if tool.dialect == NAME:
        return dict(tool.raw)
    name = narrow_name(tool.name, MAX_NAME_CHARS)
    if tool.dialect is not None or name is None:
        losses.refuse(f"tool {tool.name[:200]!r}")
        return None
    schema = dict(tool.parameters or {})
    schema.setdefault("type", "object")
    encoded: dict[str, Any] = {"name": name, "input_schema": schema}
    if tool.description is not None:
        encoded["description"] = tool.description
    if tool.strict is not None:
        encoded["strict"] = tool.strict
    return encoded | cache_out(tool.cache)


def _output_out(request: ChatRequest, body: dict[str, Any], losses: Losses) -> None:
    wanted = request.response_format
    if wanted is None or wanted.kind == "text":
        return
    if wanted.kind == "json_schema" and wanted.schema is not None:
        body["output_config"] = {"format": {"type": "json_schema", "schema": dict(wanted.schema)}}
    else:
        losses.drop("response_format json_object")


def _sampling_out(request: ChatRequest, model: str, body: dict[str, Any], losses: Losses) -> None:
    if request.temperature is not None:
        if request.temperature > 1:
            losses.drop("temperature above 1")
        body["temperature"] = min(request.temperature, 1)
    if request.top_p is not None:
        if request.temperature is None or takes_temperature_with_top_p(model):
            body["top_p"] = request.top_p
        elif request.top_p != 1:
            losses.drop("top_p with temperature")
    if request.top_k is not None:
        body["top_k"] = request.top_k
    if request.stop:
        body["stop_sequences"] = list(request.stop)
    thinks = body.get("thinking", {}).get("type") in ("enabled", "adaptive")
    if thinks:
        for name, harmless in (("temperature", (1, 1.0)), ("top_k", ())):
            if name in body and body[name] not in harmless:
                losses.drop(f"{name} with reasoning")
                del body[name]
    if request.candidates != 1:
        losses.refuse("n")
    for name, harmless in UNSAYABLE.items():
        value = getattr(request, name)
        if value is not None and value not in harmless:
            losses.drop(name)


# Knobs without a counterpart, each with the values that mean the same as leaving it out.
UNSAYABLE: dict[str, tuple[Any, ...]] = {
    "min_p": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "seed": (),
    "logprobs": (False,),
    "top_logprobs": (0,),
}
