"""What hosts of this dialect share when they forward a client's own body, or decide that they must not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from providers.dialects.gemini.encode import generation_of
from providers.neutral import ChatRequest, ToolCallPart
from providers.wire import jsonio

# "fbx1." in base64: a seal of ours on another provider's thinking.
_FOREIGN_SEAL = b'"ZmJ4MS'


def verb(stream: bool) -> str:
    """Without `alt=sse` a stream comes as one JSON array, which cannot be read before its end."""
    return "streamGenerateContent?alt=sse" if stream else "generateContent"


def must_be_encoded(body: bytes, request: ChatRequest, model: str) -> bool:
    """Whether Google would refuse the client's own bytes: they carry thinking that another provider sealed, or calls
    that another provider's model made and so did not sign."""
    return _FOREIGN_SEAL in body or ((generation_of(model) or 0) >= 3 and _has_unsigned_turn(request))


def _has_unsigned_turn(request: ChatRequest) -> bool:
    """Whether the first call of some model turn has no signature."""
    for message in request.messages:
        calls = [part for part in message.content if isinstance(part, ToolCallPart) and part.kind != "server"]
        if calls and calls[0].signature is None:
            return True
    return False


def with_output_limit(body: dict[str, Any], limit: int | None) -> dict[str, Any]:
    """The limit that the hold rests on, in place of the client's own."""
    if limit is None:
        return body
    key = "generation_config" if "generation_config" in body else "generationConfig"
    config = jsonio.plain(body.get(key)) or {}
    config.pop("max_output_tokens", None)
    return {**body, key: {**config, "maxOutputTokens": limit}}


def without_ids(body: dict[str, Any]) -> dict[str, Any]:
    """Vertex knows no ids of calls and refuses unknown fields; it matches results to calls by name and order."""
    contents = jsonio.plain(body.get("contents"))
    if not isinstance(contents, list):
        return body
    return {**body, "contents": [_content_without_ids(content) for content in contents]}


_IDENTIFIED = ("functionCall", "functionResponse", "function_call", "function_response")


def _content_without_ids(content: Any) -> Any:
    if not isinstance(content, dict) or not isinstance(content.get("parts"), list):
        return content
    parts = [_part_without_id(part) if isinstance(part, dict) else part for part in content["parts"]]
    return {**content, "parts": parts}


def _part_without_id(part: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: {name: inner for name, inner in value.items() if name != "id"}
        if key in _IDENTIFIED and isinstance(value, dict)
        else value
        for key, value in part.items()
    }
