"""The event stream: read from OpenAI, written for a client, and watched while it passes.

Source: OpenAI API reference "Streaming events" of the Responses API, types of openai-python 3.54, read 2026-11. Frames
carry `event:` names (Codex reads them) and there is no `[DONE]`: a terminal response event ends the stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct

from providers.dialects.base import ErrorBody
from providers.dialects.openai_responses import response as whole
from providers.dialects.openai_responses import wire
from providers.dialects.openai_responses.builder import ResponseBuilder
from providers.dialects.openai_responses.errors import error_in_answer, error_object
from providers.dialects.tapping import FrameTap, text_bytes
from providers.errors import Interrupted, WireError
from providers.neutral import (
    ChatRequest,
    Event,
    Finish,
    Logprob,
    Part,
    PartDelta,
    PartEnd,
    PartStart,
    ReasoningPart,
    RefusalPart,
    ResponseStart,
    TextPart,
    ToolCallPart,
    Usage,
)
from providers.wire import sse

_decoder: Final = msgspec.json.Decoder(wire.StreamEvent)
_encode: Final = msgspec.json.Encoder().encode

# A reasoning item is one part, whichever of its summaries or texts a delta belongs to.
_REASONING: Final = -1


class EventDecoder:
    """Provider bytes to events."""

    def __init__(self) -> None:
        self._sse = sse.SseDecoder()
        self.usage = Usage()
        self._open: dict[tuple[int, int], int] = {}  # (output_index, content_index) to part index
        self._with_text: set[int] = set()
        self._ids: dict[int, str | None] = {}
        self._done: set[int] = set()
        self._count = 0
        self._called = False
        self._started = False
        self._ended = False

    def feed(self, data: bytes) -> Iterator[Event]:
        for frame in self._sse.feed(data):
            yield from self._frame(frame)

    def close(self) -> Iterator[Event]:
        for frame in self._sse.close():
            yield from self._frame(frame)
        if not self._ended:
            raise Interrupted("the stream ended before response.completed")

    def _frame(self, frame: sse.Frame) -> Iterator[Event]:
        if self._ended or not frame.data or frame.data == b"[DONE]":
            return  # a heartbeat; or a server that ends every stream as chat completions do
        event = _read(frame.data)
        at = event.output_index
        if event.response is not None:
            self.usage = self.usage.at_least(whole.usage_in(event.response))
            if not self._started and event.type not in ("response.failed", "response.cancelled"):
                self._started = True
                yield ResponseStart(event.response.id, event.response.model, whole.created_in(event.response))
        match event.type:
            case "response.output_text.delta":
                probs = whole.logprobs_in(event.logprobs)
                yield from self._text((at, event.content_index), TextPart(""), event.delta, probs)
            case "response.function_call_arguments.delta" | "response.custom_tool_call_input.delta":
                yield from self._text((at, 0), None, event.delta)
            case "response.reasoning_summary_text.delta" | "response.reasoning_text.delta":
                thinking = ReasoningPart(id=self._ids.get(at), dialect=wire.NAME)
                yield from self._text((at, _REASONING), thinking, event.delta)
            case "response.reasoning_summary_part.added" if event.summary_index:
                yield from self._text((at, _REASONING), None, "\n\n")
            case "response.refusal.delta":
                yield from self._text((at, event.content_index), RefusalPart(""), event.delta)
            case "response.output_item.added" if event.item is not None:
                yield from self._item_added(at, event.item)
            case "response.output_item.done" if event.item is not None:
                yield from self._item_done(at, event.item)
            case "response.completed" | "response.incomplete":
                yield from self._finish(event.response or wire.Response(status=event.type.removeprefix("response.")))
            case "response.failed" | "response.cancelled":
                raise error_in_answer(event.response.error if event.response else None)
            case "error":
                raise error_in_answer(event.error or wire.ResponseError(event.code, event.message, event.param))

    def _text(
        self, key: tuple[int, int], fresh: Part | None, text: str, logprobs: tuple[Logprob, ...] = ()
    ) -> Iterator[Event]:
        """fresh: the part to start when none is open; None when the text of an unannounced part says nothing."""
        index = self._open.get(key)
        if index is None:
            if fresh is None:
                return
            index = self._open[key] = self._next()
            yield PartStart(index, fresh)
        self._with_text.add(index)
        yield PartDelta(index, text, logprobs=logprobs)

    def _item_added(self, at: int, item: Mapping[str, Any]) -> Iterator[Event]:
        kind = item.get("type")
        ident = item.get("id")
        self._ids[at] = ident if isinstance(ident, str) else None
        if kind in ("function_call", "custom_tool_call"):
            # Arguments come in deltas, or whole with the `done` event; some servers repeat them here.
            call = whole.call_in(_converted({**item, "arguments": "", "input": ""}))
            index = self._open[at, 0] = self._next()
            self._called = True
            yield PartStart(index, call)

    def _item_done(self, at: int, item: Mapping[str, Any]) -> Iterator[Event]:
        self._done.add(at)
        parts, logprobs = whole.parts_in(item)
        for number, part in enumerate(parts):
            key = (at, _REASONING if isinstance(part, ReasoningPart) else number)
            self._called = self._called or (isinstance(part, ToolCallPart) and part.kind != "server")
            index = self._open.pop(key, None)
            empty, text = _split(part)
            if index is None:
                index = self._next()
                yield PartStart(index, empty)
            if text and index not in self._with_text:
                yield PartDelta(index, text, logprobs=tuple(logprobs))
            yield PartEnd(index, part if _has_more(part) else None)

    def _finish(self, response: wire.Response) -> Iterator[Event]:
        for number, item in enumerate(response.output or ()):
            if number not in self._done and not any(at == number for at, _ in self._open):
                yield from self._item_done(number, item)
        for key in sorted(self._open):
            yield PartEnd(self._open[key])
        self._open.clear()
        self._ended = True
        reason, native = whole.finish_in(response, self._called)
        yield Finish(reason, self.usage, native_reason=native)

    def _next(self) -> int:
        self._count += 1
        return self._count - 1


def _read(data: bytes) -> wire.StreamEvent:
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"not a stream event: {error}", body=data[:2000]) from None


def _converted(item: Mapping[str, Any]) -> wire.Item:
    try:
        return msgspec.convert(item, wire.Item)
    except msgspec.ValidationError as error:
        raise WireError(f"output item: {error}") from None


def _split(part: Part) -> tuple[Part, str]:
    """The part as it starts, and the text that follows in a delta."""
    match part:
        case TextPart(text):
            return TextPart(""), text
        case RefusalPart(text):
            return RefusalPart(""), text
        case ReasoningPart(text) if text:
            return ReasoningPart(id=part.id, dialect=part.dialect), text
        case ToolCallPart(kind="function" | "custom"):
            return ToolCallPart(part.id, part.name, "", part.kind), part.arguments
    return part, ""


def _has_more(part: Part) -> bool:
    """The whole part tells what its deltas could not: citations, sealed thinking."""
    match part:
        case TextPart():
            return bool(part.citations)
        case ReasoningPart():
            return part.redacted is not None or part.signature is not None
    return False


class EventEncoder:
    """Events to a client's bytes."""

    def __init__(self, request: ChatRequest) -> None:
        self._builder = ResponseBuilder(request)
        self._sequence = 0

    def encode(self, events: Iterable[Event]) -> bytes:
        out = bytearray()
        for event in events:
            for frame in self._builder.apply(event):
                out += self._bytes(frame)
        return bytes(out)

    def close(self) -> bytes:
        return b""

    def fail(self, error: ErrorBody) -> bytes:
        """`response.failed` for clients that follow the response (Codex), then `error`, which SDKs raise."""
        inner = error_object(error)
        out = b"".join(self._bytes(frame) for frame in self._builder.fail(error))
        flat = {"type": "error", "code": error.code, "message": error.message, "param": error.param, "error": inner}
        return out + self._bytes(flat)

    def _bytes(self, frame: dict[str, Any]) -> bytes:
        frame["sequence_number"] = self._sequence
        self._sequence += 1
        return sse.encode(_encode(frame), frame["type"])


