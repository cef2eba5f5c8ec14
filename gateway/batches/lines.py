"""An uploaded JSONL file to the requests in it, and what is wrong with them. Pure.

Source: OpenAI API reference "Batch" (request input object, limits), read 2026-11."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Struct

LINES_MAX: Final = 50_000
LINE_BYTES_MAX: Final = 4 * 1024 * 1024
ERRORS_MAX: Final = 100
ENDPOINTS: Final = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
MESSAGES: Final = "/v1/messages"
"""The endpoint of Anthropic's batches, whose lines come in another form."""
BACKGROUND: Final = "background"
"""Not a batch at all: one answer of the Responses API, see `gateway/background.py`."""
_STANDARD_TIERS: Final = (None, "auto", "default", "batch")


class Line(Struct, frozen=True):
    custom_id: str
    body: bytes


class Fault(Struct, frozen=True, omit_defaults=True):
    """As the API tells it: line counts from 1."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class _Line(Struct):
    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


class _Body(Struct):
    model: str
    stream: bool | None = None
    service_tier: str | None = None
    background: bool | None = None


_line: Final = msgspec.json.Decoder(_Line)
_body: Final = msgspec.json.Decoder(_Body)


def read_lines(content: bytes, endpoint: str) -> tuple[list[Line], list[Fault]]:
    """The requests in order, or every fault found (the first `ERRORS_MAX`); a file with faults is not run at all."""
    lines: list[Line] = []
    faults: list[Fault] = []
    seen: set[str] = set()
    for number, raw in enumerate(content.split(b"\n"), 1):
        if not raw.strip():
            continue
        if len(lines) + len(faults) >= LINES_MAX:
            faults.append(Fault("too_many_requests", f"a batch has at most {LINES_MAX} requests", number))
            break
        found = _read(raw, number, endpoint)
        if isinstance(found, Line):
            if found.custom_id in seen:
                twice = f"custom_id {found.custom_id!r} is there twice"
                found = Fault("duplicate_custom_id", twice, number, "custom_id")
            else:
                seen.add(found.custom_id)
        if isinstance(found, Line):
            lines.append(found)
        else:
            faults.append(found)
            if len(faults) >= ERRORS_MAX:
                break
    if not lines and not faults:
        faults.append(Fault("empty_file", "the file has no requests"))
    return lines, faults


def _read(raw: bytes, number: int, endpoint: str) -> Line | Fault:
    if len(raw) > LINE_BYTES_MAX:
        return Fault("line_too_long", f"a line has at most {LINE_BYTES_MAX} bytes", number)
    try:
        line = _line.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return Fault("invalid_json_line", f"not a request of a batch: {error}", number)
    if not 1 <= len(line.custom_id) <= 512:
        return Fault("invalid_custom_id", "custom_id must have 1 to 512 characters", number, "custom_id")
    if line.method != "POST":
        return Fault("invalid_method", "method must be POST", number, "method")
    if line.url != endpoint:
        return Fault("mismatched_url", f"url must be {endpoint}, the batch's endpoint", number, "url")
    try:
        body = _body.decode(line.body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return Fault("invalid_body", f"body: {error}", number, "body")
    refused: tuple[tuple[str, Any], ...] = (
        ("stream", body.stream),
        ("background", body.background),
        ("service_tier", body.service_tier not in _STANDARD_TIERS),
    )
    for name, is_there in refused:
        if is_there:
            return Fault("unsupported_parameter", f"{name} has no meaning in a batch: leave it out", number, name)
    return Line(line.custom_id, bytes(line.body))
