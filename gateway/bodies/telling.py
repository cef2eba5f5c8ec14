"""What is kept of two bodies: their JSON with every text redacted; of a stream the answer that it adds up to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from gateway.exchange import Inbound
from gateway.guardrails import detectors
from gateway.guardrails.patterns import Detector
from gateway.guardrails.screening import Screen
from providers.dialects import load
from providers.errors import ProviderError
from providers.neutral import Event, Finish, PartDelta, PartStart

TEXT_CHARS_MAX: Final = 200_000
"""Longer texts are pictures and files in base64."""


def told(inbound: Inbound, answer: bytes, names: Sequence[str], *, streamed: bool) -> bytes:
    """A JSON object of `request` and `response`. names: of the detectors that redact."""
    found = detectors.named(tuple(names))
    response = _stream(inbound.route.dialect, answer) if streamed else _json(answer)
    return msgspec.json.encode({"request": redacted(_json(inbound.body), found), "response": redacted(response, found)})


def redacted(value: Any, found: Sequence[Detector]) -> Any:
    """Every text in JSON, keys of objects included."""
    match value:
        case str() if len(value) > TEXT_CHARS_MAX:
            return f"[{len(value)} characters left out]"
        case str():
            return Screen(found, "redact").feed(value, final=True) if found else value
        case dict():
            return {redacted(key, found): redacted(below, found) for key, below in value.items()}
        case list():
            return [redacted(below, found) for below in value]
    return value


def _json(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return f"[{len(body)} bytes that are no JSON]"


def _stream(dialect: str, body: bytes) -> Any:
    """Also of one that was cut: what had come. A text of several deltas is one text, or a match could span them."""
    decoder = load(dialect).event_decoder()
    parts: dict[int, dict[str, Any]] = {}
    finish: list[str] = []
    try:
        for event in [*_until_error(decoder.feed(body))]:
            match event:
                case PartStart():
                    parts[event.index] = {"text": "", **msgspec.to_builtins(event.part)}
                case PartDelta():
                    field = "arguments" if "arguments" in parts[event.index] else "text"
                    parts[event.index][field] += event.text
                case Finish():
                    finish.append(event.reason)
    except ProviderError:
        pass  # What came before it is told.
    shown = [{name: value for name, value in part.items() if value not in ("", None)} for part in parts.values()]
    return {"parts": shown, "finish_reasons": finish}


def _until_error(events: Any) -> list[Event]:
    got: list[Event] = []
    try:
        for event in events:
            got.append(event)  # noqa: PERF402 - what came before an error is kept
    except ProviderError:
        return got
    return got
