"""OpenAI's Responses API as it looks on the wire; the OpenAI emulator serves it at `/responses`.

Source: OpenAI API reference "Create a model response" and "Streaming events", types of openai-python 3.54, what Codex
0.169 sends, read 2026-11. Strict about a few rules that a translation breaks most easily.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.emulators import scripted
from tests.emulators.scripted import Prompt, Reply, Tool

FIELDS = frozenset(
    re.findall(
        r"\w+",
        """
    background client_metadata conversation include input instructions max_output_tokens max_tool_calls metadata model
    parallel_tool_calls previous_response_id prompt prompt_cache_key prompt_cache_retention reasoning
    safety_identifier service_tier store stream stream_options temperature text tool_choice tools top_logprobs top_p
    truncation user
""",
    )
)
SEALED = "gAAAAA-sealed-by-openai"
_SEAL = "reasoning.encrypted_content"
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


@dataclass(frozen=True)
class Event:
    """One stream event and how many tokens it stands for."""

    value: Mapping[str, Any]
    output_tokens: int = 0

    @property
    def sse(self) -> bytes:
        data = json.dumps(self.value, ensure_ascii=False)
        return f"event: {self.value['type']}\ndata: {data}\n\n".encode()


def problem_of(body: Mapping[str, Any]) -> tuple[str, str] | None:
    """What the API refuses, and the field at fault."""
    for field in body:
        if field not in FIELDS:
            return f"Unknown parameter: '{field}'.", field
    if not body.get("input"):
        return "Missing required parameter: 'input'.", "input"
    if (limit := body.get("max_output_tokens")) is not None and limit < 16:
        return "Invalid 'max_output_tokens': integer below minimum value. Expected a value >= 16.", "max_output_tokens"
    for number, tool in enumerate(body.get("tools") or ()):
        for inner in tool["tools"] if tool["type"] == "namespace" else (tool,):
            if inner["type"] in ("function", "custom") and not _NAME.fullmatch(inner.get("name", "")):
                return f"Invalid 'tools[{number}].name'", f"tools[{number}].name"
    items = body["input"] if isinstance(body["input"], list) else []
    called = set()
    for number, item in enumerate(items):
        where = f"input[{number}]"
        match item.get("type") or ("message" if "role" in item else "item_reference"):
            case "message":
                kind = "output_text" if item["role"] == "assistant" else "input_text"
                for part in item["content"] if isinstance(item["content"], list) else ():
                    if part["type"].endswith("_text") and part["type"] != kind:
                        return f"Invalid value: '{part['type']}'. Supported values are: '{kind}'.", f"{where}.content"
            case "function_call" | "custom_tool_call":
                called.add(item["call_id"])
            case "function_call_output" | "custom_tool_call_output" if item["call_id"] not in called:
                return f"No tool call found for function call output with call_id {item['call_id']}.", "input"
            case "reasoning" if item.get("encrypted_content") not in (SEALED, None):
                return "The encrypted content could not be verified.", where
    return None


def prompt_of(body: Mapping[str, Any]) -> Prompt:
    """What the scripted model is told of a request."""
    texts = [body["instructions"]] if body.get("instructions") else []
    results: list[str] = []
    last_user = ""
    images = documents = 0
    items = body["input"] if isinstance(body["input"], list) else [{"role": "user", "content": body["input"]}]
    for item in items:
        match item.get("type", "message"):
            case "message":
                text = _text_of(item["content"])
                images += sum(part["type"] == "input_image" for part in item["content"] if isinstance(part, dict))
                documents += sum(part["type"] == "input_file" for part in item["content"] if isinstance(part, dict))
                texts.append(text)
                results = []
                if item["role"] == "user":
                    last_user = text
            case "function_call_output" | "custom_tool_call_output":
                results.append(_text_of(item["output"]))
                texts.append(results[-1])
    tools = []
    for tool in body.get("tools") or ():
        match tool["type"]:
            case "function":
                tools.append(Tool(tool["name"], tool.get("parameters") or {}))
            case "custom":
                tools.append(Tool(tool["name"], takes_text=True))
            case "namespace":
                tools += [Tool(f"{tool['name']}.{t['name']}", t.get("parameters") or {}) for t in tool["tools"]]
    choice = body.get("tool_choice")
    forced = "*" if choice == "required" else choice.get("name", "*") if isinstance(choice, dict) else None
    shape = (body.get("text") or {}).get("format") or {}
    return Prompt(
        model=str(body.get("model")),
        last_user=last_user,
        texts=tuple(texts),
        tools=tuple(tools),
        forced_tool=forced,
        tools_forbidden=choice == "none",
        parallel_tools=body.get("parallel_tool_calls") is not False,
        tool_results=tuple(results),
        images=images,
        documents=documents,
        schema=shape.get("schema"),
        json_mode=shape.get("type") == "json_object",
        reasoning=(body.get("reasoning") or {}).get("effort") not in (None, "none"),
        max_output_tokens=body.get("max_output_tokens"),
    )


def _text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    return " ".join(part["text"] for part in content if part["type"].endswith("_text"))


def response_of(body: Mapping[str, Any], reply: Reply) -> dict[str, Any]:
    """The whole response object."""
    cut = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(reply.finish)
    return {
        "id": "resp_test1",
        "object": "response",
        "created_at": 1700000000,
        "completed_at": None if cut else 1700000001,
        "status": "incomplete" if cut else "completed",
        "background": False,
        "error": None,
        "incomplete_details": {"reason": cut} if cut else None,
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "max_tool_calls": None,
        "model": body.get("model"),
        "output": list(_items(body, reply)),
        "parallel_tool_calls": body.get("parallel_tool_calls", True),
        "previous_response_id": body.get("previous_response_id"),
        "prompt_cache_key": body.get("prompt_cache_key"),
        "reasoning": {"effort": None, "summary": None, **(body.get("reasoning") or {})},
        "safety_identifier": None,
        "service_tier": "default",
        "store": body.get("store", True),
        "temperature": body.get("temperature", 1.0),
        "text": {"format": {"type": "text"}, **(body.get("text") or {})},
        "tool_choice": body.get("tool_choice", "auto"),
        "tools": body.get("tools") or [],
        "top_logprobs": 0,
        "top_p": body.get("top_p", 1.0),
        "truncation": body.get("truncation", "disabled"),
        "usage": usage_of(reply),
        "user": body.get("user"),
        "metadata": body.get("metadata") or {},
    }


def usage_of(reply: Reply) -> dict[str, Any]:
    return {
        "input_tokens": reply.input_tokens,
        "input_tokens_details": {
            "cached_tokens": reply.cache_read_tokens,
            "cache_write_tokens": reply.cache_write_tokens,
        },
        "output_tokens": reply.output_tokens,
        "output_tokens_details": {"reasoning_tokens": reply.reasoning_tokens},
        "total_tokens": reply.input_tokens + reply.output_tokens,
    }


def _items(body: Mapping[str, Any], reply: Reply) -> Iterator[dict[str, Any]]:
    if reply.reasoning:
        summary = [{"type": "summary_text", "text": reply.reasoning}]
        item: dict[str, Any] = {"type": "reasoning", "id": "rs_test1", "summary": summary}
        if _SEAL in (body.get("include") or ()):
            item["encrypted_content"] = SEALED
        yield item
    if reply.refusal:
        yield _message([{"type": "refusal", "refusal": reply.refusal}])
    elif reply.text or not reply.tool_calls:
        yield _message([{"type": "output_text", "annotations": [], "logprobs": [], "text": reply.text}])
    custom = {tool.get("name") for tool in body.get("tools") or () if tool["type"] == "custom"}
    for number, call in enumerate(reply.tool_calls):
        space, dot, name = call.name.rpartition(".")
        known = {"call_id": call.id, "name": name, "status": "completed"} | ({"namespace": space} if dot else {})
        if call.name in custom:
            yield {"type": "custom_tool_call", "id": f"ctc_{number}", "input": call.arguments, **known}
        else:
            yield {"type": "function_call", "id": f"fc_{number}", "arguments": call.arguments, **known}


def _message(content: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "message", "id": "msg_test1", "status": "completed", "role": "assistant", "content": content}


def stream_events(response: Mapping[str, Any]) -> list[Event]:
    """The stream that ends in this response, numbered."""
    return [
        Event({"type": event.value["type"], "sequence_number": number, **event.value}, event.output_tokens)
        for number, event in enumerate(_events(response))
    ]


def _events(response: Mapping[str, Any]) -> Iterator[Event]:
    begun = {**response, "status": "in_progress", "output": [], "usage": None, "completed_at": None}
    begun["incomplete_details"] = None
    yield Event({"type": "response.created", "response": begun})
    yield Event({"type": "response.in_progress", "response": begun})
    for index, item in enumerate(response["output"]):
        at = {"item_id": item["id"], "output_index": index}
        match item["type"]:
            case "reasoning":
                yield from _reasoning(item, at)
            case "message":
                yield from _text(item, at)
            case kind:
                yield from _call(kind, item, at)
        yield Event({"type": "response.output_item.done", "output_index": index, "item": item})
    yield Event({"type": f"response.{response['status']}", "response": response})


def _added(index: int, item: Mapping[str, Any]) -> Event:
    return Event({"type": "response.output_item.added", "output_index": index, "item": item})


def _reasoning(item: Mapping[str, Any], at: Mapping[str, Any]) -> Iterator[Event]:
    yield _added(at["output_index"], {**item, "summary": []})
    at = {**at, "summary_index": 0}
    part = item["summary"][0]
    yield Event({"type": "response.reasoning_summary_part.added", **at, "part": {**part, "text": ""}})
    for piece in scripted.pieces(part["text"]):
        yield Event({"type": "response.reasoning_summary_text.delta", **at, "delta": piece}, 1)
    yield Event({"type": "response.reasoning_summary_text.done", **at, "text": part["text"]})
    yield Event({"type": "response.reasoning_summary_part.done", **at, "part": part})


def _text(item: Mapping[str, Any], at: Mapping[str, Any]) -> Iterator[Event]:
    yield _added(at["output_index"], {**item, "status": "in_progress", "content": []})
    at = {**at, "content_index": 0}
    part = item["content"][0]
    key = "refusal" if part["type"] == "refusal" else "text"
    kind = "response.refusal" if key == "refusal" else "response.output_text"
    more: dict[str, Any] = {} if key == "refusal" else {"logprobs": []}
    yield Event({"type": "response.content_part.added", **at, "part": {**part, key: ""}})
    for piece in scripted.pieces(part[key]):
        yield Event({"type": f"{kind}.delta", **at, "delta": piece, **more}, 1)
    yield Event({"type": f"{kind}.done", **at, key: part[key], **more})
    yield Event({"type": "response.content_part.done", **at, "part": part})


def _call(kind: str, item: Mapping[str, Any], at: Mapping[str, Any]) -> Iterator[Event]:
    field = "input" if kind == "custom_tool_call" else "arguments"
    event = "response.custom_tool_call_input" if field == "input" else "response.function_call_arguments"
    yield Event({**_added(at["output_index"], {**item, "status": "in_progress", field: ""}).value}, 4)
    for piece in scripted.pieces(item[field]):
        yield Event({"type": f"{event}.delta", **at, "delta": piece}, 1)
    named = {"name": item["name"]} if field == "arguments" else {}
    yield Event({"type": f"{event}.done", **at, field: item[field], **named})


BENT = ("no-usage", "no-end", "stream-error", "huge-chunk", "unknown-finish", "unknown-event")
# What a whole answer says then.
TOLD_OTHERWISE: Mapping[str, Mapping[str, Any]] = {
    "no-usage": {"usage": None},
    "unknown-finish": {"status": "incomplete", "incomplete_details": {"reason": "brand_new"}},
}


def bent(fault: str | None, events: list[Event]) -> list[Event] | None:
    """The events as this fault bends them; None when it is not of this kind."""
    half = len(events) // 2
    match fault:
        case "no-usage":
            last = events[-1].value
            return [*events[:-1], Event({**last, "response": {**last["response"], "usage": None}})]
        case "unknown-finish":
            last = {**events[-1].value["response"], **TOLD_OTHERWISE["unknown-finish"]}
            return [*events[:-1], Event({**events[-1].value, "type": "response.incomplete", "response": last})]
        case "unknown-event":
            news = Event({"type": "response.brand_new", "sequence_number": half, "news": {}})
            return [*events[:half], news, *events[half:]]
        case "no-end":
            return events[:-1]
        case "stream-error":
            error = {"code": "server_error", "message": "The server had an error", "param": None}
            return [*events[:half], Event({"type": "error", "sequence_number": half, **error})]
        case "huge-chunk":
            at = next(i for i, event in enumerate(events) if event.output_tokens)
            big = Event({**events[at].value, "delta": "x" * (2 * 1024 * 1024)}, 1)
            return [*events[:at], big, *events[at:]]
    return None
