"""A Responses request to a ChatRequest and back.

What belongs to the API's server-side state (`store`, `previous_response_id`, ...) and every field without a neutral
meaning travels in `extensions["openai_responses"]`; which of them another dialect may go without is told in `hints`.
Source: OpenAI API reference "Create a model response", types of openai-python 3.54, read 2026-11.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeVar

import msgspec
from msgspec.structs import replace

from providers.dialects.base import Encoded
from providers.dialects.losses import Losses
from providers.dialects.openai_responses import wire
from providers.dialects.openai_responses.items import CUSTOM_PARAMETERS, RawItem, items_out, messages_in, sent_name
from providers.errors import BadRequest
from providers.neutral import ChatRequest, Message, ResponseFormat, TextPart, Tool, ToolChoice
from providers.neutral.request import Reasoning
from providers.profiles import effort_for

T = TypeVar("T")

# Fields of the extension that hold input items only this dialect knows, by item type.
RAW_ITEMS: Final = "input."
# Fields of function tools that have no neutral form, each a mapping of tool name to value.
TOOL_FIELDS: Final = "tools."

_SPACE: Final = f"{wire.NAME}.namespace"  # in `Tool.raw`: the whole namespace that a tool came in
_SPACE_FIELD: Final = f"{TOOL_FIELDS}namespace"
_TOOL_PLAIN: Final = frozenset({"type", "name", "description", "parameters", "strict"})
_LOGPROBS: Final = "message.output_text.logprobs"
_SEALED: Final = "reasoning.encrypted_content"


# --- in ---------------------------------------------------------------------------------------------------------------


class _Text(msgspec.Struct):
    format: dict[str, Any] | None = None
    verbosity: str | None = None


class _Format(msgspec.Struct):
    type: str = "text"
    name: str | None = None
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class _Reasoning(msgspec.Struct):
    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None


class _Namespace(msgspec.Struct):
    name: str
    description: str | None = None
    tools: list[dict[str, Any]] = []


class _FunctionTool(msgspec.Struct):
    name: str
    type: str = "function"
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


def decode_request(body: bytes, *, model: str | None = None, stream: bool | None = None) -> ChatRequest:
    """Raises: BadRequest naming the field."""
    try:
        fields = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the body is not a JSON object: {error}") from None
    fields = {key: value for key, value in fields.items() if value is not None}
    take = _Taker(fields)
    alias = model if model is not None else take("model", str)
    fields.pop("model", None)
    if not alias:
        raise BadRequest("model is missing", param="model")
    extension: dict[str, Any] = {}
    messages = _messages_in(take, fields, extension)
    top_logprobs = take("top_logprobs", int)
    include = take("include", list[str]) or []
    wants_logprobs = True if _LOGPROBS in include or top_logprobs else None
    if rest := [entry for entry in include if entry != _LOGPROBS]:
        extension["include"] = rest
    text = take("text", _Text)
    if text is not None and text.verbosity is not None:
        extension["text.verbosity"] = text.verbosity
    request = ChatRequest(
        model=alias,
        messages=messages,
        stream=bool(take("stream", bool)) if stream is None else stream,
        tools=_tools_in(take("tools", list[dict[str, Any]]) or [], extension),
        tool_choice=_tool_choice_in(fields.pop("tool_choice", None), extension),
        parallel_tool_calls=take("parallel_tool_calls", bool),
        response_format=_format_in(text),
        reasoning=_reasoning_in(fields.pop("reasoning", None), extension),
        max_output_tokens=take("max_output_tokens", int),
        temperature=take("temperature", float),
        top_p=take("top_p", float),
        logprobs=wants_logprobs,
        top_logprobs=top_logprobs,
        include_usage=True,  # the terminal event always carries it
        user=take("user", str),
        metadata=take("metadata", dict[str, str]),
        service_tier=take("service_tier", str),
    )
    fields.pop("stream", None)
    extension |= fields
    return replace(request, extensions={wire.NAME: extension}) if extension else request


class _Taker:
    """Removes a field from the body and checks its type."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self._fields = fields

    def __call__(self, name: str, kind: type[T]) -> T | None:
        value = self._fields.pop(name, None)
        return None if value is None else _checked(value, kind, name)