class _Glance(Struct):
    """The little that most frames are looked at for."""

    type: str
    delta: str = ""


_glance: Final = msgspec.json.Decoder(_Glance)


class Tap(FrameTap):
    """Watches a stream that stays in this dialect."""

    def __init__(self) -> None:
        super().__init__()
        self._called = False

    def is_whole(self) -> bool:
        return self.finish_reason is not None

    def look(self, data: bytes) -> None:
        if data == b"[DONE]":
            return
        try:
            seen = _glance.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise WireError(f"not a stream event: {error}", body=data[:2000]) from None
        if seen.type in wire.TEXT_DELTAS:
            self.started = True
            self.output_bytes += text_bytes(seen.delta)
        elif seen.type == "response.output_item.added":
            self.started = True
            item = _read(data).item or {}
            self._called = self._called or item.get("type") in ("function_call", "custom_tool_call")
        elif seen.type in wire.TERMINAL or seen.type == "error":
            self._terminal(_read(data))

    def _terminal(self, event: wire.StreamEvent) -> None:
        if event.response is not None:
            self.usage = self.usage.at_least(whole.usage_in(event.response))
        if event.type == "error":
            raise error_in_answer(event.error or wire.ResponseError(event.code, event.message, event.param))
        if event.type in ("response.failed", "response.cancelled"):
            raise error_in_answer(event.response.error if event.response else None)
        response = event.response or wire.Response(status=event.type.removeprefix("response."))
        self.finish_reason, _ = whole.finish_in(response, self._called)
