"""OpenAI's Responses dialect, inwards: a body as the chat body that asks for the same.

A subset: text, tools, formats and reasoning. What OpenAI's service keeps between requests (earlier responses,
conversations, prompts, work in the background) is refused by name: an engine keeps nothing, the gateway does.
Source: OpenAI API reference, Responses, read 2026-11.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from local_backend.errors import InvalidRequest, Unsupported
from local_backend.generate import Generation
from local_backend.model_text import ModelText
from local_backend.openai_bodies import ChatBody, Common, Count
from local_backend.openai_request import chat_generation

KEPT = ("previous_response_id", "conversation", "prompt", "background")
LOGPROBS = "message.output_text.logprobs"
NAMES = {"messages": "input", "response_format": "text.format", "max_tokens": "max_output_tokens"}
"""A chat field that an error names -> what the client wrote."""


class ResponsesBody(Common, kw_only=True):
    """POST /v1/responses; beside OpenAI's fields those that the other endpoints share."""

    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    include: list[str] | None = None
    metadata: dict[str, str] | None = None
    truncation: str | None = None
    store: bool | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    prompt: Any = None
    background: bool | None = None

    @property
    def is_slow(self) -> bool:
        """See Common."""
        return bool(self.text or self.tools or super().is_slow)


def responses_generation(body: ResponsesBody, text: ModelText) -> Generation:
    """Raises InvalidRequest, or Unsupported naming what is asked for and not done here."""
    for field in KEPT:
        if getattr(body, field):
            raise Unsupported(
                f"this engine keeps nothing between requests, so {field} means nothing to it", param=field
            )
    if body.truncation not in (None, "disabled"):
        raise Unsupported("an input too long is refused, never cut", param="truncation")
    if (body.n or 1) > 1:
        raise Unsupported("a response is one answer", param="n")
    if unknown := [name for name in body.include or () if name != LOGPROBS]:
        raise Unsupported(f"{unknown[0]!r} is nothing that this engine could include", param="include")
    try:
        generation = chat_generation(_as_chat(body), text)
    except InvalidRequest as error:
        if error.param is not None:
            field = error.param.split("[")[0].split(".")[0]
            error.param = NAMES.get(field, field) + error.param[len(field) :]
        raise
    return msgspec.structs.replace(generation, prompt_param="input")


def _as_chat(body: ResponsesBody) -> ChatBody:
    values: dict[str, Any] = {name: getattr(body, name) for name in Common.__struct_fields__}
    values |= {
        "messages": _messages(body),
        "max_completion_tokens": body.max_output_tokens,
        "logprobs": LOGPROBS in (body.include or ()),
        "top_logprobs": body.top_logprobs,
        "tools": None if body.tools is None else [_tool(tool, at) for at, tool in enumerate(body.tools)],
        "tool_choice": _choice(body.tool_choice),
        "parallel_tool_calls": body.parallel_tool_calls,
        "response_format": _format((body.text or {}).get("format")),
        "reasoning_effort": (body.reasoning or {}).get("effort"),
    }
    values["stream_options"] = None  # obfuscation, which is all that it can ask for here, hides nothing on loopback
    try:
        return msgspec.convert({k: v for k, v in values.items() if v is not None}, ChatBody)
    except msgspec.ValidationError as error:
        raise InvalidRequest(str(error), param="input") from None


def _messages(body: ResponsesBody) -> list[dict[str, Any]]:
    """Items as turns: what the assistant thought, said and called side by side is one turn of its."""
    turns: list[dict[str, Any]] = []
    if body.instructions:
        turns.append({"role": "system", "content": body.instructions})
    if isinstance(body.input, str):
        return [*turns, {"role": "user", "content": body.input}]
    for at, item in enumerate(body.input):
        kind = item.get("type", "message")
        last = turns[-1] if turns and turns[-1]["role"] == "assistant" else None
        if kind == "message":
            turn = {"role": item.get("role"), "content": _content(item.get("content"))}
            if turn["role"] == "assistant" and last is not None and "content" not in last:
                last["content"] = turn["content"]
            else:
                turns.append(turn)
        elif kind == "reasoning":
            parts = [*(item.get("content") or ()), *(item.get("summary") or ())]
            turns.append({"role": "assistant", "reasoning_content": "".join(str(p.get("text", "")) for p in parts)})
        elif kind == "function_call":
            if last is None:
                turns.append(last := {"role": "assistant"})
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            last.setdefault("tool_calls", []).append(call)
        elif kind == "function_call_output":
            content = _content(item.get("output"))
            turns.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": content})
        else:
            raise Unsupported(f"items of type {kind!r} are not served here", param=f"input[{at}]")
    return turns


def _content(content: Any) -> Any:
    """Parts under chat's names; what this engine cannot read keeps its own, and is refused by it."""
    if not isinstance(content, list):
        return content
    return [_part(part) if isinstance(part, dict) else part for part in content]


def _part(part: dict[str, Any]) -> dict[str, Any]:
    kind = part.get("type")
    if kind == "input_image" and not part.get("file_id"):  # files are kept by services
        return {"type": "image_url", "image_url": {"url": part.get("image_url"), "detail": part.get("detail")}}
    return part | {"type": "text"} if kind in ("input_text", "output_text") else part


def _tool(tool: dict[str, Any], at: int) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise Unsupported(f"tools of type {tool.get('type')!r} are not served here", param=f"tools[{at}].type")
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _choice(choice: Any) -> Any:
    if isinstance(choice, dict) and choice.get("type") == "function":
        return {"type": "function", "function": {"name": choice.get("name")}}
    return choice


def _format(value: Any) -> Any:
    if isinstance(value, dict) and value.get("type") == "json_schema":
        return {"type": "json_schema", "json_schema": {name: part for name, part in value.items() if name != "type"}}
    return value
