"""A Converse request and the neutral form, both ways. Model and streaming are in the path, not in the body.

Source: botocore 1.44 shapes ConverseRequest and below, Converse API reference, read 2026-11.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from providers.dialects.base import Encoded
from providers.dialects.bedrock_converse import wire
from providers.dialects.bedrock_converse.content import (
    MAX_NAME_CHARS,
    NAME,
    blocks_out,
    cache_block,
    cache_in,
    parts_in,
)
from providers.dialects.bedrock_converse.models import extra_fields_in, extra_fields_out
from providers.dialects.claude import default_max_tokens, is_claude, takes_temperature_with_top_p
from providers.dialects.extras import Extras, leftovers, read, restore
from providers.dialects.losses import Losses
from providers.dialects.names import narrow_name
from providers.errors import BadRequest
from providers.neutral import ChatRequest, Message, ResponseFormat, Tool, ToolChoice

_PATH_ROOTS = frozenset(
    (
        "messages",
        "system",
        "inferenceConfig",
        "toolConfig",
        "outputConfig",
        "additionalModelRequestFields",
        "serviceTier",
    )
)
_TIERS = ("default", "priority", "flex", "reserved")


def decode_request(body: bytes, *, model: str | None = None, stream: bool | None = None) -> ChatRequest:
    """Raises: BadRequest."""
    try:
        members = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"the body is not a JSON object: {error}") from error
    request = read(members, wire.Request, "")
    if not model:
        raise BadRequest("modelId: the path names no model", param="modelId")
    if not request.messages:
        raise BadRequest("messages: at least one message is required", param="messages")
    extras: Extras = {}
    leftovers(members, wire.Request, "", extras)
    messages = []
    if request.system is not None:
        messages.append(Message("system", parts_in(request.system, "system", extras)))
    for number, message in enumerate(request.messages):
        messages.append(Message(message.role, parts_in(message.content, f"messages[{number}].content", extras)))
    config = request.inferenceConfig or wire.InferenceConfig()
    for field in ("inferenceConfig", "toolConfig", "outputConfig"):
        if isinstance(members.get(field), dict):
            leftovers(members[field], type(getattr(request, field)), field, extras)
    fields = extra_fields_in(request.additionalModelRequestFields or {}, request.outputConfig, extras)
    return ChatRequest(
        model=model,
        messages=tuple(messages),
        stream=bool(stream),
        tools=_tools_in(request.toolConfig, extras),
        tool_choice=_choice_in(request.toolConfig),
        response_format=_format_in(request.outputConfig),
        reasoning=fields.reasoning,
        max_output_tokens=config.maxTokens,
        temperature=config.temperature,
        top_p=config.topP,
        top_k=fields.top_k,
        seed=fields.seed,
        stop=tuple(config.stopSequences or ()),
        include_usage=True,  # every Converse stream tells it
        metadata=request.requestMetadata,
        service_tier=request.serviceTier.type if request.serviceTier else None,
        extensions={NAME: extras} if extras else {},
    )


def _tools_in(config: wire.ToolConfig | None, extras: Extras) -> tuple[Tool, ...]:
    tools: list[Tool] = []
    for number, raw in enumerate(config.tools if config is not None else ()):
        path = f"toolConfig.tools[{number}]"
        match raw:
            case {"toolSpec": value}:
                spec = read(value, wire.ToolSpec, f"{path}.toolSpec")
                schema = spec.inputSchema.get("json")
                if not isinstance(schema, dict):
                    where = f"{path}.toolSpec.inputSchema.json"
                    raise BadRequest(f"{where}: not a JSON schema", param=where)
                tools.append(Tool(spec.name, spec.description, schema, spec.strict))
            case {"cachePoint": value} if tools:
                tools[-1] = replace(tools[-1], cache=cache_in(value, f"{path}.cachePoint"))
            case {"systemTool": {"name": str() as name}}:
                tools.append(Tool(name, dialect=NAME, raw=raw))
            case _:
                extras[path] = raw
    return tuple(tools)


def _choice_in(config: wire.ToolConfig | None) -> ToolChoice | None:
    choice = config.toolChoice if config is not None else None
    if choice is None:
        return None
    if choice.tool is not None:
        return ToolChoice("named", choice.tool.name)
    return ToolChoice("required" if choice.any is not None else "auto")


def _format_in(config: wire.OutputConfig | None) -> ResponseFormat | None:
    found = config.textFormat.structure.jsonSchema if config and config.textFormat else None
    if found is None:
        return None
    try:
        schema = msgspec.json.decode(found.schema, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        path = "outputConfig.textFormat.structure.jsonSchema.schema"
        raise BadRequest(f"{path}: not a JSON object: {error}", param=path) from error
    return ResponseFormat("json_schema", schema, found.name, found.description)


def encode_request(request: ChatRequest, *, model: str, strict: bool = True) -> Encoded:
    """Raises: Unsupported, BadRequest."""
    losses = Losses(NAME, strict)
    leading = 0
    while leading < len(request.messages) and request.messages[leading].role in ("system", "developer"):
        leading += 1
    body: dict[str, Any] = {}
    system = [part for message in request.messages[:leading] for part in message.content]
    if system:
        body["system"] = blocks_out(system, "system", losses)
    messages = _messages_out(request.messages[leading:], losses)
    body["messages"] = messages
    _inference_out(request, model, body, losses)
    _tools_out(request, body, losses)
    _format_out(request, body, losses)
    extra_fields_out(request, model, body, losses)
    if request.service_tier is not None and request.service_tier != "auto":
        if request.service_tier in _TIERS:
            body["serviceTier"] = {"type": request.service_tier}
        else:
            losses.drop("service_tier")
    if request.metadata:
        body["requestMetadata"] = dict(request.metadata)
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
    """The same question, put to `/model/{id}/count-tokens`."""
    encoded = encode_request(request, model=model, strict=strict)
    counted = ("messages", "system", "toolConfig", "additionalModelRequestFields", "outputConfig")
    converse = {name: encoded.body[name] for name in counted if name in encoded.body}
    return Encoded({"input": {"converse": converse}}, encoded.dropped)


def decode_token_count(body: bytes) -> int:
    """Raises: BadRequest."""
    try:
        return msgspec.json.decode(body, type=dict[str, int])["inputTokens"]
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError) as error:
        raise BadRequest("not a token count") from error


def _messages_out(messages: Sequence[Message], losses: Losses) -> list[dict[str, Any]]:
    """Roles must alternate there, so neighbours of one role become one message."""
    out: list[dict[str, Any]] = []
    for number, message in enumerate(messages):
        if message.name is not None:
            losses.drop(f"messages[{number}].name")
        role = "system" if message.role == "developer" else message.role
        content = blocks_out(message.content, f"messages[{number}].content", losses)
        if out and out[-1]["role"] == role:
            out[-1]["content"] += content
        else:
            out.append({"role": role, "content": content})
    return out


def _inference_out(request: ChatRequest, model: str, body: dict[str, Any], losses: Losses) -> None:
    config: dict[str, Any] = {}
    limit = request.max_output_tokens
    if limit is None and is_claude(model):
        # Quota is reserved for the limit from the start, and without one for the model's maximum.
        limit = default_max_tokens(model)
    if limit == 0:
        losses.refuse("max_tokens of 0")  # Anthropic's way to warm a cache; here the least is 1
    elif limit is not None:
        config["maxTokens"] = limit
    if request.temperature is not None:
        if request.temperature > 1:
            losses.drop("temperature above 1")
        config["temperature"] = min(request.temperature, 1)
    if request.top_p is not None:
        if request.temperature is None or not is_claude(model) or takes_temperature_with_top_p(model):
            config["topP"] = request.top_p
        elif request.top_p != 1:
            losses.drop("top_p with temperature")
    if request.stop:
        config["stopSequences"] = list(request.stop)
    if config:
        body["inferenceConfig"] = config
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
    "logprobs": (False,),
    "top_logprobs": (0,),
}


def _tools_out(request: ChatRequest, body: dict[str, Any], losses: Losses) -> None:
    """A choice of "none" does not exist: tools are left out then, unless the history holds calls, which are refused
    where no tool is declared."""
    choice = request.tool_choice
    called = _called(body["messages"])
    forbidden = choice is not None and choice.mode == "none"
    tools: list[dict[str, Any]] = []
    for tool in request.tools if called or not forbidden else ():
        if choice is not None and choice.allowed and tool.name not in choice.allowed:
            continue  # Converse cannot narrow a list, so it is sent the narrow one
        tools += _tool_out(tool, losses)
    if not tools and called:
        losses.tell("tools: those of the history are declared again")
        tools = [{"toolSpec": {"name": name, "inputSchema": {"json": {"type": "object"}}}} for name in called]
    if not tools:
        return
    config: dict[str, Any] = {"tools": tools}
    if forbidden:
        losses.drop("tool_choice none with tool calls in the history")
    elif choice is not None:
        match choice.mode:
            case "named":
                config["toolChoice"] = {"tool": {"name": narrow_name(choice.name or "", MAX_NAME_CHARS) or choice.name}}
            case "required":
                config["toolChoice"] = {"any": {}}
            case _:
                config["toolChoice"] = {"auto": {}}
    if request.parallel_tool_calls is False and not forbidden:
        losses.drop("parallel_tool_calls")
    body["toolConfig"] = config


def _called(messages: Sequence[dict[str, Any]]) -> list[str]:
    """Names of the tools that the history calls; a result alone counts as a call of some tool."""
    names: dict[str, None] = {}
    results = False
    for message in messages:
        for block in message["content"]:
            if "toolUse" in block:
                names[block["toolUse"]["name"]] = None
            results = results or "toolResult" in block
    return list(names) or (["tool"] if results else [])


def _tool_out(tool: Tool, losses: Losses) -> list[dict[str, Any]]:
    if tool.dialect == NAME:
        return [dict(tool.raw)]
    name = narrow_name(tool.name, MAX_NAME_CHARS)
    if tool.dialect is not None or name is None:
        losses.refuse(f"tool {tool.name[:200]!r}")
        return []
    schema = dict(tool.parameters or {})
    schema.setdefault("type", "object")
    spec: dict[str, Any] = {"name": name, "inputSchema": {"json": schema}}
    if tool.description:
        spec["description"] = tool.description
    if tool.strict is not None:
        spec["strict"] = tool.strict
    return [{"toolSpec": spec}] + ([cache_block(tool.cache)] if tool.cache is not None else [])


def _format_out(request: ChatRequest, body: dict[str, Any], losses: Losses) -> None:
    wanted = request.response_format
    if wanted is None or wanted.kind == "text":
        return
    if wanted.kind != "json_schema" or wanted.schema is None:
        losses.drop("response_format json_object")
        return
    schema: dict[str, Any] = {"schema": msgspec.json.encode(wanted.schema).decode()}
    if wanted.name is not None:
        schema["name"] = wanted.name
    if wanted.description is not None:
        schema["description"] = wanted.description
    body["outputConfig"] = {"textFormat": {"type": "json_schema", "structure": {"jsonSchema": schema}}}
