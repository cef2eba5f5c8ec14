"""An answer as the steps of an interaction. One writer makes the steps of a whole answer and of a stream, so the two
cannot disagree.

Google's counts: what was cached is part of the input, thoughts are no part of the output, the total is all of them.
A stream ends with `[DONE]`, which google-genai waits for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from providers.dialects.base import ErrorBody
from providers.dialects.gemini_interactions.request import SEALER
from providers.dialects.sealed import Sealed, seal
from providers.neutral import (
    ChatRequest,
    ChatResponse,
    Citation,
    Event,
    Finish,
    FinishReason,
    ImagePart,
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

Frame = dict[str, Any]

_STATUS: Final[dict[FinishReason, str]] = {
    "stop": "completed",
    "tool_calls": "requires_action",
    "length": "incomplete",
    "content_filter": "incomplete",
    "error": "failed",
}
_TIERS: Final = {"default": "standard", "flex": "flex", "priority": "priority"}
_PREFIX: Final = "v1_"


def encode_response(response: ChatResponse, request: ChatRequest) -> bytes:
    """Of several candidates the first: the API has one."""
    found = response.candidates[0]
    steps = [step for part in found.content for step in _steps(part)]
    said = _interaction(response.id, response.model, response.created, _STATUS[found.finish_reason])
    return msgspec.json.encode(said | {"steps": steps, "usage": usage_out(response.usage), **_tier(response.usage)})


def usage_out(usage: Usage) -> dict[str, Any]:
    given, made, thought = usage.input_tokens or 0, usage.output_tokens or 0, usage.reasoning_tokens or 0
    modalities = {"audio": usage.input_audio_tokens or 0, "image": usage.input_image_tokens or 0}
    modalities = {"text": given - sum(modalities.values()), **modalities}
    return {
        "total_input_tokens": given,
        "total_cached_tokens": usage.cache_read_tokens or 0,
        "total_output_tokens": made - thought,
        "total_thought_tokens": thought,
        "total_tool_use_tokens": 0,
        "total_tokens": given + made,
        "input_tokens_by_modality": [{"modality": name, "tokens": n} for name, n in modalities.items() if n],
    }


def _tier(usage: Usage) -> dict[str, str]:
    found = _TIERS.get(usage.service_tier or "")
    return {"service_tier": found} if found else {}


def _interaction(ident: str, model: str, created: int | None, status: str) -> dict[str, Any]:
    at = datetime.fromtimestamp(created or 0, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "id": ident if ident.startswith(_PREFIX) else _PREFIX + ident,
        "object": "interaction",
        "model": model,
        "status": status,
        "created": at,
        "updated": at,
    }


def _steps(part: Part) -> list[dict[str, Any]]:
    """A part as the step or steps that say it. What ran at a provider stays there, as its result is in the text."""
    match part:
        case TextPart(text, signature=signature):
            out: dict[str, Any] = {"type": "text", "text": text}
            if annotations := [found for each in part.citations if (found := _cited(each))]:
                out["annotations"] = annotations
            steps = [{"type": "model_output", "content": [out]}]
            return [*steps, _sealing(Sealed(signature=signature, text=True))] if signature else steps
        case RefusalPart(text):
            return [{"type": "model_output", "content": [{"type": "text", "text": text}]}]
        case ReasoningPart(text):
            step: dict[str, Any] = {"type": "thought"}
            if (signature := _signature(part)) is not None:
                step["signature"] = signature
            return [step | {"summary": [{"type": "text", "text": text}]} if text else step]
        case ToolCallPart(ident, name, kind="function" | "custom"):
            call = {"type": "function_call", "id": ident, "name": name, "arguments": _arguments(part.arguments)}
            return [*_sealing_of(part), call]
        case ImagePart(media_type, data, url):
            found = {"type": "image", "mime_type": media_type, "data": data, "uri": url}
            return [{"type": "model_output", "content": [{k: v for k, v in found.items() if v is not None}]}]
    return []


def _cited(citation: Citation) -> dict[str, Any] | None:
    if citation.url is None:
        return None
    found = {"url": citation.url, "title": citation.title, "start_index": citation.start, "end_index": citation.end}
    return {"type": "url_citation", **{name: value for name, value in found.items() if value is not None}}


def _signature(part: ReasoningPart) -> str | None:
    if part.signature is None and part.redacted is None:
        return None
    if part.dialect == SEALER and part.signature is not None:
        return part.signature
    return seal(Sealed(part.dialect, part.signature, part.redacted, part.id))


def _sealing(sealed: Sealed) -> dict[str, Any]:
    return {"type": "thought", "signature": seal(sealed)}


def _sealing_of(call: ToolCallPart) -> list[dict[str, Any]]:
    return [] if call.signature is None else [_sealing(Sealed(signature=call.signature, tool_call_id=call.id))]


def _arguments(text: str) -> dict[str, Any]:
    """The API has an object there; what a model wrote that is none goes on as text under `input`."""
    try:
        found = msgspec.json.decode(text or "{}")
    except (msgspec.DecodeError, RecursionError):
        found = text
    return found if isinstance(found, dict) else {"input": found}


class EventEncoder:
    """Events to a client's bytes. Parts may interleave; steps do not: a part that begins while another is open is
    written when it is whole."""

    def __init__(self, request: ChatRequest, say: Callable[[ErrorBody], dict[str, Any]]) -> None:
        self._model = request.model
        self._say = say
        self._start = ResponseStart("", request.model)
        self._steps: list[dict[str, Any]] = []
        self._parts: dict[int, Part] = {}
        self._texts: dict[int, list[str]] = {}
        self._sealed: set[int] = set()
        self._open: int | None = None
        self._count = 0
        self._finish: Finish | None = None

    def encode(self, events: Iterable[Event]) -> bytes:
        return b"".join(self._bytes(frame) for event in events for frame in self._frames(event))

    def close(self) -> bytes:
        """The end of all: the last finish carries the usage."""
        if self._finish is None:
            return b""
        usage = self._finish.usage or self._start.usage or Usage()
        whole = self._told(_STATUS[self._finish.reason]) | {"steps": self._steps, "usage": usage_out(usage)}
        return self._bytes({"event_type": "interaction.completed", "interaction": whole | _tier(usage)}) + _DONE

    def fail(self, error: ErrorBody) -> bytes:
        return self._bytes({"event_type": "error", "error": self._say(error)}) + _DONE

    def _frames(self, event: Event) -> Iterator[Frame]:
        match event:
            case ResponseStart():
                self._start = event
                yield {"event_type": "interaction.created", "interaction": self._told("in_progress")}
            case PartStart(index, part, 0):
                self._parts[index], said = _emptied(part)
                self._texts[index] = []
                if self._open is None and (step := _beginning(part)) is not None:
                    yield from self._begun(index, step)
                if said:
                    yield from self._more(index, said)
            case PartDelta(index, text, signature) if index in self._parts:
                if signature is not None and isinstance(part := self._parts[index], _SIGNED):
                    self._parts[index] = replace(part, signature=signature)
                if text:
                    yield from self._more(index, text)
            case PartEnd(index, whole) if index in self._parts:
                part, text = self._parts.pop(index), "".join(self._texts.pop(index))
                yield from self._ended(index, whole or _filled(part, text))
            case Finish(candidate=0):
                self._finish = event

    def _begun(self, index: int, step: dict[str, Any]) -> Iterator[Frame]:
        if isinstance(part := self._parts[index], ToolCallPart) and part.signature is not None:
            yield from self._at_once(_sealing_of(part)[0])
            self._sealed.add(index)
        self._open = index
        yield {"event_type": "step.start", "index": self._count, "step": step}

    def _more(self, index: int, text: str) -> Iterator[Frame]:
        self._texts[index].append(text)
        if self._open == index:
            yield self._delta_frame(_delta(self._parts[index], text))

    def _ended(self, index: int, part: Part) -> Iterator[Frame]:
        steps = _steps(part)
        if self._open == index:
            self._open = None
            shown = next(step for step in steps if not _seals(step, part))
            if isinstance(part, ReasoningPart) and "signature" in shown:
                yield self._delta_frame({"type": "thought_signature", "signature": shown["signature"]})
            yield from self._stopped(shown)
            steps = [] if index in self._sealed else [step for step in steps if step is not shown]
        for step in steps:
            yield from self._at_once(step)

    def _at_once(self, step: dict[str, Any]) -> Iterator[Frame]:
        """A step that did not stream."""
        content, summary = step.get("content", ()), step.get("summary", ())
        begun = {name: value for name, value in step.items() if name not in ("content", "summary", "signature")}
        yield {"event_type": "step.start", "index": self._count, "step": begun}
        for each in content:
            yield self._delta_frame(each)
        for each in summary:
            yield self._delta_frame({"type": "thought_summary", "content": each})
        if "signature" in step:
            yield self._delta_frame({"type": "thought_signature", "signature": step["signature"]})
        yield from self._stopped(step)

    def _stopped(self, step: dict[str, Any]) -> Iterator[Frame]:
        self._steps.append(step)
        yield {"event_type": "step.stop", "index": self._count}
        self._count += 1

    def _delta_frame(self, delta: dict[str, Any]) -> Frame:
        return {"event_type": "step.delta", "index": self._count, "delta": delta}

    def _told(self, status: str) -> dict[str, Any]:
        return _interaction(self._start.id, self._start.model or self._model, self._start.created, status)

    def _bytes(self, frame: Frame) -> bytes:
        return sse.encode(msgspec.json.encode(frame), frame["event_type"])


_DONE: Final = sse.encode(b"[DONE]", "done")


_SIGNED: Final = (TextPart, ReasoningPart, ToolCallPart)


def _seals(step: dict[str, Any], part: Part) -> bool:
    """Whether the step holds nothing but the seal of a part that is said in another."""
    return step["type"] == "thought" and not isinstance(part, ReasoningPart)


def _emptied(part: Part) -> tuple[Part, str]:
    """A part that streams without the text that it began with, and that text."""
    match part:
        case TextPart(text) | RefusalPart(text) | ReasoningPart(text):
            return replace(part, text=""), text
        case ToolCallPart(arguments=text):
            return replace(part, arguments=""), text
    return part, ""


def _filled(part: Part, text: str) -> Part:
    match part:
        case TextPart() | RefusalPart() | ReasoningPart():
            return replace(part, text=text)
        case ToolCallPart():
            return replace(part, arguments=text)
    return part


def _beginning(part: Part) -> dict[str, Any] | None:
    """The step that a part streams as; None for one that comes whole."""
    match part:
        case TextPart() | RefusalPart():
            return {"type": "model_output"}
        case ReasoningPart():
            return {"type": "thought"}
        case ToolCallPart(ident, name, kind="function" | "custom"):
            return {"type": "function_call", "id": ident, "name": name, "arguments": {}}
    return None


def _delta(part: Part, text: str) -> dict[str, Any]:
    match part:
        case ReasoningPart():
            return {"type": "thought_summary", "content": {"type": "text", "text": text}}
        case ToolCallPart():
            return {"type": "arguments_delta", "arguments": text}
    return {"type": "text", "text": text}