def _checked(value: Any, kind: type[T], where: str) -> T:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise BadRequest(f"{where}: {error}", param=where) from None


def _messages_in(take: _Taker, fields: dict[str, Any], extension: dict[str, Any]) -> tuple[Message, ...]:
    instructions = take("instructions", str)
    leading = (Message("system", (TextPart(instructions),)),) if instructions else ()
    given = fields.pop("input", None)
    if isinstance(given, str):
        return (*leading, Message("user", (TextPart(given),)))
    if given is None and not any(key in fields for key in ("previous_response_id", "prompt", "conversation")):
        raise BadRequest("input is missing", param="input")
    if given is not None and not isinstance(given, list):
        raise BadRequest("input must be a string or a list of items", param="input")
    messages, raw = messages_in(given or [])
    for kind, entries in raw.items():
        # Anchored behind the instructions, which are a part of their own here.
        extension[RAW_ITEMS + kind] = [RawItem(entry.at + len(leading), entry.item) for entry in entries]
    return leading + messages


def _tools_in(tools: list[dict[str, Any]], extension: dict[str, Any]) -> tuple[Tool, ...]:
    found: list[Tool] = []
    for number, given in enumerate(tools):
        where = f"tools[{number}]"
        kind = given.get("type", "function")
        if kind in ("function", "custom"):
            found.append(_tool_in(given, where, extension))
        elif kind == "namespace":
            found += _namespace_in(given, where, extension)
        else:
            found.append(
                Tool(str(given.get("name") or given.get("server_label") or kind), dialect=wire.NAME, raw=given)
            )
    return tuple(found)


def _tool_in(given: dict[str, Any], where: str, extension: dict[str, Any], space: str = "") -> Tool:
    """space: what stands before its name, for a tool of a namespace."""
    if given.get("type") == "custom":
        tool = _checked({key: given.get(key) for key in ("name", "description")}, _FunctionTool, where)
        description = _custom_description(tool.description, given.get("format"))
        # Without `dialect`, so that others take it for the function that it also is; `raw` lets us give it back.
        return Tool(space + tool.name, description, CUSTOM_PARAMETERS, raw={wire.NAME: given})
    tool = _checked(given, _FunctionTool, where)
    for key in given.keys() - _TOOL_PLAIN:
        if given[key] is not None:
            extension.setdefault(TOOL_FIELDS + key, {})[space + tool.name] = given[key]
    return Tool(space + tool.name, tool.description, tool.parameters, tool.strict)


def _namespace_in(given: dict[str, Any], where: str, extension: dict[str, Any]) -> Iterator[Tool]:
    """Functions under one roof (Codex: `multi_agent_v1`). To others they are functions with both names in one, and
    the roof's own description is told as left out."""
    space = _checked(given, _Namespace, where)
    for number, inner in enumerate(space.tools):
        if inner.get("type", "function") not in ("function", "custom"):
            raise BadRequest(f"{where}.tools[{number}].type is not known", param=f"{where}.tools[{number}].type")
        tool = _tool_in(inner, f"{where}.tools[{number}]", extension, f"{space.name}__")
        if space.description:
            extension.setdefault(_SPACE_FIELD, {})[tool.name] = space.description
        yield replace(tool, raw={**(tool.raw or {}), _SPACE: given})


def namespaced(request: ChatRequest) -> Mapping[str, tuple[str, str]]:
    """Namespace and name there of each tool that came in one, by its neutral name."""
    found = {}
    for tool in request.tools:
        if (space := _space_of(tool)) is not None:
            found[tool.name] = (str(space["name"]), tool.name.removeprefix(f"{space['name']}__"))
    return found


