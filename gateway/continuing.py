"""A stream that its provider breaks off, carried on by another deployment: the client sees one answer.

Where the operator allows it (`continue_broken` on an alias), and for plain text only: a tool call or an object half
said cannot be taken up by another model. The next deployment gets the conversation, what has been said so far as the
assistant's turn, and the request to go on. The client pays for its prompt once and for every token that reached it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from msgspec.structs import replace

from gateway.metering import tokens_of
from gateway.relay import Translation
from providers.base import Call
from providers.dialects.base import Dialect
from providers.neutral import (
    ChatRequest,
    Event,
    Finish,
    Message,
    Part,
    PartDelta,
    PartEnd,
    PartStart,
    ReasoningPart,
    ResponseStart,
    TextPart,
    Usage,
)

GO_ON: Final = (
    "Your answer above was cut off by a network failure. Go on from exactly where it stops: begin with the very next "
    "character, repeat nothing of it, and do not mention the interruption."
)


def may_continue(request: ChatRequest) -> bool:
    """Whether an answer to this can be taken up in the middle: one candidate of free text."""
    shape = request.response_format
    return (
        request.stream
        and request.candidates == 1
        and not request.tools
        and not request.logprobs
        and (shape is None or shape.kind == "text")
    )


class Continuing(Translation):
    """A stream of events whose provider may change on the way, while the client's encoder stays."""

    def __init__(self, upstream: Dialect, call: Call, now_s: int) -> None:
        super().__init__(upstream, call, now_s)
        self._call = call
        self._text: list[str] = []
        self._open: dict[int, Part] = {}  # by their place in the client's answer
        self._places: dict[int, int] | None = None  # this provider's index -> place; None: the first one's are kept
        self._next_place = 0
        self._joint: int | None = None  # the place of a text left open, which the next one's first text goes on with
        self._shown_tokens = 0  # about how many of the answer this provider was told as part of its prompt
        self._earlier_tokens = 0  # about how many those before it wrote, thoughts included
        self._only_text = True

    @property
    def usage(self) -> Usage:
        return self._whole(super().usage)

    @property
    def can_resume(self) -> bool:
        return self.finish_reason is None and self._only_text

    def cut(self) -> bytes:
        """The provider has broken off. Returns: what closes the parts that nobody else can go on with."""
        closed = [PartEnd(index) for index, part in self._open.items() if not isinstance(part, TextPart)]
        for event in closed:
            del self._open[event.index]
        return self._encoder.encode(closed)

    def continued(self) -> Call:
        """The call for whoever goes on."""
        call, request, said = self._call, self._call.request, "".join(self._text)
        if not said:
            return call
        turns = (Message("assistant", (TextPart(said),)), Message("user", (TextPart(GO_ON),)))
        request = replace(request, messages=(*request.messages, *turns))
        if request.max_output_tokens is not None:
            left = request.max_output_tokens - tokens_of(self.output_bytes)
            request = replace(request, max_output_tokens=max(1, left))
        return replace(call, request=request, body=b"", output_limit=None)

    def resume(self, upstream: Dialect) -> None:
        """From here on events come from another provider. `started` tells of it alone."""
        self._decoder = upstream.event_decoder()
        self._error = None
        self._places = {}
        self._joint = next(iter(self._open), None)
        self._shown_tokens = tokens_of(len("".join(self._text).encode()))
        self._earlier_tokens = tokens_of(self.output_bytes)
        self.started = False

    def _watch(self, events: Iterator[Event]) -> Iterator[Event]:
        for event in super()._watch(self._placed(events)):
            match event:
                case PartStart(index=index, part=part):
                    self._open[index] = part
                    self._next_place = max(self._next_place, index + 1)
                    self._only_text &= isinstance(part, TextPart | ReasoningPart)
                    if isinstance(part, TextPart):
                        self._text.append(part.text)
                case PartDelta(index=index, text=text) if isinstance(self._open.get(index), TextPart):
                    self._text.append(text)
                case PartEnd(index=index):
                    self._open.pop(index, None)
            yield event

    def _placed(self, events: Iterator[Event]) -> Iterator[Event]:
        """A later provider's parts stand behind those that are there; its first text goes on with the one left open."""
        if (places := self._places) is None:
            yield from events
            return
        for event in events:
            match event:
                case ResponseStart():
                    continue
                case PartStart(index=index, part=TextPart(text=text)) if self._joint is not None:
                    places[index], self._joint = self._joint, None
                    if text:
                        yield PartDelta(places[index], text)
                case PartStart(index=index):
                    places[index] = self._next_place
                    yield replace(event, index=places[index])
                case PartDelta(index=index):
                    yield replace(event, index=places[index])
                case PartEnd(index=index):
                    yield PartEnd(places[index])  # what it replaces is not the whole of the part here
                case Finish(usage=usage):
                    yield event if usage is None else replace(event, usage=self._whole(usage))

    def _whole(self, usage: Usage) -> Usage:
        """What the present provider counts, less what it was told of the answer so far, which is nobody's prompt, and
        with what the providers before it wrote."""
        if self._places is None:
            return usage
        read, written = usage.input_tokens, usage.output_tokens
        return replace(
            usage,
            input_tokens=None if read is None else max(0, read - self._shown_tokens),
            output_tokens=None if written is None else written + self._earlier_tokens,
        )
