"""The stream: read from Google, written for a client as SSE, and watched while it passes.

Every frame is a GenerateContentResponse; lines end with CRLF, there is no end marker, and usage is in the last frame
(often in all). Source: google-genai 3.4 and recorded streams, 2026-11.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from providers.dialects.base import ErrorBody
from providers.dialects.gemini import wire
from providers.dialects.gemini.errors import error_object
from providers.dialects.gemini.parts import made_id, paired, part_in
from providers.dialects.gemini.response import (
    block_reason,
    citations_in,
    envelope,
    finish_in,
    finish_out,
    grounding_out,
    in_bytes,
    logprobs_in,
    logprobs_out,
    part_out,
    read_answer,
    usage_in,
)
from providers.dialects.tapping import FrameTap, text_bytes
from providers.errors import Interrupted
from providers.neutral import (
    ChatRequest,
    Citation,
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

_encode: Final = msgspec.json.Encoder().encode


class _Meter:
    """Usage of a stream whose every chunk repeats it: read when somebody asks, not for each chunk."""

    def __init__(self) -> None:
        self._usage = Usage()
        self._latest: wire.Answer | None = None

    def see(self, answer: wire.Answer) -> None:
        if answer.usage_metadata is None and not any(c.grounding_metadata for c in answer.candidates or ()):
            return
        if answer.usage_metadata is None or answer.candidates is None or answer.candidates[0].finish_reason:
            self._usage = self._usage.at_least(usage_in(answer))  # it may be the only one to tell of a search
        else:
            self._latest = answer

    @property
    def usage(self) -> Usage:
        if self._latest is not None:
            self._usage, self._latest = self._usage.at_least(usage_in(self._latest)), None
        return self._usage


class _Reading:
    """One candidate while it streams: texts of a kind are one part until another kind, or a seal, ends them."""

    def __init__(self) -> None:
        self.open: tuple[int, Part] | None = None
        self.text: list[str] = []
        self.signature: str | None = None
        self.seal: ReasoningPart | None = None  # another dialect's, which came behind the thinking it seals
        self.native: str | None = None
        self.calls = 0
        self.last_call = ""
        self.last = wire.Candidate()


class EventDecoder:
    """Provider bytes to events. Finishes come when the stream has ended: only then is the usage sure to be whole."""

    def __init__(self) -> None:
        self._sse = sse.SseDecoder()
        self._meter = _Meter()
        self._ident: str | None = None
        self._count = 0
        self._candidates: dict[int, _Reading] = {}
        self._blocked: str | None = None

    @property
    def usage(self) -> Usage:
        return self._meter.usage

    def feed(self, data: bytes) -> Iterator[Event]:
        for frame in self._sse.feed(data):
            if frame.data:
                yield from self._chunk(read_answer(frame.data))

    def close(self) -> Iterator[Event]:
        for frame in self._sse.close():
            if frame.data:
                yield from self._chunk(read_answer(frame.data))
        numbers = sorted(self._candidates)
        if self._blocked is not None and not numbers:
            yield Finish("content_filter", self.usage, native_reason=self._blocked)
            return
        if not numbers or any(reading.native is None for reading in self._candidates.values()):
            raise Interrupted("the stream ended before the answer did")
        for number in numbers:
            reading = self._candidates[number]
            reason = finish_in(reading.native, reading.calls > 0)
            yield Finish(reason, self.usage if number == numbers[-1] else None, number, reading.native)

    def _chunk(self, answer: wire.Answer) -> Iterator[Event]:
        if self._ident is None:
            self._ident = answer.response_id or ""
            yield ResponseStart(self._ident, answer.model_version or "")
        self._meter.see(answer)
        self._blocked = self._blocked or block_reason(answer)
        for found in answer.candidates or ():
            reading = self._candidates.setdefault(found.index, _Reading())
            if found.grounding_metadata is not None or found.citation_metadata is not None:
                reading.last = found
            yield from self._candidate(reading, found)

    def _candidate(self, reading: _Reading, found: wire.Candidate) -> Iterator[Event]:
        probs = logprobs_in(found)
        for part in (found.content.parts if found.content is not None else None) or ():
            scope = f"{self._ident}-{found.index}" if found.index else self._ident or ""
            read = part_in(part, made_id(scope, reading.calls))
            match read:
                case None:
                    pass
                case TextPart() | ReasoningPart():
                    yield from self._text(reading, read, found.index, probs)
                    probs = ()
                case _:
                    yield from self._end(reading)
                    if isinstance(read, ToolCallPart):
                        reading.last_call = read.id
                        reading.calls += read.kind != "server"
                    yield from self._whole(paired(read, reading.last_call), found.index)
        if found.finish_reason is not None:
            reading.native = found.finish_reason
            yield from self._end(reading)

    def _text(
        self, reading: _Reading, part: TextPart | ReasoningPart, number: int, probs: tuple[Logprob, ...]
    ) -> Iterator[Event]:
        if reading.open is not None and _seals(reading, part):
            assert isinstance(part, ReasoningPart)
            reading.seal = part
            yield from self._end(reading)
            return
        if reading.open is not None and not _continues(reading, part):
            yield from self._end(reading)
        if not part.text and part.signature is None and not probs:
            return  # the empty text of a last chunk
        if reading.open is None:
            index = self._next()
            empty = replace(part, text="", signature=None)
            reading.open = (index, empty)
            yield PartStart(index, empty, number)
        reading.text.append(part.text)
        reading.signature = part.signature
        yield PartDelta(reading.open[0], part.text, part.signature, probs)

    def _whole(self, part: Part, number: int) -> Iterator[Event]:
        index = self._next()
        if isinstance(part, ToolCallPart) and part.kind != "server":
            yield PartStart(index, replace(part, arguments=""), number)
            yield PartDelta(index, part.arguments)
        else:
            yield PartStart(index, part, number)
        yield PartEnd(index)

    def _end(self, reading: _Reading) -> Iterator[Event]:
        if reading.open is None:
            return
        index, part = reading.open
        text, signature = "".join(reading.text), reading.signature
        seal = reading.seal
        reading.open, reading.text, reading.signature, reading.seal = None, [], None, None
        whole: Part | None = replace(seal, text=text) if seal is not None else None
        if isinstance(part, TextPart) and (citations := citations_in(reading.last, text)):
            whole = TextPart(text, citations=citations, signature=signature)
            reading.last = wire.Candidate()
        yield PartEnd(index, whole)

    def _next(self) -> int:
        self._count += 1
        return self._count - 1


def _continues(reading: _Reading, part: TextPart | ReasoningPart) -> bool:
    """A seal belongs to the part it came with: what follows is another part. Who sealed thinking counts too."""
    assert reading.open is not None
    open_part = reading.open[1]
    if type(open_part) is not type(part) or (reading.signature is not None and part.text):
        return False
    return not isinstance(part, ReasoningPart) or part.dialect == getattr(open_part, "dialect", None)


def _seals(reading: _Reading, part: TextPart | ReasoningPart) -> bool:
    """Our own way to tell another dialect's seal in a stream: a thought without text, behind its texts."""
    return (
        isinstance(part, ReasoningPart)
        and not part.text
        and part.dialect != wire.NAME
        and reading.open is not None
        and isinstance(reading.open[1], ReasoningPart)
        and reading.signature is None
    )