def _space_of(tool: Tool) -> Mapping[str, Any] | None:
    space = tool.raw.get(_SPACE) if tool.dialect is None and isinstance(tool.raw, Mapping) else None
    return space if isinstance(space, Mapping) else None


def _custom_description(description: str | None, given: Any) -> str | None:
    """A grammar constrains the model only at OpenAI; elsewhere it is told in words."""
    if not isinstance(given, dict) or given.get("type") != "grammar":
        return description
    grammar = f"The input must match this {given.get('syntax', 'lark')} grammar:\n{given.get('definition', '')}"
    return f"{description}\n\n{grammar}" if description else grammar


def custom_tools(request: ChatRequest) -> frozenset[str]:
    """Names of the tools that the client declared as custom ones."""
    return frozenset(tool.name for tool in request.tools if _custom_of(tool) is not None)


def _custom_of(tool: Tool) -> Mapping[str, Any] | None:
    own = tool.raw.get(wire.NAME) if tool.dialect is None and isinstance(tool.raw, Mapping) else None
    return own if isinstance(own, Mapping) else None


def _tool_choice_in(given: Any, extension: dict[str, Any]) -> ToolChoice | None:
    match given:
        case None:
            return None
        case "auto" | "none" | "required":
            return ToolChoice(given)
        case {"type": "function" | "custom", "name": str(name)}:
            return ToolChoice("named", name=name)
        case {"type": "allowed_tools", "mode": "auto" | "required" as mode, "tools": list(tools)}:
            names = [t.get("name") for t in tools if isinstance(t, dict) and t.get("type") in ("function", "custom")]
            if len(names) == len(tools) and all(isinstance(name, str) for name in names):
                return ToolChoice(mode, allowed=tuple(str(name) for name in names))
        case {"type": str()}:
            pass
        case _:
            raise BadRequest("tool_choice must be auto, none, required or an object with a type", param="tool_choice")
    extension["tool_choice"] = given
    return None


def _format_in(text: _Text | None) -> ResponseFormat | None:
    if text is None or text.format is None:
        return None
    form = _checked(text.format, _Format, "text.format")
    match form.type:
        case "text":
            return ResponseFormat("text")
        case "json_object":
            return ResponseFormat("json_object")
        case "json_schema" if form.schema is not None:
            return ResponseFormat("json_schema", form.schema, form.name, form.description, form.strict)
        case "json_schema":
            raise BadRequest("text.format.schema is missing", param="text.format.schema")
    raise BadRequest(f"text.format.type {form.type!r} is not known", param="text.format.type")


_EFFORTS: Final = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


def _reasoning_in(given: Any, extension: dict[str, Any]) -> Reasoning | None:
    if given is None:
        return None
    reasoning = _checked(given, _Reasoning, "reasoning")
    if reasoning.effort is not None and reasoning.effort not in _EFFORTS:
        raise BadRequest(f"reasoning.effort must be one of {', '.join(_EFFORTS)}", param="reasoning.effort")
    for key, value in given.items():
        if key not in ("effort", "summary", "generate_summary") and value is not None:
            extension[f"reasoning.{key}"] = value
    summary = reasoning.summary or reasoning.generate_summary
    if reasoning.effort is None and summary is None:
        return None
    return Reasoning(effort=reasoning.effort, summary=summary)  # type: ignore[arg-type]


# --- out --------------------------------------------------------------------------------------------------------------

# Sampling knobs that this API does not have: without them the answer is another sample, not another meaning.
_KNOBS: Final = ("top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty", "seed")


