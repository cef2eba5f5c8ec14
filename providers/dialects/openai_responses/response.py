"""A whole response object, read from OpenAI and written for a client, and the facts both share with the stream.

Source: OpenAI API reference "The response object", types of openai-python 3.54, read 2026-11.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from providers.dialects.names import widen_name
from providers.dialects.openai_responses import wire
from providers.dialects.openai_responses.builder import ResponseBuilder
from providers.dialects.openai_responses.errors import error_in_answer
from providers.dialects.openai_responses.items import joined_name, reasoning_in
from providers.errors import WireError
from providers.neutral import (
    Candidate,
    ChatRequest,
    ChatResponse,
    Citation,
    FinishReason,
    ImagePart,
    Logprob,
    Part,
    RefusalPart,
    TextPart,
    TokenLogprob,
    ToolCallPart,
    Usage,
    replay,
)

_decoder: Final = msgspec.json.Decoder(wire.Response)


def encode_response(response: ChatResponse, request: ChatRequest) -> bytes:
    builder = ResponseBuilder(request)
    for event in replay(response):
        for _ in builder.apply(event):
            pass  # the frames of a stream; what they add up to is the answer
    return msgspec.json.encode(builder.response)


def decode_response(body: bytes) -> ChatResponse:
    """Raises: WireError; the kind of an error that the object tells of."""
    try:
        found = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"not a response object: {error}", body=body) from None
    if found.status in ("failed", "cancelled") or (found.error is not None and found.status is None):
        raise error_in_answer(found.error)
    if not found.id or found.output is None:
        raise WireError("a response object without id or output", body=body)
    content: list[Part] = []
    logprobs: list[Logprob] = []
    for item in found.output:
        parts, probs = parts_in(item)
        content += parts
        logprobs += probs
    called = any(isinstance(part, ToolCallPart) and part.kind != "server" for part in content)
    reason, native = finish_in(found, called)
    candidate = Candidate(tuple(content), reason, native, logprobs=tuple(logprobs))
    return ChatResponse(found.id, found.model, (candidate,), usage_in(found), created_in(found))


def parts_in(item: Mapping[str, Any]) -> tuple[list[Part], list[Logprob]]:
    """The parts of one output item. Raises: WireError."""
    kind = item.get("type")
    try:
        match kind:
            case "message":
                read = msgspec.convert(item, wire.Item)
                return _message_in(read.content if isinstance(read.content, list) else [])
            case "reasoning":
                part = reasoning_in(msgspec.convert(item, wire.Item))
                return [part] if part is not None else [], []
            case "function_call" | "custom_tool_call":
                return [call_in(msgspec.convert(item, wire.Item))], []
            case "image_generation_call":
                data = item.get("result")
                return [ImagePart(f"image/{item.get('output_format', 'png')}", data)] if isinstance(
                    data, str
                ) else [], []
            case str() if kind.endswith("_call"):
                return [server_call_in(item)], []
    except msgspec.ValidationError as error:
        raise WireError(f"output item {kind}: {error}") from None
    return [], []  # what a newer server adds and no client of ours can have asked for


def _message_in(entries: Sequence[wire.Content]) -> tuple[list[Part], list[Logprob]]:
    parts: list[Part] = []
    logprobs: list[Logprob] = []
    for entry in entries:
        if entry.type == "refusal":
            parts.append(RefusalPart(entry.refusal or ""))
        elif entry.type == "output_text":
            parts.append(TextPart(entry.text or "", citations=citations_in(entry.annotations)))
            logprobs += logprobs_in(entry.logprobs)
    return parts, logprobs


def call_in(item: wire.Item) -> ToolCallPart:
    """Raises: WireError for a call nobody could answer."""
    ident = item.call_id or item.id
    if not ident or not item.name:
        raise WireError("a tool call without id or name")
    name = widen_name(joined_name(item))
    if item.type == "custom_tool_call":
        return ToolCallPart(ident, name, item.input or "", kind="custom")
    return ToolCallPart(ident, name, item.arguments or "")


def server_call_in(item: Mapping[str, Any]) -> ToolCallPart:
    """A hosted tool ran: the whole item is kept as the arguments, so that this dialect can show it again."""
    name = str(item["type"]).removesuffix("_call")
    return ToolCallPart(str(item.get("id", "")), name, msgspec.json.encode(item).decode(), kind="server")


def citations_in(annotations: Sequence[Mapping[str, Any]] | None) -> tuple[Citation, ...]:
    return tuple(
        Citation(
            url=_text(entry.get("url")),
            title=_text(entry.get("title") or entry.get("filename")),
            start=_number(entry.get("start_index")),
            end=_number(entry.get("end_index")),
            dialect=wire.NAME,
            raw=dict(entry),
        )
        for entry in annotations or ()
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def logprobs_in(entries: Sequence[wire.Logprob] | None) -> tuple[Logprob, ...]:
    return tuple(
        Logprob(_token_in(entry), tuple(_token_in(rival) for rival in entry.top_logprobs or ()))
        for entry in entries or ()
    )


def _token_in(entry: wire.Logprob | wire.TopLogprob) -> TokenLogprob:
    return TokenLogprob(entry.token, entry.logprob, tuple(entry.bytes) if entry.bytes is not None else None)


_INCOMPLETE: Final[Mapping[str | None, FinishReason]] = {
    "max_output_tokens": "length",
    "max_messages": "length",
    "content_filter": "content_filter",
}


def finish_in(response: wire.Response, called: bool) -> tuple[FinishReason, str | None]:
    """The neutral reason and OpenAI's own word. A status unknown to us still ends the answer."""
    if response.status == "incomplete":
        reason = response.incomplete_details.reason if response.incomplete_details else None
        return _INCOMPLETE.get(reason, "stop"), reason
    return "tool_calls" if called else "stop", response.status


def usage_in(response: wire.Response) -> Usage:
    """input_tokens already includes what was cached, output_tokens what was thought."""
    used = response.usage
    usage = Usage(service_tier=response.service_tier)
    if used is not None:
        cached, details = used.input_tokens_details, used.output_tokens_details
        usage = Usage(
            input_tokens=used.input_tokens,
            output_tokens=used.output_tokens,
            cache_read_tokens=cached.cached_tokens if cached else None,
            cache_write_tokens=cached.cache_write_tokens if cached else None,
            reasoning_tokens=details.reasoning_tokens if details else None,
            service_tier=response.service_tier,
        )
    if response.tool_usage is not None and response.tool_usage.web_search is not None:
        usage = replace(usage, searches=response.tool_usage.web_search.num_requests)
    return usage


def created_in(response: wire.Response) -> int | None:
    return int(response.created_at) if response.created_at is not None else None