class EventEncoder:
    """Events to a client's bytes."""

    def __init__(self, request: ChatRequest) -> None:
        self._ident = ""
        self._model = ""
        self._parts: dict[int, tuple[int, Part]] = {}
        self._texts: dict[int, list[str]] = {}
        self._signatures: dict[int, str] = {}
        self._citations: dict[int, list[Citation]] = {}
        self._usage = Usage()

    def encode(self, events: Iterable[Event]) -> bytes:
        return b"".join(map(self._event, events))

    def close(self) -> bytes:
        return b""

    def fail(self, error: ErrorBody) -> bytes:
        return self._frame(error_object(error))

    def _event(self, event: Event) -> bytes:
        match event:
            case PartDelta(index, text, signature, logprobs):
                return self._delta(index, text, signature, logprobs)
            case PartStart(index, part, number):
                self._parts[index] = (number, part)
                self._texts[index] = []
                match part:
                    case TextPart(text) | RefusalPart(text) | ReasoningPart(text) if text:
                        return self._delta(index, text, None, ())
                return b""
            case PartEnd(index, whole):
                return self._end(index, whole)
            case ResponseStart(ident, model, _, usage):
                self._ident, self._model = ident, model
                self._usage = usage or self._usage
                return b""
            case Finish(reason, usage, number, native):
                return self._finish(finish_out(reason, native), usage, number)

    def _delta(self, index: int, text: str, signature: str | None, logprobs: tuple[Logprob, ...]) -> bytes:
        number, part = self._parts[index]
        self._texts[index].append(text)
        if signature is not None:
            self._signatures[index] = signature
        if not text and not logprobs:
            return b""
        match part:
            case TextPart() | RefusalPart():
                return self._chunk(number, {"text": text}, logprobs_out(logprobs))
            case ReasoningPart():
                return self._chunk(number, {"text": text, "thought": True})
        return b""  # a call's arguments go out as the object they add up to

    def _end(self, index: int, whole: Part | None) -> bytes:
        number, part = self._parts.pop(index)
        text, signature = "".join(self._texts.pop(index)), self._signatures.pop(index, None)
        if whole is not None:
            part = whole
        match part:
            case TextPart():
                self._citations.setdefault(number, []).extend(in_bytes(replace(part, text=part.text or text)))
                signature = signature or part.signature
                return self._chunk(number, {"text": "", "thoughtSignature": signature}) if signature else b""
            case RefusalPart():
                return b""
            case ReasoningPart():
                sealed = part_out(replace(part, text="", signature=signature or part.signature))
                return self._chunk(number, sealed) if sealed and "thoughtSignature" in sealed else b""
            case ToolCallPart():
                written = part_out(
                    replace(
                        part,
                        arguments=part.arguments if whole else part.arguments + text,
                        signature=signature or part.signature,
                    )
                )
            case _:
                written = part_out(part)
        return self._chunk(number, written) if written is not None else b""

    def _finish(self, reason: str, usage: Usage | None, number: int) -> bytes:
        candidate: dict[str, Any] = {"content": {"parts": [{"text": ""}], "role": "model"}, "finishReason": reason}
        candidate |= {"index": number, **grounding_out(self._citations.pop(number, []))}
        if usage is not None:
            self._usage = self._usage.at_least(usage)
        return self._frame(envelope(self._ident, self._model, [candidate], self._usage if usage is not None else None))

    def _chunk(self, number: int, part: dict[str, Any], more: dict[str, Any] | None = None) -> bytes:
        candidate = {"content": {"parts": [part], "role": "model"}, "index": number, **(more or {})}
        return self._frame(envelope(self._ident, self._model, [candidate]))

    def _frame(self, value: dict[str, Any]) -> bytes:
        return b"data: %b\r\n\r\n" % _encode(value)


