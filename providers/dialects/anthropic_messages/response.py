"""A whole Message and the neutral answer, both ways.

Source: anthropic-python 2.12 `types/message.py`, `types/stop_reason.py`, read 2026-11.
"""

from __future__ import annotations

from typing import Any

import msgspec

from providers.dialects.anthropic_messages import wire
from providers.dialects.anthropic_messages.content import response_block_out, response_part_in
from providers.dialects.anthropic_messages.errors import from_object
from providers.dialects.anthropic_messages.usage import usage_in, usage_out
from providers.errors import BadRequest, WireError
from providers.neutral import Candidate, ChatRequest, ChatResponse, Finish, FinishReason, Usage

FINISH_REASON: dict[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
# There is no word for an answer that the model itself spoilt: for a client it is one that ended.
_STOP_REASON: dict[FinishReason, str] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
    "error": "end_turn",
}

_decoder = msgspec.json.Decoder(wire.Response)


def finish_reason(stop_reason: str | None) -> FinishReason:
    """A word that is newer than this table ends an answer like any other."""
    return FINISH_REASON.get(stop_reason or "", "stop")


def stop_reason(finish: Finish | Candidate) -> str:
    """The native word where an Anthropic model said it, so that pause_turn stays pause_turn."""
    reason = finish.reason if isinstance(finish, Finish) else finish.finish_reason
    if finish.native_reason in FINISH_REASON and FINISH_REASON[finish.native_reason] == reason:
        return finish.native_reason
    if reason == "stop" and finish.stop_sequence is not None:
        return "stop_sequence"
    return _STOP_REASON[reason]


def message_id(ident: str) -> str:
    """Their clients only echo it; the prefix is what people look for in logs."""
    return ident if ident.startswith("msg_") else f"msg_{ident}"


def decode_response(body: bytes) -> ChatResponse:
    """Raises: WireError; a ProviderError kind for an error object behind a 200."""
    try:
        message = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _not_a_message(body, error) from error
    if message.type == "error" or message.error is not None:
        raise from_object(msgspec.json.decode(body), body=body)
    try:
        parts = tuple(part for part in map(response_part_in, message.content) if part is not None)
    except BadRequest as error:
        raise WireError(f"a content block that the reference rules out: {error.message}", body=body) from error
    candidate = Candidate(parts, finish_reason(message.stop_reason), message.stop_reason, message.stop_sequence)
    usage = usage_in(message.usage) if message.usage is not None else Usage()
    return ChatResponse(message.id, message.model, (candidate,), usage)


def _not_a_message(body: bytes, error: Exception) -> Exception:
    """An error object has no `content`, so it fails to decode as a message; it still tells more than that."""
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return WireError(f"not JSON: {error}", body=body[:4096])
    if isinstance(found, dict) and (found.get("type") == "error" or "error" in found):
        return from_object(found, body=body)
    return WireError(f"not a message: {error}", body=body[:4096])


def encode_response(response: ChatResponse, request: ChatRequest) -> bytes:
    candidate = response.candidates[0] if response.candidates else Candidate((), "stop")
    message: dict[str, Any] = {
        "id": message_id(response.id),
        "type": "message",
        "role": "assistant",
        "model": request.model,
        "content": [block for block in map(response_block_out, candidate.content) if block is not None],
        "stop_reason": stop_reason(candidate),
        "stop_sequence": candidate.stop_sequence,
        "stop_details": None,
        "container": None,
        "usage": usage_out(response.usage),
    }
    return msgspec.json.encode(message)
