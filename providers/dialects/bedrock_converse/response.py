"""A whole Converse answer and the neutral one, both ways.

Source: botocore 1.44 shapes ConverseResponse and StopReason, read 2026-11.
"""

from __future__ import annotations

import base64
from typing import Any

import msgspec
from msgspec.structs import replace

from providers.dialects.bedrock_converse import wire
from providers.dialects.bedrock_converse.content import (
    NAME,
    arguments_object,
    parts_in,
    valid_base64,
)
from providers.dialects.bedrock_converse.errors import message_of, of_type
from providers.dialects.bedrock_converse.usage import usage_in, usage_out
from providers.dialects.claude import SEALED_FOR_CLAUDE
from providers.dialects.names import id_with_signature, widen_name
from providers.dialects.sealed import Sealed, seal
from providers.errors import BadRequest, ProviderError, WireError
from providers.neutral import (
    Candidate,
    ChatRequest,
    ChatResponse,
    Citation,
    Finish,
    FinishReason,
    ImagePart,
    Part,
    ReasoningPart,
    RefusalPart,
    TextPart,
    ToolCallPart,
    Usage,
)

FINISH_REASON: dict[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "guardrail_intervened": "content_filter",
    "content_filtered": "content_filter",
    "malformed_model_output": "error",
    "malformed_tool_use": "error",
}
_STOP_REASON: dict[FinishReason, str] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "content_filtered",
    "error": "malformed_model_output",
}

_decoder = msgspec.json.Decoder(wire.Response)


def finish_reason(stop_reason: str | None) -> FinishReason:
    """A word that is newer than this table ends an answer like any other."""
    return FINISH_REASON.get(stop_reason or "", "stop")


def stop_reason(finish: Finish | Candidate) -> str:
    """The native word where a Bedrock model said it."""
    reason = finish.reason if isinstance(finish, Finish) else finish.finish_reason
    if finish.native_reason in FINISH_REASON and FINISH_REASON[finish.native_reason] == reason:
        return finish.native_reason
    if reason == "stop" and finish.stop_sequence is not None:
        return "stop_sequence"
    return _STOP_REASON[reason]


def stop_sequence_in(fields: Any) -> str | None:
    """Claude tells the matched sequence among its additional response fields, when asked to."""
    found = fields.get("stop_sequence") if isinstance(fields, dict) else None
    return found if isinstance(found, str) else None


def decode_response(body: bytes, *, ident: str, model: str) -> ChatResponse:
    """Raises: WireError; a ProviderError kind for an error object behind a 200."""
    try:
        answer = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _not_an_answer(body, error) from error
    try:
        found = parts_in(answer.output.message.content, "output.message.content", {})
    except BadRequest as error:
        raise WireError(f"a content block that the reference rules out: {error.message}", body=body) from error
    parts = tuple(replace(p, name=widen_name(p.name)) if isinstance(p, ToolCallPart) else p for p in found)
    candidate = Candidate(
        parts,
        finish_reason(answer.stopReason),
        answer.stopReason,
        stop_sequence_in(answer.additionalModelResponseFields),
    )
    usage = usage_in(answer.usage, answer.serviceTier) if answer.usage is not None else Usage()
    return ChatResponse(ident, model, (candidate,), usage)


def _not_an_answer(body: bytes, error: Exception) -> ProviderError:
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return WireError(f"not JSON: {error}", body=body[:4096])
    if isinstance(found, dict) and (text := message_of(found)) is not None and "output" not in found:
        word = found.get("__type")
        return of_type(word.rpartition("#")[2] if isinstance(word, str) else None, text, found, body=body)
    return WireError(f"not a Converse answer: {error}", body=body[:4096])


def encode_response(response: ChatResponse, request: ChatRequest) -> bytes:
    candidate = response.candidates[0] if response.candidates else Candidate((), "stop")
    content = [block for block in map(block_out, candidate.content) if block is not None]
    answer: dict[str, Any] = {
        "output": {"message": {"role": "assistant", "content": content}},
        "stopReason": stop_reason(candidate),
        "usage": usage_out(response.usage),
        "metrics": {"latencyMs": 0},  # required, and not ours to know: a dialect has no clock
    }
    if response.usage.service_tier in ("default", "priority", "flex", "reserved"):
        answer["serviceTier"] = {"type": response.usage.service_tier}
    if candidate.stop_sequence is not None:
        answer["additionalModelResponseFields"] = {"stop_sequence": candidate.stop_sequence}
    return msgspec.json.encode(answer)


def block_out(part: Part) -> wire.Block | None:
    """A part of an answer for a Bedrock client; None for one that they have no block for."""
    match part:
        case TextPart("") | RefusalPart(""):
            return None  # clients send an answer back as it came, and an empty text is refused
        case TextPart(text):
            if cited := [raw for raw in map(citation_out, part.citations) if raw is not None]:
                return {"citationsContent": {"content": [{"text": text}], "citations": cited}}
            return {"text": text}
        case RefusalPart(text):
            return {"text": text}
        case ReasoningPart():
            if is_redacted(part):
                return {"reasoningContent": {"redactedContent": redacted_out(part.redacted or "")}}
            signature = {"signature": s} if (s := signature_out(part)) else {}
            return {"reasoningContent": {"reasoningText": {"text": part.text} | signature}}
        case ToolCallPart(kind="server"):
            return None
        case ToolCallPart():
            try:
                found = arguments_object(part.arguments, "arguments")
            except BadRequest:
                found = {"_malformed": part.arguments}  # the model's slip; the client's own schema check will say so
            return {"toolUse": tool_start_out(part) | {"input": found}}
        case ImagePart(media_type, str() as data):
            return {"image": {"format": (media_type or "image/png").partition("/")[2], "source": {"bytes": data}}}
        case _:
            return None


def tool_start_out(call: ToolCallPart) -> dict[str, Any]:
    return {"toolUseId": id_with_signature(call), "name": call.name}


def is_redacted(part: ReasoningPart) -> bool:
    """Thinking that Claude itself sealed away. Another model's rides in a signature, beside what can be read of it."""
    return part.redacted is not None and part.dialect in (None, *SEALED_FOR_CLAUDE)


def redacted_out(data: str) -> str:
    """A blob must be base64, or boto3 fails on the whole answer."""
    return data if valid_base64(data) else base64.b64encode(data.encode()).decode()


def signature_out(part: ReasoningPart) -> str:
    """What a Bedrock client keeps for the next turn."""
    if part.dialect in (None, *SEALED_FOR_CLAUDE):
        return part.signature or ""
    if part.signature is None and part.redacted is None:
        return ""
    return seal(Sealed(part.dialect, part.signature, part.redacted, part.id))


def citation_out(citation: Citation) -> dict[str, Any] | None:
    if citation.dialect == NAME and isinstance(citation.raw, dict):
        return citation.raw
    if citation.url is None and citation.title is None:
        return None
    raw: dict[str, Any] = {"title": citation.title or citation.url}
    if citation.url is not None:
        raw["location"] = {"web": {"url": citation.url}}
    if citation.quote is not None:
        raw["sourceContent"] = [{"text": citation.quote}]
    return raw