class Tap(FrameTap):
    """Watches a stream that stays in this dialect."""

    def __init__(self) -> None:
        super().__init__()
        self._meter = _Meter()
        self._blocked = False
        self._open: dict[int, bool] = {}  # candidate to "has calls"
        self._finished: set[int] = set()

    def current_usage(self) -> Usage:
        return self._meter.usage

    def is_whole(self) -> bool:
        return self._blocked or (bool(self._open) and self._finished >= self._open.keys())

    def look(self, data: bytes) -> None:
        answer = read_answer(data)
        self._meter.see(answer)
        if block_reason(answer) is not None:
            self._blocked = True
            self.finish_reason = "content_filter"
        for found in answer.candidates or ():
            self._open.setdefault(found.index, False)
            for part in (found.content.parts if found.content is not None else None) or ():
                self._part(part, found.index)
            if found.finish_reason is not None:
                self._finished.add(found.index)
                self.finish_reason = finish_in(found.finish_reason, self._open[found.index])

    def _part(self, part: wire.Part, number: int) -> None:
        if part.text:
            self.started = True
            self.output_bytes += text_bytes(part.text)
        elif part.function_call is not None:
            self.started = self._open[number] = True
            self.output_bytes += len(_encode(part.function_call))
        elif part.inline_data is not None or part.executable_code is not None:
            self.started = True
