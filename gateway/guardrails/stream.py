"""An answer that streams past its guardrails: provider bytes to events, events past the rules, events to client bytes.

What could still become a match waits, in each part for itself: text, thoughts and tools' arguments. A blocked answer is
ended in the client's own words with the finish reason `content_filter`; its upstream is cut and billed for what it had
made. See `gateway.relay.Stream` for what the relay asks of this."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator

from msgspec.structs import replace

from gateway.guardrails.policy import Rule
from gateway.guardrails.screening import Screen
from gateway.guardrails.texts import edited_part
from gateway.guardrails.visit import Visit
from gateway.metering import part_bytes
from providers.dialects.base import ErrorBody, EventDecoder, EventEncoder
from providers.errors import ProviderError
from providers.neutral import (
    Event,
    Finish,
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
from providers.neutral.content import Part


class Lane:
    """One part of an answer past every rule that looks here, in order."""

    def __init__(self, part: Part, screens: list[tuple[Rule, Screen]]) -> None:
        self.part = part
        self._screens = screens
        self._came: list[str] = []
        self._left: list[str] = []
        self.signature: str | None = None
        self.blocked_by: Rule | None = None

    def feed(self, text: str, *, final: bool = False) -> str:
        self._came.append(text)
        for rule, screen in self._screens:
            text = screen.feed(text, final=final)
            if screen.blocked is not None and self.blocked_by is None:
                # What stood before it may leave, as far as those behind it let it.
                self.blocked_by, final = rule, True
        self._left.append(text)
        return text

    @property
    def seal(self) -> str | None:
        """A thought that was edited loses its signature, which fits the original alone."""
        if isinstance(self.part, ReasoningPart) and "".join(self._came) != "".join(self._left):
            return None
        return self.signature


class GuardedStream:
    def __init__(self, decoder: EventDecoder, encoder: EventEncoder, visit: Visit, now_s: int) -> None:
        self._decoder = decoder
        self._encoder = encoder
        self._visit = visit
        self._now_s = now_s
        self.screens: list[tuple[Rule, Screen]] = []
        self._lanes: dict[int, Lane] = {}
        # Events that somebody else has yet to look at, and how many characters there are in them.
        self._waiting: list[Event] = []
        self._waiting_chars = 0
        # What the client has seen begin and not end.
        self._open: list[int] = []
        self._parts = 0
        self._candidates: set[int] = {0}
        self._ended: set[int] = set()
        self._upstream_ended = False
        self._blocked = False
        self.finish_reason: str | None = None
        self.started = False
        self.output_bytes = 0

    def is_cut(self) -> bool:
        """Ended here, not by the upstream."""
        return self._blocked

    @property
    def usage(self) -> Usage:
        """Of an answer that was cut before it ended nobody has told the output."""
        usage = self._decoder.usage
        return replace(usage, output_tokens=None) if self.is_cut() and not self._upstream_ended else usage

    def feed(self, data: bytes) -> bytes:
        """What `said` made, which is the client's already."""
        return data

    def close(self) -> bytes:
        return b""

    def fail(self, error: ErrorBody) -> bytes:
        return self._encoder.fail(error)

    async def said(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Client bytes, a piece for each chunk, which may be empty. An error of the upstream is raised once what came
        before it has been said."""
        async for data in chunks:
            events, error = _taken(self._decoder.feed(data))
            piece = await self._say(events)
            if piece or error is None:
                yield piece
            if error is not None:
                raise error
            if self.is_cut() and not self._upstream_ended:
                return
        if self.is_cut():
            return
        events, error = _taken(self._decoder.close())
        piece = await self._say(events)
        if error is not None:
            if piece:
                yield piece
            raise error
        yield piece + (b"" if self.is_cut() else self._encoder.close())

    async def _say(self, events: list[Event]) -> bytes:
        if self._blocked:  # Read on for its usage alone: the last events were on their way when it was cut.
            return b""
        self._upstream_ended = self._upstream_ended or any(isinstance(event, Finish) for event in events)
        out: list[Event] = []
        for event in events:
            out.extend(self._past_rules(event))
            if self.is_cut():
                break
        if self._visit.asks_about_output:
            out = await self._past_others(out)
        return self._encoded(out)

    def _past_rules(self, event: Event) -> Iterator[Event]:
        match event:
            case ResponseStart(created=None):
                yield replace(event, created=self._now_s)
            case PartStart():
                self.started = True
                self.output_bytes += part_bytes(event.part)
                self._candidates.add(event.candidate)
                self._parts = max(self._parts, event.index + 1)
                bare, text = _without_text(event.part)
                screens = self._visit.screens(json=_is_json(bare))
                self.screens += screens
                lane = self._lanes[event.index] = Lane(bare, screens)
                yield replace(event, part=bare)
                yield from self._delta(event.index, lane, lane.feed(text))
            case PartDelta():
                self.started = True
                self.output_bytes += len(event.text.encode())
                lane = self._lanes[event.index]
                if event.signature is not None:
                    lane.signature = event.signature
                # No log probabilities: they spell out what may have been taken out.
                yield from self._delta(event.index, lane, lane.feed(event.text))
            case PartEnd():
                lane = self._lanes.pop(event.index)
                yield from self._delta(event.index, lane, lane.feed("", final=True), lane.seal)
                if not self.is_cut():
                    whole = None if event.part is None else edited_part(event.part, self._visit.quiet_edit)
                    yield replace(event, part=whole)
            case _:
                yield event

    def _delta(self, index: int, lane: Lane, text: str, signature: str | None = None) -> Iterator[Event]:
        if text or signature is not None:
            yield PartDelta(index, text, signature)
        if lane.blocked_by is not None and not self.is_cut():
            self._blocked = True
            self._visit.message = lane.blocked_by.message

    async def _past_others(self, events: list[Event]) -> list[Event]:
        """What may leave once those who are asked have said so."""
        self._waiting += events
        self._waiting_chars += sum(len(event.text) for event in events if isinstance(event, PartDelta))
        ended = self.is_cut() or any(isinstance(event, Finish) for event in events)
        if not ended and self._waiting_chars < self._visit.every:
            return []
        waiting, self._waiting, self._waiting_chars = self._waiting, [], 0
        texts: dict[int, str] = {}
        for event in waiting:
            if isinstance(event, PartDelta) and event.text:
                texts[event.index] = texts.get(event.index, "") + event.text
        if not texts:
            return waiting
        said = await self._visit.ask_about_output(list(texts.values()))
        if said is None:
            self._blocked = True
            return []
        new = dict(zip(texts, said, strict=True))
        return list(_retold(waiting, texts, new))

    def _encoded(self, events: list[Event]) -> bytes:
        for event in events:
            match event:
                case PartStart():
                    self._open.append(event.index)
                case PartEnd():
                    self._open.remove(event.index)
                case Finish():
                    self._ended.add(event.candidate)
                    self.finish_reason = event.reason
        out = [self._encoder.encode((event,)) for event in events]
        if self.is_cut():
            out += [self._encoder.encode((event,)) for event in self._cut_short()]
            self.finish_reason = "content_filter"
            out.append(self._encoder.close())
        return b"".join(out)

    def _cut_short(self) -> Iterable[Event]:
        yield from (PartEnd(index) for index in self._open)
        left = sorted(self._candidates - self._ended)
        if self._visit.message and left:
            yield PartStart(self._parts, TextPart(""), left[0])
            yield PartDelta(self._parts, self._visit.message)
            yield PartEnd(self._parts)
        for candidate in left:
            usage = self._decoder.usage if candidate == left[-1] else None
            yield Finish("content_filter", usage, candidate)


def _taken(events: Iterator[Event]) -> tuple[list[Event], ProviderError | None]:
    """Those before an error were made, and are paid for, however the network happened to slice them."""
    taken: list[Event] = []
    try:
        for event in events:
            taken.append(event)  # noqa: PERF402 - what came before an error must be kept
    except ProviderError as error:
        return taken, error
    return taken, None


def _retold(events: list[Event], old: dict[int, str], new: dict[int, str]) -> Iterator[Event]:
    """A text that was edited leaves in one piece, where its first was."""
    said: set[int] = set()
    for event in events:
        if isinstance(event, PartDelta) and event.text and old[event.index] != new[event.index]:
            event = replace(event, text="" if event.index in said else new[event.index])
            said.add(event.index)
        yield event


def _is_json(part: Part) -> bool:
    return isinstance(part, ToolCallPart) and part.kind != "custom"


def _without_text(part: Part) -> tuple[Part, str]:
    match part:
        case TextPart() | ReasoningPart() | RefusalPart():
            return replace(part, text=""), part.text
        case ToolCallPart():
            return replace(part, arguments=""), part.arguments
    return part, ""
