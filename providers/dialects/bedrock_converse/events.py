"""The ConverseStream, both ways: AWS frames to neutral events, events to frames.

Source: botocore 1.44 shape ConverseStreamOutput; recorded streams, in which text blocks come without a
contentBlockStart, each payload has a padding member `p` of random length, and `metadata` comes last; read 2026-11.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Iterator
from secrets import randbelow
from typing import Any

import msgspec
from msgspec import UNSET, Struct
from msgspec.structs import replace

from providers.dialects.base import ErrorBody
from providers.dialects.bedrock_converse import wire
from providers.dialects.bedrock_converse.content import NAME, citation_in
from providers.dialects.bedrock_converse.errors import of_exception, of_type, stream_exception
from providers.dialects.bedrock_converse.response import (
    citation_out,
    finish_reason,
    is_redacted,
    redacted_out,
    signature_out,
    stop_reason,
    stop_sequence_in,
    tool_start_out,
)
from providers.dialects.bedrock_converse.usage import usage_in, usage_out
from providers.dialects.names import split_signature, widen_name
from providers.errors import Interrupted, WireError
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
from providers.wire.eventstream import EventStreamDecoder, Frame, encode_event, encode_exception

_PADDING = string.ascii_letters + string.digits
_KNOWN = frozenset(
    ("messageStart", "contentBlockStart", "contentBlockDelta", "contentBlockStop", "messageStop", "metadata")
)
_event = msgspec.json.Decoder(wire.StreamEvent)


def read_frame(frame: Frame) -> wire.StreamEvent | None:
    """None for an event that is newer than this file.

    Raises: WireError; the kind of an exception frame."""
    if frame.message_type == "exception":
        raise of_exception(frame.event_type, frame.payload)
    if frame.message_type == "error":
        text = str(frame.headers.get(":error-message", "")) or frame.event_type
        raise of_type(frame.event_type, text, {}, body=frame.payload)
    if frame.event_type not in _KNOWN:
        return None
    try:
        return _event.decode(frame.payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        message = f"a {frame.event_type} event that the reference rules out: {error}"
        raise WireError(message, body=frame.payload[:4096]) from error


class _Block:
    """A content block while it streams. Its text is kept: citations, which come apart, replace the whole part."""

    __slots__ = ("citations", "part", "pieces", "redacted")

    def __init__(self, part: Part | None) -> None:
        self.part = part
        self.pieces: list[str] = []
        self.redacted: list[str] = []
        self.citations: list[Citation] = []


class EventDecoder:
    """See `providers.dialects.base.EventDecoder`. ident, model: what the frames do not say."""

    def __init__(self, ident: str, model: str) -> None:
        self._frames = EventStreamDecoder()
        self._ident = ident
        self._model = model
        self._blocks: dict[int, _Block] = {}
        self._started = False
        self._stop: wire.StreamEvent | None = None
        self._finished = False
        self.usage = Usage()

    def feed(self, data: bytes) -> Iterator[Event]:
        for frame in self._frames.feed(data):
            event = read_frame(frame)
            if event is not None:
                yield from self._read(frame.event_type, event)

    def close(self) -> Iterator[Event]:
        if self._frames.pending or self._stop is None:
            raise Interrupted("the stream ended before the answer did")
        if not self._finished:
            yield self._finish()  # without metadata: the reason is known, the counts are not

    def _read(self, name: str, event: wire.StreamEvent) -> Iterator[Event]:
        if name != "messageStart" and not self._started:
            raise WireError(f"{name} before messageStart")
        match name:
            case "messageStart":
                if self._started:
                    raise WireError("messageStart twice")
                self._started = True
                yield ResponseStart(self._ident, self._model)
            case "contentBlockStart":
                yield from self._start(_index(name, event), event.start or wire.Start())
            case "contentBlockDelta":
                yield from self._delta(_index(name, event), event.delta or wire.Delta())
            case "contentBlockStop":
                yield from self._end(_index(name, event))
            case "messageStop":
                self._stop = event
            case "metadata" if not self._finished:
                if event.usage is not None:
                    self.usage = usage_in(event.usage, event.serviceTier)
                if self._stop is None:
                    raise WireError("metadata before messageStop")
                yield self._finish()

    def _start(self, index: int, start: wire.Start) -> Iterator[Event]:
        if index in self._blocks:
            raise WireError(f"content block {index} starts twice")
        if start.toolUse is None:
            # A text that is announced after all is a text; anything else has no neutral meaning.
            return
        tool = start.toolUse
        ident, signature = split_signature(tool.toolUseId)
        kind = "server" if tool.type == "server_tool_use" else "function"
        part = ToolCallPart(ident, widen_name(tool.name), "", "server" if kind == "server" else "function", signature)
        self._blocks[index] = _Block(part)
        yield PartStart(index, part)

    def _delta(self, index: int, delta: wire.Delta) -> Iterator[Event]:
        block = self._blocks.get(index)
        if block is None:
            block = self._blocks[index] = _Block(_implied(delta))
            if block.part is not None:
                yield PartStart(index, block.part)
        match block.part:
            case TextPart():
                if delta.citation is not None:
                    block.citations.append(citation_in(delta.citation))
                if delta.text is not None:
                    block.pieces.append(delta.text)
                    yield PartDelta(index, delta.text)
            case ToolCallPart() if delta.toolUse is not None and delta.toolUse.input:
                block.pieces.append("")
                yield PartDelta(index, delta.toolUse.input)
            case ReasoningPart() if (reasoning := delta.reasoningContent) is not None:
                if reasoning.redactedContent is not None:
                    block.redacted.append(reasoning.redactedContent)
                if reasoning.text is not None:
                    yield PartDelta(index, reasoning.text)
                if reasoning.signature is not None:
                    yield PartDelta(index, signature=reasoning.signature)

    def _end(self, index: int) -> Iterator[Event]:
        block = self._blocks.get(index)
        if block is None or block.part is None:
            return
        whole: Part | None = None
        match block.part:
            case ToolCallPart() if not block.pieces:
                yield PartDelta(index, "{}")  # a call without arguments sends no delta at all
            case TextPart() if block.citations:
                whole = replace(block.part, text="".join(block.pieces), citations=tuple(block.citations))
            case ReasoningPart() if len(block.redacted) > 1:
                whole = replace(block.part, redacted="".join(block.redacted))
        yield PartEnd(index, whole)

    def _finish(self) -> Finish:
        assert self._stop is not None
        self._finished = True
        reason = self._stop.stopReason
        return Finish(
            finish_reason(reason),
            self.usage,
            native_reason=reason,
            stop_sequence=stop_sequence_in(self._stop.additionalModelResponseFields),
        )


def _implied(delta: wire.Delta) -> Part | None:
    """The part that a first delta speaks of: only tool calls are announced."""
    if delta.text is not None or delta.citation is not None:
        return TextPart("")
    if delta.reasoningContent is not None:
        return ReasoningPart(redacted=delta.reasoningContent.redactedContent, dialect=NAME)
    return None


def _index(name: str, event: wire.StreamEvent) -> int:
    if event.contentBlockIndex is UNSET:
        raise WireError(f"{name} without a contentBlockIndex")
    assert isinstance(event.contentBlockIndex, int)
    return event.contentBlockIndex


class _Open(Struct):
    """A part on its way out: its block number, and whether its signature has gone."""

    number: int
    part: Part
    signed: bool = False


def _random_padding() -> str:
    """As AWS does it: the length of a frame must not tell the length of the token inside."""
    return _PADDING[: randbelow(len(_PADDING)) + 1]


class EventEncoder:
    """See `providers.dialects.base.EventEncoder`."""

    def __init__(self, request: ChatRequest, padding: Callable[[], str] = _random_padding) -> None:
        self._padding = padding
        self._open: dict[int, _Open] = {}
        self._unsaid: dict[int, Part] = {}
        self._count = 0

    def encode(self, events: Iterable[Event]) -> bytes:
        return b"".join(self._frames(events))

    def close(self) -> bytes:
        return b""  # metadata, written with the finish, is the end

    def fail(self, error: ErrorBody) -> bytes:
        return encode_exception(*stream_exception(error))

    def _frames(self, events: Iterable[Event]) -> Iterator[bytes]:
        for event in events:
            match event:
                case ResponseStart():
                    yield self._frame("messageStart", {"role": "assistant"})
                case PartStart(index, TextPart("") | RefusalPart("") as part, 0):
                    # A text that stays empty never becomes a block: sent back as it came, it would be refused.
                    self._unsaid[index] = part
                case PartStart(index, part, 0):
                    yield from self._start(index, part)
                case PartDelta(index, text) if text and index in self._unsaid:
                    yield from self._start(index, self._unsaid.pop(index))
                    yield from self._delta(self._open[index], event)
                case PartDelta(index) if index in self._open:
                    yield from self._delta(self._open[index], event)
                case PartEnd(index, whole) if index in self._open:
                    block = self._open.pop(index)
                    yield from self._last_words(block, whole)
                    yield self._stop(block.number)
                case Finish(candidate=0):
                    for block in self._open.values():
                        yield self._stop(block.number)
                    self._open.clear()
                    yield from self._finish(event)

    def _finish(self, event: Finish) -> Iterator[bytes]:
        stop: dict[str, Any] = {"stopReason": stop_reason(event)}
        if event.stop_sequence is not None:
            stop["additionalModelResponseFields"] = {"stop_sequence": event.stop_sequence}
        yield self._frame("messageStop", stop)
        usage = event.usage or Usage()
        metadata: dict[str, Any] = {"usage": usage_out(usage), "metrics": {"latencyMs": 0}}
        if usage.service_tier in ("default", "priority", "flex", "reserved"):
            metadata["serviceTier"] = {"type": usage.service_tier}
        yield self._frame("metadata", metadata)

    def _start(self, index: int, part: Part) -> Iterator[bytes]:
        first = ""
        match part:
            case TextPart(first) | RefusalPart(first) | ReasoningPart(first):
                pass
            case ToolCallPart(kind="server"):
                return
            case ToolCallPart(arguments=first):
                pass
            case _:
                return  # no block of theirs says it in a stream
        block = self._open[index] = _Open(self._count, part)
        self._count += 1
        if isinstance(part, ToolCallPart):
            start = {"toolUse": tool_start_out(part)}
            yield self._frame("contentBlockStart", {"start": start, "contentBlockIndex": block.number})
        if first:
            yield from self._delta(block, PartDelta(index, first))
        match part:
            case ReasoningPart(redacted=str() as redacted) if is_redacted(part):
                yield self._change(block.number, {"reasoningContent": {"redactedContent": redacted_out(redacted)}})
            case ReasoningPart():
                yield from self._sign(block, part)
            case TextPart():
                yield from self._cite(block, part)

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
                yield self._change(block.number, {"citation": raw})

    def _sign(self, block: _Open, part: ReasoningPart) -> Iterator[bytes]:
        if signature := signature_out(part):
            block.signed = True
            yield self._change(block.number, {"reasoningContent": {"signature": signature}})

    def _delta(self, block: _Open, delta: PartDelta) -> Iterator[bytes]:
        text = delta.text
        match block.part:
            case ToolCallPart():
                if text:
                    yield self._change(block.number, {"toolUse": {"input": text}})
            case ReasoningPart():
                if text:
                    yield self._change(block.number, {"reasoningContent": {"text": text}})
                if delta.signature is not None:
                    yield from self._sign(block, replace(block.part, signature=delta.signature))
            case _:
                if text:
                    yield self._change(block.number, {"text": text})

    def _change(self, number: int, delta: dict[str, Any]) -> bytes:
        return self._frame("contentBlockDelta", {"delta": delta, "contentBlockIndex": number})

    def _stop(self, number: int) -> bytes:
        return self._frame("contentBlockStop", {"contentBlockIndex": number})

    def _frame(self, name: str, payload: dict[str, Any]) -> bytes:
        return encode_event(name, msgspec.json.encode(payload | {"p": self._padding()}))