def encode_request(request: ChatRequest, *, model: str, strict: bool = True) -> Encoded:
    """Raises: Unsupported."""
    losses = Losses("the Responses API", strict)
    for name in _KNOBS:
        if getattr(request, name) is not None:
            losses.drop(name)
    for name in ("stop", "logit_bias"):
        if getattr(request, name):
            losses.refuse(name)
    if request.candidates > 1:
        losses.refuse("candidates")
    for dialect, fields in request.extensions.items():
        if dialect != wire.NAME:
            for name in fields:
                losses.drop(name)
    ours = dict(request.extensions.get(wire.NAME, {}))
    custom = custom_tools(request)
    tools = _tools_out(request, ours, losses)
    for tool in tools:
        if tool["type"] in ("function", "custom"):
            tool["name"] = sent_name(tool["name"], losses)
    body: dict[str, Any] = {"model": model}
    instructions, messages, shift = _split_instructions(request.messages)
    if instructions is not None:
        body["instructions"] = instructions
    raw = [
        RawItem(entry.at - shift, entry.item)
        for key in [key for key in ours if key.startswith(RAW_ITEMS)]
        for entry in ours.pop(key)
    ]
    body["input"] = items_out(messages, raw, custom, namespaced(request), losses, stored=ours.get("store") is True)
    text: dict[str, Any] = {}
    if request.response_format is not None:
        text["format"] = _format_out(request.response_format)
    if "text.verbosity" in ours:
        text["verbosity"] = ours.pop("text.verbosity")
    reasoning = _reasoning_out(request.reasoning) | {
        key.removeprefix("reasoning."): ours.pop(key) for key in list(ours) if key.startswith("reasoning.")
    }
    include = list(ours.pop("include", ()))
    if request.logprobs:
        include.append(_LOGPROBS)
    if "effort" in reasoning and reasoning["effort"] != "none" and not ours.get("store") and _SEALED not in include:
        include.append(_SEALED)  # else the next turn could not give the thinking back
    known: dict[str, Any] = {
        "stream": True if request.stream else None,
        "tools": tools or None,
        "tool_choice": _tool_choice_out(request.tool_choice, custom, losses),
        "parallel_tool_calls": request.parallel_tool_calls,
        "text": text or None,
        "reasoning": reasoning or None,
        "max_output_tokens": request.max_output_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_logprobs": request.top_logprobs,
        "include": include or None,
        "user": request.user,
        "metadata": dict(request.metadata) if request.metadata is not None else None,
        "service_tier": request.service_tier,
    }
    body |= {key: value for key, value in known.items() if value is not None}
    # The state of a conversation is the client's, or the gateway's; nothing is left at the provider unless asked for.
    body["store"] = False
    return Encoded(body | ours, losses.settle())


def _split_instructions(messages: tuple[Message, ...]) -> tuple[str | None, tuple[Message, ...], int]:
    """A leading plain system text is `instructions`; returned beside it: the rest, and how many parts were taken."""
    match messages:
        case (Message(role="system", content=(TextPart(text=text, cache=None),), name=None), *_) if text:
            return text, messages[1:], 1
    return None, messages, 0


def _tools_out(request: ChatRequest, ours: dict[str, Any], losses: Losses) -> list[dict[str, Any]]:
    found = []
    for tool in request.tools:
        encoded = _tool_out(tool, ours, losses)
        if encoded is not None and (encoded["type"] != "namespace" or encoded not in found):
            found.append(encoded)  # a namespace holds several of our tools, and is said once
    return found


def _tool_out(tool: Tool, ours: dict[str, Any], losses: Losses) -> dict[str, Any] | None:
    if tool.cache is not None:
        losses.tell("cache_control")
    if tool.dialect == wire.NAME:
        return dict(tool.raw)
    if tool.dialect is not None:
        losses.drop(f"tool {tool.name}")  # the model lacks an ability; what it says is no worse
        return None
    space = _space_of(tool)
    if space is None and (own := _custom_of(tool)) is not None:
        return dict(own)
    # strict is on by default in this API, and many a schema written for others does not meet its rules.
    out = {"type": "function", "name": tool.name, "parameters": tool.parameters, "strict": bool(tool.strict)}
    if tool.description is not None:
        out["description"] = tool.description
    for key in [key for key in ours if key.startswith(TOOL_FIELDS)]:
        values = ours[key] = dict(ours[key])
        if tool.name in values:
            out[key.removeprefix(TOOL_FIELDS)] = values.pop(tool.name)
        if not values:
            del ours[key]
    return out if space is None else dict(space)


