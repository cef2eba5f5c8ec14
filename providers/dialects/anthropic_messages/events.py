"""The Messages stream, both ways: SSE frames to neutral events, events to frames.

Source: "Streaming Messages" reference and anthropic-python 2.12 `types/raw_*_event.py`, read 2026-11.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from msgspec import UNSET
from msgspec.structs import replace

from providers.dialects.anthropic_messages import wire
from providers.dialects.anthropic_messages.content import (
    citation_in,
    citation_out,
    is_redacted,
    response_part_in,
    signature_out,
)
from providers.dialects.anthropic_messages.errors import error_object, from_object
from providers.dialects.anthropic_messages.response import finish_reason, message_id, stop_reason
from providers.dialects.anthropic_messages.usage import delta_usage_out, usage_in, usage_out
from providers.dialects.base import ErrorBody
from providers.dialects.names import id_with_signature
from providers.errors import BadRequest, Interrupted, WireError
from providers.neutral import (
    ChatRequest,
    Citation,
    Event,
    Finish,
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
from providers.wire.sse import Frame, SseDecoder, encode

_KNOWN = frozenset(
    (
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
        "error",
    )
)
_event = msgspec.json.Decoder(wire.StreamEvent)
_type = msgspec.json.Decoder(wire.EventType)
_PING = b'event: ping\ndata: {"type": "ping"}\n\n'


def read_event(data: bytes) -> wire.StreamEvent | None:
    """One frame's data. None for what says nothing to us: pings, events that are newer than this file.

    Raises: WireError; the kind of an error event."""
    if data == b"[DONE]":  # some proxies' habit
        return None
    try:
        event = _event.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        if _is_unknown(data):
            return None
        raise WireError(f"a stream event that the reference rules out: {error}", body=data[:4096]) from error
    if event.type == "error":
        raise from_object(msgspec.json.decode(data), body=data)
    return event if event.type in _KNOWN else None


def _is_unknown(data: bytes) -> bool:
    try:
        return _type.decode(data).type not in _KNOWN
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False


class _Block:
    """A content block while it streams. Its text is kept: citations, which come apart, replace the whole part."""

    __slots__ = ("citations", "part", "pieces")

    def __init__(self, part: Part | None) -> None:
        self.part = part
        self.pieces: list[str] = []
        self.citations: list[Citation] = []


class EventDecoder:
    """See `providers.dialects.base.EventDecoder`."""

    def __init__(self) -> None:
        self._sse = SseDecoder()
        self._blocks: dict[int, _Block] = {}
        self._started = False
        self._stopped = False
        self._last: wire.Delta | None = None
        self.usage = Usage()

    def feed(self, data: bytes) -> Iterator[Event]:
        for frame in self._sse.feed(data):
            yield from self._frame(frame)

    def close(self) -> Iterator[Event]:
        for frame in self._sse.close():
            yield from self._frame(frame)
        if not self._stopped and self._last is None:
            raise Interrupted("the stream ended before the answer did")
        if not self._stopped:
            yield self._finish()  # only the end marker is missing; reason and usage have been told

    def _frame(self, frame: Frame) -> Iterator[Event]:
        event = read_event(frame.data) if frame.data else None
        if event is None:
            return
        if not self._started and event.type != "message_start":
            raise WireError(f"{event.type} before message_start", body=frame.data[:4096])
        match event.type:
            case "message_start":
                if self._started:
                    raise WireError("message_start twice", body=frame.data[:4096])
                self._started = True
                message = event.message or wire.StartedMessage()
                known = usage_in(message.usage) if message.usage is not None else None
                self.usage = known or self.usage
                yield ResponseStart(message.id, message.model, usage=known)
            case "content_block_start":
                yield from self._start(_index(event, frame), event.content_block or {}, frame)
            case "content_block_delta":
                yield from self._delta(_index(event, frame), event.delta or wire.Delta(), frame)
            case "content_block_stop":
                yield from self._stop(_index(event, frame))
            case "message_delta":
                if event.usage is not None:
                    self.usage = self.usage.at_least(usage_in(event.usage))
                if event.delta is not None and event.delta.stop_reason is not None:
                    self._last = event.delta
            case "message_stop":
                if not self._stopped:
                    yield self._finish()

    def _start(self, index: int, raw: wire.Block, frame: Frame) -> Iterator[Event]:
        if index in self._blocks:
            raise WireError(f"content block {index} starts twice", body=frame.data[:4096])
        try:
            part = response_part_in(raw)
        except BadRequest as error:
            raise WireError(f"a content block that the reference rules out: {error.message}") from error
        if isinstance(part, ToolCallPart) and part.arguments == "{}":
            part = replace(part, arguments="")  # a placeholder until the deltas come
        self._blocks[index] = block = _Block(part)
        if part is None:
            return  # a kind of block that has no neutral meaning: neither have its deltas
        if isinstance(part, TextPart) and part.citations:
            block.citations = list(part.citations)
            part = replace(part, citations=())
        if isinstance(part, TextPart):
            block.pieces.append(part.text)
        yield PartStart(index, part)

    def _delta(self, index: int, delta: wire.Delta, frame: Frame) -> Iterator[Event]:
        block = self._blocks.get(index)
        if block is None:
            raise WireError(f"a delta for content block {index}, which has not started", body=frame.data[:4096])
        if block.part is None:
            return
        match delta.type:
            case "text_delta" if isinstance(block.part, TextPart):
                block.pieces.append(delta.text or "")
                yield PartDelta(index, delta.text or "")
            case "input_json_delta" if isinstance(block.part, ToolCallPart):
                if delta.partial_json:
                    block.pieces.append("")
                    yield PartDelta(index, delta.partial_json)
            case "thinking_delta" if isinstance(block.part, ReasoningPart):
                yield PartDelta(index, delta.thinking or "")
            case "signature_delta" if isinstance(block.part, ReasoningPart):
                yield PartDelta(index, signature=delta.signature or "")
            case "citations_delta" if delta.citation is not None:
                block.citations.append(citation_in(delta.citation))
            case _:
                pass  # a kind of delta that is newer than this file

    def _stop(self, index: int) -> Iterator[Event]:
        block = self._blocks.get(index)
        if block is None or block.part is None:
            return
        if isinstance(block.part, ToolCallPart) and not block.part.arguments and not block.pieces:
            yield PartDelta(index, "{}")  # a call without arguments sends no delta at all
        whole: Part | None = None
        if block.citations and isinstance(block.part, TextPart):
            whole = replace(block.part, text="".join(block.pieces), citations=tuple(block.citations))
        yield PartEnd(index, whole)

    def _finish(self) -> Finish:
        self._stopped = True
        last = self._last or wire.Delta()
        return Finish(
            finish_reason(last.stop_reason),
            self.usage,
            native_reason=last.stop_reason,
            stop_sequence=last.stop_sequence,
        )


def _index(event: wire.StreamEvent, frame: Frame) -> int:
    if event.index is UNSET:
        raise WireError(f"{event.type} without an index", body=frame.data[:4096])
    assert isinstance(event.index, int)
    return event.index


class _Open(msgspec.Struct):
    """A part on its way out: its block number, and what is known of it so far."""

    number: int
    part: Part
    signed: bool = False


class EventEncoder:
    """See `providers.dialects.base.EventEncoder`. Their blocks are numbered in the order they start, without gaps:
    their SDKs append each to a list and find it again by its number."""

    def __init__(self, request: ChatRequest) -> None:
        self._model = request.model
        self._open: dict[int, _Open] = {}
        self._unsaid: dict[int, Part] = {}
        self._count = 0

    def encode(self, events: Iterable[Event]) -> bytes:
        return b"".join(self._frames(events))

    def close(self) -> bytes:
        return b""  # message_stop, written with the finish, is the end

    def fail(self, error: ErrorBody) -> bytes:
        return _frame("error", error_object(error))

    def _frames(self, events: Iterable[Event]) -> Iterator[bytes]:
        for event in events:
            match event:  # The commonest first: each case that does not fit costs.
                case PartDelta(index, text):
                    if text and index in self._unsaid:
                        yield from self._start(index, self._unsaid.pop(index))
                    if index in self._open:
                        yield from self._delta(self._open[index], event)
                case ResponseStart():
                    yield self._message_start(event)
                    yield _PING
                case PartStart(index, TextPart("") | RefusalPart("") as part, 0):
                    # A text that stays empty never becomes a block: sent back as it came, it would be refused.
                    self._unsaid[index] = part
                case PartStart(index, part, 0):
                    yield from self._start(index, part)
                case PartEnd(index, whole) if index in self._open:
                    block = self._open.pop(index)
                    yield from self._last_words(block, whole)
                    yield _stop(block.number)
                case Finish(candidate=0):
                    for block in self._open.values():
                        yield _stop(block.number)
                    self._open.clear()
                    delta = {"stop_reason": stop_reason(event), "stop_sequence": event.stop_sequence}
                    usage = delta_usage_out(event.usage or Usage())
                    yield _frame("message_delta", {"type": "message_delta", "delta": delta, "usage": usage})
                    yield _frame("message_stop", {"type": "message_stop"})

    def _message_start(self, start: ResponseStart) -> bytes:
        message: dict[str, Any] = {
            "id": message_id(start.id),
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage_out(start.usage or Usage()),
        }
        return _frame("message_start", {"type": "message_start", "message": message})

    def _start(self, index: int, part: Part) -> Iterator[bytes]:
        first = ""
        block: wire.Block
        match part:
            case TextPart(first) | RefusalPart(first):
                block = {"type": "text", "text": ""}
            case ReasoningPart(redacted=str() as redacted) if is_redacted(part):
                block = {"type": "redacted_thinking", "data": redacted}
            case ReasoningPart(first):
                block = {"type": "thinking", "thinking": "", "signature": ""}
            case ToolCallPart(kind="server"):
                return
            case ToolCallPart(arguments=first):
                block = {"type": "tool_use", "id": id_with_signature(part), "name": part.name, "input": {}}
            case _:
                return  # no block of theirs says it
        opened = _Open(self._count, part)
        self._open[index] = opened
        self._count += 1
        start = {"type": "content_block_start", "index": opened.number, "content_block": block}
        yield _frame("content_block_start", start)
        if first:
            yield from self._delta(opened, PartDelta(index, first))
        if block["type"] == "thinking" and isinstance(part, ReasoningPart):
            yield from self._sign(opened, part)
        if isinstance(part, TextPart):
            yield from self._cite(opened, part)

    def _last_words(self, block: _Open, whole: Part | None) -> Iterator[bytes]:
        """What came only with the end of a part."""
        match whole:
            case TextPart():
                yield from self._cite(block, whole)
            case ReasoningPart() if not block.signed and not is_redacted(whole):
                yield from self._sign(block, whole)

    def _cite(self, block: _Open, part: TextPart) -> Iterator[bytes]:
        for citation in part.citations:
            if (raw := citation_out(citation)) is not None:
                yield self._change(block.number, {"type": "citations_delta", "citation": raw})

    def _sign(self, block: _Open, part: ReasoningPart) -> Iterator[bytes]:
        if signature := signature_out(part):
            block.signed = True
            yield self._change(block.number, {"type": "signature_delta", "signature": signature})

    def _delta(self, block: _Open, delta: PartDelta) -> Iterator[bytes]:
        text = delta.text
        match block.part:
            case TextPart() | RefusalPart():
                if text:
                    yield self._change(block.number, {"type": "text_delta", "text": text})
            case ToolCallPart():
                if text:
                    yield self._change(block.number, {"type": "input_json_delta", "partial_json": text})
            case ReasoningPart():
                if text:
                    yield self._change(block.number, {"type": "thinking_delta", "thinking": text})
                if delta.signature is not None:
                    yield from self._sign(block, replace(block.part, signature=delta.signature))
            case _:
                raise AssertionError("only parts with a block are open")

    def _change(self, number: int, delta: dict[str, Any]) -> bytes:
        return _frame("content_block_delta", {"type": "content_block_delta", "index": number, "delta": delta})


def _stop(number: int) -> bytes:
    return _frame("content_block_stop", {"type": "content_block_stop", "index": number})


def _frame(event: str, value: dict[str, Any]) -> bytes:
    return encode(msgspec.json.encode(value), event)
