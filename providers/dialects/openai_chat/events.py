"""A streamed answer, both ways.

Chunks repeat id and model, name their choice, and fill one message bit by bit; tool calls interleave by an own index.
Usage comes after the last finish reason, in a chunk without choices, so the neutral Finish events wait for the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from msgspec.structs import replace

from providers.dialects.base import ErrorBody
from providers.dialects.openai_chat import wire
from providers.dialects.openai_chat.request import image_of, reasoning_parts, thought_signature
from providers.dialects.openai_chat.response import (
    FINGERPRINT,
    FINISH_OUT,
    SERVICE_TIERS,
    annotations_out,
    audio_out,
    chat_id,
    citations_in,
    finish_in,
    image_out,
    logprobs_in,
    logprobs_out,
    read_answer,
    sealed_thought,
    usage_of,
)
from providers.dialects.openai_common.content import texts_of
from providers.dialects.openai_common.errors import error_object
from providers.dialects.openai_common.usage import usage_out
from providers.errors import Interrupted, WireError
from providers.neutral import (
    AudioPart,
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
    ToolCallPart,
    Usage,
)
from providers.wire import sse


class _Candidate:
    """What one choice has open."""

    __slots__ = ("audio", "calls", "citations", "has_calls", "last_call", "native", "open", "open_kind", "text")

    def __init__(self) -> None:
        self.open: int | None = None  # the part that text flows into
        self.open_kind: type[Part] | None = None
        self.calls: dict[int, int] = {}  # the wire's tool call index -> our part index
        self.last_call = -1
        self.has_calls = False
        self.text: list[str] = []
        self.citations: list[Citation] = []
        self.audio: AudioPart | None = None
        self.native: str | None = None


class EventDecoder:
    """See `providers.dialects.base.EventDecoder`."""

    def __init__(self) -> None:
        self._sse = sse.SseDecoder()
        self._candidates: dict[int, _Candidate] = {}
        self._parts = 0
        self._started = False
        self._done = False
        self.usage = Usage()

    def feed(self, data: bytes) -> Iterator[Event]:
        for frame in self._sse.feed(data):
            yield from self._frame(frame)

    def close(self) -> Iterator[Event]:
        try:
            for frame in self._sse.close():
                yield from self._frame(frame)
        except WireError as error:
            raise Interrupted("the stream was cut inside a frame") from error
        if self._done:
            return
        if not self._candidates or any(candidate.native is None for candidate in self._candidates.values()):
            raise Interrupted("the stream ended before the answer did")
        yield from self._finish()  # engines that leave out [DONE]

    def _frame(self, frame: sse.Frame) -> Iterator[Event]:
        if not frame.data or self._done:
            return
        if frame.data == b"[DONE]":
            yield from self._finish()
            return
        chunk = read_answer(frame.data)
        if chunk.usage is not None or chunk.x_groq is not None or chunk.service_tier != self.usage.service_tier:
            self.usage = self.usage.at_least(usage_of(chunk))
        if not self._started and (chunk.choices or chunk.usage is not None):
            # Azure's first chunk has neither choices nor a true id: the answer starts with the one behind it.
            self._started = True
            created = int(chunk.created) if chunk.created is not None else None
            yield ResponseStart(chunk.id or "", chunk.model or "", created)
        for choice in chunk.choices or ():
            candidate = self._candidates.get(choice.index)
            if candidate is None:
                candidate = self._candidates[choice.index] = _Candidate()
            delta = choice.delta or choice.message
            logprobs = logprobs_in(choice.logprobs)
            if delta is not None:
                yield from self._delta(candidate, choice.index, delta, logprobs)
            if choice.finish_reason is not None and candidate.native is None:
                candidate.native = choice.finish_reason
                yield from self._end_all(candidate, choice.index)

    def _delta(
        self, candidate: _Candidate, number: int, delta: wire.AnsweredMessage, logprobs: tuple[Logprob, ...]
    ) -> Iterator[Event]:
        text, thinking = texts_of(delta.content) if delta.content else ("", "")
        if delta.reasoning_details or delta.reasoning or delta.reasoning_content or thinking:
            for part in reasoning_parts(delta.reasoning_details, delta.reasoning, delta.reasoning_content or thinking):
                assert isinstance(part, ReasoningPart)
                yield from self._reasoning(candidate, number, part)
        if text or (logprobs and not delta.refusal):
            if candidate.open is None or candidate.open_kind is not TextPart:  # Asked here, too: the usual case.
                yield from self._switch(candidate, number, TextPart(""))
            candidate.text.append(text)
            yield self._more(candidate, text, logprobs)
        if delta.refusal:
            yield from self._switch(candidate, number, RefusalPart(""))
            yield self._more(candidate, delta.refusal, logprobs)
        if delta.annotations:
            yield from self._switch(candidate, number, TextPart(""))
            candidate.citations += citations_in(delta.annotations)
        if delta.audio is not None:
            heard = candidate.audio or AudioPart()
            candidate.audio = AudioPart(
                data=(heard.data or "") + (delta.audio.data or ""),
                id=heard.id or delta.audio.id,
                transcript=(heard.transcript or "") + (delta.audio.transcript or ""),
            )
        for image in delta.images or ():
            yield from self._end_open(candidate)
            yield from self._whole(image_of(image.image_url.url), number)
        for call in delta.tool_calls or ():
            yield from self._call(candidate, number, call)
        if delta.function_call is not None:
            yield from self._call(candidate, number, wire.AnsweredCall(index=0, function=delta.function_call))

    def _reasoning(self, candidate: _Candidate, number: int, part: ReasoningPart) -> Iterator[Event]:
        if part.redacted is not None:
            yield from self._end_open(candidate)
            yield from self._whole(part, number)
            return
        yield from self._switch(candidate, number, replace(part, text="", signature=None))
        assert candidate.open is not None
        yield PartDelta(candidate.open, part.text, part.signature)

    def _call(self, candidate: _Candidate, number: int, call: wire.AnsweredCall) -> Iterator[Event]:
        position = call.index
        if position is None:
            # Gemini's compatible endpoint numbers nothing: a fragment with a name begins a call.
            named = call.function is not None and call.function.name
            position = candidate.last_call + 1 if named or candidate.last_call < 0 else candidate.last_call
        candidate.last_call = position
        more = call.function.arguments if call.function is not None else call.custom.input if call.custom else None
        if position not in candidate.calls:
            yield from self._end_open(candidate)
            name = call.function.name if call.function is not None else call.custom.name if call.custom else None
            candidate.calls[position] = self._parts
            candidate.has_calls = True
            started = ToolCallPart(
                id=call.id or f"call_{self._parts}",
                name=name or "",
                arguments="",
                kind="custom" if call.custom is not None else "function",
                signature=thought_signature(call.extra_content),
            )
            yield PartStart(self._parts, started, number)
            self._parts += 1
        if more:
            yield PartDelta(candidate.calls[position], more)

    def _switch(self, candidate: _Candidate, number: int, part: Part) -> Iterator[Event]:
        """Make sure that a part of this kind is the open one."""
        if candidate.open is not None and candidate.open_kind is type(part):
            return
        yield from self._end_open(candidate)
        candidate.open, candidate.open_kind = self._parts, type(part)
        self._parts += 1
        yield PartStart(candidate.open, part, number)

    def _more(self, candidate: _Candidate, text: str, logprobs: tuple[Logprob, ...]) -> PartDelta:
        assert candidate.open is not None
        return PartDelta(candidate.open, text, logprobs=logprobs)

    def _end_open(self, candidate: _Candidate) -> Iterator[Event]:
        if candidate.open is None:
            return
        whole: Part | None = None
        if candidate.open_kind is TextPart and candidate.citations:
            whole = TextPart("".join(candidate.text), citations=tuple(candidate.citations))
        yield PartEnd(candidate.open, whole)
        candidate.open = candidate.open_kind = None
        candidate.text, candidate.citations = [], []

    def _whole(self, part: Part, number: int) -> Iterator[Event]:
        yield PartStart(self._parts, part, number)
        yield PartEnd(self._parts)
        self._parts += 1

    def _end_all(self, candidate: _Candidate, number: int) -> Iterator[Event]:
        yield from self._end_open(candidate)
        for index in candidate.calls.values():
            yield PartEnd(index)
        candidate.calls = {}
        if candidate.audio is not None:
            yield from self._whole(candidate.audio, number)
            candidate.audio = None

    def _finish(self) -> Iterator[Event]:
        """Every candidate is done; the last one carries the usage. A choice that never told its reason was cut."""
        self._done = True
        numbers = sorted(self._candidates)
        if not numbers or any(self._candidates[number].native is None for number in numbers):
            raise Interrupted("the stream ended before the answer did")
        for number in numbers:
            candidate = self._candidates[number]
            reason: FinishReason = finish_in(candidate.native, candidate.has_calls)
            usage = self.usage if number == numbers[-1] else None
            yield Finish(reason, usage, number, candidate.native)


class EventEncoder:
    """See `providers.dialects.base.EventEncoder`. `created` is 0 where the provider told none: the edge sets it."""

    def __init__(self, request: ChatRequest) -> None:
        self._include_usage = request.include_usage
        self._head: dict[str, Any] = {
            "id": "chatcmpl-",
            "object": "chat.completion.chunk",
            "created": 0,
            "model": "",
            "system_fingerprint": FINGERPRINT,
        }
        self._parts: dict[int, tuple[int, Part]] = {}
        self._texts: dict[int, list[str]] = {}  # of reasoning parts, whose seal repeats them whole
        self._calls: dict[int, int] = {}  # part index -> tool call index within its candidate
        self._call_count: dict[int, int] = {}
        self._greeted: set[int] = set()
        self._usage: Usage | None = None

    def encode(self, events: Iterable[Event]) -> bytes:
        return b"".join(map(self._event, events))

    def close(self) -> bytes:
        usage = b""
        if self._include_usage:
            found = self._usage or Usage()
            chunk = {**self._head, "choices": [], "usage": usage_out(found)}
            if found.service_tier in SERVICE_TIERS:
                chunk["service_tier"] = found.service_tier
            usage = sse.encode(msgspec.json.encode(chunk))
        return usage + b"data: [DONE]\n\n"

    def fail(self, error: ErrorBody) -> bytes:
        """An object with `error` makes every SDK of the family raise. No [DONE] follows: the answer is not whole."""
        return sse.encode(msgspec.json.encode({"error": error_object(error)}))

    def _event(self, event: Event) -> bytes:
        match event:
            case PartDelta(index, text, signature, logprobs):
                return self._delta(index, text, signature, logprobs)
            case PartStart(index, part, number):
                return self._part_start(index, part, number)
            case PartEnd(index, whole):
                return self._part_end(index, whole)
            case ResponseStart(ident, model, created, usage):
                self._head["id"] = chat_id(ident)
                self._head["model"] = model
                self._head["created"] = created or 0
                self._usage = usage
                return b""
            case Finish(reason, usage, number):
                if usage is not None:
                    self._usage = (self._usage or Usage()).at_least(usage)
                return self._chunk(number, {}, finish=FINISH_OUT[reason])

    def _part_start(self, index: int, part: Part, number: int) -> bytes:
        self._parts[index] = (number, part)
        match part:
            case ToolCallPart(kind="function" | "custom"):
                position = self._call_count.get(number, 0)
                self._call_count[number] = position + 1
                self._calls[index] = position
                inner: dict[str, Any] = {"name": part.name}
                inner["input" if part.kind == "custom" else "arguments"] = part.arguments
                call: dict[str, Any] = {"index": position, "id": part.id, "type": part.kind, part.kind: inner}
                if part.signature is not None:
                    call["extra_content"] = {"google": {"thought_signature": part.signature}}
                    self._parts[index] = (number, replace(part, signature=None))  # said; only a later one is news
                return self._chunk(number, {"tool_calls": [call]})
            case ImagePart():
                return self._chunk(number, {"images": [image_out(part)]})
            case AudioPart():
                return self._chunk(number, {"audio": audio_out(part)})
            case ReasoningPart(text):
                self._texts[index] = []
                return self._delta(index, text, part.signature, ()) if text else b""
            case TextPart(text) | RefusalPart(text):
                return self._delta(index, text, None, ()) if text else b""
        return b""  # a server's own tool call or its result: see `response._choice`

    def _delta(self, index: int, text: str, signature: str | None, logprobs: tuple[Logprob, ...]) -> bytes:
        number, part = self._parts[index]
        match part:
            case TextPart():
                return self._chunk(number, {"content": text}, logprobs) if text or logprobs else b""
            case ToolCallPart(kind="function" | "custom"):
                if signature is not None:
                    self._parts[index] = (number, replace(part, signature=signature))
                if not text:
                    return b""
                inner = {"input" if part.kind == "custom" else "arguments": text}
                # Cerebras's SDK wants the type in every fragment; the others set it again to what it was.
                fragment = {"index": self._calls[index], "type": part.kind, part.kind: inner}
                return self._chunk(number, {"tool_calls": [fragment]})
            case ReasoningPart():
                if signature is not None:
                    self._parts[index] = (number, replace(part, signature=signature))
                if not text:
                    return b""
                self._texts[index].append(text)
                return self._chunk(number, {"reasoning_content": text})
            case RefusalPart():
                return self._chunk(number, {"refusal": text}, logprobs) if text or logprobs else b""
        return b""

    def _part_end(self, index: int, whole: Part | None) -> bytes:
        number, part = self._parts.pop(index)
        if isinstance(part, ToolCallPart):
            position = self._calls.pop(index, None)
            if position is None or part.signature is None:
                return b""
            seal = {"index": position, "extra_content": {"google": {"thought_signature": part.signature}}}
            return self._chunk(number, {"tool_calls": [seal]})
        match whole or part:
            case TextPart(citations=citations) if citations:
                return self._chunk(number, {"annotations": annotations_out(citations)})
            case ReasoningPart() as thought:
                text = "".join(self._texts.pop(index, ())) or thought.text
                detail = sealed_thought(replace(thought, text=text), 0)
                return self._chunk(number, {"reasoning_details": [detail]}) if detail is not None else b""
        return b""

    def _chunk(
        self, number: int, delta: dict[str, Any], logprobs: tuple[Logprob, ...] = (), finish: str | None = None
    ) -> bytes:
        if number not in self._greeted:
            self._greeted.add(number)
            delta = {"role": "assistant", **delta}
            if len(delta) == 1 or "refusal" in delta:
                delta.setdefault("content", "" if len(delta) == 1 else None)
        choice = {"index": number, "delta": delta, "logprobs": logprobs_out(logprobs), "finish_reason": finish}
        chunk = {**self._head, "choices": [choice]}
        if self._include_usage:
            chunk["usage"] = None  # as OpenAI does for whoever asked
        return b"data: %b\n\n" % msgspec.json.encode(chunk)