def _tool_choice_out(choice: ToolChoice | None, custom: frozenset[str], losses: Losses | None = None) -> Any:
    """losses: given on the way to OpenAI, whose names are narrower than ours."""
    if choice is None:
        return None

    def tool(name: str) -> dict[str, str]:
        sent = name if losses is None else sent_name(name, losses)
        return {"type": "custom" if name in custom else "function", "name": sent}

    if choice.mode == "named":
        return tool(choice.name or "")
    if choice.allowed and choice.mode != "none":
        return {"type": "allowed_tools", "mode": choice.mode, "tools": [tool(name) for name in choice.allowed]}
    return choice.mode


def _format_out(form: ResponseFormat) -> dict[str, Any]:
    if form.kind != "json_schema":
        return {"type": form.kind}
    out: dict[str, Any] = {"type": "json_schema", "name": form.name or "answer", "schema": form.schema}
    if form.description is not None:
        out["description"] = form.description
    if form.strict is not None:
        out["strict"] = form.strict
    return out


def _reasoning_out(reasoning: Reasoning | None) -> dict[str, Any]:
    if reasoning is None:
        return {}
    out: dict[str, Any] = {}
    if reasoning.effort is not None:
        out["effort"] = reasoning.effort
    elif reasoning.enabled is False:
        out["effort"] = "none"
    elif reasoning.budget_tokens is not None:
        out["effort"] = effort_for(reasoning.budget_tokens)
    if reasoning.summary is not None and reasoning.summary != "omitted":
        out["summary"] = reasoning.summary
    return out


def echo(request: ChatRequest) -> dict[str, Any]:
    """The fields of a response object that repeat the request. Defaults are the API's own."""
    ours = request.extensions.get(wire.NAME, {})
    instructions, _, _ = _split_instructions(request.messages)
    text: dict[str, Any] = {"format": {"type": "text"}}
    if request.response_format is not None:
        text["format"] = _format_out(request.response_format)
        text["format"].setdefault("description", None)
        text["format"].setdefault("strict", None)
        if request.response_format.kind != "json_schema":
            text["format"] = {"type": request.response_format.kind}
    if "text.verbosity" in ours:
        text["verbosity"] = ours["text.verbosity"]
    untold, fields = Losses("", strict=False), dict(ours)
    tools = _tools_out(request, fields, untold)
    effort = _reasoning_out(request.reasoning)
    choice = ours.get("tool_choice") or _tool_choice_out(request.tool_choice, custom_tools(request)) or "auto"
    return {
        "background": ours.get("background", False),
        "frequency_penalty": request.frequency_penalty or 0.0,
        "instructions": instructions,
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": ours.get("max_tool_calls"),
        "metadata": dict(request.metadata or {}),
        "parallel_tool_calls": request.parallel_tool_calls if request.parallel_tool_calls is not None else True,
        "presence_penalty": request.presence_penalty or 0.0,
        "previous_response_id": ours.get("previous_response_id"),
        "prompt_cache_key": ours.get("prompt_cache_key"),
        "reasoning": {"effort": effort.get("effort"), "summary": effort.get("summary")},
        "safety_identifier": ours.get("safety_identifier"),
        "service_tier": request.service_tier or "default",
        "store": ours.get("store", True),
        "temperature": request.temperature if request.temperature is not None else 1.0,
        "text": text,
        "tool_choice": choice,
        "tools": [{"description": None, **tool} if tool.get("type") == "function" else tool for tool in tools],
        "top_logprobs": request.top_logprobs or 0,
        "top_p": request.top_p if request.top_p is not None else 1.0,
        "truncation": ours.get("truncation", "disabled"),
        "user": request.user,
    }
