"""A whole answer, and the two ways between it and its events: `collect` joins, `replay` takes apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from msgspec import Struct
from msgspec.structs import replace

from providers.neutral.content import Part, ReasoningPart, RefusalPart, TextPart, ToolCallPart
from providers.neutral.events import Event, Finish, FinishReason, Logprob, PartDelta, PartEnd, PartStart, ResponseStart
from providers.neutral.usage import Usage


class Candidate(Struct, frozen=True, omit_defaults=True):
    """One of the answers to a request; most requests ask for one."""

    content: tuple[Part, ...]
    finish_reason: FinishReason
    native_reason: str | None = None
    stop_sequence: str | None = None
    logprobs: tuple[Logprob, ...] = ()


class ChatResponse(Struct, frozen=True, omit_defaults=True):
    id: str
    model: str
    candidates: tuple[Candidate, ...]
    usage: Usage
    created: int | None = None


class EmbeddingResponse(Struct, frozen=True, omit_defaults=True):
    """vectors: (inputs, dimensions)."""

    model: str
    vectors: tuple[tuple[float, ...], ...]
    usage: Usage


def collect(events: Iterable[Event]) -> ChatResponse:
    """Join the events of one whole answer.

    Raises: ValueError when the events break the order that `providers.neutral.events` states.
    """
    start: ResponseStart | None = None
    parts: dict[int, tuple[int, Part]] = {}
    texts: dict[int, list[str]] = {}
    logprobs: dict[int, list[Logprob]] = {}
    finishes: dict[int, Finish] = {}
    usage = Usage()
    for event in events:
        match event:
            case ResponseStart():
                start = event
                usage = usage.at_least(event.usage) if event.usage else usage
            case PartStart(index, part, candidate):
                if index in parts:
                    raise ValueError(f"part {index} starts twice")
                parts[index] = (candidate, part)
                texts[index] = []
            case PartDelta(index, text, signature, probs):
                if index not in parts:
                    raise ValueError(f"delta for part {index}, which has not started")
                texts[index].append(text)
                candidate, part = parts[index]
                if signature is not None and isinstance(part, TextPart | ReasoningPart | ToolCallPart):
                    parts[index] = (candidate, replace(part, signature=signature))
                if probs:
                    logprobs.setdefault(candidate, []).extend(probs)
            case PartEnd(index, whole):
                if index not in parts:
                    raise ValueError(f"end of part {index}, which has not started")
                if whole is not None:
                    parts[index] = (parts[index][0], whole)
                    texts[index] = []
            case Finish():
                finishes[event.candidate] = event
                usage = usage.at_least(event.usage) if event.usage else usage
    if start is None:
        raise ValueError("no ResponseStart")
    whole_parts = {i: (candidate, _with_text(part, "".join(texts[i]))) for i, (candidate, part) in parts.items()}
    candidates = tuple(
        Candidate(
            content=tuple(part for _, (c, part) in sorted(whole_parts.items()) if c == number),
            finish_reason=finish.reason,
            native_reason=finish.native_reason,
            stop_sequence=finish.stop_sequence,
            logprobs=tuple(logprobs.get(number, ())),
        )
        for number, finish in sorted(finishes.items())
    )
    return ChatResponse(start.id, start.model, candidates, usage, start.created)


def replay(response: ChatResponse) -> Iterator[Event]:
    """The events that `collect` would join into this response; each part arrives in one delta."""
    yield ResponseStart(response.id, response.model, response.created)
    index = 0
    for number, candidate in enumerate(response.candidates):
        probs = candidate.logprobs
        for part in candidate.content:
            empty, text = _without_text(part)
            yield PartStart(index, empty, number)
            if text or (probs and isinstance(part, TextPart)):
                yield PartDelta(index, text, logprobs=probs)
                probs = ()
            yield PartEnd(index)
            index += 1
        last = number == len(response.candidates) - 1
        yield Finish(
            candidate.finish_reason,
            response.usage if last else None,
            number,
            candidate.native_reason,
            candidate.stop_sequence,
        )


def _with_text(part: Part, text: str) -> Part:
    if not text:
        return part
    match part:
        case TextPart() | ReasoningPart() | RefusalPart():
            return replace(part, text=part.text + text)
        case ToolCallPart():
            return replace(part, arguments=part.arguments + text)
        case _:
            raise ValueError(f"a {type(part).__name__} takes no text")


def _without_text(part: Part) -> tuple[Part, str]:
    match part:
        case TextPart() | ReasoningPart() | RefusalPart():
            return replace(part, text=""), part.text
        case ToolCallPart():
            return replace(part, arguments=""), part.arguments
        case _:
            return part, ""
