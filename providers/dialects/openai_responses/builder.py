"""The response object, built step by step from events for a client of this dialect.

One builder makes the frames of a stream and the object of a plain answer, so the two cannot disagree.
Source: OpenAI API reference "The response object" and "Streaming events", types of openai-python 3.54; the required
nullable fields also follow the Open Responses specification 2.4. Read 2026-11.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace

from providers.dialects.base import ErrorBody
from providers.dialects.openai_responses import wire
from providers.dialects.openai_responses.items import unwrap_text
from providers.dialects.openai_responses.request import custom_tools, echo, namespaced
from providers.dialects.sealed import Sealed, seal
from providers.neutral import (
    ChatRequest,
    Citation,
    Event,
    Finish,
    FinishReason,
    ImagePart,
    Logprob,
    Part,
    PartDelta,
    PartEnd,
    PartStart,
    ReasoningPart,
    RefusalPart,
    ResponseStart,
    TextPart,
    TokenLogprob,
    ToolCallPart,
    Usage,
)

WireEvent = dict[str, Any]

_ID_CHARS: Final = re.compile(r"[^A-Za-z0-9_-]")


class _Open(Struct):
    """A neutral part that is being written: the item it is (in), and what it holds so far."""

    part: Part
    item: dict[str, Any]
    output_index: int
    content_index: int = 0
    texts: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    signature: str | None = None
    is_custom: bool = False


class ResponseBuilder:
    """Events in, stream events out; `response` is the object so far."""

    def __init__(self, request: ChatRequest) -> None:
        self._request = request
        self._custom = custom_tools(request)
        self._spaces = namespaced(request)
        self._open: dict[int, _Open] = {}
        self._message: tuple[int, dict[str, Any]] | None = None  # the message item that a next text may join
        self._suffix = ""
        self.response: dict[str, Any] = {}

    def apply(self, event: Event) -> Iterator[WireEvent]:
        match event:
            case ResponseStart():
                self.response = _skeleton(event, self._request)
                self._suffix = self.response["id"].removeprefix("resp_")
                for kind in ("response.created", "response.in_progress"):
                    yield {"type": kind, "response": self.response}
            case PartStart(candidate=0):
                yield from self._start(event)
            case PartDelta() if (part := self._open.get(event.index)) is not None:
                yield from self._delta(part, event)
            case PartEnd() if (part := self._open.pop(event.index, None)) is not None:
                yield from self._end(part, event.part)
            case Finish(candidate=0):
                yield from self._finish(event)

    def fail(self, error: ErrorBody) -> Iterator[WireEvent]:
        """The answer dies under way. Nothing to say when it never began: an error event tells the rest."""
        if self.response and self.response["status"] == "in_progress":
            # The reference closes the list of codes; ours are told by the error event.
            code = _FAILURE_CODE.get(error.status, "server_error")
            self.response |= {"status": "failed", "error": {"code": code, "message": error.message}}
            yield {"type": "response.failed", "response": self.response}

    # One method for each step in the life of a part.

    def _start(self, event: PartStart) -> Iterator[WireEvent]:
        part = event.part
        item: dict[str, Any]
        match part:
            case TextPart() | RefusalPart():
                if self._message is None:
                    item = {"type": "message", "id": self._id("msg"), "status": "in_progress"}
                    item |= {"role": "assistant", "content": []}
                    self._message = (len(self.response["output"]), item)
                    yield from self._add(item)
                output_index, item = self._message
                opened = _Open(part, item, output_index, len(item["content"]))
                content = _text_content(part, "")
                item["content"].append(content)
                yield {
                    "type": "response.content_part.added",
                    "item_id": item["id"],
                    "output_index": output_index,
                    "content_index": opened.content_index,
                    "part": content,
                }
                text = part.text
            case ReasoningPart():
                yield from self._close_message()
                own = part.id if part.dialect == wire.NAME and part.id else None
                item = {"type": "reasoning", "id": own or self._id("rs"), "summary": []}
                opened = _Open(part, item, len(self.response["output"]), signature=part.signature)
                yield from self._add(item)
                text = part.text
            case ToolCallPart(kind="server"):
                yield from self._close_message()
                item = _server_call(part, self._id("ws"))
                opened = _Open(part, item, len(self.response["output"]))
                yield from self._add(item)
                text = part.arguments
            case ToolCallPart():
                yield from self._close_message()
                if part.signature is not None:
                    yield from self._whole(self._sealed_item(Sealed("gemini", part.signature, tool_call_id=part.id)))
                is_custom = part.kind == "custom" or part.name in self._custom
                item = _call_item(part, self._id("ctc" if is_custom else "fc"), is_custom)
                if part.name in self._spaces:
                    item["namespace"], item["name"] = self._spaces[part.name]
                opened = _Open(part, item, len(self.response["output"]), is_custom=is_custom)
                yield from self._add(item)
                text = part.arguments
            case ImagePart(data=str(data)):
                yield from self._close_message()
                image = {"type": "image_generation_call", "id": self._id("ig"), "status": "completed", "result": data}
                yield from self._whole(image)
                return
            case _:
                return  # sounds, files and server tool results have no place in this API's output
        self._open[event.index] = opened
        if text:
            yield from self._delta(opened, PartDelta(event.index, text))

    def _delta(self, opened: _Open, event: PartDelta) -> Iterator[WireEvent]:
        if event.signature is not None:
            opened.signature = event.signature
        logprobs = [_logprob_out(entry) for entry in event.logprobs]
        if not event.text and not logprobs:
            return
        where = {"item_id": opened.item["id"], "output_index": opened.output_index, "delta": event.text}
        match opened.part:
            case TextPart():
                opened.logprobs += logprobs
                yield {
                    "type": "response.output_text.delta",
                    "content_index": opened.content_index,
                    "logprobs": logprobs,
                    **where,
                }
            case RefusalPart():
                yield {"type": "response.refusal.delta", "content_index": opened.content_index, **where}
            case ReasoningPart():
                if not opened.texts:
                    yield {
                        "type": "response.reasoning_summary_part.added",
                        "item_id": opened.item["id"],
                        "output_index": opened.output_index,
                        "summary_index": 0,
                        "part": {"type": "summary_text", "text": ""},
                    }
                yield {"type": "response.reasoning_summary_text.delta", "summary_index": 0, **where}
            case ToolCallPart(kind="function") if not opened.is_custom:
                yield {"type": "response.function_call_arguments.delta", **where}
            case ToolCallPart(kind="custom"):
                yield {"type": "response.custom_tool_call_input.delta", **where}
        opened.texts.append(event.text)

    def _end(self, opened: _Open, whole: Part | None) -> Iterator[WireEvent]:
        text = "".join(opened.texts)
        part = whole if whole is not None else opened.part
        item, at = opened.item, {"item_id": opened.item["id"], "output_index": opened.output_index}
        match part:
            case TextPart() | RefusalPart():
                yield from self._end_text(opened, part, text or part.text, at)
                return
            case ReasoningPart():
                yield from self._end_reasoning(opened, part, text or part.text, at)
            case ToolCallPart(kind="server"):
                item |= _server_call(_with_arguments(part, text), item["id"])
            case ToolCallPart():
                text = text or part.arguments
                if not opened.is_custom:
                    if not text:  # a call without arguments is an empty object to this API's clients
                        text = "{}"
                        yield {"type": "response.function_call_arguments.delta", **at, "delta": text}
                    item |= {"arguments": text, "status": "completed"}
                    done = {"name": item["name"], "arguments": text}
                    yield {"type": "response.function_call_arguments.done", **at, **done}
                else:
                    if part.kind == "function":
                        # Another dialect's model filled in the one-field object: its text is known only now.
                        text = unwrap_text(text)
                        yield {"type": "response.custom_tool_call_input.delta", **at, "delta": text}
                    item |= {"input": text, "status": "completed"}
                    yield {"type": "response.custom_tool_call_input.done", **at, "input": text}
        yield {"type": "response.output_item.done", "output_index": opened.output_index, "item": item}

    def _end_text(
        self, opened: _Open, part: TextPart | RefusalPart, text: str, at: dict[str, Any]
    ) -> Iterator[WireEvent]:
        at = at | {"content_index": opened.content_index}
        content = opened.item["content"][opened.content_index]
        if isinstance(part, RefusalPart):
            content["refusal"] = text
            yield {"type": "response.refusal.done", **at, "refusal": text}
        else:
            content |= {"text": text, "logprobs": opened.logprobs}
            content["annotations"] = [a for c in part.citations if (a := _annotation(c)) is not None]
            for number, annotation in enumerate(content["annotations"]):
                kind = "response.output_text.annotation.added"
                yield {"type": kind, **at, "annotation_index": number, "annotation": annotation}
            yield {"type": "response.output_text.done", **at, "text": text, "logprobs": opened.logprobs}
        yield {"type": "response.content_part.done", **at, "part": content}
        if isinstance(part, TextPart) and (signature := opened.signature or part.signature) is not None:
            yield from self._close_message()
            yield from self._whole(self._sealed_item(Sealed("gemini", signature, text=True)))
        else:
            yield from self._message_done(opened.output_index, opened.item)

    def _end_reasoning(self, opened: _Open, part: ReasoningPart, text: str, at: dict[str, Any]) -> Iterator[WireEvent]:
        item = opened.item
        if text:
            summary = {"type": "summary_text", "text": text}
            item["summary"] = [summary]
            at = at | {"summary_index": 0}
            if not opened.texts:
                yield {"type": "response.reasoning_summary_part.added", **at, "part": {**summary, "text": ""}}
            yield {"type": "response.reasoning_summary_text.done", **at, "text": text}
            yield {"type": "response.reasoning_summary_part.done", **at, "part": summary}
        if part.dialect == wire.NAME:
            if part.redacted is not None:
                item["encrypted_content"] = part.redacted
        else:
            signature = opened.signature or part.signature
            item["encrypted_content"] = seal(Sealed(part.dialect, signature, part.redacted, part.id))

    def _finish(self, event: Finish) -> Iterator[WireEvent]:
        for index in sorted(self._open):
            yield from self._end(self._open.pop(index), None)
        yield from self._close_message()
        status, details = _STATUS[event.reason]
        self.response["status"] = status
        if details is not None:
            self.response["incomplete_details"] = {"reason": details}
            for item in self.response["output"][-1:]:
                if item["type"] in ("message", "function_call"):
                    item["status"] = "incomplete"
        if event.reason == "error":
            message = f"the model stopped with {event.native_reason or 'an error'}"
            self.response["error"] = {"code": "server_error", "message": message}
        if event.usage is not None:
            self.response["usage"] = usage_out(event.usage)
            self.response["service_tier"] = event.usage.service_tier or self.response["service_tier"]
        yield {"type": f"response.{status}", "response": self.response}

    def _add(self, item: dict[str, Any]) -> Iterator[WireEvent]:
        self.response["output"].append(item)
        yield {
            "type": "response.output_item.added",
            "output_index": len(self.response["output"]) - 1,
            "item": item,
        }

    def _whole(self, item: dict[str, Any]) -> Iterator[WireEvent]:
        yield from self._add(item)
        yield {"type": "response.output_item.done", "output_index": len(self.response["output"]) - 1, "item": item}

    def _close_message(self) -> Iterator[WireEvent]:
        """The next part is of another kind. Parts may interleave: a message whose text still goes on is done later."""
        if self._message is not None:
            output_index, item = self._message
            self._message = None
            yield from self._message_done(output_index, item)

    def _message_done(self, output_index: int, item: dict[str, Any]) -> Iterator[WireEvent]:
        if (self._message is not None and self._message[1] is item) or any(o.item is item for o in self._open.values()):
            return
        item["status"] = "completed"
        yield {"type": "response.output_item.done", "output_index": output_index, "item": item}

    def _sealed_item(self, value: Sealed) -> dict[str, Any]:
        return {"type": "reasoning", "id": self._id("rs"), "summary": [], "encrypted_content": seal(value)}

    def _id(self, prefix: str) -> str:
        return f"{prefix}_{self._suffix}_{len(self.response['output'])}"


_FAILURE_CODE: Final[Mapping[int, str]] = {400: "invalid_prompt", 429: "rate_limit_exceeded"}
_STATUS: Final[Mapping[FinishReason, tuple[str, str | None]]] = {
    "stop": ("completed", None),
    "tool_calls": ("completed", None),
    "length": ("incomplete", "max_output_tokens"),
    "content_filter": ("incomplete", "content_filter"),
    "error": ("failed", None),
}


def _skeleton(start: ResponseStart, request: ChatRequest) -> dict[str, Any]:
    ident = _ID_CHARS.sub("_", start.id)
    return {
        "id": ident if ident.startswith("resp_") else f"resp_{ident}",
        "object": "response",
        "created_at": start.created or 0,
        "completed_at": None,
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "model": start.model,
        "output": [],
        "usage": None,
        **echo(request),
    }


def _text_content(part: TextPart | RefusalPart, text: str) -> dict[str, Any]:
    if isinstance(part, RefusalPart):
        return {"type": "refusal", "refusal": text}
    return {"type": "output_text", "annotations": [], "logprobs": [], "text": text}


def _call_item(part: ToolCallPart, ident: str, is_custom: bool) -> dict[str, Any]:
    item = {"type": "custom_tool_call" if is_custom else "function_call", "id": ident, "status": "in_progress"}
    return item | {"call_id": part.id, "name": part.name, "input" if is_custom else "arguments": ""}


def _server_call(part: ToolCallPart, ident: str) -> dict[str, Any]:
    """What ran at the provider. OpenAI's own item is inside the arguments; another's is told as the nearest kind."""
    try:
        arguments = msgspec.json.decode(part.arguments) if part.arguments else {}
    except (msgspec.DecodeError, RecursionError):
        arguments = {}
    if isinstance(arguments, dict) and str(arguments.get("type", "")).endswith("_call") and "id" in arguments:
        return arguments
    if "search" in part.name:
        query = arguments.get("query") if isinstance(arguments, dict) else None
        action = {"type": "search", "query": query if isinstance(query, str) else ""}
        return {"type": "web_search_call", "id": ident, "status": "completed", "action": action}
    known = {"name": part.name, "arguments": part.arguments or "{}", "server_label": "provider"}
    return {"type": "mcp_call", "id": ident, "status": "completed", **known}


def _with_arguments(part: ToolCallPart, text: str) -> ToolCallPart:
    return replace(part, arguments=text) if text else part


def _logprob_out(entry: Logprob) -> dict[str, Any]:
    return _token_out(entry.sampled) | {"top_logprobs": [_token_out(rival) for rival in entry.top]}


def _token_out(token: TokenLogprob) -> dict[str, Any]:
    data = token.bytes if token.bytes is not None else tuple(token.token.encode())
    return {"token": token.token, "logprob": token.logprob, "bytes": list(data)}


def _annotation(citation: Citation) -> dict[str, Any] | None:
    if citation.dialect == wire.NAME and isinstance(citation.raw, Mapping):
        return dict(citation.raw)
    if citation.url is None:
        return None  # this API cites addresses and its own files; a quoted document has no place
    return {
        "type": "url_citation",
        "url": citation.url,
        "title": citation.title or citation.url,
        "start_index": citation.start or 0,
        "end_index": citation.end or 0,
    }


def usage_out(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.input_tokens or 0,
        "input_tokens_details": {
            "cached_tokens": usage.cache_read_tokens or 0,
            "cache_write_tokens": usage.cache_write_tokens or 0,
        },
        "output_tokens": usage.output_tokens or 0,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens or 0},
        "total_tokens": usage.total_tokens,
    }
